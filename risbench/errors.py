"""InputError, the error of a user's mistake.

Whatever a user can get wrong (a name, a file, a value) raises InputError. Its message says what is wrong, with the
value, and what to do. The command line prints it and exits with 2. Any other exception is a bug in risbench.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import ValidationError


class InputError(ValueError):
    """Wrong input: the message names the value, the problem and the cure."""


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> InputError:
    """Return the error for an unknown name: it lists the known names and proposes the nearest."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(
        f"Unknown {what} {name!r}.{guess} Known: {', '.join(names) or 'none'}.{' ' + more if more else ''}"
    )


def defect(error: ValidationError) -> str:
    """Describe the first value that a schema refuses: its place and the problem."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
