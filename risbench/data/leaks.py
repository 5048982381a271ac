"""Leaks: images of an evaluation split that are also in training sets.

Image ids are compared among data sets whose cards name the same folder of images: a family. RefCOCO, RefCOCO+ and
RefCOCOg use images of COCO's train2014, and an image of COCO has the same id in every release.

The share of a split that leaked is a number only where every training set is known and at hand: see `leaked_percent`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from risbench import datasets, files
from risbench.data import pretrained, source
from risbench.data.annotation_files import Id
from risbench.data.index import Index
from risbench.data.split import Ints
from risbench.datasets import Card
from risbench.errors import InputError
from risbench.render import Cell, Column, Table


@dataclass(slots=True)
class _Image:
    id: Id


@dataclass(slots=True)
class _Instances:
    images: list[_Image]


@dataclass(frozen=True)
class Overlap:
    """How much of an evaluation split lies on images of a training set."""

    training: str
    dataset: str
    split: str
    images: int
    shared_images: int
    expressions: int
    shared_expressions: int


def table(dataset: str, training_files: Sequence[Path], data_root: str = "", partial: bool = False) -> Table:
    """Compare evaluation splits with the training sets below the data root and in files of image ids.

    The evaluation splits are those of `dataset`, or of every data set below the data root. Raises InputError if there
    is nothing to compare.
    """
    from_files = {str(path): image_ids(path) for path in training_files}
    available = [name for name in datasets.names() if source.is_available(name, data_root)]
    if not dataset and not available:
        raise InputError("No data set lies below the data root: give its folder with --data-root, or name a data set.")
    evaluated = [source.open_index(name, data_root, partial=partial) for name in ([dataset] if dataset else available)]
    related = {name for index in evaluated for name in _family(index.card)} - {index.card.name for index in evaluated}
    indices = evaluated + [source.open_index(name, data_root, partial=partial) for name in available if name in related]
    training = [(index.card, ids) for index in indices if len(ids := training_images(index))]
    overlaps: list[Overlap] = []
    for index in evaluated:
        family = {f"{card.name} train": ids for card, ids in training if card.images == index.card.images}
        uses_files = dataset or not index.card.generator  # files hold ids of COCO's images
        overlaps += compare(index, family | (from_files if uses_files else {}))
    if not overlaps:
        raise InputError(
            f"No training set of {evaluated[0].card.name} lies below the data root: give one with --train FILE."
        )
    missing = sorted(related - {*available})
    notes = {
        "shared: on images whose ids are also in the training set.": True,
        f"Not below the data root, and not compared: {', '.join(missing)}.": missing,
        "Read from incomplete copies: more may be shared.": any(index.partial for index in indices),
    }
    return _table(overlaps, [note for note, applies in notes.items() if applies])


def compare(index: Index, training: Mapping[str, Ints]) -> Iterator[Overlap]:
    """Compare every evaluation split of a data set with the image ids of training sets, by their names."""
    for name in index.evaluation_splits():
        split = index.split(name)
        images = np.unique(split.image_id)
        for training_set, ids in training.items():
            shared_images, shared_expressions = (int(np.isin(column, ids).sum()) for column in (images, split.image_id))
            yield Overlap(
                training=training_set,
                dataset=index.card.name,
                split=name,
                images=len(images),
                shared_images=shared_images,
                expressions=len(split),
                shared_expressions=shared_expressions,
            )


def leaked_percent(training_data: Iterable[str], index: Index, split: str, data_root: str = "") -> float | None:
    """Return the percentage of the expressions of a split whose image was trained on.

    None if it is not known: a low number from a part of the training data would hide the rest.
    """
    ids = [_ids_of(name, index, split, data_root) for name in dict.fromkeys(training_data)]
    known = [one for one in ids if one is not None]
    if len(known) < len(ids):
        return None
    return 100 * float(np.isin(index.split(split).image_id, _union(known)).mean())


def _ids_of(name: str, index: Index, split: str, data_root: str) -> Ints | None:
    """Return the ids of the training images of a data set; None if it is unknown, not at hand or incomplete.

    Data sets whose cards name another folder of images share no image.
    """
    if name == index.card.name:
        return training_images(index)
    if pretrained.has_no_coco(name):
        return _union([])
    releases = pretrained.coco_split(name)
    if releases is not None:
        return _coco_ids(releases, index, split, data_root)
    with suppress(InputError):  # a damaged copy or card of another data set is no reason to lose a result
        if name in datasets.names() and datasets.load(name).images != index.card.images:
            return _union([])
        if name in datasets.names() and source.is_available(name, data_root):
            other = source.open_index(name, data_root, partial=True)
            return None if other.partial else training_images(other)
    return None


def _coco_ids(releases: Sequence[str], index: Index, split: str, data_root: str) -> Ints | None:
    """Return the ids of COCO's training images by the first of its lists that is at hand, for images of COCO.

    Where a name leaves the release open either list will do: train2014 is a part of train2017, and the images of the
    RefCOCO family are of train2014.
    """
    if index.card.generator or not all(_is_named_as_coco(index, number) for number in set(index.split(split).image_id)):
        return None
    for path in (folder / f"instances_{name}.json" for name in releases for folder in _coco_folders(index, data_root)):
        with suppress(InputError):
            if path.is_file():
                return _cached_ids(path, path.stat().st_mtime_ns)
    return None


def _is_named_as_coco(index: Index, image_id: int) -> bool:
    """Whether the file of an image is named by its id, as COCO_train2014_000000000009.jpg is: ids are then COCO's."""
    return index.image_path(image_id).stem.rpartition("_")[2] == f"{image_id:012d}"


