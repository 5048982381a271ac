"""A recipe: all settings of a method, read from methods/<name>/recipe.toml.

A recipe has the sections [model] (the method's own keys), [text], [image], [train] and [predict], and [variant.<name>]
tables that override keys. `--variant a,b` composes left to right after the data set's default variant (which `full`
switches off), `section.key=value` comes last. An override must name a key that exists and keep its type.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Field  # methods, which import risbench alone, constrain their [model] with it
from pydantic_core import ErrorDetails

from risbench.errors import InputError, unknown

FULL = "full"  # the variant that stands for the recipe as it is

_COMPUTATION = {  # keys that say where and how a run was computed, not what
    "train.workers",
    "train.precision",
    "train.accumulate",
    "predict.images_per_batch",
    "model.activation_checkpointing",
    "model.compile",
}

Scalar = bool | int | float | str
Value = Scalar | list[int] | list[float] | list[str]


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Section)
Level = Annotated[int, Field(ge=0, le=255)]


class Text(Section):
    """How expressions are read."""

    field: Literal["raw", "sent"]
    max_tokens: int = Field(ge=0, le=512, description="0: the data set card's max_words")


class Image(Section):
    """How an image becomes the network input."""

    size: int = Field(gt=0, description="side of the square network input, pixels")
    geometry: Literal["stretch", "letterbox"]
    border: Level | tuple[Level, Level, Level] = Field(
        description="grey level around a letterboxed image; a colour only where a protocol says so"
    )
    resampling: Literal["bilinear", "bicubic"]
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[float] = Field(min_length=3, max_length=3)


class Train(Section):
    """How the method is trained."""

    datasets: list[str] = Field(description="data sets trained on together; empty: the one that is evaluated")
    pretraining: list[str] = Field(description="data behind the pretrained weights, for leak badges")
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0, description="expressions per optimiser step, over all processes")
    accumulate: int = Field(gt=0, description="micro-batches per optimiser step")
    per_image: int = Field(gt=0, description="expressions of one image in a row, which share its features")
    sentences: Literal["each", "random"] = Field(description="of a ref in one epoch: every one, or one at random")
    ground_truth: Literal["union", "once"] = Field(
        description="union of the polygons, or pixels that exactly one covers"
    )
    min_scale: float = Field(gt=0, le=1, description="images are shrunk to between this and 1 and placed at random")
    optimizer: Literal["adam", "adamw"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    schedule: Literal["step", "poly"]
    milestones: list[int] = Field(description="epochs after which a step schedule multiplies by decay")
    decay: float = Field(gt=0, description="factor of a step schedule, power of a poly schedule")
    warmup: float = Field(ge=0, description="epochs over which the rate rises linearly from 0; 0: none")
    clip_norm: float = Field(ge=0, description="largest norm of a step's gradient; 0: any")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
    validate_every: int = Field(gt=0, description="epochs between validations on val")
    workers: int = Field(ge=0, le=64, description="loader processes")


class Predict(Section):
    """How probabilities become masks."""

    threshold: float = Field(gt=0, lt=1, description="foreground is probability > threshold")
    images_per_batch: int = Field(gt=0)


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
    """Resolve the recipe file; return it with the variants that were applied."""
    tables = read(path)
    known = tables.pop("variant", {})
    chosen = list(dict.fromkeys(variants))
    if default_variant in known and FULL not in chosen:
        chosen = [default_variant, *(v for v in chosen if v != default_variant)]
    for name in chosen:
        if name not in known and name != FULL:
            raise unknown("variant", name, [FULL, *known], f"They are the [variant.<name>] tables of {path}.")
        _override(tables, known.get(name, {}), where=f"variant {name!r} of {path}")
    for assignment in overrides:
        _override(tables, _parse(assignment), where=f"{assignment!r}")
    return validate(tables, str(path)), [v for v in chosen if v != FULL]


def variants(path: Path) -> list[str]:
    """Names of the recipe's variants."""
    return list(read(path).get("variant", {}))


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no recipe at {path}. A method's folder holds recipe.toml.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}. Mend that line.") from None


def validate(tables: Mapping[str, Any], where: str) -> Recipe:
    """Check the tables against the schema; the first defect becomes one sentence."""
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        table = Recipe.model_fields.get(str(first["loc"][0]))
        part = table.annotation if table is not None and len(first["loc"]) > 1 else Recipe
        known = part.model_fields if isinstance(part, type) and issubclass(part, BaseModel) else {}
        raise _explained(first, [str(part) for part in first["loc"][:2]], known, where) from None


def section(schema: type[S], values: Mapping[str, Any], name: str) -> S:
    """Check one section of a recipe, such as a method's [model], against a schema of its own."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        path = [name, *(str(part) for part in first["loc"])]
        raise _explained(first, path, schema.model_fields, "the recipe") from None


def _explained(first: ErrorDetails, path: list[str], known: Iterable[str], where: str) -> InputError:
    """One sentence about the first defect, which lies at `path`; `known` are the keys beside it."""
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return unknown("recipe key", key, [".".join([*path[:-1], k]) for k in known], f"It stands in {where}.")
    if first["type"] == "missing":
        return InputError(f"{key} is missing in {where}: add it.")
    return InputError(f"{where}: {key} = {first['input']!r} is wrong: {first['msg']}. Give it another value.")


def differences(stored: Mapping[str, Any], settings: Recipe) -> dict[str, Any]:
    """What a stored recipe sets otherwise than `settings`: its values by `section.key`.

    Keys that only one of them has, and keys that say where and how a run was computed, are left out.
    """
    found = {}
    for section, known in settings.model_dump().items():
        values = stored.get(section)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            name = f"{section}.{key}"
            if key in known and value != known[key] and name not in _COMPUTATION:
                found[name] = value
    return found


def dumps(recipe: Recipe) -> str:
    """Write a recipe as TOML; `validate(tomllib.loads(dumps(recipe)))` gives it back."""
    lines = []
    for section, values in recipe.model_dump().items():
        lines += [f"[{section}]", *(f"{key} = {toml(value)}" for key, value in values.items()), ""]
    return "\n".join(lines)


def _override(tables: dict[str, Any], changes: Mapping[str, Any], where: str) -> None:
    """Replace existing keys of existing sections in place; types must stay."""
    for section, values in changes.items():
        if section not in tables or not isinstance(values, Mapping):
            raise unknown("recipe section", section, tables, f"It stands in {where}; write section.key=value.")
        for key, value in values.items():
            if key not in tables[section]:
                known = [f"{section}.{k}" for k in tables[section]]
                raise unknown("recipe key", f"{section}.{key}", known, f"It stands in {where}.")
            tables[section] = {**tables[section], key: _typed(value, tables[section][key], f"{section}.{key}", where)}


def _typed(value: Any, old: Any, key: str, where: str) -> Any:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise InputError(
            f"{where} sets {key} to {value!r}, which is a {type(value).__name__}; it must be a {type(old).__name__} "
            f"like {old!r}."
        )
    return value


def _parse(assignment: str) -> dict[str, dict[str, Any]]:
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


def toml(value: Value) -> str:
    """Write a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return repr(value)
