"""Pretrained weights as data: which file or model each part of a network began with, and what that was trained on.

Names of timm and of the Hugging Face hub say what their weights were trained on. A file does not: its training data are
unknown unless the recipe declares them (`train.pretraining`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from risbench import datasets
from risbench.errors import InputError

UNKNOWN = "unknown"  # in a list of training data: there are more, and nobody knows which
KEY = "train.pretraining"

_TIMM_DATA = {"in1k": "ImageNet-1k", "in12k": "ImageNet-12k", "in21k": "ImageNet-22k", "in22k": "ImageNet-22k"}
_TIMM_RECIPES = re.compile(  # words of a tag that say who trained and how, not on which data
    r"ft|ms|tv2?|tf|bt|goog|sw|gluon|augreg|a[123]h?|ah|am|b[12]k|c[123]|c2ns|d|ra[234]?|ram|[er]?\d+"
)
_BERT = re.compile(
    r"(google-bert/)?bert-(base|large)-(un)?cased(-whole-word-masking)?|google/bert_uncased_L-\d+_H-\d+_A-\d+"
)
_BERT_DATA = ("BookCorpus", "English Wikipedia")
_WITHOUT_COCO = {  # data that hold no image of COCO, by the letters of their names
    *("imagenet", "imagenet1k", "imagenet12k", "imagenet21k", "imagenet22k"),
    *("bookcorpus", "wikipedia", "englishwikipedia", "wikipedia2014", "gigaword5", "commoncrawl", "twitter"),
}


class Pretrained(BaseModel):
    """A part of a network, and the pretrained weights that it began with; without a source it began from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str  # as the method calls it: "Swin", "BERT", "word vectors"
    source: str = ""  # a file's name, a folder, a name of timm or of the hub, a checkpoint; "": from scratch
    sha256: str = ""
    hashed: Literal["", "file", "tensors"] = ""  # what was hashed: the file, or the tensors in the order of their names
    training_data: tuple[str, ...] | None = Field(default=None, strict=False)  # None: unknown
    detail: str = ""
    pretrained: tuple[Pretrained, ...] = Field(default=(), strict=False)  # what a checkpoint had begun with itself


def from_scratch(part: str) -> Pretrained:
    """Return the value for a part that no weights were loaded into."""
    return Pretrained(part=part, training_data=())


def are_loaded(pretrained: Sequence[Pretrained]) -> bool:
    """Whether every part began with pretrained weights; a checkpoint, if it did itself."""
    return bool(pretrained) and all(
        one.source and (are_loaded(one.pretrained) if one.pretrained else True) for one in pretrained
    )


def training_data(pretrained: Iterable[Pretrained]) -> list[str]:
    """Return the names of all data that weights were trained on, with `UNKNOWN` among them if some are not known."""
    names: list[str] = []
    for one in pretrained:
        names += [UNKNOWN] if one.training_data is None else one.training_data
        names += training_data(one.pretrained)
    return list(dict.fromkeys(names))


def describe(pretrained: Sequence[Pretrained]) -> str:
    """Return one line about the weights that a network began with."""
    return "; ".join(map(_describe, pretrained)) if any(one.source for one in pretrained) else "from scratch"


def _describe(one: Pretrained) -> str:
    if not one.source:
        return f"{one.part} from scratch"
    data = "training data unknown" if one.training_data is None else ", ".join(one.training_data)
    hashed = f"sha256{' of its tensors' if one.hashed == 'tensors' else ''} {one.sha256[:12]}" if one.sha256 else ""
    loaded = any(other.source for other in one.pretrained)
    begun = f"begun {'with ' * loaded}{describe(one.pretrained)}" if one.pretrained else ""
    return f"{one.part} {one.source} ({'; '.join(filter(None, [one.detail, data, hashed, begun]))})"


def check(loaded: object, method: str) -> tuple[Pretrained, ...]:
    """Return what a method's load_pretrained returned. Raises InputError for anything but a list of `Pretrained`."""
    if isinstance(loaded, list | tuple) and all(isinstance(one, Pretrained) for one in loaded):
        return tuple(loaded)
    raise InputError(
        f"load_pretrained of {method} returns {type(loaded).__name__}, no list of risbench.api.Pretrained, so that no "
        "record could say what was loaded. Return one for each part that it loads, or [] if it loads nothing."
    )


def declare(pretrained: Sequence[Pretrained], names: Sequence[str]) -> tuple[Pretrained, ...]:
    """Fill in the training data that a recipe declares for the weights whose training data are unknown.

    Raises InputError for a declaration that no weights need, unless what is known says the same.
    """
    names = [_canonical(name) for name in names]
    if not names or UNKNOWN in names:
        return tuple(pretrained)
    if UNKNOWN in training_data(pretrained):
        return tuple(_declared(one, names) for one in pretrained)
    if not {*names} <= {*training_data(pretrained)}:
        loaded = "; ".join(_describe(one) for one in pretrained if one.source)
        problem = f"of those that are loaded other data are recorded: {loaded}" if loaded else "none are loaded"
        raise InputError(
            f"{KEY}={names} declares the training data of weights that do not say it, such as a file, but {problem}. "
            f"Leave {KEY} empty: '{KEY}=[]'."
        )
    return tuple(pretrained)


