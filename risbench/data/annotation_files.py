"""The annotation files of the `refer` layout, checked value by value; refer.py makes columns of them.

`refs(<partition>).p` is a pickled list of refs: {ref_id, ann_id, image_id, split, sentences: [{sent_id, raw, sent}]},
optionally with the `kind` of each sentence. `instances.json` holds images, annotations and categories as COCO does.
Source: the README of https://github.com/lichengunc/refer. gRefCOCO writes its refs as JSON, where ann_id is a list:
[-1] for no-target, which the key `no_target` repeats. Source: grefer.py of https://github.com/henghuiding/ReLA.

An oddity that has one reading is a finding, which `data doctor` shows:

* grefer.py reads `no_target` nowhere: where it contradicts `ann_id`, `ann_id` holds.
* An annotation listed twice in a ref counts once, as does an image, annotation, category or sentence that stands twice
  with one content.
* A ref that stands twice with one target is one ref with all its sentences; grefer.py would read the last one twice.
* A ref_id in two splits means two refs: refs are counted and drawn within a split.
* A sentence without `sent` is read with its `raw` text, the only one that ReLA's code reads.

An oddity with several readings is an error: one id for different things, -1 among annotations, an empty list of them.
Predictions name an expression by split and sent_id, so that two expressions of a split cannot share one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from risbench import files
from risbench.data import pickles, rle, targets
from risbench.errors import InputError

RELEASE = "Take refs and instances.json from one release, as they were published."
MAX_SENTENCE = 10_000  # characters
MAX_EXPRESSIONS = 1 << 22  # of a file: a pickle can hold a list many times in few bytes
MAX_TEXT = 1 << 28  # characters of all expressions; a column of Arrow holds 2 GiB

Findings = defaultdict[str, list[int]]  # the ids of each kind of finding


def _check_file_name(name: str) -> str:
    """Accept a path that stays below the folder of the images, on every system."""
    parts = re.split(r"[/\\]", name)
    if "\0" in name or "" in parts or ".." in parts or parts[-1] == "." or re.match("[A-Za-z]:", name):
        raise PydanticCustomError("file_name", "Input should be the path of a file below the folder of the images")
    return name


def _read_flag(value: Any) -> Any:
    return bool(value) if type(value) is int and value in (0, 1) else value


Id = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
_Length = Annotated[int, Strict(), Field(gt=0, le=65_535)]  # pixels; no JPEG is longer
_Name = Annotated[str, Strict(), Field(max_length=1000)]
_Text = Annotated[str, Strict(), Field(max_length=MAX_SENTENCE)]


@dataclass(slots=True)
class Sentence:
    """An expression."""

    sent_id: Id
    raw: _Text
    sent: _Text | None = None  # `raw` in its place once the file is read
    kind: _Name = ""


@dataclass(slots=True)
class Ref:
    """A target with its expressions."""

    ref_id: Id
    ann_id: Annotated[list[int], PlainValidator(targets.validate_ann_id)]
    image_id: Id
    split: _Name
    sentences: Annotated[list[Sentence], Strict()]
    no_target: Annotated[bool, Strict(), BeforeValidator(_read_flag)] | None = None

    def annotation_ids(self) -> tuple[int, ...]:
        """Return its annotations, rising; none for no-target."""
        return targets.annotation_ids(self.ann_id)

    def target(self) -> targets.Target:
        """Return its image and its annotations."""
        return self.image_id, self.annotation_ids()


@dataclass(slots=True)
class Image:
    """An image as instances.json describes it."""

    id: Id
    height: _Length
    width: _Length
    file_name: Annotated[_Name, AfterValidator(_check_file_name)]


@dataclass(slots=True)
class Annotation:
    """An object of an image; its segmentation is unchecked, see segmentation.find_defect."""

    id: Id
    image_id: Id
    category_id: Id
    segmentation: Any = None
    iscrowd: Annotated[int, Strict(), Field(ge=0, le=1)] = 0


@dataclass(slots=True)
class Category:
    """The kind of object of an annotation."""

    id: Id
    name: _Name


@dataclass(slots=True)
class Instances:
    """What instances.json holds."""

    images: Annotated[list[Image], Strict()]
    annotations: Annotated[list[Annotation], Strict()]
    categories: Annotated[list[Category], Strict()]


# instances.json


def read_instances(path: Path, findings: Findings) -> Instances:
    """Read images, annotations and categories, each id once. Raises InputError with the place of the first defect."""
    content = _read_json(path)
    try:
        instances = TypeAdapter(Instances).validate_python(content)
    except ValidationError as error:
        raise InputError(f"{path} is wrong{_at_key(error)}: {_problem(error)}. {RELEASE}") from None
    instances.images = _distinct("image", instances.images, path, findings)
    instances.annotations = _distinct("annotation", instances.annotations, path, findings)
    instances.categories = _distinct("category", instances.categories, path, findings)
    for image in instances.images:
        if image.height * image.width > rle.MAX_PIXELS:
            size = f"{image.height} x {image.width} pixels; an image has at most {rle.MAX_PIXELS:,}"
            raise InputError(f"The image {image.id} of {path} has {size}. {RELEASE}")
    return instances


class _WithId(Protocol):
    @property
    def id(self) -> int: ...


_T = TypeVar("_T", bound=_WithId)


def _distinct(kind: str, items: Iterable[_T], path: Path, findings: Findings) -> list[_T]:
    """Return the items with each id once. Raises InputError where items of one id differ."""
    by_id: dict[int, _T] = {}
    for item in items:
        first = by_id.setdefault(item.id, item)
        if first is item:
            continue
        if first != item:
            raise InputError(f"The {kind} {item.id} stands twice in {path}, with different contents. {RELEASE}")
        findings[f"{kind} ids stand twice alike in {path.name}, and count once"].append(item.id)
    return list(by_id.values())


# refs


def read_refs(path: Path, findings: Findings) -> list[Ref]:
    """Read the refs; each split has each ref_id and each sent_id once. Raises InputError with the first defect."""
    content = _read_json(path) if path.suffix == ".json" else pickles.load(path)
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list of refs but a {type(content).__name__}. {RELEASE}")
    _check_extent(content, path)
    try:
        refs = TypeAdapter(list[Ref]).validate_python(content)
    except ValidationError as error:
        number = int(error.errors(include_url=False)[0]["loc"][0])
        place = f"The ref {_name_of(content[number], number)} of {path}"
        raise InputError(f"{place} is wrong{_at_key(error, skip=1)}: {_problem(error)}. {RELEASE}") from None
    refs = _join_refs(refs, path, findings)
    _check_targets(refs, path, findings)
    _check_sentences(refs, path, findings)
    return refs


def _check_extent(content: list[Any], path: Path) -> None:
    """Refuse more expressions than memory holds."""
    refs = [ref for ref in content if isinstance(ref, dict)]
    lists = [ref.get(key) for ref in refs for key in ("sentences", "ann_id")]
    number = sum(len(items) for items in lists if isinstance(items, list))
    if number > MAX_EXPRESSIONS:
        raise InputError(
            f"{path} holds {number:,} expressions and annotations of refs; at most {MAX_EXPRESSIONS:,} are read. "
            f"{RELEASE}"
        )


def _name_of(ref: Any, number: int) -> str:
    ref_id = ref.get("ref_id") if isinstance(ref, dict) else None
    return str(ref_id) if type(ref_id) is int and abs(ref_id) < 2**63 else f"number {number}"


def _join_refs(refs: list[Ref], path: Path, findings: Findings) -> list[Ref]:
    """Join the refs of one split that have one ref_id. Raises InputError where their targets differ."""
    joined: dict[tuple[str, int], Ref] = {}
    for ref in refs:
        first = joined.setdefault((ref.split, ref.ref_id), ref)
        if first is ref:
            continue
        if first.target() != ref.target():
            where = f"twice in the split {ref.split!r} of {path}, with different targets"
            raise InputError(f"The ref {ref.ref_id} stands {where}. {RELEASE}")
        first.sentences += ref.sentences
        findings["refs stand twice with one target, and are read as one"].append(ref.ref_id)
    splits_of: dict[int, str] = {}
    for split, ref_id in joined:
        if splits_of.setdefault(ref_id, split) != split:
            findings["refs have an id that a ref of another split has too"].append(ref_id)
    return list(joined.values())


def _check_targets(refs: list[Ref], path: Path, findings: Findings) -> None:
    for ref in refs:
        ids = ref.annotation_ids()
        if not ref.ann_id or targets.NO_TARGET in ids:
            defect = "annotations and to -1" if ref.ann_id else "no annotation"
            raise InputError(
                f"The ref {ref.ref_id} of {path} refers to {defect} (ann_id {ref.ann_id[:5]}); -1 alone stands for "
                f"no-target. {RELEASE}"
            )
        if len(ref.ann_id) > max(1, len(ids)):
            findings["refs list an annotation twice, which counts once"].append(ref.ref_id)
        if ref.no_target is not None and ref.no_target == bool(ids):
            findings["refs have a no_target that contradicts their ann_id, which holds"].append(ref.ref_id)


def _check_sentences(refs: list[Ref], path: Path, findings: Findings) -> None:
    """Leave out sentences that stand twice alike, and complete those without `sent`."""
    known: dict[tuple[str, int], tuple[int, Sentence]] = {}
    characters = 0
    for ref in refs:
        kept = []
        for sentence in ref.sentences:
            ref_id, first = known.setdefault((ref.split, sentence.sent_id), (ref.ref_id, sentence))
            if first is sentence:
                kept.append(sentence)
            elif (ref_id, first) == (ref.ref_id, sentence):
                findings["sentences stand twice alike, and count once"].append(sentence.sent_id)
            else:
                raise InputError(_shared_id(ref, sentence, path))
        ref.sentences = kept
        for sentence in kept:
            if sentence.sent is None:
                sentence.sent = sentence.raw
                findings["expressions have no `sent`; their raw text is read in its place"].append(sentence.sent_id)
            characters += len(sentence.raw) + len(sentence.sent)
    if characters > MAX_TEXT:
        raise InputError(f"{path} holds {characters:,} characters of text; at most {MAX_TEXT:,} are read. {RELEASE}")


def _shared_id(ref: Ref, sentence: Sentence, path: Path) -> str:
    return (
        f"The sentence {sentence.sent_id} stands twice in the split {ref.split!r} of {path}, with different refs or "
        "texts, but predictions name expressions by their sent_id. Give each expression of a split an id of its own."
    )


# files and errors


def _read_json(path: Path) -> Any:
    try:
        return files.parse_json(files.read_bytes(path, files.DATA_LIMIT))
    except InputError:
        raise
    except ValueError as error:
        if kind := files.foreign_kind(path, text=True):
            raise InputError(f"{path} is not JSON but {kind}") from None
        raise InputError(f"{path} is not JSON ({error}). {RELEASE}") from None


def _at_key(error: ValidationError, skip: int = 0) -> str:
    location = error.errors(include_url=False)[0]["loc"][skip:]
    return f" at {'.'.join(map(str, location))!r}" if location else ""


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return "Input should be an object" if first["type"] == "dataclass_type" else first["msg"]


def _first_ids(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")


def describe(findings: Findings) -> list[str]:
    """Return one sentence for each kind of finding, with its first ids."""
    return [f"{len(ids)} {finding}: {_first_ids(ids)}" for finding, ids in findings.items() if ids]
