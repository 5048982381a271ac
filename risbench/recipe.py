"""A recipe: all settings of a method, read from methods/<name>/recipe.toml.

A recipe has the sections [model] (keys of the method alone), [text], [image], [train] and [predict], and
[variant.<name>] tables that override keys. `--variant a,b` applies variants from left to right, after the data set's
default variant unless `full` is among them. `section.key=value` comes last. An override must name an existing key and
keep its type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from risbench import files
from risbench.errors import InputError, unknown
from risbench.overrides import EXAMPLES, Value, override, parse_override, short

__all__ = [  # pydantic's names are for the [model] of a method, which may import risbench but not pydantic
    "FULL",
    "REMARKS",
    "Field",
    "Fraction",
    "Image",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Predict",
    "Probability",
    "Recipe",
    "Section",
    "Text",
    "Train",
    "Value",
    "differences",
    "dumps",
    "load",
    "read",
    "validate",
    "validate_section",
    "variant_names",
]

FULL = "full"  # the name of the recipe without its default variant

_COMPUTATION_KEYS = {  # where and how a run is computed, which changes no setting of the method
    "train.workers",
    "train.precision",
    "train.matmul",
    "train.micro_batch",
    "predict.images_per_batch",
    "model.activation_checkpointing",
    "model.compile",
}

REMARKS = ("train.licence", "train.gated")  # about weights, which change no result

Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
_GreyLevel = Annotated[int, Field(ge=0, le=255)]

_LARGEST_SIDE = 4096  # pixels; the field's networks read 320 to 1,024
_MOST_EPOCHS = 1_000_000
_Expressions = Annotated[int, Field(gt=0, le=65_536)]
_Images = Annotated[int, Field(gt=0, le=4096)]
_Epochs = Annotated[int, Field(gt=0, le=_MOST_EPOCHS)]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("each name may stand once")
    return names


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the values of the keys that recipes of an older risbench lack."""
        return {name: deepcopy(f.default) for name, f in cls.model_fields.items() if not f.is_required()}


S = TypeVar("S", bound=Section)


class Text(Section):
    """How expressions are read."""

    field: Literal["raw", "sent"]
    max_tokens: int = Field(ge=0, le=512, description="0: the data set card's max_words")


class Image(Section):
    """How an image becomes the network input."""

    size: int = Field(gt=0, le=_LARGEST_SIDE, description="side of the square network input, pixels")
    geometry: Literal["stretch", "letterbox", "letterbox-cut"] = Field(
        description="aspect ignored; kept, sides rounded to pixels; kept, sides cut to pixels (SimREC)"
    )
    border: _GreyLevel | tuple[_GreyLevel, _GreyLevel, _GreyLevel] = Field(
        description="grey level around a letterboxed image; a protocol may set a colour"
    )
    resampling: Literal["bilinear", "bicubic"]
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[PositiveFloat] = Field(min_length=3, max_length=3)


