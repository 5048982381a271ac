"""Tables of a paired comparison: one metric, all metrics, and the expressions that flipped most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from risbench.analysis.compare import MetricResult, compare, expression_iou, iou_change, protocol_of
from risbench.analysis.sides import Side, short_names
from risbench.errors import unknown
from risbench.render import Cell, Column, Table
from risbench.scoring import metrics
from risbench.scoring.statistics import MIN_IMAGES, NO_INTERVAL, RESAMPLES, Floats

_HOLM = "p (Holm)"
_DETAIL = {"image_id": 3, "wins": 2, "losses": 2, "ties": 2, "smallest difference": 1}  # on a narrow terminal


def compare_tables(
    sides: Sequence[Side], metric: str = "", flips: int = 10, texts: Mapping[int, str] | None = None
) -> list[Table]:
    """Build the comparison in one metric, in all metrics, and the expressions that flipped most, `flips` each way.

    `metric` is by default the headline of the protocol, `texts` are the expressions by their sent_id.
    """
    score_half = protocol_of(sides[0]).score
    metric = metric or score_half.headline
    if metric not in metrics.names(score_half):
        raise unknown("metric", metric, metrics.names(score_half))
    results = compare(sides)
    tables = [_metric_table(sides, results, metric)]
    if len(sides) > 1:
        tables.append(_all_metrics_table(sides, results))
        if flips:
            tables.append(flips_table(sides, flips, texts or {}))
    return tables


def _metric_table(sides: Sequence[Side], results: Sequence[Mapping[str, MetricResult]], metric: str) -> Table:
    run = sides[0].runs[0]
    where = " ".join(filter(None, [run.dataset, run.split])) or "the same expressions"
    names = short_names(sides)
    rows = []
    for number, side in enumerate(sides):
        result = results[number][metric]
        counts = _wins_losses_ties(sides[0], side) if number else [Cell()] * 3
        smallest = _or_dash(Cell(result.smallest, remark="" if number else "(unpaired)"))
        values = (Cell(result.value, result.interval), *_difference_cells(result))
        rows.append((Cell(side.name, remark=names[side.name]), *values, *counts, smallest, Cell(names[side.name])))
    columns = ("side", metric, "difference", "p", _HOLM, "wins", "losses", "ties", "smallest difference")
    images = run.rows["image_id"].nunique()
    notes = (
        f"{len(run.rows)} expressions in {images} images. Metrics in percent, differences from A in percent points.",
        *(side.description() for side in sides),
        *_legend(sides, enough_images=images >= MIN_IMAGES),
    )
    title = f"{metric} on {where}, protocol {run.protocol}"
    return Table("compare", title, (*_columns(columns, sides), Column("name", "data")), tuple(rows), notes)


def _wins_losses_ties(baseline: Side, side: Side) -> list[Cell]:
    gain = iou_change(baseline, side)
    return [Cell(int(np.count_nonzero(which))) for which in (gain > 0, gain < 0, gain == 0)]


def _difference_cells(result: MetricResult) -> tuple[Cell, ...]:
    """Return the difference from the baseline, its p-value and the corrected one."""
    difference = Cell(result.difference, result.difference_interval, number_format="+.2f")
    tests = (Cell(result.p, number_format=".4f"), Cell(result.holm, number_format=".4f"))
    return difference, *(tests if result.difference is None else map(_or_dash, tests))


def _or_dash(cell: Cell) -> Cell:
    """Show a dash where a number is missing, for people."""
    return Cell(remark="–") if cell.value is None else cell


def _columns(names: Sequence[str], sides: Sequence[Side]) -> tuple[Column, ...]:
    """Return a column of words and columns of numbers; the corrected p-value is hidden for a single comparison."""
    hidden = (_HOLM,) if len(sides) < 3 else ()
    with_interval = ("difference", *metrics.NAMES, *metrics.NO_TARGET_METRICS)
    numbers = (
        Column(
            name,
            "data" if name in hidden else "always",
            numeric=True,
            detail=_DETAIL.get(name, 0),
            intervals=name in with_interval,
        )
        for name in names[1:]
    )
    return (Column(names[0]), *numbers)


def _legend(sides: Sequence[Side], enough_images: bool) -> list[str]:
    """Explain what occurs in the table."""
    runs = [run for side in sides for run in side.runs]
    single = [side.name for side in sides if len(side.runs) == 1]
    several, paired = len(single) < len(sides), len(sides) > 1
    swaps = sides[0].name in single and len(single) > 1
    notes = {
        f"[low, high]: 95 % percentile interval by bootstrap over images, {RESAMPLES:,} resamples.": not several
        and enough_images,
        f"[low, high]: 95 % interval over seeds and images: images are drawn {RESAMPLES:,} times, seeds add spread;"
        " a few seeds estimate that spread badly, so the interval is Student's t interval, and wide.": several
        and enough_images,
        f"{', '.join(single)}: one seed, so the interval leaves out the spread between seeds.": several
        and bool(single)
        and enough_images,
        f"p: both answers to an image are swapped or not at random, {RESAMPLES:,} times; two-sided. Near 5 % it may"
        " disagree with the interval, which says how well the difference is known.": swaps and enough_images,
        "p where a side has several seeds: twice the share of resamples on the rarer side of zero.": several
        and paired
        and enough_images,
        NO_INTERVAL: not enough_images,
        "p (Holm): corrected for the number of sides that are compared with A in a metric.": len(sides) > 2,
        "wins, losses, ties: expressions with a higher, a lower, the same IoU as with A"
        f"{' in the mean over seeds' if several else ''}.": paired,
        "smallest difference: what this split can show with 80 % power at the 5 % level, between answers that agree as"
        " these do; unpaired: from a number of which only the value is known.": True,
        "partial: measured on a part of the data set; not comparable with any other number.": any(
            run.partial for run in runs
        ),
        "resized: predicted at the images' size, and brought to the size at which the protocol scores.": any(
            run.resized for run in runs
        ),
    }
    return [text for text, applies in notes.items() if applies]


def _all_metrics_table(sides: Sequence[Side], results: Sequence[Mapping[str, MetricResult]]) -> Table:
    pairs, rows = _pair_cells(sides), []
    for side, by_metric in zip(sides[1:], results[1:], strict=True):
        for name, result in by_metric.items():
            if result.difference is not None:
                values = (Cell(results[0][name].value), Cell(result.value), *_difference_cells(result))
                rows.append((pairs[side.name], Cell(name), *values, _or_dash(Cell(result.smallest))))
    names = ("metric", "A", "the other", "difference", "p", _HOLM, "smallest difference")
    return Table("metrics", "All metrics", (Column("sides", "block"), *_columns(names, sides)), tuple(rows))


def _pair_cells(sides: Sequence[Side]) -> dict[str, Cell]:
    """Return a cell for each side against the baseline, by the side's letter."""
    names = short_names(sides)
    remarks = {side.name: f"({names[side.name]} against {names['A']})" if names["A"] else "" for side in sides}
    return {letter: Cell(f"{letter} against A", remark=remark) for letter, remark in remarks.items()}


