"""Paired comparison: sides answer the same expressions, so what makes an image hard for all of them cancels out.

The first side is the baseline. Each other one has its difference from it in every metric, with an interval over images
(over seeds and images where a side has several seeds), a p-value, and the expressions that flipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from risbench.analysis.sides import Side
from risbench.errors import unknown
from risbench.render import Cell, Column, Table
from risbench.scoring import metrics, protocol, statistics
from risbench.scoring.protocol import Protocol
from risbench.scoring.statistics import RESAMPLES, Ends, Floats

_HOLM = "p (Holm)"


@dataclass(frozen=True)
class Finding:
    """What a side comes to in one metric, in percent, and how it differs from the baseline."""

    value: float | None  # mean over its runs
    interval: Ends | None
    smallest: float | None
    """The smallest difference that this split can show: from the baseline; of the baseline, from an unpaired number."""
    difference: float | None = None  # in percent points
    difference_interval: Ends | None = None
    p: float | None = None
    holm: float | None = None
    """p, corrected for the number of sides that are compared with the baseline in this metric."""


def compare(sides: Sequence[Side], resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, Finding]]:
    """What every side comes to in every metric, and how it differs from the first."""
    rule = _rule(sides[0])
    sums = [np.stack([statistics.by_image(run.rows, rule) for run in side.runs]) for side in sides]
    drawn = statistics.resampled(np.concatenate(sums), resamples, seed)  # (resamples, runs, metrics)
    runs_of = np.cumsum([len(own) for own in sums])[:-1]
    of_sides = [own.transpose(2, 0, 1) for own in np.split(drawn, runs_of, axis=1)]  # (metrics, resamples, runs)
    values = [_values(side, rule) for side in sides]
    alone = [
        {name: _alone(own[name], runs[i], [seed, number]) for i, name in enumerate(_names(rule))}
        for number, (own, runs) in enumerate(zip(values, of_sides, strict=True), start=1)
    ]
    found = alone[:1]
    for number, (own, runs) in enumerate(zip(sums[1:], of_sides[1:], strict=True), start=1):
        single = len(sums[0]) == len(own) == 1
        swapped = statistics.swapped(sums[0][0], own[0], resamples, seed) if single else None
        of_metrics = {}
        for i, name in enumerate(_names(rule)):
            gains = statistics.over_seeds(runs[i], [seed, number + 1], baseline=of_sides[0][i])
            permuted = None if swapped is None else swapped[:, i]
            of_metrics[name] = _against(alone[0][name], alone[number][name], gains, permuted)
        found.append(of_metrics)
    return _corrected(found)


def _rule(side: Side) -> Protocol:
    return protocol.load(side.runs[0].protocol)


def _names(rule: Protocol) -> tuple[str, ...]:
    return metrics.names(rule.score)


def _values(side: Side, rule: Protocol) -> dict[str, float | None]:
    """The mean of each metric over the runs of a side; None where one of them has no value."""
    of_runs = [metrics.compute(metrics.Sums.of(run.rows, rule.score)) for run in side.runs]
    known = {name: [value for run in of_runs if (value := run[name]) is not None] for name in _names(rule)}
    return {name: fmean(own) if len(own) == len(of_runs) else None for name, own in known.items()}


def _alone(value: float | None, drawn: Floats, seed: Sequence[int]) -> Finding:
    """One metric of a side from its resamples (resamples, runs); the other number's error is taken to be as large."""
    level = statistics.over_seeds(drawn, seed)
    smallest = statistics.smallest_difference(level, of_seeds=drawn.shape[1] > 1)
    return Finding(value, statistics.interval(level), None if smallest is None else smallest * 2**0.5)


def _against(baseline: Finding, own: Finding, gains: Floats, permuted: Floats | None) -> Finding:
    """One metric of a side against the baseline, from resampled and, of single runs, swapped differences."""
    smallest = statistics.smallest_difference(gains, of_seeds=permuted is None)
    if own.value is None or baseline.value is None:
        return replace(own, smallest=smallest)
    gain = own.value - baseline.value
    p = statistics.p_of_resamples(gains) if permuted is None else statistics.p_of_swaps(gain, permuted)
    return replace(own, smallest=smallest, difference=gain, difference_interval=statistics.interval(gains), p=p)


def _corrected(found: list[dict[str, Finding]]) -> list[dict[str, Finding]]:
    """Fill in Holm's correction, metric by metric."""
    for name in found[0]:
        tested = [(own, p) for own in found if (p := own[name].p) is not None]
        for (own, _), holm in zip(tested, statistics.holm([p for _, p in tested]), strict=True):
            own[name] = replace(own[name], holm=holm)
    return found


def iou_of(side: Side) -> Floats:
    """IoU of every expression in percent, the mean over the runs of a side; nan where the protocol leaves it out."""
    return np.asarray(100 * np.mean([metrics.iou(run.rows, _rule(side).score) for run in side.runs], axis=0))


def change(first: Side, second: Side) -> Floats:
    """By how much IoU of every expression changes; what only rounding makes of it is none."""
    return (iou_of(second) - iou_of(first)).round(10)


# tables


