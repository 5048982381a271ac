"""Examine a data set before a run: missing files, damaged images and odd expressions.

Wrong is what a run refuses, such as a damaged image. What is only odd is a note: published data sets have oddities.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from risbench import progress
from risbench.data import pictures
from risbench.data.index import Index
from risbench.data.rle import Size
from risbench.data.split import Split


class Finding(NamedTuple):
    """One sentence about a data set."""

    kind: Literal["ok", "note", "wrong"]
    text: str


def examine(index: Index) -> list[Finding]:
    """Read every image to its end, and return what is wrong or odd; empty for a faultless data set."""
    splits = [index.split(name) for name in index.split_names()]
    notes = [*_other_counts(index), *index.findings, *_training_images(index, splits)]
    for split in splits:
        notes += [f"{split.name}: {finding}" for finding in _odd_expressions(index, split)]
    wrong = _defective_images(index, splits)
    return [*(Finding("wrong", text) for text in wrong), *(Finding("note", text) for text in notes)]


def _other_counts(index: Index) -> Iterator[str]:
    for name, split in index.card.splits.items():
        counts = index.counts(name)
        for unit, expected in split.counts().items():
            if counts[unit] != expected.n:
                source = expected.source or "unverified"
                yield f"{name}: {counts[unit]} {unit}, but the card of {index.card.name} says {expected.n} ({source})"


def _defective_images(index: Index, splits: list[Split]) -> Iterator[str]:
    """Decode the image of every ref; yield one sentence for each kind of defect."""
    image_ids = sorted({image_id for split in splits for image_id in split.image_id.tolist()})
    images = [(index.image_path(image_id), index.image_size(image_id)) for image_id in image_ids]
    defects: dict[str, list[str]] = defaultdict(list)
    for (path, _), defect in zip(images, _image_defects(images), strict=True):
        if defect:
            defects[defect].append(path.name)
    for defect, names in defects.items():
        yield f"{len(names)} of {len(image_ids)} images in {index.images_folder} {defect}: {_first(names)}"


def _image_defects(images: list[tuple[Path, Size]]) -> Iterator[str]:
    """Yield the defect of each image or "". Threads read several at once: Pillow decodes without Python's lock."""
    executor = ThreadPoolExecutor()
    with progress.bar("Examining images", len(images)) as step, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # as the reader does; threads share it
        try:
            for defect in executor.map(_image_defect, images):
                step()
                yield defect
        finally:
            executor.shutdown(cancel_futures=True)


def _image_defect(image: tuple[Path, Size]) -> str:
    try:
        pictures.read(*image)
    except pictures.ImageError as error:
        return error.predicate
    return ""


def _training_images(index: Index, splits: list[Split]) -> Iterator[str]:
    """Count the images of each evaluation split that are also training images."""
    training = [split.image_id for split in splits if not index.card.splits[split.name].evaluation]
    for split in splits:
        if index.card.splits[split.name].evaluation:
            image_ids = np.unique(split.image_id)
            shared = np.intersect1d(image_ids, np.concatenate([*training, image_ids[:0]]))
            if len(shared):
                yield f"{split.name}: {len(shared)} of {len(image_ids)} images are also training images"


def _odd_expressions(index: Index, split: Split) -> Iterator[str]:
    overlapping = np.isin(split.ann_id, index.overlapping_targets())
    if overlapping.any():
        refs = len(np.unique(split.ref_id[overlapping]))
        yield (
            f"{refs} refs ({overlapping.sum()} expressions) have overlapping polygons: "
            "their ground truth depends on the protocol"
        )
    empty = [int(sent_id) for sent_id, text in zip(split.sent_id, split.sent, strict=True) if not text.strip()]
    if empty:
        yield f"{len(empty)} expressions have an empty text: sent_id {_first(empty)}"
    long = sum(len(text.split()) > index.card.max_words for text in split.sent)
    if long:
        yield f"{long} expressions have more than {index.card.max_words} words"
    if ambiguous := _ambiguous_images(split):
        yield f"{len(ambiguous)} expressions refer to several targets in one image: image_id {_first(ambiguous)}"


def _ambiguous_images(split: Split) -> list[int]:
    """Return the image of each text that has several targets in it."""
    targets: dict[tuple[int, str], set[int]] = defaultdict(set)
    for image_id, text, ann_id in zip(split.image_id, split.sent, split.ann_id, strict=True):
        targets[int(image_id), text].add(int(ann_id))
    return [image_id for (image_id, _), ids in targets.items() if len(ids) > 1]


def _first(items: list[int] | list[str]) -> str:
    return ", ".join(map(str, items[:3])) + (", ..." if len(items) > 3 else "")
