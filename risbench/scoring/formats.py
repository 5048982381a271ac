"""Predictions of other programs, in the formats that they write, and predictions as COCO results."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from risbench import errors
from risbench.data import rle
from risbench.data.index import Index, Split
from risbench.errors import InputError
from risbench.scoring import dense, predictions
from risbench.scoring.dense import Masks
from risbench.scoring.predictions import Line, Predictions, Segmentation

_PATTERN = "{sent_id}.png"

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "coco": (".json",),
    "png": (),
    "npz": (".npz",),
    "pth": (".pth", ".pt"),
    "jsonl": (".jsonl",),
}
_DENSE = ("png", "npz", "pth")
_FIELDS = ("sent_id", "ref_id", "sentence", "image_id")


def read(
    source: Path, form: str = "auto", pattern: str = "", threshold: float | None = None, split: Split | None = None
) -> Predictions:
    """Read predictions in any format; those of a split must answer each of its expressions once, and get its order.

    `pattern` says what the names of PNG files hold: {sent_id}, or {ref_id} and {sentence}, the number of the expression
    in its ref by rising sent_id, from 0. What else a name holds, and the image_id of a COCO result, must agree with the
    split.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: give a file, or a folder of PNG masks.")
    form = _form(source) if form == "auto" else form
    if form not in _SUFFIXES:
        raise errors.unknown("format", form, _SUFFIXES)
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"--threshold {threshold} is no number that values can lie above: give one.")
    if threshold is not None and form not in _DENSE:
        raise InputError(f"--threshold {threshold} cannot cut masks of the format {form}: leave it out.")
    if pattern and form != "png":
        raise InputError(f"--pattern {pattern} has no effect on the format {form}: leave it out.")
    found = _read(source, form, pattern or _PATTERN, threshold, split)
    if not len(found):
        raise InputError(f"{source} holds no masks of the format {form}: give one for each expression.")
    ids, times = np.unique(found.sent_id, return_counts=True)
    predictions.refuse("Predicted more than once", ids[times > 1], "Keep one mask for each.")
    return predictions.in_order(found, split) if split else found


def of(given: str | Path | Predictions | Mapping[int, Any] | Masks) -> Predictions:
    """Predictions from what a notebook holds: predictions, the path of their file, or masks by sent_id."""
    if isinstance(given, Predictions):
        return given
    if isinstance(given, str | Path):
        return predictions.read(Path(given))
    if not isinstance(given, Iterable):
        raise InputError(f"{given!r:.60} holds no predictions: give masks by sent_id, or the path of a file.")
    return dense.encode(given.items() if isinstance(given, Mapping) else given)


def write_coco(path: Path, found: Predictions, index: Index, split: str) -> None:
    """Write COCO results for every expression of a split, in its order; whole or not at all."""
    results = _results(found, index, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(results), encoding="utf-8")
    os.replace(temporary, path)


def _results(found: Predictions, index: Index, split: str) -> list[dict[str, Any]]:
    asked, made, here = index.split(split), found.header, (index.card.name, split)
    if made and (made.dataset, made.split) != here:
        raise InputError(f"The predictions are of {made.dataset} {made.split}, not of {' '.join(here)}: give that.")
    found = predictions.in_order(found, asked)
    other = (found.height != asked.height) | (found.width != asked.width)
    cure = "Predict under a protocol that scores at it, as COCO does."
    predictions.refuse("Not of the size of its image", asked.sent_id[other], cure)
    annotations = index.annotations()
    category = dict(zip(annotations["ann_id"].tolist(), annotations["category_id"].tolist(), strict=True))
    ids = zip(asked.image_id.tolist(), asked.ann_id.tolist(), asked.sent_id.tolist(), strict=True)
    said = [-1] * len(found) if found.no_target is None else found.no_target.tolist()
    sizes = zip(found.height.tolist(), found.width.tolist(), strict=True)
    peaks = zip(found.peak_row.tolist(), found.peak_col.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            **({"category_id": category[ann_id]} if ann_id in category else {}),  # not of several objects, or none
            "sent_id": sent_id,
            "segmentation": {"size": size, "counts": counts.decode()},
            "score": 1.0,
            **({"peak": peak} if peak[0] >= 0 else {}),
            **({"no_target": nothing == 1} if nothing >= 0 else {}),
        }
        for (image_id, ann_id, sent_id), size, counts, peak, nothing in zip(
            ids, sizes, found.counts, peaks, said, strict=True
        )
    ]


# formats


def _form(source: Path) -> str:
    if source.is_dir():
        return "png"
    for form, suffixes in _SUFFIXES.items():
        if source.suffix.lower() in suffixes:
            return form
    raise InputError(f"The name {source} does not tell its format: give --format ({', '.join(_SUFFIXES)}).")