def tables(
    sides: Sequence[Side], metric: str = "", flips: int = 10, texts: Mapping[int, str] | None = None
) -> list[Table]:
    """The comparison in one metric, in all metrics, and the expressions that flipped most, `flips` each way."""
    rule = _rule(sides[0])
    metric = metric or rule.score.headline
    if metric not in _names(rule):
        raise unknown("metric", metric, _names(rule))
    found = compare(sides)
    first = [_headline(sides, found, metric)]
    if len(sides) == 1:
        return first
    return [*first, _all_metrics(sides, found), *([flipped(sides, flips, texts or {})] if flips else [])]


def _headline(sides: Sequence[Side], found: Sequence[Mapping[str, Finding]], metric: str) -> Table:
    run = sides[0].runs[0]
    where = " ".join(filter(None, [run.dataset, run.split])) or "the same expressions"
    rows = []
    for place, (side, own) in enumerate(zip(sides, found, strict=True)):
        counts: list[Cell] = [Cell()] * 3
        if place:
            gain = change(sides[0], side)
            counts = [Cell(int(np.count_nonzero(which))) for which in (gain > 0, gain < 0, gain == 0)]
        one = own[metric]
        smallest = Cell(one.smallest, remark="" if place else "(unpaired)")
        rows.append((Cell(side.name), Cell(one.value, one.interval), *_difference(one), *counts, smallest))
    names = ("side", metric, "difference", "p", _HOLM, "wins", "losses", "ties", "smallest difference")
    images = run.rows["image_id"].nunique()
    notes = (
        f"{len(run.rows)} expressions in {images} images. Metrics in percent, differences from A in percent points.",
        *(side.about() for side in sides),
        *_legend(sides),
    )
    title = f"{metric} on {where}, protocol {run.protocol}"
    return Table("compare", title, _columns(names, sides), tuple(rows), notes)


def _difference(finding: Finding) -> tuple[Cell, ...]:
    """The difference from the baseline, its p-value and the corrected one."""
    difference = Cell(finding.difference, finding.difference_interval, form="+.2f")
    return difference, Cell(finding.p, form=".4f"), Cell(finding.holm, form=".4f")


def _columns(names: Sequence[str], sides: Sequence[Side]) -> tuple[Column, ...]:
    """The first one in words, the others in numbers; a single p-value needs no correction."""
    hidden = (_HOLM,) if len(sides) < 3 else ()
    others = (Column(name, "data" if name in hidden else "always", numeric=True) for name in names[1:])
    return (Column(names[0]), *others)


def _legend(sides: Sequence[Side]) -> list[str]:
    """Explain what stands in the table, and nothing else."""
    runs = [run for side in sides for run in side.runs]
    single = [side.name for side in sides if len(side.runs) == 1]
    several, paired = len(single) < len(sides), len(sides) > 1
    swaps = sides[0].name in single and len(single) > 1
    said = {
        f"[low, high]: 95 % percentile interval by bootstrap over images, {RESAMPLES:,} resamples.": not several,
        f"[low, high]: 95 % interval over seeds and images: images are drawn {RESAMPLES:,} times, seeds add spread;"
        " few of them tell it badly, so that the interval is Student's t's, and wide.": several,
        f"{', '.join(single)}: one seed, so the interval does not know how others would come out.": several
        and bool(single),
        f"p: both answers to an image are swapped or not at random, {RESAMPLES:,} times; two-sided. Near 5 % it may"
        " disagree with the interval, which says how well the difference is known.": swaps,
        "p where a side has several seeds: twice the share of resamples on the rarer side of zero.": several and paired,
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
    return [text for text, applies in said.items() if applies]


def _all_metrics(sides: Sequence[Side], found: Sequence[Mapping[str, Finding]]) -> Table:
    rows = []
    for side, own in zip(sides[1:], found[1:], strict=True):
        for name, one in own.items():
            if one.difference is not None:
                values = (Cell(found[0][name].value), Cell(one.value))
                rows.append((_block(side), Cell(name), *values, *_difference(one), Cell(one.smallest)))
    names = ("metric", "A", "the other", "difference", "p", _HOLM, "smallest difference")
    return Table("metrics", "All metrics", (Column("sides", "block"), *_columns(names, sides)), tuple(rows))


def _block(side: Side) -> Cell:
    return Cell(f"{side.name} against A")


def flipped(sides: Sequence[Side], number: int, texts: Mapping[int, str]) -> Table:
    """The largest gains and the largest losses of IoU; equal ones by sent_id."""
    ids, images = (sides[0].runs[0].rows[name].tolist() for name in ("sent_id", "image_id"))
    before = iou_of(sides[0])
    rows = []
    for side in sides[1:]:
        after, gain = iou_of(side), change(sides[0], side)
        for way in (gain, -gain):
            largest = np.argsort(-way, kind="stable")[:number]  # nan comes last
            for i in largest[way[largest] > 0].tolist():
                cells = (Cell(texts.get(ids[i], "")), Cell(ids[i]), Cell(images[i]))
                iou = (Cell(float(before[i])), Cell(float(after[i])), Cell(float(gain[i]), form="+.2f"))
                rows.append((_block(side), *cells, *iou))
    names = ("expression", "sent_id", "image_id", "IoU of A", "IoU of the other", "change")
    unshown = () if texts else ("--dataset or --data-root shows the expressions.",)
    notes = unshown if rows else ("None: every expression has the same IoU.",)
    columns = (Column("sides", "block"), *_columns(names, sides))
    return Table("flips", "Expressions that flipped most", columns, tuple(rows), notes)