def _declared(one: Pretrained, names: Sequence[str]) -> Pretrained:
    """Put names in the place of what is unknown, also in what a checkpoint had begun with."""
    data = (UNKNOWN,) if one.training_data is None else one.training_data
    known = dict.fromkeys(name for each in data for name in (names if each == UNKNOWN else [each]))
    begun = tuple(_declared(other, names) for other in one.pretrained)
    return one.model_copy(update={"training_data": tuple(known), "pretrained": begun})


def _canonical(name: str) -> str:
    """Return a declared name as records have it: a data set of risbench by its own name. Raises InputError for ""."""
    if not name.strip():
        raise InputError(f"{KEY} holds an empty name: name the data, or leave the list empty if they are unknown.")
    known = {other.casefold(): other for other in (*datasets.names(), UNKNOWN)}
    return known.get(name.strip().casefold(), name.strip())


def has_no_coco(name: str) -> bool:
    """Whether training data of this name are known to hold no image of COCO, in any spelling of the name."""
    return _letters(name) in _WITHOUT_COCO


def coco_split(name: str) -> tuple[str, ...] | None:
    """Return the releases of COCO's training images that a name may mean, as COCO train2014 or MS-COCO.

    () for a name of COCO that says something else (val2017, COCO without an image list); None for other data.
    """
    letters = re.sub(r"^(microsoft|ms)?coco", "", _letters(name))
    if letters == _letters(name):
        return None
    words = re.fullmatch(r"(train)?(2014|2017)?(train)?", letters)
    years = [words[2]] if words and words[2] else ["2014", "2017"]
    return tuple(f"train{year}" for year in years) if words else ()


def _letters(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def timm_data(name: str) -> tuple[str, ...] | None:
    """Return what a model of timm was trained on by its tag, as in swin_base_patch4_window12_384.ms_in22k_ft_in1k.

    ImageNet-21k is another name of ImageNet-22k. None if the tag is missing or has a word that is not known here.
    """
    words = name.partition(".")[2].split("_")
    data = tuple(dict.fromkeys(_TIMM_DATA[word] for word in words if word in _TIMM_DATA))
    is_known = all(word in _TIMM_DATA or _TIMM_RECIPES.fullmatch(word) for word in words)
    return data if data and is_known else None


def bert_data(name: str) -> tuple[str, ...] | None:
    """Return what a BERT of the hub was trained on (Devlin et al., 3.1), or None if its name is not one of BERT's."""
    return _BERT_DATA if _BERT.fullmatch(name) else None


# records and checkpoints from before 0.3


def upgraded(values: Any) -> Any:
    """Return the fields of an old record or checkpoint, whose `weights` are prose, with `pretrained` in their place.

    What prose does not show is unknown: a file may have been trained on other data than its recipe declared, and the
    share of leaked images may be too low when there is more than one training set.
    """
    if not isinstance(values, dict) or not isinstance(values.get("weights"), str) or "pretrained" in values:
        return values
    trained_on = values.get("training_data")
    names = trained_on if isinstance(trained_on, list) else []
    pretrained = _read_prose(values["weights"], names)
    fields = {**values, "pretrained": pretrained, "training_data": trained_on}
    del fields["weights"]
    if UNKNOWN in training_data(pretrained) and UNKNOWN not in names and isinstance(trained_on, list):
        fields["training_data"] = [*names, UNKNOWN]
    others = [name for name in fields["training_data"] or () if name != values.get("dataset")]
    if "leaked" in values and not all(isinstance(name, str) and has_no_coco(name) for name in others):
        fields["leaked"] = None
    return fields


def _read_prose(text: str, names: Sequence[str]) -> tuple[Pretrained, ...]:
    """Read what risbench 0.2 wrote about weights; `names` are the training data beside it."""
    if text in ("", "none", "random", "from scratch"):
        return ()
    known = None if UNKNOWN in names else tuple(names)
    if initial := re.fullmatch(r"(checkpoint \w+) \((.*)\)", text):
        inner = _read_prose(initial[2], names) or (from_scratch("network"),)
        return (Pretrained(part="network", source=initial[1], training_data=tuple(names), pretrained=inner),)
    if released := re.fullmatch(r"released \S+, (.*) sha256 (\w+)", text):
        return (Pretrained(part="network", source=released[1], sha256=released[2], training_data=known),)
    return tuple(map(_read_part, text.split("; ")))


def _read_part(text: str) -> Pretrained:
    words = re.fullmatch(r"(Darknet53|Swin|ResNet|BERT|word vectors|backbone|text) (.*)", text)
    if words is None:
        return Pretrained(part="network", source=text)
    part, source = words[1], words[2].removesuffix(" (ImageNet-1k)")
    if source in ("random", "from scratch"):
        return from_scratch(part)
    data = timm_data(source.removeprefix("timm ")) if source.startswith("timm ") else None
    return Pretrained(part=part, source=source, training_data=bert_data(source) if part == "BERT" else data)
