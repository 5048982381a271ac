"""The papers' tables as data: which published numbers stand in them, in which shape, and what fills a row.

Rows, columns and their order are those of results/published.csv. A row that risbench can measure names the method's
folder and the variants of its recipe; a folder or a variant that is not there yet leaves the row empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

from risbench.tables import published
from risbench.tables.published import Published

DEFAULTS = frozenset({"size-416", "swin-base", "masks-100"})  # what a recipe does without any variant


class Slot(NamedTuple):
    """Where a number stands, by risbench's names; "" where the row or the column leaves it open, or nobody knows."""

    dataset: str
    split: str
    metric: str


@dataclass(frozen=True)
class Ours:
    """What of risbench fills a row: a method's folder and variants of its recipe."""

    method: str
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """A column of words: its heading, and what it says of a row's first number."""

    name: str
    of: Callable[[Published], str]
    wide: bool = False  # at the end, and left out in a terminal


@dataclass(frozen=True)
class Paper:
    """One table of a paper."""

    name: str
    title: str
    places: tuple[tuple[str, ...], ...]  # its numbers: source, table, method, backbone, variant, as far as needed
    labels: tuple[Label, ...]
    across: tuple[str, ...]  # what the columns are: "dataset" and "split", or "metric"
    ours: dict[tuple[str, str], Ours] = field(default_factory=dict)  # by method and variant as printed
    block: Label | None = None  # what groups the rows
    metrics: tuple[str, ...] = ()  # only numbers read as one of these
    more: tuple[tuple[tuple[str, ...], Ours], ...] = ()  # rows of ours that the paper does not have, by their labels
    note: str = ""

    def numbers(self) -> list[Published]:
        """Return the published numbers, row by row."""
        found = [p for p in published.load() if not self.metrics or p.read_as in self.metrics]
        return [p for place in self.places for p in found if _place(p)[: len(place)] == place]


@dataclass(frozen=True)
class Row:
    """One row of a table: its words, what fills it, and the published numbers by column."""

    block: str
    labels: tuple[str, ...]
    at: Slot  # open where the columns say more
    ours: Ours | None
    published: dict[Slot, Published] = field(default_factory=dict, compare=False)

    def slot(self, column: Slot) -> Slot:
        """Where the number of this row in a column stands."""
        return Slot(*(mine or its for mine, its in zip(self.at, column, strict=True)))


@dataclass(frozen=True)
class Grid:
    """The shape of a table: headings by column, and rows."""

    columns: dict[Slot, str]
    rows: list[Row]
    numbers: list[Published]  # that stand in it


def titles() -> dict[str, str]:
    """Names of the papers' tables, and what they show."""
    return {paper.name: paper.title for paper in _PAPERS}


def load(name: str) -> Paper:
    """The table of that name, which `titles` lists."""
    return next(paper for paper in _PAPERS if paper.name == name)


def grid(paper: Paper) -> Grid:
    """Lay out a table as the paper prints it."""
    return _laid_out(paper, paper.numbers())


def only(paper: Paper, dataset: str, splits: Iterable[str]) -> Grid:
    """Lay out the part of a table that is about one data set; one that it says nothing of takes the place of all.

    The latter has no published numbers, only the rows that risbench can fill, and each column once.
    """
    numbers = paper.numbers()
    about = [p for p in numbers if p.risbench_dataset == dataset]
    if about:
        return _laid_out(paper, about)
    there = set(splits)
    ours = [p for p in numbers if (p.method, p.variant) in paper.ours or paper.more]
    moved = [_moved(p, dataset) for p in ours if p.read_as and p.risbench_split in there]
    found = _laid_out(paper, moved)
    rows = [replace(row, published={}) for row in found.rows if row.ours]
    return Grid(found.columns, rows, [])


def _moved(number: Published, dataset: str) -> Published:
    split, metric = number.risbench_split, number.risbench_metric
    return replace(number, dataset=dataset, split=split, read_on=f"{dataset} {split}", metric=metric, source="")


def _laid_out(paper: Paper, numbers: list[Published]) -> Grid:
    columns: dict[Slot, str] = {}
    rows: dict[Row, Row] = {}
    for number in numbers:
        where = Slot(number.risbench_dataset, number.risbench_split, number.risbench_metric)
        column = Slot(*(value if name in paper.across else "" for name, value in where._asdict().items()))
        at = Slot(*("" if name in paper.across else value for name, value in where._asdict().items()))
        heading = " ".join(getattr(number, name) for name in paper.across)
        columns.setdefault(column, heading.replace("(", " ("))
        labels = tuple(label.of(number) for label in paper.labels)
        block = paper.block.of(number) if paper.block else ""
        row = Row(block, labels, at, paper.ours.get((number.method, number.variant)))
        rows.setdefault(row, row).published[column] = number
    first = next(iter(rows), None)
    more = [Row(first.block, labels, first.at, ours) for labels, ours in paper.more] if first else []
    return Grid(columns, [*rows, *more], numbers)


