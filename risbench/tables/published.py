"""Published numbers: the rows of results/published.csv, and which of them is a method's headline.

A row holds what was printed, and how risbench reads it: the metric (`read_as`), the data set and the split (`read_on`),
with the reason if they differ from the print. They are empty if they are not known: a number whose metric is unknown is
never shown as another metric.
"""

from __future__ import annotations

import csv
import functools
import io
import re
from dataclasses import dataclass, fields

from risbench.files import read_bytes
from risbench.tables import papers
from risbench.tables.papers import Selection


@dataclass(frozen=True)
class Published:
    """One printed number, with the columns of the file."""

    method: str
    year: str  # of the method
    backbone: str
    training_data: str  # "single data set", "mixed RefCOCO", "external data" or ""
    variant: str
    dataset: str
    split: str
    metric: str
    value: float  # percent
    read_as: str  # the metric by risbench's name, or ""
    read_on: str  # data set and split by risbench's names, or ""
    reason: str  # why it is read so, in sentences
    protocol: str  # risbench's name, or words if it has none, or "" if it is not known
    source: str
    table: str
    secondary: str  # "yes" if only a survey or a leaderboard states it
    note: str
    digits: int = 2  # after the point, as printed

    def is_in(self, selection: Selection) -> bool:
        """Whether the row agrees with every field of a selection that is set."""
        return all(getattr(self, name) == value for name, value in selection if value is not None)

    @property
    def risbench_method(self) -> str:
        """The method's folder, or ""."""
        for folder, method in papers.methods().items():
            rest = self.method.removeprefix(method.printed)
            if rest != self.method and not rest[:1].isalpha():
                return folder
        return ""

    @property
    def risbench_dataset(self) -> str:
        """The data set's card, or ""."""
        return self.read_on.partition(" ")[0]

    @property
    def risbench_split(self) -> str:
        """The split by the card's name, or ""."""
        return self.read_on.partition(" ")[2]

    @property
    def risbench_metric(self) -> str:
        """The metric as risbench defines it, or ""."""
        return self.read_as

    @property
    def where(self) -> str:
        """The source and the table in it."""
        return ", ".join(filter(None, [self.source, self.table]))

    @property
    def remark(self) -> str:
        """The note on this number alone."""
        secondary = "secondary: known only from a survey or a leaderboard" if self.secondary else ""
        return "; ".join(filter(None, [secondary, self.note]))

    @property
    def footnote(self) -> str:
        """Where the number stands, how it is read, and the note."""
        return ". ".join(filter(None, [self.where, self.reason, self.remark])) + "."


_COLUMNS = tuple(column.name for column in fields(Published) if column.name != "digits")


@functools.cache
def load() -> tuple[Published, ...]:
    """Read the published numbers, in the order of the file. Raises InputError for a damaged file."""
    path = papers.data_file("published.csv")
    try:
        lines = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")
        reader = csv.DictReader(lines, strict=True)
        numbers = tuple(_number(row, reader.line_num) for row in reader)
    except OSError as error:
        raise papers.damaged(path, f"it cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise papers.damaged(path, str(error)) from None
    if not numbers:
        raise papers.damaged(path, "it has no rows")
    return numbers


def _number(row: dict[str, str], line: int) -> Published:
    """Make a number of a row. Raises ValueError that names the line."""
    if row.keys() != set(_COLUMNS) or None in row.values():
        raise ValueError(f"line {line} does not have the columns {', '.join(_COLUMNS)}")
    text = row.pop("value")
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text) or float(text) > 100:
        raise ValueError(f"line {line} has the value {text[:40]!r}, no percentage")
    return Published(value=float(text), digits=len(text.partition(".")[2]), **row)


def headlines(metric: str = "oIoU") -> list[Published]:
    """Return the headline rows of one metric, for every method, data set and split that has one."""
    rows = (row for row in load() if row.risbench_metric == metric)
    keys = dict.fromkeys((row.risbench_method, row.risbench_dataset, row.risbench_split) for row in rows)
    known = [headline(*key, metric) for key in keys if all(key)]
    return [row for row in known if row is not None]


def headline(method: str, dataset: str, split: str, metric: str = "oIoU") -> Published | None:
    """Return the number by which a method's source wants to be known, or None if it prints none."""
    wanted = (dataset, split, metric)
    rows = (r for r in _headline_rows(method) if (r.risbench_dataset, r.risbench_split, r.risbench_metric) == wanted)
    return next(rows, None)


@functools.cache
def _headline_rows(method: str) -> list[Published]:
    """Return the rows of the network that a method's headline is of, in the order of preference."""
    selections = papers.methods()[method].headline if method in papers.methods() else ()
    return [row for selection in selections for row in load() if row.is_in(selection)]


def headline_protocols(method: str) -> tuple[str, ...]:
    """Return the protocols under which a measured value can be compared with a method's headline."""
    return papers.methods()[method].protocols if method in papers.methods() else ()
