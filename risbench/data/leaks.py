"""Leaks: images of an evaluation split that training sets hold, too.

An image is told by its id, among data sets whose cards name one folder of images: a family. RefCOCO, RefCOCO+ and
RefCOCOg take theirs from COCO's train2014, and an image of COCO has one id in every release.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, Strict, TypeAdapter, ValidationError

from risbench import datasets
from risbench.data import source
from risbench.data.index import Index
from risbench.data.split import Ints
from risbench.datasets import Card
from risbench.errors import InputError
from risbench.render import Cell, Column, Table

_Id = Annotated[int, Strict(), Field(ge=0, lt=2**63)]


@dataclass(slots=True)
class _Image:
    id: _Id


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


def table(dataset: str, files: Sequence[Path], data_root: str = "", partial: bool = False) -> Table:
    """Compare the evaluation splits of a data set, or of all at hand, with training sets at hand and in files."""
    given = {str(path): image_ids(path) for path in files}
    at_hand = [name for name in datasets.names() if source.is_at_hand(name, data_root)]
    if not dataset and not at_hand:
        raise InputError("No data set lies below the data root: give its folder with --data-root, or name a data set.")
    evaluated = [source.open_index(name, data_root, partial=partial) for name in ([dataset] if dataset else at_hand)]
    related = {name for index in evaluated for name in _family(index.card)} - {index.card.name for index in evaluated}
    others = [source.open_index(name, data_root, partial=partial) for name in at_hand if name in related]
    sets = [(one.card, ids) for one in [*evaluated, *others] if len(ids := training_images(one))]
    found: list[Overlap] = []
    for index in evaluated:
        family = {f"{card.name} train": ids for card, ids in sets if card.images == index.card.images}
        theirs = {} if index.card.generator and not dataset else given  # files hold ids of COCO's images
        found += compare(index, {**family, **theirs})
    if not found:
        raise InputError(f"No training set of {evaluated[0].card.name} is at hand: give one with --train FILE.")
    missing = sorted(related - {*at_hand})
    said = {
        "shared: on images whose ids the training set has, too.": True,
        f"Not at hand, and not compared: {', '.join(missing)}.": missing,
        "Read from incomplete copies: more may be shared.": any(index.partial for index in [*evaluated, *others]),
    }
    return _table(found, [text for text, applies in said.items() if applies])


def compare(index: Index, training: Mapping[str, Ints]) -> Iterator[Overlap]:
    """Compare every evaluation split of a data set with the image ids of training sets, by their names."""
    for name in index.split_names():
        if index.card.splits[name].evaluation:
            split = index.split(name)
            images = np.unique(split.image_id)
            for trained, ids in training.items():
                shared, on_shared = (int(np.isin(some, ids).sum()) for some in (images, split.image_id))
                yield Overlap(trained, index.card.name, name, len(images), shared, len(split), on_shared)


def leaked(training_data: Iterable[str], index: Index, split: str, data_root: str = "") -> float | None:
    """Percent of the expressions of a split whose image was trained on, as far as training sets are at hand."""
    named = set(training_data)
    opened = [index] if index.card.name in named else []
    for name in _family(index.card):
        if name in named - {index.card.name} and source.is_at_hand(name, data_root):
            with suppress(InputError):  # a damaged copy of another data set is no reason to lose a result
                opened.append(source.open_index(name, data_root, partial=True))
    ids = _union(map(training_images, opened))
    return 100 * float(np.isin(index.split(split).image_id, ids).mean()) if len(ids) else None


def training_images(index: Index) -> Ints:
    """Ids of the images in the splits that are for training only."""
    names = [name for name in index.split_names() if not index.card.splits[name].evaluation]
    return _union(index.split(name).image_id for name in names)


def image_ids(path: Path) -> Ints:
    """Image ids of a file: of COCO's instances, of a JSON list, or of a text with one on each line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"The training set {path} cannot be read: {error.strerror}. Give another path.") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    ids = _of_json(content) if path.suffix.lower() == ".json" else _of_lines(content)
    if not ids:
        raise InputError(
            f"{path} holds no list of image ids: give COCO's instances_*.json, a JSON list of numbers (both .json), or "
            "a text with one number on each line."
        )
    return np.unique(np.array(ids, np.int64))


def _of_json(content: bytes) -> list[int]:
    reader: TypeAdapter[_Instances | list[int]] = TypeAdapter(_Instances | list[_Id])
    try:
        found = reader.validate_json(content)
    except ValidationError:
        return []
    return [image.id for image in found.images] if isinstance(found, _Instances) else found


def _of_lines(content: bytes) -> list[int]:
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return [int(line) for line in lines] if all(line.isdigit() and len(line) < 19 for line in lines) else []


def _family(card: Card) -> list[str]:
    """Names of the data sets whose images lie in the same folder, so that equal ids are one image."""
    return [name for name in datasets.names() if datasets.load(name).images == card.images]


def _union(ids: Iterable[Ints]) -> Ints:
    return np.unique(np.concatenate([np.empty(0, np.int64), *ids]))


def _table(found: Iterable[Overlap], notes: Iterable[str]) -> Table:
    rows = tuple(
        (
            Cell(one.training),
            Cell(one.dataset),
            Cell(one.split),
            Cell(one.images),
            Cell(one.shared_images),
            Cell(100 * one.shared_images / one.images),
            Cell(one.expressions),
            Cell(one.shared_expressions),
            Cell(100 * one.shared_expressions / one.expressions),
        )
        for one in sorted(found, key=lambda overlap: overlap.training)
    )
    columns = (
        Column("training set", "block"),
        *map(Column, ("data set", "split")),
        *(Column(name, numeric=True) for name in ("images", "shared images", "shared images %")),
        *(Column(name, numeric=True) for name in ("expressions", "shared expressions", "shared expressions %")),
    )
    return Table("leaks", "Images of training sets in evaluation splits", columns, rows, tuple(notes))
