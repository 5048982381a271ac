"""Import predictions of other programs from their formats, and export predictions as COCO results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from risbench import errors, files
from risbench.data import rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError
from risbench.scoring import dense, predictions_file
from risbench.scoring.dense import Masks
from risbench.scoring.predictions import Predictions, refuse_expressions
from risbench.scoring.predictions_file import Line, Segmentation

LoadTorch = Callable[[Path], dict[Any, Any]]

_DEFAULT_PATTERN = "{sent_id}.png"
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "coco": (".json",),
    "png": (),
    "npz": (".npz",),
    "pth": (".pth", ".pt"),
    "jsonl": (".jsonl",),
}
_DENSE_FORMATS = ("png", "npz", "pth")
_NO_TARGET_CATEGORY = -1  # as in the refs of gRefCOCO; no category of a data set is negative
_PATTERN_FIELDS = ("sent_id", "ref_id", "sentence", "image_id")


def read(
    source: Path,
    format_: str = "auto",
    pattern: str = "",
    threshold: float | None = None,
    split: Split | None = None,
    load_torch: LoadTorch | None = None,
) -> Predictions:
    """Read predictions in any format. With a split, there must be one for each expression; they get its order.

    `pattern` says what the names of PNG files hold: {sent_id}, or {ref_id} and {sentence}, the number of the expression
    in its ref by rising sent_id, from 0. Other fields of a name, and the image_id of a COCO result, must agree with the
    split. `load_torch` reads a .pth file, which needs torch; without it the file is refused.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: give a file, or a folder of PNG masks.")
    format_ = _detect_format(source) if format_ == "auto" else format_
    _check_options(format_, pattern, threshold)
    predictions = _read(source, format_, pattern or _DEFAULT_PATTERN, threshold, split, load_torch)
    if not len(predictions):
        raise InputError(f"{source} holds no masks of the format {format_}: give one for each expression.")
    ids, times = np.unique(predictions.sent_id, return_counts=True)
    refuse_expressions("Predicted more than once", ids[times > 1], "Keep one mask for each.")
    return predictions.in_order_of(split) if split else predictions


def to_predictions(source: str | Path | Predictions | Mapping[int, Any] | Masks) -> Predictions:
    """Build predictions from the path of a predictions file or from masks by sent_id; predictions stay as they are."""
    if isinstance(source, Predictions):
        return source
    if isinstance(source, str | Path):
        return predictions_file.read(Path(source))
    if not isinstance(source, Iterable):
        raise InputError(f"{source!r:.60} holds no predictions: give masks by sent_id, or the path of a file.")
    return dense.encode(source.items() if isinstance(source, Mapping) else source)


def write_coco(path: Path, predictions: Predictions, index: Index, split: str) -> None:
    """Write COCO results for every expression of a split, in its order; whole or not at all."""
    files.write_text(path, json.dumps(_coco_results(predictions, index, split)))


def _coco_results(predictions: Predictions, index: Index, split_name: str) -> list[dict[str, Any]]:
    header, dataset = predictions.header, index.card.name
    if header and (header.dataset, header.split) != (dataset, split_name):
        made = f"{header.dataset} {header.split}"
        raise InputError(f"The predictions are of {made}, not of {dataset} {split_name}: give --dataset and --split.")
    split = (header.limit_index(index) if header else index).split(split_name)
    predictions = predictions.in_order_of(split)
    resized = (predictions.height != split.height) | (predictions.width != split.width)
    cure = "Predict under a protocol that scores at the size of the image, as COCO does."
    refuse_expressions("Not of the size of its image", split.sent_id[resized], cure)
    no_target = [-1] * len(split) if predictions.no_target is None else predictions.no_target.tolist()
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    peaks = zip(predictions.peak_row.tolist(), predictions.peak_col.tolist(), strict=True)
    ids = (split.image_id.tolist(), _category_ids(index, split), split.sent_id.tolist())
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "sent_id": sent_id,
            "segmentation": {"size": size, "counts": counts.decode()},
            "score": 1.0,
            **({"peak": peak} if peak[0] >= 0 else {}),
            **({"no_target": flag == 1} if flag >= 0 else {}),
        }
        for image_id, category_id, sent_id, size, counts, peak, flag in zip(
            *ids, sizes, predictions.counts, peaks, no_target, strict=True
        )
    ]