def flips_table(sides: Sequence[Side], number: int, texts: Mapping[int, str]) -> Table:
    """Build the table of the largest gains and the largest losses of IoU, `number` each; equal ones by sent_id."""
    ids, images = (sides[0].runs[0].rows[name].tolist() for name in ("sent_id", "image_id"))
    before, pairs = expression_iou(sides[0]), _pair_cells(sides)
    rows = []
    for side in sides[1:]:
        after, gain = expression_iou(side), iou_change(sides[0], side)
        for i in [*_largest(gain, number), *_largest(-gain, number)]:
            expression = (Cell(texts.get(ids[i], "")), Cell(ids[i]), Cell(images[i]))
            iou = (Cell(float(before[i])), Cell(float(after[i])), Cell(float(gain[i]), number_format="+.2f"))
            rows.append((pairs[side.name], *expression, *iou))
    names = ("expression", "sent_id", "image_id", "IoU of A", "IoU of the other", "change")
    without_texts = () if texts else ("--dataset or --data-root shows the expressions.",)
    notes = without_texts if rows else ("None: every expression has the same IoU.",)
    columns = (Column("sides", "block"), *_columns(names, sides))
    return Table("flips", "Expressions that flipped most", columns, tuple(rows), notes)


def _largest(gains: Floats, number: int) -> list[int]:
    """Return the places of the largest positive gains, the largest first."""
    largest = np.argsort(-gains, kind="stable")[:number]  # nan comes last
    return [int(i) for i in largest if gains[i] > 0]
