"""Examine a data set: what is missing, damaged or odd, before a run finds out after hours."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from risbench import progress
from risbench.data.index import Index, Split
from risbench.data.rle import Size


def examine(index: Index, decode: bool = False) -> list[str]:
    """Return one sentence for each finding, none for a sound data set; `decode` reads every image to its end."""
    splits = [index.split(name) for name in index.split_names()]
    findings = [*_counts(index), *index.findings, *_image_files(index, splits, decode), *_shared(index, splits)]
    for split in splits:
        findings += [f"{split.name}: {finding}" for finding in _expressions(index, split)]
    return findings


def _counts(index: Index) -> Iterator[str]:
    for name, split in index.card.splits.items():
        found = index.found(name)
        for what, count in split.counts().items():
            if found[what] != count.n:
                source = count.source or "unverified"
                yield f"{name}: {found[what]} {what}, where the card of {index.card.name} says {count.n} ({source})"


def _image_files(index: Index, splits: list[Split], decode: bool) -> Iterator[str]:
    """Open every image that a ref lies on, and sort what is wrong by kind."""
    used = sorted({image_id for split in splits for image_id in split.image_id.tolist()})
    wrong: dict[str, list[str]] = defaultdict(list)
    with progress.bar("Examining images", len(used)) as step:
        for image_id in used:
            path = index.image_path(image_id)
            if defect := _image_defect(path, index.size(image_id), decode):
                wrong[defect].append(path.name)
            step()
    for defect, names in wrong.items():
        yield f"{len(names)} of {len(used)} images in {index.images_folder} {defect}: {_some(names)}"


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


def _shared(index: Index, splits: list[Split]) -> Iterator[str]:
    """Images of an evaluation split that are training images, too."""
    training = [s.image_id for s in splits if not index.card.splits[s.name].evaluation]
    for split in splits:
        if index.card.splits[split.name].evaluation:
            images = np.unique(split.image_id)
            shared = np.intersect1d(images, np.concatenate([*training, images[:0]]))
            if len(shared):
                yield f"{split.name}: {len(shared)} of {len(images)} images are training images, too"


def _expressions(index: Index, split: Split) -> Iterator[str]:
    """What makes expressions of a split hard to compare or to answer."""
    overlapping = np.isin(split.ann_id, index.overlapping())
    if overlapping.any():
        refs = len(np.unique(split.ref_id[overlapping]))
        yield f"{refs} refs ({overlapping.sum()} expressions) have overlapping polygons: the ground truths differ"
    empty = [int(i) for i, text in zip(split.sent_id, split.sent, strict=True) if not text.strip()]
    if empty:
        yield f"{len(empty)} expressions have an empty text: sent_id {_some(empty)}"
    long = sum(len(text.split()) > index.card.max_words for text in split.sent)
    if long:
        yield f"{long} expressions have more than {index.card.max_words} words"
    meanings: dict[tuple[int, str], set[int]] = defaultdict(set)
    for image_id, text, ann_id in zip(split.image_id, split.sent, split.ann_id, strict=True):
        meanings[int(image_id), text].add(int(ann_id))
    twice = [image_id for (image_id, _), objects in meanings.items() if len(objects) > 1]
    if twice:
        yield f"{len(twice)} expressions mean several objects of one image: image_id {_some(twice)}"


def _some(items: list[int] | list[str]) -> str:
    return ", ".join(map(str, items[:3])) + (", ..." if len(items) > 3 else "")
