"""Published numbers: the rows of results/published.csv, and which of them is a method's headline.

A row keeps what was printed, and says beside it what the number is taken for: the metric (`read_as`), the data set and
the split (`read_on`), with the reason where they differ. Where nobody knows, they are empty: a number whose metric is
unknown is never shown as another one.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

_BESIDE = Path(__file__).with_name("published.csv")  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "results" / "published.csv"

_METHODS = ("LTS", "LAVT", "CoupAlign", "MagNet")


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
    protocol: str  # risbench's name, or words where it has none; "" where it is not known
    source: str
    table: str
    secondary: str  # "yes" where only a survey or a leaderboard states it
    note: str
    digits: int = 2  # that the value was printed with after the point

    @property
    def risbench_method(self) -> str:
        """The method's folder, or ""."""
        for name in _METHODS:
            rest = self.method.removeprefix(name)
            if rest != self.method and not rest[:1].isalpha():
                return name.lower()
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
        """What must be said of this number alone."""
        secondary = "secondary: only a survey or a leaderboard at hand states it" if self.secondary else ""
        return "; ".join(filter(None, [secondary, self.note]))

    @property
    def footnote(self) -> str:
        """What must be said beside the number: where it stands, how it is read, and the note."""
        return ". ".join(filter(None, [self.where, self.reason, self.remark])) + "."


@dataclass(frozen=True)
class Headline:
    """Where a method's own numbers stand, and the protocols under which a difference from them means something."""

    places: tuple[tuple[str, str, str, str], ...]  # source, table, method and variant as printed
    protocols: tuple[str, ...]


HEADLINES = {
    "lts": Headline(
        (
            ("LTS paper, CVPR 2021", "Table 1", "LTS (Ours)", "DCRF no"),
            ("LTS paper, CVPR 2021", "Table 2", "LTS", "Fusion+Filter+Seg+L_loc"),  # P@X of the same network
        ),
        protocols=("lts", "original"),  # section 3.4: scored at the original image size
    ),
    "lavt": Headline(
        (("yz93/LAVT-RIS README.md", "Results 1", "LAVT", "weighted cross-entropy, released lavt (paper numbers)"),),
        protocols=("lavt",),  # test.py scores at 480 x 480
    ),
    "coupalign": Headline(
        (("arXiv:2508.00265v2 survey", "TABLE 2", "CoupAlign", ""),),
        protocols=(),  # no source names one
    ),
    "magnet": Headline(
        (("yxchng/mask-grounding README.md", "Results", "MagNet", ""),),
        protocols=("magnet", "lavt"),  # test.py has LAVT's data path
    ),
}


@functools.cache
def load(path: Path | None = None) -> tuple[Published, ...]:
    """Read the published numbers, in the order of the file."""
    file = path or (_BESIDE if _BESIDE.is_file() else _CHECKOUT)
    with file.open(encoding="utf-8", newline="") as lines:
        return tuple(map(_number, csv.DictReader(lines)))


def _number(row: dict[str, str]) -> Published:
    text = row.pop("value")
    return Published(value=float(text), digits=len(text.partition(".")[2]), **row)


def headlines(metric: str = "oIoU") -> list[Published]:
    """Return the headline rows of one metric, for every method, data set and split that has one."""
    rows = (row for row in load() if row.risbench_metric == metric)
    keys = {(row.risbench_method, row.risbench_dataset, row.risbench_split): None for row in rows}
    found = [headline(*key, metric) for key in keys if all(key)]
    return [row for row in found if row is not None]


def headline(method: str, dataset: str, split: str, metric: str = "oIoU") -> Published | None:
    """Return the number by which a method's source wants to be known, or None where it prints none."""
    places = HEADLINES[method].places if method in HEADLINES else ()
    wanted = (dataset, split, metric)
    for place in places:
        for row in load():
            printed = (row.source, row.table, row.method, row.variant)
            if printed == place and (row.risbench_dataset, row.risbench_split, row.risbench_metric) == wanted:
                return row
    return None
