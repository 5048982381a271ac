"""Read the annotation files of the `refer` layout into columns.

`refs(<partition>).p` is a pickled list of refs: {ref_id, ann_id, image_id, split, sentences: [{sent_id, raw, sent}]},
optionally with the `kind` of each sentence. `instances.json` holds images, annotations and categories as COCO does.
Source: the README of https://github.com/lichengunc/refer. gRefCOCO writes its refs as JSON, where ann_id is a list:
[-1] where a ref means nothing, which `no_target` says, too. Source: grefer.py of https://github.com/henghuiding/ReLA.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, PlainValidator, Strict, TypeAdapter, ValidationError

from risbench import progress
from risbench.data import pickles, rle, targets
from risbench.data.targets import Masks
from risbench.errors import InputError

_RELEASE = "Take refs and instances.json from one release, as they were published."
_FAR = 1e5  # pixels; beyond it pycocotools would fill the memory with the outline of a polygon
_POLYGONS = pa.list_(pa.list_(pa.float64()))
_Int = Annotated[int, Strict()]
_Length = Annotated[int, Strict(), Field(gt=0, le=65535)]  # pixels; no JPEG is longer
_Str = Annotated[str, Strict()]


@dataclass(slots=True)
class _Sentence:
    sent_id: _Int
    raw: _Str
    sent: _Str
    kind: _Str = ""


@dataclass(slots=True)
class _Ref:
    ref_id: _Int
    ann_id: Annotated[int | list[int], PlainValidator(targets.ids)]
    image_id: _Int
    split: _Str
    sentences: list[_Sentence]
    no_target: Annotated[bool, Strict()] | None = None

    def target(self) -> targets.Key:
        return self.image_id, targets.members(self.ann_id)


@dataclass(slots=True)
class _Image:
    id: _Int
    height: _Length
    width: _Length
    file_name: _Str


@dataclass(slots=True)
class _Annotation:
    id: _Int
    image_id: _Int
    category_id: _Int
    segmentation: Any = None
    iscrowd: _Int = 0


@dataclass(slots=True)
class _Category:
    id: _Int
    name: _Str


@dataclass(slots=True)
class _Instances:
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Row(NamedTuple):
    """An annotation, or a set of them."""

    ann_id: int
    image_id: int
    category_id: int | None
    crowd: bool
    masks: Masks
    polygons: list[list[float]] | None  # of what a ref means
    members: list[int] | None  # of a set


@dataclass(frozen=True)
class Columns:
    """One record batch for each kind of thing, in the order in which the index keeps them."""

    expressions: pa.RecordBatch  # by split, image_id, sent_id
    annotations: pa.RecordBatch  # by image_id, ann_id; with the sets of them that refs mean, which have members
    images: pa.RecordBatch  # by image_id; complete: none of its annotations was left out
    categories: dict[int, str]
    findings: list[str]
    """What is odd, but no reason to refuse the files."""


def read(refs_file: Path, instances_file: Path) -> Columns:
    """Read and check both files."""
    instances, refs = _instances(instances_file), _refs(refs_file)
    images = {image.id: image for image in instances.images}
    annotations = {annotation.id: annotation for annotation in instances.annotations}
    _unique("image", (image.id for image in instances.images), instances_file)
    _unique("annotation", (annotation.id for annotation in instances.annotations), instances_file)
    _unique("ref", (ref.ref_id for ref in refs), refs_file)
    _unique("sentence", ((ref.split, sentence.sent_id) for ref in refs for sentence in ref.sentences), refs_file)
    for ref in refs:
        _check_links(ref, annotations, images, refs_file)
    masks, defects = _masks(instances.annotations, images)
    _check_masks(refs, defects, instances_file)
    meant = targets.numbered((ref.target() for ref in refs), annotations)
    kept = [annotation for annotation in instances.annotations if annotation.id in masks]
    return Columns(
        _expressions(refs, images, meant),
        _annotations([*_plain(kept, masks, set(meant.values())), *_sets(meant, annotations, masks, images)]),
        _images(instances.images, {a.image_id for a in instances.annotations if a.id in defects}),
        {category.id: category.name for category in instances.categories},
        _findings(refs, instances.annotations, masks, defects),
    )


def _instances(path: Path) -> _Instances:
    try:
        return TypeAdapter(_Instances).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{path} is wrong{_at(first['loc'])}: {first['msg']}. {_RELEASE}") from None


def _refs(path: Path) -> list[_Ref]:
    content = _json(path) if path.suffix == ".json" else pickles.load(path)
    try:
        return TypeAdapter(list[_Ref]).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise InputError(f"{path} holds no list of refs but a {type(content).__name__}. {_RELEASE}") from None
        entry, *keys = first["loc"]
        ref = content[int(entry)]
        name = ref.get("ref_id", f"number {entry}") if isinstance(ref, dict) else f"number {entry}"
        raise InputError(f"The ref {name} of {path} is wrong{_at(keys)}: {first['msg']}. {_RELEASE}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). {_RELEASE}") from None


def _at(location: Sequence[int | str]) -> str:
    return f" at {'.'.join(map(str, location))!r}" if location else ""


def _unique(what: str, ids: Iterable[Hashable], path: Path) -> None:
    name, times = max(Counter(ids).items(), key=lambda item: item[1], default=(None, 0))
    if times > 1:
        raise InputError(f"The {what} {name} stands {times} times in {path}. {_RELEASE}")


def _check_links(ref: _Ref, annotations: dict[int, _Annotation], images: dict[int, _Image], path: Path) -> None:
    """A ref must lead to an image and to annotations on it, unless it says that it means none."""
    problem = targets.defect(ref.ann_id, ref.no_target)
    for ann_id in () if problem else targets.members(ref.ann_id):
        annotation = annotations.get(ann_id)
        if annotation is None:
            problem = f"annotation {ann_id}, which instances.json does not hold"
        elif annotation.image_id != ref.image_id:
            problem = f"image {ref.image_id}, but its annotation {ann_id} lies on image {annotation.image_id}"
    if not problem and ref.image_id not in images:
        problem = f"image {ref.image_id}, which instances.json does not hold"
    if problem:
        raise InputError(f"The ref {ref.ref_id} of {path} refers to {problem}. {_RELEASE}")


def _masks(annotations: list[_Annotation], images: dict[int, _Image]) -> tuple[dict[int, Masks], dict[int, str]]:
    """Rasterise all annotations: the masks by annotation id, and what is wrong with the others."""
    masks: dict[int, Masks] = {}
    defects: dict[int, str] = {}
    with progress.bar("Indexing, thousands of masks", len(annotations) // 1000) as step:
        for number, annotation in enumerate(annotations, start=1):
            outcome = _mask(annotation, images.get(annotation.image_id))
            if isinstance(outcome, Masks):
                masks[annotation.id] = outcome
            else:
                defects[annotation.id] = outcome
            if number % 1000 == 0:
                step()
    return masks, defects


def _mask(annotation: _Annotation, image: _Image | None) -> Masks | str:
    """Rasterise an annotation, or say what is wrong with it."""
    if image is None:
        return "lies on an image that the file does not hold"
    size = (image.height, image.width)
    return _defect(annotation.segmentation, size) or _rasterise(annotation.segmentation, size)


def _defect(segmentation: Any, size: rle.Size) -> str | None:
    """Say what is wrong with a segmentation; pycocotools may crash on what is refused here."""
    if isinstance(segmentation, dict):
        return _rle_defect(segmentation, size)
    if not isinstance(segmentation, list):
        return "has no segmentation"
    if defect := next(filter(None, map(_polygon_defect, segmentation)), None):
        return defect
    return None if _areal(segmentation) else "has no polygon of three points or more"


def _rle_defect(segmentation: dict[str, Any], size: rle.Size) -> str | None:
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(size):
        return f"has a mask of size {segmentation.get('size')} on an image of size {list(size)} (height, width)"
    if isinstance(counts, str):
        defect = rle.check(counts.encode(), size)
        return f"has a broken mask ({defect})" if defect else None
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return "has a mask whose counts are neither a string nor a list of run lengths"
    if sum(counts) != size[0] * size[1]:
        return f"has a mask whose runs add up to {sum(counts)} pixels instead of {size[0]} x {size[1]}"
    return None


def _polygon_defect(polygon: Any) -> str | None:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return "has a polygon that is not a list of x, y, x, y, ..."
    try:
        if math.isfinite(sum(polygon)) and min(polygon, default=0) > -_FAR and max(polygon, default=0) < _FAR:
            return None
    except TypeError:
        return "has a polygon with something else than numbers in it"
    return "has a polygon that runs far out of its image"


def _areal(polygons: list[list[float]]) -> list[list[float]]:
    """Leave out points and lines, which enclose nothing; pycocotools takes four numbers for a box."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def _rasterise(segmentation: Any, size: rle.Size) -> Masks:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        one = counts.encode() if isinstance(counts, str) else _without_empty_runs(rle.from_counts(counts, size), size)
        return Masks(one, None, rle.area(one, size))
    parts = rle.from_polygons(_areal(segmentation), size)
    if len(parts) == 1:
        return Masks(parts[0], None, rle.area(parts[0], size))
    union = rle.merge(parts, size)
    area = rle.area(union, size)
    overlap = area < sum(rle.area(part, size) for part in parts)
    return Masks(union, _once(parts, size) if overlap else None, area)