def _coco_folders(index: Index, data_root: str) -> Iterator[Path]:
    """Yield the folders in which COCO's own annotations usually lie: below the data root, or beside the images."""
    root = source.data_root_of(index.card, data_root)
    yield from (root, root / "annotations", root / "coco" / "annotations")
    images = [root / index.card.images, index.images_folder]
    yield from (parent / "annotations" for folder in images for parent in (folder, *list(folder.parents)[:2]))


@cache
def _cached_ids(path: Path, _modified: int) -> Ints:
    """Read a file of image ids once: COCO's has 0.4 GiB, and every split of a run needs it."""
    return image_ids(path)


def training_images(index: Index) -> Ints:
    """Return the ids of the images of the splits that are not for evaluation, whatever the limit."""
    index = index.limited(0)
    names = [name for name in index.split_names() if not index.card.splits[name].evaluation]
    return _union(index.split(name).image_id for name in names)


def image_ids(path: Path) -> Ints:
    """Read the image ids of a file: COCO's instances, a JSON list, or a text with one id on each line."""
    try:
        content = files.read_bytes(path, files.DATA_LIMIT)
    except OSError as error:
        raise InputError(f"The training set {path} cannot be read: {error.strerror}. Give another path.") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    ids = _ids_in_json(content) if path.suffix.lower() == ".json" else _ids_in_lines(content)
    if not ids:
        raise InputError(
            f"{path} holds no list of image ids: give COCO's instances_*.json, a JSON list of numbers (both .json), or "
            "a text with one number on each line."
        )
    return np.unique(np.array(ids, np.int64))


def _ids_in_json(content: bytes) -> list[int]:
    adapter: TypeAdapter[_Instances | list[int]] = TypeAdapter(_Instances | list[Id])
    try:
        value = adapter.validate_python(files.parse_json(content))
    except ValueError:  # of the parser or of the schema
        return []
    return [image.id for image in value.images] if isinstance(value, _Instances) else value


def _ids_in_lines(content: bytes) -> list[int]:
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return [int(line) for line in lines] if all(line.isdigit() and len(line) < 19 for line in lines) else []


def _family(card: Card) -> list[str]:
    """Return the names of the data sets with the same folder of images, in which equal ids are the same image."""
    names = []
    for name in datasets.names():
        with suppress(InputError):  # a damaged card of another data set is no reason to lose a result
            names += [name] * (datasets.load(name).images == card.images)
    return names


def _union(ids: Iterable[Ints]) -> Ints:
    return np.unique(np.concatenate([np.empty(0, np.int64), *ids]))


def _table(overlaps: Iterable[Overlap], notes: Iterable[str]) -> Table:
    rows = tuple(
        (
            Cell(overlap.training),
            Cell(overlap.dataset),
            Cell(overlap.split),
            Cell(overlap.images),
            Cell(overlap.shared_images),
            Cell(100 * overlap.shared_images / overlap.images),
            Cell(overlap.expressions),
            Cell(overlap.shared_expressions),
            Cell(100 * overlap.shared_expressions / overlap.expressions),
        )
        for overlap in sorted(overlaps, key=lambda overlap: overlap.training)
    )
    columns = (
        Column("training set", "block"),
        *map(Column, ("data set", "split")),
        *(Column(name, numeric=True) for name in ("images", "shared images", "shared images %")),
        *(Column(name, numeric=True) for name in ("expressions", "shared expressions", "shared expressions %")),
    )
    return Table("leaks", "Images of training sets in evaluation splits", columns, rows, tuple(notes))
