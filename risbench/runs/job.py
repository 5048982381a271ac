"""A job: the options of a run, and the settings that follow from them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import tomli_w
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from risbench import datasets, files, methods, recipe
from risbench.errors import InputError, defect
from risbench.recipe import Recipe

RUN_FILE, RECIPE_FILE = "run.toml", "recipe.toml"
USAGE_ERROR = cast(type[Exception], typer.BadParameter.__mro__[1])  # any error in options; typer does not export it
_EVALUATED = ("train.workers", "train.precision", "train.matmul")  # keys of [train] that an evaluation reads
_FORMER = "train.accumulate"  # a key of recipes before 0.3
PLACES = ("method_path", "dataset", "data_root", "images", "init", "checkpoint")  # which a resumed run may change


class Job(BaseModel):
    """The options of a run; stored in run.toml, so that --resume needs only the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = ""  # a name; `job_from_options` turns a path into one
    method_path: str = ""  # the folder that --method named: for messages only, never followed
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
    limit: int = Field(default=0, ge=0)  # images of every split that the run reads, the first ones; 0: all

    @field_validator("method")
    @classmethod
    def _is_a_name(cls, method: str) -> str:
        """Refuse a path, whichever file or call it comes from."""
        if methods.is_path(method):
            raise ValueError(f"{method!r} is a path, where methods.register gives the name")
        return method

    def write(self, folder: Path, inputs: Mapping[str, Any] | None = None) -> None:
        """Write run.toml, with the hashes of what the run begins with (risbench.runs.inputs)."""
        tables = self.model_dump() | ({} if inputs is None else {"inputs": dict(inputs)})
        files.write_text(folder / RUN_FILE, tomli_w.dumps(tables))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read run.toml from the folder of a run."""
        path, values = folder / RUN_FILE, read_run_file(folder)
        values.pop("inputs", None)
        try:
            if isinstance(method := values.get("method"), str):
                values["method"] = methods.from_file(method, path)
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{path} cannot be read ({defect(error)}). Start a new run.") from None


def read_run_file(folder: Path) -> dict[str, Any]:
    """Read the tables of a run.toml. Raises InputError."""
    path = folder / RUN_FILE
    try:
        return files.parse_toml(files.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is not a run: it holds no {RUN_FILE}. Give a folder such as runs/ID.") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}). Start a new run.") from None


def new_folders(runs: Path, name: str) -> Iterator[Path]:
    """Yield the folders that a new run may have, as long as other runs have taken them: name, name-2, name-3, ..."""
    return (runs / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))


def resolve_settings(job: Job, resume: Path | None = None) -> tuple[Recipe, list[str]]:
    """Return the resolved recipe of a job and its variants: from the checkpoint, the resumed run or the method."""
    if job.method and job.method not in methods.names() and job.method_path:
        raise InputError(
            f"The method {job.method} of this run is known by its path only. If you trust the code there, give it "
            f"again, --method {job.method_path}, or name it in RISBENCH_METHODS."
        )
    if job.checkpoint:
        return _checkpoint_settings(job)
    methods.load(job.method)  # code that cannot be imported is refused before a folder is made
    if resume is None:
        return training_settings(job)
    # what its overrides made of the recipe is stored; a later risbench may not know their keys any more
    return _stored_settings(resume), training_settings(job.model_copy(update={"overrides": []}))[1]


def _stored_settings(folder: Path) -> Recipe:
    """Read the recipe of a run."""
    file = folder / RECIPE_FILE
    if not file.is_file():
        raise InputError(f"The run {folder} holds no {RECIPE_FILE}: restore it, or start a new run.")
    return recipe.validate(recipe.read(file), str(file))


def _checkpoint_settings(job: Job) -> tuple[Recipe, list[str]]:
    from risbench.engine.checkpoint import Checkpoint  # needs torch

    checkpoint = Checkpoint(Path(job.checkpoint), job.method)
    checkpoint.method()  # an unknown method is refused before a folder is made
    if job.variants:
        raise InputError("A checkpoint has its variants in its recipe: leave --variant out.")
    if job.init:
        raise InputError("--init starts training, and a --checkpoint is not trained on: leave one of them out.")
    _refuse_training_overrides(job.overrides, checkpoint.recipe)
    settings, _ = recipe.load(checkpoint.folder / "recipe.toml", [], job.overrides)
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


def _refuse_training_overrides(overrides: list[str], stored: Recipe) -> None:
    """Refuse overrides of training or network settings, which are fixed in a checkpoint."""
    fixed = {f"{section}.{name}" for section in ("model", "train") for name in dict(getattr(stored, section))}
    for assignment in overrides:
        key = assignment.partition("=")[0].strip()
        if key in {*fixed, _FORMER} - {*_EVALUATED}:
            raise InputError(
                f"{key} has no effect on a trained checkpoint, so it cannot be overridden: leave it out. Only image.*, "
                "text.*, predict.*, train.workers, train.precision and train.matmul can."
            )


def comma_separated(text: str) -> list[str]:
    """Split "a,b,c" at its commas; empty and repeated parts are dropped."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def job_from_options(options: dict[str, Any]) -> Job:
    """Build the job from the options of a command, by parameter name; a method given by its path becomes known."""
    method = options.get("method", "")
    return Job(
        method=methods.register(method) if method else "",
        method_path=str(Path(method).resolve()) if methods.is_path(method) else "",
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
        limit=options.get("limit") or 0,
    )


def parse_seeds(text: str) -> list[int]:
    """Parse the value of --seed: "0" or "0,1,2"."""
    seeds = comma_separated(text)
    if not seeds or not all(re.fullmatch("[0-9]{1,10}", seed) and int(seed) < 2**32 for seed in seeds):
        raise InputError(f"--seed {text!r} is not a list of numbers from 0 to {2**32 - 1}: write 0 or 0,1,2.")
    return [int(seed) for seed in seeds]


def option_label(parameter: Any) -> str:
    """Return a parameter of a command as its help writes it: --option or ARGUMENT."""
    return str(parameter.opts[0]) if parameter.param_type_name == "option" else str(parameter.name).upper()


def refuse_options(context: typer.Context, chosen: str, names: Iterable[str]) -> None:
    """Raise InputError if one of these parameters is on the command line, where the chosen option ignores it."""
    labels = {str(parameter.name): option_label(parameter) for parameter in context.command.params}
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            label = "overrides of the recipe" if name == "overrides" else labels[name]
            raise InputError(f"{chosen} takes no {label}, which would have no effect: leave that out.")
