"""A job: the options of a run, and the settings that follow from them."""

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
    """The options of a run; stored in run.toml, so that --resume needs only the folder."""

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
        lines = [f"{key} = {recipe.to_toml(value)}" for key, value in self.model_dump().items()]
        (folder / "run.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read run.toml from the folder of a run."""
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


def resolve_settings(job: Job, resume: Path | None = None) -> tuple[Recipe, list[str]]:
    """Return the resolved recipe of a job and its variants: from the checkpoint, the resumed run or the method."""
    name = methods.folder(job.method).name if job.method else ""
    if name:
        methods.module(job.method)  # a folder named by its path becomes known by its name
    if job.checkpoint:
        return _checkpoint_settings(job, name)
    settings, variants = training_settings(job)
    if resume is not None:
        return recipe.validate(recipe.read(resume / "recipe.toml"), str(resume / "recipe.toml")), variants
    return settings, variants


def _checkpoint_settings(job: Job, method: str) -> tuple[Recipe, list[str]]:
    from risbench.engine.checkpoint import Checkpoint  # needs torch

    checkpoint = Checkpoint(Path(job.checkpoint))
    if method and method != checkpoint.facts.method:
        raise InputError(
            f"{job.checkpoint} is a checkpoint of {checkpoint.facts.method}, not of {method}. Leave --method out."
        )
    if job.variants:
        raise InputError("A checkpoint has its variants in its recipe: leave --variant out.")
    if job.init:
        raise InputError("--init starts training, and a --checkpoint is not trained on: leave one of them out.")
    settings, _ = recipe.load(checkpoint.folder / "recipe.toml", [], job.overrides)
    _refuse_training_overrides(job.overrides)
    return _with_max_tokens(settings, [job.dataset]), checkpoint.facts.variants


def training_settings(job: Job) -> tuple[Recipe, list[str]]:
    """Return the resolved recipe of a job that trains, and its variants; the method is not imported."""
    card = datasets.load(job.dataset)
    settings, variants = recipe.load(methods.recipe_file(job.method), job.variants, job.overrides, card.default_variant)
    return _with_max_tokens(settings, [job.dataset, *settings.train.datasets]), variants


def _with_max_tokens(settings: Recipe, names: list[str]) -> Recipe:
    """Replace text.max_tokens=0 by the largest max_words among the cards of these data sets."""
    if settings.text.max_tokens:
        return settings
    words = max(datasets.load(name).max_words for name in names)
    return settings.model_copy(update={"text": settings.text.model_copy(update={"max_tokens": words})})


def _refuse_training_overrides(overrides: list[str]) -> None:
    """Refuse overrides of training or network settings, which are fixed in a checkpoint."""
    for assignment in overrides:
        key = assignment.partition("=")[0].strip()
        if not key.startswith(("image.", "text.", "predict.")) and key not in ("train.workers", "train.precision"):
            raise InputError(
                f"{key} has no effect on a trained checkpoint, so it cannot be overridden: leave it out. Only image.*, "
                "text.*, predict.*, train.workers and train.precision can."
            )


def comma_separated(text: str) -> list[str]:
    """Split "a,b,c" at its commas; empty and repeated parts are dropped."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def job_from_options(options: dict[str, Any]) -> Job:
    """Build the job from the options of a command, by parameter name."""
    return Job(
        method=options.get("method", ""),
        dataset=options["dataset"],
        variants=comma_separated(options.get("variant", "")),
        overrides=options["overrides"] or [],
        splits=comma_separated(options.get("split", "")),
        protocols=comma_separated(options["protocol"]),
        checkpoint=options.get("checkpoint", ""),
        init=options.get("init", ""),
        data_root=options["data_root"],
        images=options["images"],
        partial=options["partial"],
    )


def parse_seeds(text: str) -> list[int]:
    """Parse the value of --seed: "0" or "0,1,2"."""
    seeds = comma_separated(text)
    if not seeds or not all(seed.isdecimal() and len(seed) <= 10 and int(seed) < 2**32 for seed in seeds):
        raise InputError(f"--seed {text!r} is not a list of numbers from 0 to {2**32 - 1}: write 0 or 0,1,2.")
    return [int(seed) for seed in seeds]


def refuse_options(context: typer.Context, chosen: str, names: Iterable[str]) -> None:
    """Raise InputError if one of these parameters is on the command line, where the chosen option ignores it."""
    labels = {
        str(parameter.name): parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
        for parameter in context.command.params
    }
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            label = "overrides of the recipe" if name == "overrides" else labels[name]
            raise InputError(f"{chosen} takes no {label}, which would have no effect: leave that out.")
