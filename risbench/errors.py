"""The one error that is the user's to mend.

Whatever a user can get wrong (a name, a file, a value) raises InputError with one sentence that says what is wrong,
with the value, and what to do. The command line prints it and exits with 2. Any other exception is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


class InputError(ValueError):
    """Wrong input: the message names the value, what is wrong with it and the cure."""


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> InputError:
    """The error for a name that does not exist: it lists the known ones and proposes the nearest."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(
        f"Unknown {what} {name!r}.{guess} Known: {', '.join(names) or 'none'}.{' ' + more if more else ''}"
    )


def defect(error: ValidationError) -> str:
    """The first thing that a schema refuses: where it is, and what is wrong with it."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