def _category_ids(index: Index, split: Split) -> list[int]:
    """Return the category of each target, of its first annotation if there are several: pycocotools wants one."""
    annotations = index.annotations()
    categories = dict(zip(annotations["ann_id"].tolist(), annotations["category_id"].tolist(), strict=True))
    members = [index.members(ann_id) for ann_id in split.ann_id.tolist()]
    return [categories[ann_ids[0]] if ann_ids else _NO_TARGET_CATEGORY for ann_ids in members]


# formats


def _detect_format(source: Path) -> str:
    if source.is_dir():
        return "png"
    if source.suffix.lower() == ".parquet":
        raise InputError(f"{source} is named like a predictions file, which needs no import: risbench score {source}.")
    for format_, suffixes in _SUFFIXES.items():
        if source.suffix.lower() in suffixes:
            return format_
    raise InputError(f"The name {source} does not tell its format: give --format ({', '.join(_SUFFIXES)}).")


def _check_options(format_: str, pattern: str, threshold: float | None) -> None:
    """Raise InputError for an unknown format, and for options that it does not use."""
    if format_ not in _SUFFIXES:
        raise errors.unknown("format", format_, _SUFFIXES)
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"--threshold {threshold} is not finite: give a finite number.")
    if threshold is not None and format_ not in _DENSE_FORMATS:
        raise InputError(f"--threshold {threshold} cannot cut masks of the format {format_}: leave it out.")
    if pattern and format_ != "png":
        raise InputError(f"--pattern {pattern} has no effect on the format {format_}: leave it out.")


def _read(
    source: Path,
    format_: str,
    pattern: str,
    threshold: float | None,
    split: Split | None,
    load_torch: LoadTorch | None,
) -> Predictions:
    match format_:
        case "jsonl":
            return predictions_file.read(source)
        case "coco":
            return _read_coco(source, split)
        case "png":
            return dense.encode(_read_pngs(source, pattern, split), threshold)
        case "npz":
            return dense.encode(dense.read_npz(source), threshold)
        case _ if load_torch:
            return dense.encode(dense.read_pth(source, load_torch), threshold)
        case _:
            raise InputError(f"{source} is a torch file, which only `risbench import` reads: import it first.")


class _Segmentation(Segmentation):
    """An RLE as COCO writes it: its counts may also be a list of run lengths."""

    @field_validator("counts", mode="before")
    @classmethod
    def _compress(cls, counts: Any, fields: ValidationInfo) -> Any:
        if not isinstance(counts, list) or "size" not in fields.data:
            return counts
        height, width = fields.data["size"]
        dense.check_shape((height, width), "the mask")
        if not all(type(run) is int and run >= 0 for run in counts):
            raise ValueError("a run length is no whole number, or negative")
        if sum(counts) != height * width:
            raise ValueError(f"runs of {sum(counts)} pixels in all, not {height} x {width} = {height * width}")
        return rle.from_counts(counts, (height, width)).decode()


class _Result(Line):
    """One COCO result; it holds an image_id, and the expression under sent_id, which COCO does not have."""

    segmentation: _Segmentation
    image_id: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    def ids(self) -> dict[str, int]:
        image = {} if self.image_id is None else {"image_id": self.image_id}
        return {"sent_id": self.sent_id, **image}


_JSON_LIMIT = 2**29  # bytes; all masks are in memory at once
_CURES = {
    "sent_id": "COCO results name images, not expressions: write the sent_id of its expression into each",
    "segmentation": "a mask is {'size': [height, width], 'counts': COCO's RLE}; polygons are not read",
}