def _with_micro_batch(train: Any) -> Any:
    """Translate a [train] from before 0.3, which counts the micro-batches of a step as `accumulate`."""
    if not isinstance(train, dict) or "micro_batch" in train:
        return train
    size, count = train.get("batch_size"), train.get("accumulate")
    if type(size) is not int or type(count) is not int or count < 1:
        return train  # the schema says what is wrong
    rest = {key: value for key, value in train.items() if key != "accumulate"}
    return {**rest, "micro_batch": max(size // count, 1)}


class Train(Section):
    """How the method is trained."""

    datasets: Annotated[list[str], AfterValidator(_distinct)] = Field(
        description="data sets trained on together; empty: the one that is evaluated"
    )
    pretraining: list[str] = Field(
        description="data that weights were trained on whose names do not say it, such as a file's; empty: unknown"
    )
    epochs: int = Field(ge=0, le=_MOST_EPOCHS, description="0: pretrained weights are evaluated as they are, zero-shot")
    batch_size: _Expressions = Field(description="expressions per optimiser step, over all processes")
    micro_batch: _Expressions = Field(description="most expressions that one process computes at once")
    per_image: _Expressions = Field(description="expressions of one image in a row, which share its features")
    sentences: Literal["each", "random"] = Field(description="sentences of a ref in one epoch: each, or a random one")
    ground_truth: Literal["union", "once"] = Field(
        description="union of the polygons, or pixels that exactly one polygon covers"
    )
    min_scale: float = Field(gt=0, le=1, description="images are shrunk to between this and 1 and placed at random")
    optimizer: Literal["adam", "adamw"]
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    schedule: Literal["step", "poly", "cosine"]
    milestones: list[int] = Field(description="epochs after which a step schedule multiplies by decay")
    decay: PositiveFloat = Field(description="factor of a step schedule, power of a poly schedule")
    warmup: NonNegativeFloat = Field(description="epochs over which the rate rises linearly from 0; 0: none")
    clip_norm: NonNegativeFloat = Field(description="largest norm of a step's gradient; 0: no limit")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
    validate_every: _Epochs = Field(description="epochs between validations on val")
    workers: int = Field(ge=0, le=64, description="loader processes")
    # Recipes of older checkpoints lack the next keys; the defaults are how they were trained.
    flip: Fraction = Field(default=0.0, description="share of images mirrored, left and right exchanged in the words")
    rates: dict[str, PositiveFloat] = Field(default={}, description="factors of lr by the prefix of parameters' names")
    ema: Fraction = Field(default=0.0, description="decay of the moving average of the weights; 0: none is kept")
    matmul: Literal["highest", "high", "medium"] = Field(
        default="highest", description="precision of float32 matrix products on CUDA: high is TF32"
    )
    licence: str = Field(default="", description="remark on the licence of the pretrained weights; empty: none")
    gated: bool = Field(default=False, description="whether the hub asks for acceptance before it gives the weights")

    @model_validator(mode="before")
    @classmethod
    def _accumulate_is_a_micro_batch(cls, values: Any) -> Any:
        """Read recipes from before 0.3."""
        return _with_micro_batch(values)


class Predict(Section):
    """How probabilities become masks."""

    threshold: Probability = Field(description="foreground is probability > threshold")
    images_per_batch: _Images
    no_target_below: Fraction = Field(default=0.0, description="no-target is a largest probability below this; 0: off")


class Recipe(Section):
    """All settings of one run."""

    model: dict[str, Value]
    text: Text
    image: Image
    train: Train
    predict: Predict

    @property
    def trains(self) -> bool:
        """Whether a run trains; otherwise it evaluates pretrained weights as they are."""
        return self.train.epochs > 0


def load(
    path: Path, variants: Sequence[str] = (), overrides: Sequence[str] = (), default_variant: str = ""
) -> tuple[Recipe, list[str]]:
    """Read a recipe file and apply variants and overrides; return it with the names of the applied variants.

    Raises InputError when the file, a variant or an override is wrong.
    """
    tables = read(path)
    known = _variant_tables(tables, path)
    if isinstance(tables.get("train"), dict):  # of an older risbench, it lacks keys that may be set
        tables["train"] = Train.defaults() | _with_micro_batch(tables["train"])
    if isinstance(tables.get("predict"), dict):
        tables["predict"] = Predict.defaults() | tables["predict"]
    applied = list(dict.fromkeys(variants))
    if default_variant in known and FULL not in applied:
        applied = [default_variant, *(name for name in applied if name != default_variant)]
    origins: dict[str, str] = {}  # of each changed key: the variant or the override
    for name in applied:
        if name not in known and name != FULL:
            raise unknown("variant", name, [FULL, *known], f"They are the [variant.<name>] tables of {path}.")
        origins |= override(tables, known.get(name, {}), f"variant {name!r} of {path}")
    for assignment in overrides:
        origins |= override(tables, parse_override(assignment), f"the override {short(assignment)}")
    return validate(tables, str(path), origins), [name for name in applied if name != FULL]


def variant_names(path: Path) -> list[str]:
    """Return the names of a recipe's variants."""
    return list(_variant_tables(read(path), path))


def read(path: Path) -> dict[str, Any]:
    """Read the tables of a recipe file. Raises InputError when it is missing or no valid TOML."""
    try:
        return files.parse_toml(files.read_bytes(path))
    except FileNotFoundError:
        raise InputError(f"There is no recipe at {path}. A method's folder holds recipe.toml.") from None
    except OSError as error:
        raise InputError(f"The recipe {path} cannot be read: {error.strerror}. Give a file that can be read.") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}. Mend that line.") from None


def validate(tables: Mapping[str, Any], where: str, origins: Mapping[str, str] | None = None) -> Recipe:
    """Check the tables against the schema. Raises InputError for the first defect.

    `where` is the file they come from, and `origins` says of keys (section.key) where their values come from instead.
    """
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"][:2]]
        field = Recipe.model_fields.get(path[0])
        schema = field.annotation if field is not None and len(first["loc"]) > 1 else Recipe
        known = schema.model_fields if isinstance(schema, type) and issubclass(schema, BaseModel) else {}
        raise _input_error(first, path, known, (origins or {}).get(".".join(path), where)) from None


def _variant_tables(tables: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take the [variant.<name>] tables out of the tables of a recipe. Raises InputError for another kind of value."""
    variants = tables.pop("variant", {})
    if not isinstance(variants, dict):
        raise InputError(f"{path}: variant = {short(variants)} is no table. Write [variant.<name>.model].")
    for name, sections in variants.items():
        if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
            raise InputError(f"{path}: the variant {name!r} holds keys of no section. Write [variant.{name}.model].")
    return variants


def validate_section(schema: type[S], values: Mapping[str, Any], name: str) -> S:
    """Check a section, such as a method's [model], against its schema. Raises InputError for the first defect."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        path = [name, *(str(part) for part in first["loc"])]
        raise _input_error(first, path, schema.model_fields, "the recipe") from None


def _input_error(defect: ErrorDetails, path: list[str], known: Iterable[str], where: str) -> InputError:
    """Return the error for a defect at `path` in the file `where`; `known` are the valid keys at its level."""
    key = ".".join(path)
    if defect["type"] == "extra_forbidden":
        return unknown("recipe key", key, [".".join([*path[:-1], k]) for k in known], f"It stands in {where}.")
    if defect["type"] == "missing":
        return InputError(f"{key} is missing in {where}: add it.")
    reason = defect["msg"].removeprefix("Value error, ")
    if path[:2] == ["train", "rates"] and len(defect["loc"]) > 2:
        key += f'["{defect["loc"][2]}"]'
        reason += f"; write {key.partition('[')[0]} = {EXAMPLES['train.rates']}, the prefix in quotes"
    if defect["loc"][0] == "model" and len(defect["loc"]) > 2:  # the message is about one type of several
        reason = "it must be a boolean, a finite number, a string, or a list of finite numbers or of strings"
    return InputError(f"{where}: {key} = {short(defect['input'])} is wrong: {reason}. Give it another value.")


def differences(stored: Mapping[str, Any], settings: Recipe) -> dict[str, Any]:
    """Return the values of a stored recipe that differ from `settings`, by `section.key`.

    Only keys that both have are compared, without those that change no setting of the method (workers, remarks, ...).
    """
    different = {}
    for section, known in settings.model_dump().items():
        values = stored.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            name = f"{section}.{key}"
            if key in known and value != known[key] and name not in {*_COMPUTATION_KEYS, *REMARKS}:
                different[name] = value
    return different


def dumps(recipe: Recipe) -> str:
    """Return a recipe as TOML, from which `validate` makes the same recipe."""
    return tomli_w.dumps(recipe.model_dump())
