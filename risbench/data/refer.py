"""Make the columns of the index from the annotation files of the `refer` layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from risbench import progress
from risbench.data import annotation_files, segmentation, targets
from risbench.data.annotation_files import RELEASE, Annotation, Findings, Image, Ref
from risbench.data.segmentation import Masks
from risbench.errors import InputError

_POLYGONS = pa.list_(pa.list_(pa.float64()))


class _Row(NamedTuple):
    """An annotation, or the target of a ref that is not one annotation."""

    ann_id: int
    image_id: int
    category_id: int | None
    crowd: bool
    masks: Masks
    polygons: list[list[float]] | None  # only if a ref refers to it
    members: list[int] | None  # annotations of a target that is not one annotation


@dataclass(frozen=True)
class Columns:
    """One record batch for each table of the index, with its rows in the order of the index."""

    expressions: pa.RecordBatch  # by split, image_id, sent_id
    annotations: pa.RecordBatch  # by image_id, ann_id; targets that are not one annotation have members
    images: pa.RecordBatch  # by image_id; complete: none of its annotations was left out
    categories: dict[int, str]
    findings: list[str]
    """Oddities that are no reason to refuse the files."""


def read(refs_file: Path, instances_file: Path) -> Columns:
    """Read and check both files; raises InputError with the id of the first defect."""
    findings: Findings = defaultdict(list)
    instances = annotation_files.read_instances(instances_file, findings)
    refs = annotation_files.read_refs(refs_file, findings)
    images = {image.id: image for image in instances.images}
    annotations = {annotation.id: annotation for annotation in instances.annotations}
    for ref in refs:
        _check_links(ref, annotations, images, refs_file)
    masks, defects = _rasterise(instances.annotations, images)
    _check_masks(refs, defects, instances_file)
    target_ids = targets.assign_ids(ref.target() for ref in refs)
    kept = [annotation for annotation in instances.annotations if annotation.id in masks]
    rows = [
        *_annotation_rows(kept, masks, set(target_ids.values())),
        *_target_rows(target_ids, annotations, masks, images),
    ]
    _find_odd_masks(refs, kept, masks, defects, findings)
    return Columns(
        _expression_columns(refs, images, target_ids),
        _annotation_columns(rows),
        _image_columns(instances.images, {annotations[ann_id].image_id for ann_id in defects}),
        {category.id: category.name for category in instances.categories},
        annotation_files.describe(findings),
    )


# checking


def _check_links(ref: Ref, annotations: dict[int, Annotation], images: dict[int, Image], path: Path) -> None:
    """Refuse a ref unless its image exists, and its annotations exist and lie on that image."""
    defect = ""
    for ann_id in ref.annotation_ids():
        annotation = annotations.get(ann_id)
        if annotation is None:
            defect = f"annotation {ann_id}, which instances.json does not hold"
        elif annotation.image_id != ref.image_id:
            defect = f"image {ref.image_id}, but its annotation {ann_id} lies on image {annotation.image_id}"
    if not defect and ref.image_id not in images:
        defect = f"image {ref.image_id}, which instances.json does not hold"
    if defect:
        raise InputError(f"The ref {ref.ref_id} of {path} refers to {defect}. {RELEASE}")


def _check_masks(refs: list[Ref], defects: dict[int, str], path: Path) -> None:
    """Refuse a defect of an annotation that a ref refers to; any other defect is only a finding."""
    for ref in refs:
        for ann_id in filter(defects.get, ref.annotation_ids()):
            subject = f"The annotation {ann_id} of {path}, which ref {ref.ref_id} refers to,"
            raise InputError(f"{subject} {defects[ann_id]}. {RELEASE}")


def _rasterise(annotations: list[Annotation], images: dict[int, Image]) -> tuple[dict[int, Masks], dict[int, str]]:
    """Rasterise all annotations; return masks, and the defect of each annotation without a mask, by annotation id."""
    masks: dict[int, Masks] = {}
    defects: dict[int, str] = {}
    with progress.bar("Indexing, thousands of masks", len(annotations) // 1000) as step:
        for number, annotation in enumerate(annotations, start=1):
            result = _mask_or_defect(annotation, images.get(annotation.image_id))
            if isinstance(result, Masks):
                masks[annotation.id] = result
            else:
                defects[annotation.id] = result
            if number % 1000 == 0:
                step()
    return masks, defects


def _mask_or_defect(annotation: Annotation, image: Image | None) -> Masks | str:
    if image is None:
        return "lies on an image that the file does not hold"
    size = image.height, image.width
    defect = segmentation.find_defect(annotation.segmentation, size)
    return defect or segmentation.rasterise(annotation.segmentation, size)


# columns


def _expression_columns(
    refs: list[Ref], images: dict[int, Image], target_ids: dict[targets.Target, int]
) -> pa.RecordBatch:
    pairs = [(ref, sentence) for ref in refs for sentence in ref.sentences]
    pairs.sort(key=lambda pair: (pair[0].split, pair[0].image_id, pair[1].sent_id))
    return pa.record_batch(
        {
            "split": pa.array([ref.split for ref, _ in pairs], pa.string()),
            "sent_id": pa.array([sentence.sent_id for _, sentence in pairs], pa.int64()),
            "ref_id": pa.array([ref.ref_id for ref, _ in pairs], pa.int64()),
            "ann_id": pa.array([target_ids[ref.target()] for ref, _ in pairs], pa.int64()),
            "image_id": pa.array([ref.image_id for ref, _ in pairs], pa.int64()),
            "height": pa.array([images[ref.image_id].height for ref, _ in pairs], pa.int32()),
            "width": pa.array([images[ref.image_id].width for ref, _ in pairs], pa.int32()),
            "raw": pa.array([sentence.raw for _, sentence in pairs], pa.string()),
            "sent": pa.array([sentence.sent for _, sentence in pairs], pa.string()),
            "kind": pa.array([sentence.kind for _, sentence in pairs], pa.string()),
        }
    )


def _annotation_rows(kept: list[Annotation], masks: dict[int, Masks], referred: set[int]) -> Iterator[_Row]:
    for annotation in kept:
        polygons = segmentation.outlines(annotation.segmentation) if annotation.id in referred else None
        yield _Row(
            ann_id=annotation.id,
            image_id=annotation.image_id,
            category_id=annotation.category_id,
            crowd=bool(annotation.iscrowd),
            masks=masks[annotation.id],
            polygons=polygons,
            members=None,
        )


def _target_rows(
    target_ids: dict[targets.Target, int],
    annotations: dict[int, Annotation],
    masks: dict[int, Masks],
    images: dict[int, Image],
) -> Iterator[_Row]:
    """Yield the targets that are not one annotation."""
    for (image_id, members), target_id in target_ids.items():
        if len(members) != 1:
            size = images[image_id].height, images[image_id].width
            yield _Row(
                ann_id=target_id,
                image_id=image_id,
                category_id=None,
                crowd=False,
                masks=segmentation.merge([masks[ann_id] for ann_id in members], size),
                polygons=_joined_outlines([annotations[ann_id] for ann_id in members]),
                members=list(members),
            )


def _joined_outlines(annotations: list[Annotation]) -> list[list[float]] | None:
    """Return all polygons of a set without its crowds; None for no annotation, and if one of them has run lengths."""
    objects = [annotation for annotation in annotations if not annotation.iscrowd] or annotations
    outlines = [segmentation.outlines(annotation.segmentation) for annotation in objects]
    if not outlines or None in outlines:
        return None
    return [polygon for polygons in outlines for polygon in polygons or []]


def _annotation_columns(unsorted_rows: list[_Row]) -> pa.RecordBatch:
    rows = sorted(unsorted_rows, key=lambda row: (row.image_id, row.ann_id))
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


def _image_columns(images: list[Image], incomplete: set[int]) -> pa.RecordBatch:
    rows = sorted(images, key=lambda image: image.id)
    return pa.record_batch(
        {
            "image_id": pa.array([image.id for image in rows], pa.int64()),
            "height": pa.array([image.height for image in rows], pa.int32()),
            "width": pa.array([image.width for image in rows], pa.int32()),
            "file_name": pa.array([image.file_name for image in rows], pa.string()),
            "complete": pa.array([image.id not in incomplete for image in rows], pa.bool_()),
        }
    )


def _find_odd_masks(
    refs: list[Ref], kept: list[Annotation], masks: dict[int, Masks], defects: dict[int, str], findings: Findings
) -> None:
    with_lines = [
        annotation.id
        for annotation in kept
        if isinstance(annotation.segmentation, list)
        and len(segmentation.closed_polygons(annotation.segmentation)) < len(annotation.segmentation)
    ]
    empty = sorted({ann_id for ref in refs for ann_id in ref.annotation_ids() if masks[ann_id].area == 0})
    findings["annotations that no ref refers to are left out, because of their masks"] += defects
    findings["annotations have polygons of fewer than three points, which enclose nothing"] += with_lines
    findings["annotations that a ref refers to have an empty mask"] += empty
