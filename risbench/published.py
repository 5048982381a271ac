"""Published numbers: the rows of results/published.csv, and which of them is a method's headline.

Sources do not agree on names. Each row keeps what was printed and adds risbench's name for the method, the data set and
the metric, or "" where there is none: a number whose metric is unknown is never shown as another one.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

_BESIDE = Path(__file__).with_name("published.csv")  # in a wheel
_CHECKOUT = Path(__file__).parents[1] / "results" / "published.csv"

_METHODS = ("LTS", "LAVT", "CoupAlign", "MagNet")
_DATASETS = {
    "RefCOCO": "refcoco",
    "RefCOCO+": "refcoco+",
    "RefCOCOg(umd)": "refcocog",
    "RefCOCOg(google)": "refcocog-google",
}
_METRICS = {
    "oIoU": "oIoU",
    "oIoU (probable)": "oIoU",
    "IoU": "oIoU",  # LTS says only "IoU"; CoupAlign's supplement lists the same numbers as oIoU
    "mIoU": "mIoU",
    "mean per-sentence IoU (engine.py)": "mIoU",
    "IoU (CRIS official code computes the per-sample mean)": "mIoU",
    "heatmap-peak-in-mask accuracy (%)": "pointing",
    **{f"P@0.{x}": f"P@0.{x}" for x in range(5, 10)},
}


@dataclass(frozen=True)
class Published:
    """One printed number."""

    method: str
    backbone: str
    dataset: str
    split: str
    metric: str
    value: float  # percent
    variant: str
    source: str
    table: str
    note: str

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
        return _DATASETS.get(self.dataset, "")

    @property
    def risbench_metric(self) -> str:
        """The metric as risbench defines it, or ""."""
        return _METRICS.get(self.metric, "")

    @property
    def where(self) -> str:
        """The source and the table in it."""
        return f"{self.source}, {self.table}"

    @property
    def footnote(self) -> str:
        """What must be said beside the number: where it stands, what was printed, and the note."""
        printed = f'printed as "{self.metric}"' if self.metric != self.risbench_metric else ""
        said = "; ".join(filter(None, [printed, self.note]))
        return f"{self.where}{': ' if said else ''}{said}."


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
        protocols=("coupalign", "original"),  # no source names the size
    ),
    "magnet": Headline(
        (("yxchng/mask-grounding README.md", "Results", "MagNet", ""),),
        protocols=("magnet", "lavt"),  # test.py has LAVT's data path
    ),
}


def _row(row: dict[str, str]) -> Published:
    value = float(row.pop("value"))
    return Published(value=value, **row)


@functools.cache
def load(path: Path | None = None) -> tuple[Published, ...]:
    """Read the published numbers, in the order of the file."""
    file = path or (_BESIDE if _BESIDE.is_file() else _CHECKOUT)
    with file.open(encoding="utf-8", newline="") as lines:
        return tuple(
            Published(**row, value=float(value)) for row in csv.DictReader(lines) for value in [row.pop("value")]
        )


def headlines(metric: str = "oIoU") -> list[Published]:
    """Return the headline rows of one metric, for every method, data set and split that has one."""
    keys = {(p.risbench_method, p.risbench_dataset, p.split): None for p in load() if p.risbench_metric == metric}
    found = [headline(*key, metric) for key in keys if all(key)]
    return [row for row in found if row is not None]


def headline(method: str, dataset: str, split: str, metric: str = "oIoU") -> Published | None:
    """Return the number by which a method's source wants to be known, or None where it prints none."""
    places = HEADLINES[method].places if method in HEADLINES else ()
    wanted = (dataset, split, metric)
    for place in places:
        for row in load():
            printed = (row.source, row.table, row.method, row.variant)
            if printed == place and (row.risbench_dataset, row.split, row.risbench_metric) == wanted:
                return row
    return None