def _read(source: Path, form: str, pattern: str, threshold: float | None, split: Split | None) -> Predictions:
    match form:
        case "jsonl":
            return predictions.read(source)
        case "coco":
            return _read_coco(source, split)
        case "png":
            return dense.encode(_pictures(source, pattern, split), threshold)
        case "npz":
            return dense.encode(dense.arrays(source), threshold)
        case _:
            return dense.encode(dense.tensors(source), threshold)


class _Segmentation(Segmentation):
    """An RLE as COCO knows it: its counts may also be a list of run lengths."""

    @field_validator("counts", mode="before")
    @classmethod
    def _compressed(cls, counts: Any, known: ValidationInfo) -> Any:
        if not isinstance(counts, list) or "size" not in known.data:
            return counts
        height, width = known.data["size"]
        dense.check_shape((height, width), "the mask")
        if not all(type(run) is int and run >= 0 for run in counts):
            raise ValueError("a run length is no whole number, or negative")
        if sum(counts) != height * width:
            raise ValueError(f"runs of {sum(counts)} pixels in all, not {height} x {width} = {height * width}")
        return rle.from_counts(counts, (height, width)).decode()


class _Result(Line):
    """One of COCO's results; it names an image, and under a key of its own the expression."""

    segmentation: _Segmentation
    image_id: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    def named(self) -> dict[str, int]:
        image = {} if self.image_id is None else {"image_id": self.image_id}
        return {"sent_id": self.sent_id, **image}


_CURES = {
    "sent_id": "COCO results name images, not expressions: write the sent_id of its expression into each",
    "segmentation": "a mask is {'size': [height, width], 'counts': COCO's RLE}; polygons are not read",
}


def _read_coco(source: Path, split: Split | None) -> Predictions:
    try:
        results = TypeAdapter(list[_Result]).validate_json(source.read_bytes())
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        cure = next((cure for key, cure in _CURES.items() if key in where), "give a list of results")
        raise InputError(f"{source} holds no COCO results ({errors.defect(error)}): {cure}.") from None
    _sent_ids([result.named() for result in results], split)
    try:
        return predictions.from_lines(results)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _pictures(folder: Path, pattern: str, split: Split | None) -> Iterator[tuple[int, NDArray[Any]]]:
    """The PNG files in and below a folder, by name."""
    expression = _expression(pattern)
    if split is None and "sent_id" not in expression.groupindex:
        raise InputError(f"--pattern {pattern} counts the sentences of a split: give --split.")
    files = [path for path in sorted(folder.rglob("*.png")) if not path.name.startswith(".")]
    names = []
    for path in files:
        match = expression.fullmatch(path.relative_to(folder).as_posix())
        if not match:
            raise InputError(f"{path} does not fit the pattern {pattern} in {folder}: give --pattern, or move it away.")
        names.append({field: int(text) for field, text in match.groupdict().items()})
    for sent_id, path in zip(_sent_ids(names, split), files, strict=True):
        yield sent_id, dense.picture(path)


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(.*?)\}", pattern)  # text, field, text, ..., field, text
    fields = parts[1::2]
    for field in fields:
        if field not in _FIELDS:
            raise errors.unknown("field in --pattern", field, _FIELDS)
    named = "sent_id" in fields or {"ref_id", "sentence"} <= set(fields)
    if not named or len(set(fields)) < len(fields) or not pattern.endswith(".png"):
        raise InputError(
            f"--pattern {pattern} does not name an expression: give {_PATTERN}, or {{ref_id}} and {{sentence}}, each "
            "once, and .png at the end."
        )
    return re.compile("".join(f"(?P<{part}>[0-9]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)))


# the names of expressions


def _sent_ids(names: Sequence[Mapping[str, int]], split: Split | None) -> list[int]:
    """The expressions that fields name; a field that the split knows otherwise is refused."""
    known = _known(split) if split else {}
    numbered = {(own["ref_id"], own["sentence"]): sent_id for sent_id, own in known.items()}
    found = []
    for name in names:
        said = ", ".join(f"{field} {value}" for field, value in name.items())
        sent_id = name["sent_id"] if "sent_id" in name else numbered.get((name["ref_id"], name["sentence"]))
        if sent_id is None:
            raise InputError(f"{said}: the split has no such expression. Give the one that was predicted.")
        own = known.get(sent_id, {})
        if any(own.get(field, value) != value for field, value in name.items()):
            right = ", ".join(f"{field} {value}" for field, value in own.items())
            raise InputError(f"{said}: sent_id {sent_id} has {right}. Give the data set and split that were predicted.")
        found.append(sent_id)
    return found


def _known(split: Split) -> dict[int, dict[str, int]]:
    """What else names an expression: its ref, its number in the ref, its image."""
    order = np.lexsort((split.sent_id, split.ref_id))
    refs = split.ref_id[order]
    number = np.arange(len(refs)) - np.searchsorted(refs, refs)
    columns = zip(refs.tolist(), number.tolist(), split.image_id[order].tolist(), strict=True)
    fields = [{"ref_id": ref, "sentence": sentence, "image_id": image} for ref, sentence, image in columns]
    return dict(zip(split.sent_id[order].tolist(), fields, strict=True))