def _place(number: Published) -> tuple[str, ...]:
    return (number.source, number.table, number.method, number.backbone, number.variant)


def _module(name: str) -> Label:
    return Label(name, lambda number: "✓" if name in number.variant.split("+") else "")


_METHOD = Label("method", attrgetter("method"))
_BACKBONE = Label("backbone", attrgetter("backbone"))
_SPLIT = Label("split", lambda number: f"{number.dataset} {number.split}")
_LTS, _SUPPLEMENT = "LTS paper, CVPR 2021", "CoupAlign supplement, NeurIPS 2022"
_LAVT = "yz93/LAVT-RIS README.md"
_MASK_GROUNDING = "yxchng/mask-grounding README.md"
_WEIGHTED = "weighted cross-entropy, released lavt (paper numbers)"
_DICE = "multi-class Dice loss (loss code not released), lavt_one"

_PAPERS = (
    Paper(
        "lts-1",
        "LTS (CVPR 2021), Table 1: comparison with other methods",
        ((_LTS, "Table 1"),),
        (_METHOD, _BACKBONE, Label("DCRF", lambda number: number.variant.removeprefix("DCRF "))),
        ("dataset", "split"),
        {("LTS (Ours)", "DCRF no"): Ours("lts")},
    ),
    Paper(
        "lts-2",
        "LTS (CVPR 2021), Table 2: the modules of LTS",
        ((_LTS, "Table 2"),),
        tuple(map(_module, ("Fusion", "Filter", "Seg", "L_loc"))),
        ("metric",),
        {
            ("LTS", "Fusion"): Ours("lts", ("fusion",)),
            ("LTS", "Filter"): Ours("lts", ("filter",)),
            ("LTS", "Fusion+Filter"): Ours("lts", ("fusion-filter",)),
            ("LTS", "Fusion+Seg"): Ours("lts", ("fusion-seg",)),
            ("LTS", "Filter+Seg"): Ours("lts", ("filter-seg",)),
            ("LTS", "Fusion+Filter+Seg"): Ours("lts", ("fusion-filter-seg",)),
            ("LTS", "Fusion+Filter+Seg+L_loc"): Ours("lts"),
        },
        block=_SPLIT,
    ),
    Paper(
        "lts-3",
        "LTS (CVPR 2021), Table 3: the segmentation module behind another method",
        ((_LTS, "Table 3"),),
        (_METHOD, _BACKBONE),
        ("dataset", "split"),
        more=(
            (("LAVT (not in the paper)", "Swin-B"), Ours("lavt")),
            (("LAVT+Seg (not in the paper)", "Swin-B"), Ours("lavt", ("lts-seg",))),
        ),
        note="CMPC is not trained here. LAVT takes its place: two rows that the paper does not have.",
    ),
    Paper(
        "lts-4",
        "LTS (CVPR 2021), Table 4: localisation by relevance filtering or by a transformer",
        ((_LTS, "Table 4"),),
        (_METHOD,),
        ("dataset", "split"),
        {
            ("LTS", "relevance filtering n=1"): Ours("lts"),
            ("LTS-Trans", "transformer localisation"): Ours("lts", ("transformer",)),
        },
    ),
    Paper(
        "lts-5",
        "LTS (CVPR 2021), Table 5: filtering n times, and a filter for every word",
        ((_LTS, "Table 5"),),
        (_METHOD, Label("n", lambda number: number.variant.removesuffix(" filtering times").removeprefix("n="))),
        ("dataset", "split"),
        {
            ("LTS", "n=1 filtering times"): Ours("lts"),
            ("LTS", "n=2 filtering times"): Ours("lts", ("filters-2",)),
            ("LTS", "n=3 filtering times"): Ours("lts", ("filters-3",)),
            ("LTS-WordFilter", "n=1 filtering times"): Ours("lts", ("word-filter",)),
        },
    ),
    Paper(
        "lts-6",
        "LTS (CVPR 2021), Table 6: the size of the input",
        ((_LTS, "Table 6"),),
        (Label("input", lambda number: number.variant.removeprefix("n=1, input ")),),
        ("dataset", "split"),
        {
            ("LTS", f"n=1, input {side}×{side}"): Ours("lts", (f"size-{side}",))
            for side in (320, 352, 384, 416, 448, 480)
        },
    ),
    Paper(
        "lts-7",
        "LTS (CVPR 2021), Table 7: transformer, more filters and a larger input together",
        ((_LTS, "Table 7"),),
        (_METHOD,),
        ("dataset", "split"),
        {
            ("LTS", ""): Ours("lts"),
            ("LTS*", "transformer + more filters + larger input (exact n and size not stated)"): Ours("lts", ("star",)),
        },
        note="The paper does not state n and the size of LTS*; the variant `star` is our reading.",
    ),
    Paper(
        "coupalign-supplement-1",
        "CoupAlign supplement (NeurIPS 2022), Table 1: ResNet101 as the image backbone",
        ((_SUPPLEMENT, "Table 1"),),
        (_METHOD,),
        ("metric",),
        {
            ("LAVT [8]-Resnet101", ""): Ours("lavt", ("resnet101",)),
            ("CoupAlign-Resnet101 (Ours)", ""): Ours("coupalign", ("resnet101",)),
        },
        block=_SPLIT,
    ),
    Paper(
        "coupalign-supplement-2",
        "CoupAlign supplement (NeurIPS 2022), Table 2: Darknet53 as the image backbone",
        ((_SUPPLEMENT, "Table 2"),),
        (_METHOD,),
        ("metric",),
        {
            ("LTS-Darknet53 [6]", ""): Ours("lts"),
            ("CoupAlign-Darknet53 (ours)", ""): Ours("coupalign", ("darknet53",)),
        },
        block=_SPLIT,
    ),
    Paper(
        "coupalign-supplement-3",
        "CoupAlign supplement (NeurIPS 2022), Table 3: the number N of mask embeddings",
        ((_SUPPLEMENT, "Table 3"),),
        (Label("N", lambda number: number.variant.split(" ")[0].removeprefix("N=")),),
        ("metric",),
        {
            ("CoupAlign", "N=0 mask embeddings (no SMA)"): Ours("coupalign", ("masks-0",)),
            ("CoupAlign", "N=20 mask embeddings"): Ours("coupalign", ("masks-20",)),
            ("CoupAlign", "N=50 mask embeddings"): Ours("coupalign", ("masks-50",)),
            ("CoupAlign", "N=100 mask embeddings"): Ours("coupalign", ("masks-100",)),
            ("CoupAlign", "N=150 mask embeddings"): Ours("coupalign", ("masks-150",)),
            ("CoupAlign", "N=200 mask embeddings"): Ours("coupalign", ("masks-200",)),
        },
        block=Label("read as", attrgetter("read_on")),
        note="N=0 is without SMA (sentence-mask alignment).",
    ),
    Paper(
        "magnet",
        "MagNet (CVPR 2024), results page: benchmark results",
        (("MagNet results page", "Benchmark Results"),),
        (
            Label("printed label", lambda number: f"{number.dataset} {number.split}"),
            Label("data set", attrgetter("risbench_dataset")),
            Label("split", attrgetter("risbench_split")),
        ),
        ("metric",),
        {("MagNet", "single-dataset training"): Ours("magnet")},
    ),
    Paper(
        "lavt",
        "LAVT (CVPR 2022), README of the released code: results",
        ((_LAVT, "Results 1"), (_LAVT, "Results 2")),
        (Label("data set", lambda number: f"{number.dataset} {number.split}"),),
        ("metric",),
        {("LAVT", _WEIGHTED): Ours("lavt"), ("LAVT (lavt_one)", _DICE): Ours("lavt", ("one",))},
        block=Label("trained with", lambda number: f"{number.method}: {number.variant.partition(',')[0]}"),
    ),
    Paper(
        "leaders",
        "State of the art, by training data",
        (
            (_LTS, "Table 1", "LTS (Ours)"),
            ("DerrickWang005/CRIS.pytorch README.md", "Main Results", "CRIS", "CLIP ResNet101"),
            (_LAVT, "Results 1"),
            (_LAVT, "Results 2"),
            (_MASK_GROUNDING, "Results", "ReLA"),
            ("huggingface.co/saliu/CARIS",),
            (_MASK_GROUNDING, "Results", "MagNet"),
            ("jiaqihuang01/DETRIS README.md",),
            ("Dmmm1997/DeRIS README.md",),
            ("amazon-science/polygon-transformer README.md",),
            ("huggingface.co/DeepGlint-AI/MLCD-Seg-7B",),
            ("UniPixel README.md",),
            ("www.wizwand.com/paper/68fa7a731e209131cea83527",),  # X-SAM
            ("Sa2VA-Qwen3-VL-4B model card",),
            ("www.wizwand.com/paper/6a0d405cf984739ed6737b99",),  # SetCon
            ("arXiv:2508.00265v2 survey", "TABLE 2", "CoupAlign"),
            ("wizwand page of arXiv:2603.27993",),  # PPCR
        ),
        (
            _METHOD,
            Label("year", attrgetter("year")),
            Label("metric", lambda number: number.read_as or "not named"),
            Label("source", attrgetter("source"), wide=True),
        ),
        ("dataset", "split"),
        {
            ("LTS (Ours)", "DCRF no"): Ours("lts"),
            ("LAVT", _WEIGHTED): Ours("lavt"),
            ("LAVT (lavt_one)", _DICE): Ours("lavt", ("one",)),
            ("CoupAlign", ""): Ours("coupalign"),
            ("MagNet", ""): Ours("magnet"),
        },
        block=Label("training data", lambda number: number.training_data or "training data not stated"),
        metrics=("oIoU", "mIoU", ""),
        note="Protocols differ from row to row: do not rank, least of all across groups.",
    ),
)