def _without_empty_runs(counts: bytes, size: rle.Size) -> bytes:
    """Write a mask as pycocotools does; its merge stops at empty runs, which lists of run lengths may hold."""
    return rle.encode(rle.decode(counts, size))


def _once(parts: Sequence[bytes], size: rle.Size) -> bytes:
    """Pixels that exactly one part covers: what the authors' `mask == 1` keeps."""
    times = sum(rle.decode(part, size).view(np.uint8) for part in parts)
    return rle.encode(np.asarray(times == 1))


def _check_masks(refs: list[_Ref], defects: dict[int, str], path: Path) -> None:
    """What no ref refers to may be defective: it is a finding, not an error."""
    for ref in refs:
        for ann_id in filter(defects.get, targets.members(ref.ann_id)):
            where = f"The annotation {ann_id} of {path}, which ref {ref.ref_id} refers to,"
            raise InputError(f"{where} {defects[ann_id]}. {_RELEASE}")


def _expressions(refs: list[_Ref], images: dict[int, _Image], meant: dict[targets.Key, int]) -> pa.RecordBatch:
    pairs = [(ref, sentence) for ref in refs for sentence in ref.sentences]
    pairs.sort(key=lambda pair: (pair[0].split, pair[0].image_id, pair[1].sent_id))
    return pa.record_batch(
        {
            "split": pa.array([ref.split for ref, _ in pairs], pa.string()),
            "sent_id": pa.array([sentence.sent_id for _, sentence in pairs], pa.int64()),
            "ref_id": pa.array([ref.ref_id for ref, _ in pairs], pa.int64()),
            "ann_id": pa.array([meant[ref.target()] for ref, _ in pairs], pa.int64()),
            "image_id": pa.array([ref.image_id for ref, _ in pairs], pa.int64()),
            "height": pa.array([images[ref.image_id].height for ref, _ in pairs], pa.int32()),
            "width": pa.array([images[ref.image_id].width for ref, _ in pairs], pa.int32()),
            "raw": pa.array([sentence.raw for _, sentence in pairs], pa.string()),
            "sent": pa.array([sentence.sent for _, sentence in pairs], pa.string()),
            "kind": pa.array([sentence.kind for _, sentence in pairs], pa.string()),
        }
    )


