"""A recipe: all settings of a method, read from methods/<name>/recipe.toml.

A recipe has the sections [model] (keys of the method alone), [text], [image], [train] and [predict], and
[variant.<name>] tables that override keys. `--variant a,b` applies variants from left to right, after the data set's
default variant unless `full` is among them. `section.key=value` comes last. An override must name an existing key and
keep its type.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic_core import ErrorDetails

from risbench.errors import InputError, unknown

__all__ = [  # pydantic's names are for the [model] of a method, which may import risbench but not pydantic
    "FULL",
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
    "to_toml",
    "validate",
    "validate_section",
    "variant_names",
]

FULL = "full"  # the name of the recipe without its default variant

_COMPUTATION_KEYS = {  # where and how a run is computed, which changes no setting of the method
    "train.workers",
    "train.precision",
    "train.accumulate",
    "predict.images_per_batch",
    "model.activation_checkpointing",
    "model.compile",
}

Scalar = bool | int | float | str
Value = Scalar | list[int] | list[float] | list[str]

Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
_GreyLevel = Annotated[int, Field(ge=0, le=255)]


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)


class Text(Section):
    """How expressions are read."""

    field: Literal["raw", "sent"]
    max_tokens: int = Field(ge=0, le=512, description="0: the data set card's max_words")


class Image(Section):
    """How an image becomes the network input."""

    size: PositiveInt = Field(description="side of the square network input, pixels")
    geometry: Literal["stretch", "letterbox"]
    border: _GreyLevel | tuple[_GreyLevel, _GreyLevel, _GreyLevel] = Field(
        description="grey level around a letterboxed image; a protocol may set a colour"
    )
    resampling: Literal["bilinear", "bicubic"]
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[float] = Field(min_length=3, max_length=3)


class Train(Section):
    """How the method is trained."""

    datasets: list[str] = Field(description="data sets trained on together; empty: the one that is evaluated")
    pretraining: list[str] = Field(description="data that the pretrained weights were trained on, for leak badges")
    epochs: PositiveInt
    batch_size: PositiveInt = Field(description="expressions per optimiser step, over all processes")
    accumulate: PositiveInt = Field(description="micro-batches per optimiser step")
    per_image: PositiveInt = Field(description="expressions of one image in a row, which share its features")
    sentences: Literal["each", "random"] = Field(description="sentences of a ref in one epoch: each, or a random one")
    ground_truth: Literal["union", "once"] = Field(
        description="union of the polygons, or pixels that exactly one polygon covers"
    )
    min_scale: float = Field(gt=0, le=1, description="images are shrunk to between this and 1 and placed at random")
    optimizer: Literal["adam", "adamw"]
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    schedule: Literal["step", "poly"]
    milestones: list[int] = Field(description="epochs after which a step schedule multiplies by decay")
    decay: PositiveFloat = Field(description="factor of a step schedule, power of a poly schedule")
    warmup: NonNegativeFloat = Field(description="epochs over which the rate rises linearly from 0; 0: none")
    clip_norm: NonNegativeFloat = Field(description="largest norm of a step's gradient; 0: no limit")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
    validate_every: PositiveInt = Field(description="epochs between validations on val")
    workers: int = Field(ge=0, le=64, description="loader processes")


class Predict(Section):
    """How probabilities become masks."""

    threshold: Probability = Field(description="foreground is probability > threshold")
    images_per_batch: PositiveInt


class Recipe(Section):
    """All settings of one run."""

    model: dict[str, Value]
    text: Text
    image: Image
    train: Train
    predict: Predict


def load(
    path: Path, variants: Sequence[str] = (), overrides: Sequence[str] = (), default_variant: str = ""
) -> tuple[Recipe, list[str]]:
    """Read a recipe file and apply variants and overrides; return it with the names of the applied variants.

    Raises InputError when the file, a variant or an override is wrong.
    """
    tables = read(path)
    known = tables.pop("variant", {})
    applied = list(dict.fromkeys(variants))
    if default_variant in known and FULL not in applied:
        applied = [default_variant, *(name for name in applied if name != default_variant)]
    for name in applied:
        if name not in known and name != FULL:
            raise unknown("variant", name, [FULL, *known], f"They are the [variant.<name>] tables of {path}.")
        _override(tables, known.get(name, {}), where=f"variant {name!r} of {path}")
    for assignment in overrides:
        _override(tables, _parse_override(assignment), where=f"{assignment!r}")
    return validate(tables, str(path)), [name for name in applied if name != FULL]


def variant_names(path: Path) -> list[str]:
    """Return the names of a recipe's variants."""
    return list(read(path).get("variant", {}))


def read(path: Path) -> dict[str, Any]:
    """Read the tables of a recipe file. Raises InputError when it is missing or no valid TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no recipe at {path}. A method's folder holds recipe.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}. Mend that line.") from None


def validate(tables: Mapping[str, Any], where: str) -> Recipe:
    """Check the tables against the schema. Raises InputError for the first defect."""
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        field = Recipe.model_fields.get(str(first["loc"][0]))
        schema = field.annotation if field is not None and len(first["loc"]) > 1 else Recipe
        known = schema.model_fields if isinstance(schema, type) and issubclass(schema, BaseModel) else {}
        raise _input_error(first, [str(part) for part in first["loc"][:2]], known, where) from None


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
    return InputError(f"{where}: {key} = {defect['input']!r} is wrong: {defect['msg']}. Give it another value.")


def differences(stored: Mapping[str, Any], settings: Recipe) -> dict[str, Any]:
    """Return the values of a stored recipe that differ from `settings`, by `section.key`.

    Only keys that both have are compared, without those that change no setting of the method (workers, precision, ...).
    """
    different = {}
    for section, known in settings.model_dump().items():
        values = stored.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            name = f"{section}.{key}"
            if key in known and value != known[key] and name not in _COMPUTATION_KEYS:
                different[name] = value
    return different


def dumps(recipe: Recipe) -> str:
    """Return a recipe as TOML, from which `validate(tomllib.loads(text), where)` makes the same recipe."""
    lines = []
    for section, values in recipe.model_dump().items():
        lines += [f"[{section}]", *(f"{key} = {to_toml(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _override(tables: dict[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Replace values of existing keys in place. Raises InputError for an unknown key or another type."""
    for section, values in changes.items():
        if section not in tables or not isinstance(values, Mapping):
            raise unknown("recipe section", section, tables, f"It stands in {where}; write section.key=value.")
        for key, value in values.items():
            if key not in tables[section]:
                known = [f"{section}.{k}" for k in tables[section]]
                raise unknown("recipe key", f"{section}.{key}", known, f"It stands in {where}.")
            tables[section] = {
                **tables[section],
                key: _checked_type(value, tables[section][key], f"{section}.{key}", where),
            }


def _checked_type(value: Any, old: Any, key: str, where: str) -> Any:
    """Return a value of the old one's type; an integer may stand for a float. Raises InputError otherwise."""
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise InputError(
            f"{where} sets {key} to {value!r}, which is a {type(value).__name__}; it must be a {type(old).__name__} "
            f"like {old!r}."
        )
    return value


def _parse_override(assignment: str) -> dict[str, dict[str, Any]]:
    """Turn `section.key=value` into tables; the value is TOML, or a plain string."""
    key, equals, text = assignment.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise InputError(f"{assignment!r} is not an override. Write section.key=value, for example train.lr=3e-5.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return {section: {name: value}}


def to_toml(value: Value) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(to_toml(item) for item in value) + "]"
    return repr(value)
