"""A job: what was asked for, and the settings that it means."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from risbench import datasets, methods, recipe
from risbench.errors import InputError, defect
from risbench.recipe import Recipe


class Job(BaseModel):
    """What was asked for; kept in run.toml, so that --resume needs nothing but the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = ""
    dataset: str
    variants: list[str] = []
    overrides: list[str] = []
    splits: list[str] = []
    protocols: list[str] = ["original"]
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint: str = ""
    init: str = ""
    data_root: str = ""
    images: str = ""
    partial: bool = False

    def write(self, folder: Path) -> None:
        """Write run.toml."""
        lines = [f"{key} = {recipe.toml(value)}" for key, value in self.model_dump().items()]
        (folder / "run.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read run.toml of a run that is to be resumed."""
        path = folder / "run.toml"
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(f"{folder} is not a run: it holds no run.toml. Give a folder such as runs/ID.") from None
        except ValidationError as error:
            reason = defect(error)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            reason = str(error)
        raise InputError(f"{path} cannot be read ({reason}). Start a new run.")


def settings_of(job: Job, resume: Path | None = None) -> tuple[Recipe, list[str]]:
    """The resolved recipe of a job and its variants: the checkpoint's, the resumed run's, or the method's."""
    name = methods.folder(job.method).name if job.method else ""
    if name:
        methods.module(job.method)  # a folder given by path is found by its name from here on
    if job.checkpoint:
        from risbench.engine.checkpoint import Checkpoint  # which needs torch

        opened = Checkpoint(Path(job.checkpoint))
        if name and name != opened.facts.method:
            raise InputError(
                f"{job.checkpoint} is a checkpoint of {opened.facts.method}, not of {name}. Leave --method out."
            )
        if job.variants:
            raise InputError("A checkpoint has its variants in its recipe: leave --variant out.")
        if job.init:
            raise InputError("--init starts training, and a --checkpoint is not trained on: leave one of them out.")
        settings, _ = recipe.load(opened.folder / "recipe.toml", [], job.overrides)
        _refuse_without_effect(job.overrides)
        return _with_max_tokens(settings, [job.dataset]), opened.facts.variants
    settings, variants = trained_with(job)
    if resume is not None:
        return recipe.validate(recipe.read(resume / "recipe.toml"), str(resume / "recipe.toml")), variants
    return settings, variants


def trained_with(job: Job) -> tuple[Recipe, list[str]]:
    """The resolved recipe of a job that trains, and its variants, without importing the method."""
    card = datasets.load(job.dataset)
    settings, variants = recipe.load(methods.recipe_file(job.method), job.variants, job.overrides, card.default_variant)
    return _with_max_tokens(settings, [job.dataset, *settings.train.datasets]), variants


def _with_max_tokens(settings: Recipe, names: list[str]) -> Recipe:
    """Replace a text.max_tokens of 0 by the most words that the cards of these data sets name."""
    if settings.text.max_tokens:
        return settings
    words = max(datasets.load(name).max_words for name in names)
    return settings.model_copy(update={"text": settings.text.model_copy(update={"max_tokens": words})})


def _refuse_without_effect(overrides: list[str]) -> None:
    """Refuse overrides of a checkpoint's recipe that speak of training or of the network, which are done."""
    for assignment in overrides:
        key = assignment.partition("=")[0].strip()
        if not key.startswith(("image.", "text.", "predict.")) and key not in ("train.workers", "train.precision"):
            raise InputError(
                f"{key} has no effect on a trained checkpoint, so it cannot be overridden: leave it out. Only image.*, "
                "text.*, predict.*, train.workers and train.precision can."
            )


def parts(text: str) -> list[str]:
    """The parts of a,b,c, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def job_of(options: dict[str, Any]) -> Job:
    """The job that a command's options describe."""
    return Job(
        method=options.get("method", ""),
        dataset=options["dataset"],
        variants=parts(options.get("variant", "")),
        overrides=options["overrides"] or [],
        splits=parts(options.get("split", "")),
        protocols=parts(options["protocol"]),
        checkpoint=options.get("checkpoint", ""),
        init=options.get("init", ""),
        data_root=options["data_root"],
        images=options["images"],
        partial=options["partial"],
    )


def refuse_beside(context: typer.Context, chosen: str, names: Iterable[str]) -> None:
    """Refuse what was given on the command line though the chosen option leaves it without effect."""
    shown = {
        str(given.name): given.opts[0] if given.param_type_name == "option" else str(given.name).upper()
        for given in context.command.params
    }
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            told = "overrides of the recipe" if name == "overrides" else shown[name]
            raise InputError(f"{chosen} takes no {told}, which would have no effect: leave that out.")


def seeds_of(text: str) -> list[int]:
    seeds = parts(text)
    if not seeds or not all(seed.isdecimal() and len(seed) <= 10 and int(seed) < 2**32 for seed in seeds):
        raise InputError(f"--seed {text!r} is not a list of numbers from 0 to {2**32 - 1}: write 0 or 0,1,2.")
    return [int(seed) for seed in seeds]
