"""Overrides of a recipe's keys: `section.key=value`, and the keys of a variant."""

from __future__ import annotations

import math
import reprlib
import tomllib
from collections.abc import Mapping
from typing import Any

from risbench import files
from risbench.errors import InputError, unknown

EXAMPLES = {  # of keys that are empty by default, as they are written
    "train.rates": '{"network.text." = 0.1}',
    "train.pretraining": '["COCO"]',
    "train.datasets": '["refcoco", "refcoco+"]',
}

Scalar = bool | int | float | str
Value = Scalar | list[int] | list[float] | list[str]


def override(tables: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, str]:
    """Replace values of existing keys in place; return `where` for each of them.

    Raises InputError for an unknown key or another type.
    """
    for section, values in changes.items():
        if not isinstance(tables.get(section), Mapping):
            raise unknown("recipe section", section, tables, f"It stands in {where}; write section.key=value.")
        for key, value in values.items():
            if (section, key) == ("train", "accumulate"):
                raise InputError(
                    f"{where} sets train.accumulate, which is no key any more: set train.micro_batch, the most "
                    "expressions that one process computes at once. The batch stays what it is."
                )
            if key not in tables[section]:
                known = [f"{section}.{k}" for k in tables[section]]
                raise unknown("recipe key", f"{section}.{key}", known, f"It stands in {where}.")
            tables[section] = {
                **tables[section],
                key: _checked_type(value, tables[section][key], f"{section}.{key}", where),
            }
    return {f"{section}.{key}": where for section, values in changes.items() for key in values}


def _checked_type(value: Any, old: Any, key: str, where: str) -> Any:
    """Return a value of the old one's type; an integer may stand for a float. Raises InputError otherwise."""
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise InputError(
            f"{where} sets {key} to {short(value)}, which is a {type(value).__name__}; it must be a "
            f"{type(old).__name__} like {EXAMPLES.get(key, repr(old))}."
        )
    return value


def parse_override(assignment: str) -> dict[str, dict[str, Any]]:
    """Turn `section.key=value` into tables; the value is TOML, or a plain string."""
    key, equals, text = assignment.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise InputError(f"{short(assignment)} is not an override. Write section.key=value, for example train.lr=3e-5.")
    return {section: {name: _parse_value(text, assignment)}}


def _parse_value(text: str, assignment: str) -> Value:
    """Parse the value of an override. Raises InputError for what cannot be stored as one value of TOML."""
    try:
        text.encode()
        tables = files.parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    except UnicodeEncodeError:
        raise InputError(
            f"{short(assignment)} is not text in UTF-8, so it cannot be stored: rename the file."
        ) from None
    except ValueError as error:
        raise InputError(f"The value of {short(assignment)} cannot be read: {error}. Give a simpler one.") from None
    value: Value = tables["value"]
    if len(tables) > 1:
        raise InputError(f"{short(assignment)} sets more than one key: write one override for each.")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{short(assignment)} is no finite number: give another value.")
    return value


def short(value: Any) -> str:
    """Return the representation of a value, cut in the middle if it is long or nested deeply."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = shown.maxlong = 200
    shown.maxlist, shown.maxlevel = 20, 3
    return shown.repr(value)