def _read_coco(source: Path, split: Split | None) -> Predictions:
    try:
        content = files.parse_json(files.read_bytes(source, _JSON_LIMIT))
        results = TypeAdapter(list[_Result]).validate_python(content)
    except InputError:
        raise
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        cure = next((cure for key, cure in _CURES.items() if key in place), "give a list of results")
        raise InputError(f"{source} holds no COCO results ({errors.defect(error)}): {cure}.") from None
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}): give a file of COCO results.") from None
    except ValueError as error:
        kind = files.foreign_kind(source, text=True) or f"no JSON ({error}). Give a list of results, written again."
        raise InputError(f"{source} holds no COCO results: it is {kind}") from None
    _sent_ids([result.ids() for result in results], split)
    try:
        return predictions_file.from_lines(results)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _read_pngs(folder: Path, pattern: str, split: Split | None) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the sent_id and values of the PNG files in and below a folder, by name."""
    regex = _compile_pattern(pattern)
    if split is None and "sent_id" not in regex.groupindex:
        raise InputError(f"--pattern {pattern} counts the sentences of a split: give --split.")
    pngs = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".png" and path.name[0] != "."]
    names = []
    for path in pngs:
        match = regex.fullmatch(path.relative_to(folder).as_posix())
        if not match:
            raise InputError(f"{path} does not fit the pattern {pattern} in {folder}: give --pattern, or move it away.")
        names.append({field: int(text) for field, text in match.groupdict().items()})
    for sent_id, path in zip(_sent_ids(names, split), pngs, strict=True):
        yield sent_id, dense.read_png(path)


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(.*?)\}", pattern)  # text, field, text, ..., field, text
    fields = parts[1::2]
    for field in fields:
        if field not in _PATTERN_FIELDS:
            raise errors.unknown("field in --pattern", field, _PATTERN_FIELDS)
    identifies = "sent_id" in fields or {"ref_id", "sentence"} <= set(fields)
    if not identifies or len(set(fields)) < len(fields) or not pattern.endswith(".png"):
        raise InputError(
            f"--pattern {pattern} does not name an expression: give {_DEFAULT_PATTERN}, or {{ref_id}} and {{sentence}},"
            " each once, and .png at the end."
        )
    parts[-1] = parts[-1].removesuffix(".png")
    regex = "".join(f"(?P<{part}>[0-9]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(rf"{regex}\.(?i:png)")


# ids of expressions


def _sent_ids(names: Sequence[Mapping[str, int]], split: Split | None) -> list[int]:
    """Return the sent_id of each name, which is a dictionary of ids. Raises InputError if the split has other ids."""
    known = _ids_by_sent_id(split) if split else {}
    by_number = {(ids["ref_id"], ids["sentence"]): sent_id for sent_id, ids in known.items()}
    sent_ids = []
    for name in names:
        sent_id = name["sent_id"] if "sent_id" in name else by_number.get((name["ref_id"], name["sentence"]))
        if sent_id is None:
            raise InputError(f"{_listed(name)}: the split has no such expression. Give the one that was predicted.")
        ids = known.get(sent_id, {})
        if any(ids.get(field, value) != value for field, value in name.items()):
            raise InputError(
                f"{_listed(name)}: sent_id {sent_id} has {_listed(ids)}. Give the data set and split that were"
                " predicted."
            )
        sent_ids.append(sent_id)
    return sent_ids


def _listed(ids: Mapping[str, int]) -> str:
    return ", ".join(f"{field} {value}" for field, value in ids.items())


def _ids_by_sent_id(split: Split) -> dict[int, dict[str, int]]:
    """Return the other ids of each expression: its ref, its number in the ref, its image."""
    order = np.lexsort((split.sent_id, split.ref_id))
    refs = split.ref_id[order]
    number = np.arange(len(refs)) - np.searchsorted(refs, refs)
    columns = zip(refs.tolist(), number.tolist(), split.image_id[order].tolist(), strict=True)
    ids = [{"ref_id": ref, "sentence": sentence, "image_id": image} for ref, sentence, image in columns]
    return dict(zip(split.sent_id[order].tolist(), ids, strict=True))
