"""What a run was begun with: data, images, recipe, options and weights, as hashes in its run.toml; needs no torch.

Places may change: a run goes on with moved data, because the hashes say that they are the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from risbench import files, methods
from risbench.data import source
from risbench.errors import InputError, defect
from risbench.recipe import Recipe
from risbench.runs.job import PLACES, RECIPE_FILE, RUN_FILE, Job, read_run_file

if TYPE_CHECKING:
    from risbench.data.index import Index

_PATHS = ("images", "init", "checkpoint")
_MAX_IMAGES = 1000  # of a split whose sizes are hashed: a network disk takes milliseconds for each
_MAX_CONTENTS = 100  # of a split whose contents are hashed: 10 MB of COCO's
_MAX_PRETRAINED = 64 * 2**30  # bytes, as the readers of weights accept
_log = logging.getLogger(__name__)


class Inputs(BaseModel):
    """What a run was begun with: names, and hashes."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    dataset: str  # the evaluated data set, by its name
    variants: list[str]  # those that are applied
    options: str  # of the job without its places
    recipe: str  # of recipe.toml
    code: str = ""  # of the method
    weights: dict[str, str] = {}  # of the checkpoint of --init or --checkpoint, by the option's name
    pretrained: dict[str, str] = {}  # of the files that the recipe names, by its key
    indices: dict[str, str]  # of the annotation files, by data set
    images: dict[str, str]  # of the image files, by data set and split

    @classmethod
    def read(cls, folder: Path) -> Inputs | None:
        """Read the inputs of a run; None for a run of risbench 0.2 or older, which kept none."""
        values = read_run_file(folder).get("inputs")
        try:
            return None if values is None else cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{folder / RUN_FILE} cannot be read (inputs.{defect(error)}). Start a new run.") from None

    def is_same_data(self, other: Inputs) -> bool:
        """Whether two runs have the same annotations, images and initial weights, as far as both hashed them."""
        splits, keys = self.images.keys() & other.images.keys(), self.pretrained.keys() & other.pretrained.keys()
        return (
            (self.indices, self.weights) == (other.indices, other.weights)
            and all(self.images[name] == other.images[name] for name in splits)
            and all(self.pretrained[key] == other.pretrained[key] for key in keys)
        )


def hash_options(job: Job) -> str:
    """Hash the options of a job without its places."""
    text = job.model_dump_json(exclude=set(PLACES), exclude_defaults=True)  # so that later options change no hash
    return hashlib.sha256(text.encode()).hexdigest()


def hash_images(index: Index, split: str) -> str:
    """Hash the names and sizes of at most 1,000 image files of a split, spread over it, and the contents of 100."""
    paths = [index.image_path(image_id) for image_id in sorted(set(index.split(split).image_id.tolist()))]
    names = [(path.name, path.stat().st_size if path.is_file() else None) for path in _spread(paths, _MAX_IMAGES)]
    contents = [files.sha256(path) if path.is_file() else None for path in _spread(paths, _MAX_CONTENTS)]
    return hashlib.sha256(repr([names, contents]).encode()).hexdigest()


