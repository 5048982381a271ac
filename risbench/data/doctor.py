"""Examine a data set before a run: missing files, damaged images and odd expressions."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from risbench import progress
from risbench.data.index import Index
from risbench.data.rle import Size
from risbench.data.split import Split


def examine(index: Index, decode: bool = False) -> list[str]:
    """Return one sentence for each finding; `decode` reads every image to its end."""
    splits = [index.split(name) for name in index.split_names()]
    findings = [
        *_wrong_counts(index),
        *index.findings,
        *_defective_images(index, splits, decode),
        *_training_images(index, splits),
    ]
    for split in splits:
        findings += [f"{split.name}: {finding}" for finding in _odd_expressions(index, split)]
    return findings


def _wrong_counts(index: Index) -> Iterator[str]:
    for name, split in index.card.splits.items():
        counts = index.counts(name)
        for unit, expected in split.counts().items():
            if counts[unit] != expected.n:
                source = expected.source or "unverified"
                yield f"{name}: {counts[unit]} {unit}, but the card of {index.card.name} says {expected.n} ({source})"


def _defective_images(index: Index, splits: list[Split], decode: bool) -> Iterator[str]:
    """Open the image of every ref; yield one sentence for each kind of defect."""
    image_ids = sorted({image_id for split in splits for image_id in split.image_id.tolist()})
    defects: dict[str, list[str]] = defaultdict(list)
    with progress.bar("Examining images", len(image_ids)) as step:
        for image_id in image_ids:
            path = index.image_path(image_id)
            if defect := _image_defect(path, index.image_size(image_id), decode):
                defects[defect].append(path.name)
            step()
    for defect, names in defects.items():
        yield f"{len(names)} of {len(image_ids)} images in {index.images_folder} {defect}: {_first(names)}"


def _image_defect(path: Path, size: Size, decode: bool) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if decode:
                    image.load()
                if image.mode.startswith(("I", "F")):
                    return "have more than 8 bits a channel"
                if (image.height, image.width) != size:
                    return "have another size than instances.json says"
    except FileNotFoundError:
        return "are missing"
    except (OSError, SyntaxError, ValueError):
        return "cannot be read"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"have more than {Image.MAX_IMAGE_PIXELS} pixels"
    return None


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
