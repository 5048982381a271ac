"""InputError, the error of a user's mistake.

Whatever a user can get wrong (a name, a file, a value) raises InputError. Its message says what is wrong, with the
value, and what to do. The command line prints it and exits with 2. Any other exception is a bug in risbench.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from pydantic import ValidationError


class InputError(ValueError):
    """Wrong input: the message names the value, the problem and the cure."""


DATA_ROOT = "--data-root (in Python data_root=)"  # options in messages that users of Python read as well
PARTIAL = "--partial (in Python partial=True)"

_SETS_OF_DATA = ("data set", "split")
_SEPARATORS = str.maketrans("", "", " -_.")


def unknown(what: str, name: str, known: Iterable[str], more: str = "") -> InputError:
    """Return the error for an unknown name: it lists the known names and proposes up to three that may be meant.

    Names of equal letters come first. If there is none, no set of data is proposed: the nearest one is another set, and
    who follows a wrong guess measures on that without notice.
    """
    names = list(known)
    guesses = [other for other in names if _letters(other) == _letters(name)]
    if not guesses and not what.startswith(_SETS_OF_DATA):
        nearest = difflib.get_close_matches(name, names, n=1)
        guesses = list(dict.fromkeys([*nearest, *difflib.get_close_matches(name, names, n=3, cutoff=0.8)]))
    guess = f" Did you mean {' or '.join(map(repr, guesses))}?" if guesses else ""
    return InputError(
        f"Unknown {what} {name!r}.{guess} Known: {', '.join(names) or 'none'}.{' ' + more if more else ''}"
    )


def _letters(name: str) -> str:
    """Return a name without what is easily mistyped: case, and the separators of words."""
    return name.casefold().translate(_SEPARATORS)


def first_line(error: object) -> str:
    """Return the first line of an error's message, or else its class."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's message without its full stop, or else its class."""
    return re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".") or type(error).__name__


def defect(error: ValidationError) -> str:
    """Describe the first value that a schema refuses: its place and the problem."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