def _plain(kept: list[_Annotation], masks: dict[int, Masks], referred: set[int]) -> Iterator[_Row]:
    for one in kept:
        outlines = _outlines(one) if one.id in referred else None
        yield _Row(one.id, one.image_id, one.category_id, bool(one.iscrowd), masks[one.id], outlines, None)


def _sets(
    meant: dict[targets.Key, int],
    annotations: dict[int, _Annotation],
    masks: dict[int, Masks],
    images: dict[int, _Image],
) -> Iterator[_Row]:
    """What refs mean that is not one annotation, with the outlines of all, if all have any."""
    for (image_id, members), key in meant.items():
        if len(members) != 1:
            size = images[image_id].height, images[image_id].width
            drawn = [_outlines(annotations[one]) for one in members]
            outlines = None if not drawn or None in drawn else [line for lines in drawn for line in lines or []]
            whole = targets.union([masks[one] for one in members], size)
            yield _Row(key, image_id, None, False, whole, outlines, list(members))


def _annotations(found: list[_Row]) -> pa.RecordBatch:
    rows = sorted(found, key=lambda row: (row.image_id, row.ann_id))
    return pa.record_batch(
        {
            "ann_id": pa.array([row.ann_id for row in rows], pa.int64()),
            "image_id": pa.array([row.image_id for row in rows], pa.int64()),
            "category_id": pa.array([row.category_id for row in rows], pa.int64()),
            "crowd": pa.array([row.crowd for row in rows], pa.bool_()),
            "area": pa.array([row.masks.area for row in rows], pa.int64()),
            "union": pa.array([row.masks.union for row in rows], pa.binary()),
            "once": pa.array([row.masks.once for row in rows], pa.binary()),
            "polygons": pa.array([row.polygons for row in rows], _POLYGONS),
            "members": pa.array([row.members for row in rows], pa.list_(pa.int64())),
        }
    )


def _outlines(annotation: _Annotation) -> list[list[float]] | None:
    return _areal(annotation.segmentation) if isinstance(annotation.segmentation, list) else None


def _images(images: list[_Image], incomplete: set[int]) -> pa.RecordBatch:
    kept = sorted(images, key=lambda image: image.id)
    return pa.record_batch(
        {
            "image_id": pa.array([image.id for image in kept], pa.int64()),
            "height": pa.array([image.height for image in kept], pa.int32()),
            "width": pa.array([image.width for image in kept], pa.int32()),
            "file_name": pa.array([image.file_name for image in kept], pa.string()),
            "complete": pa.array([image.id not in incomplete for image in kept], pa.bool_()),
        }
    )


def _findings(
    refs: list[_Ref], annotations: list[_Annotation], masks: dict[int, Masks], defects: dict[int, str]
) -> list[str]:
    polygons = [a for a in annotations if a.id in masks and isinstance(a.segmentation, list)]
    lines = [a.id for a in polygons if len(_areal(a.segmentation)) < len(a.segmentation)]
    empty = sorted({one for ref in refs for one in targets.members(ref.ann_id) if masks[one].area == 0})
    found = {
        "annotations that no ref refers to are left out, because of their masks": list(defects),
        "annotations have polygons of fewer than three points, which enclose nothing": lines,
        "annotations that a ref refers to have an empty mask": empty,
    }
    return [f"{len(ids)} {what}: {_some(ids)}" for what, ids in found.items() if ids]


def _some(ids: list[int]) -> str:
    return ", ".join(str(key) for key in ids[:5]) + (", ..." if len(ids) > 5 else "")