def _spread(paths: Sequence[Path], most: int) -> Sequence[Path]:
    return paths[:: -(-len(paths) // most) or 1]


def hash_pretrained(settings: Recipe) -> dict[str, str]:
    """Hash the files and folders that the keys of [model] name, such as word vectors or pretrained weights."""
    hashes = {}
    for key, value in settings.model.items():
        path = Path(value) if isinstance(value, str) and value else None
        if path and path.is_file():
            hashes[f"model.{key}"] = files.sha256(path, limit=_MAX_PRETRAINED)
        elif path and path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file()]
            hashes[f"model.{key}"] = files.sha256_of_files(path, inside)
    return hashes


def data_sets(job: Job, settings: Recipe) -> list[str]:
    """Return the data sets of a run: the evaluated one, then those that it is trained on."""
    return list(dict.fromkeys([job.dataset, *([] if job.checkpoint else settings.train.datasets)]))


def with_absolute_places(job: Job, names: Sequence[str]) -> Job:
    """Return a job whose places hold in every working directory; `names` are its data sets.

    The data root is "" if no data set needs one, because all are generated.
    """
    root = source.used_root(names, job.data_root)
    places = {name: str(Path(value).resolve()) for name in _PATHS if (value := getattr(job, name))}
    dataset = str(Path(job.dataset).resolve()) if job.dataset.endswith(".toml") else job.dataset
    places = {**places, "dataset": dataset, "data_root": str(root.resolve()) if root else ""}
    return job.model_copy(update=places)


def check_places(job: Job) -> None:
    """Refuse places that run.toml cannot hold, because their names are not UTF-8."""
    for place in (getattr(job, name) for name in PLACES):
        if place.encode(errors="replace").decode() != place:
            raise InputError(f"The path {place!r} is not text in UTF-8, so {RUN_FILE} cannot hold it: rename it.")


def check_unchanged(folder: Path, today: Inputs, indices: Iterable[Index]) -> None:
    """Refuse to go on with a run whose options, recipe, weights, annotations or images are not those it began with.

    `indices` are its data sets today. A run that kept no inputs goes on with a warning.
    """
    kept = Inputs.read(folder)
    if kept is None:
        _log.warning("%s does not say which data it began with (risbench 0.2): it goes on with today's.", folder)
        return
    job = Job.read(folder)
    if job.method:
        methods.warn_of_other_code(job.method, kept.code, folder)
    begun, cure = f"The run {folder} was begun with", "or start a new run"
    if hash_options(job) != kept.options:
        raise InputError(
            f"{folder / RUN_FILE} was edited after the run began: restore it, {cure}. Places may change: give "
            "--data-root or --images beside --resume."
        )
    if today.recipe != kept.recipe:
        raise InputError(
            f"{begun} the recipe {_short(kept.recipe)} (sha256), and {folder / RECIPE_FILE} is {_short(today.recipe)}: "
            f"restore that file, {cure} with other settings."
        )
    if today.weights != kept.weights:
        raise InputError(
            f"{begun} {_describe_weights(kept.weights)}, and today there is {_describe_weights(today.weights)}: give "
            f"the place of the former with {' or '.join(f'--{name}' for name in kept.weights)}, {cure}."
        )
    if not (folder / "checkpoints" / "last").exists():  # later it reads its own weights
        _check_pretrained(kept.pretrained, today.pretrained, f"{begun} {{}}, {{}}, {cure}.")
    if today.indices != kept.indices:
        raise InputError(
            f"{begun} {_describe_indices(kept.indices)}, and today's data are {_describe_indices(today.indices)} "
            f"(sha256 of the annotation files): give the folder of the former with --data-root, {cure}."
        )
    for name, value in kept.images.items():
        if today.images.get(name, value) != value:
            place = next(index.images_folder for index in indices if name.startswith(f"{index.card.name} "))
            raise InputError(
                f"{begun} images of {name} with the hash {_short(value)}, and those in {place} have "
                f"{_short(today.images[name])}: give the folder of the former with --images, {cure}."
            )


def _check_pretrained(kept: Mapping[str, str], today: Mapping[str, str], message: str) -> None:
    """Refuse another file behind a key of the recipe; a file that is gone is refused by its reader."""
    for key in kept.keys() & today.keys():
        if kept[key] != today[key]:
            was = f"a file {_short(kept[key])} (sha256) as {key}"
            raise InputError(message.format(was, f"and it is {_short(today[key])} today: restore that file"))


def _describe_weights(weights: Mapping[str, str]) -> str:
    return " and ".join(f"the checkpoint {_short(value)} of --{name}" for name, value in weights.items()) or "none"


def _describe_indices(indices: Mapping[str, str]) -> str:
    return " and ".join(f"{name} {_short(value)}" for name, value in indices.items())


def _short(sha256: str) -> str:
    return sha256[:12]
