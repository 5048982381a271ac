"""Paired comparison: all sides predict the same expressions, so what makes an image hard for all of them cancels out.

The first side is the baseline. Every other side has its difference from the baseline in every metric, with an interval
over images (over seeds and images if a side has several seeds), a p-value, and the expressions that flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from risbench.analysis.sides import Side
from risbench.scoring import metrics, statistics
from risbench.scoring import protocol as protocols
from risbench.scoring.protocol import Protocol
from risbench.scoring.statistics import RESAMPLES, Floats, Interval


@dataclass(frozen=True)
class MetricResult:
    """One metric of a side in percent, and its difference from the baseline in percent points."""

    value: float | None  # mean over the runs
    interval: Interval | None
    smallest: float | None
    """The smallest difference that this split can show: from the baseline; of the baseline, from an unpaired number."""
    difference: float | None = None
    difference_interval: Interval | None = None
    p: float | None = None
    holm: float | None = None
    """p, corrected for the number of sides that are compared with the baseline in this metric."""


def compare(sides: Sequence[Side], resamples: int = RESAMPLES, seed: int = 0) -> list[dict[str, MetricResult]]:
    """Return every side's result in every metric, by name."""
    protocol = protocol_of(sides[0])
    names = metrics.names(protocol.score)
    sums = [np.stack([statistics.sums_by_image(run.rows, protocol) for run in side.runs]) for side in sides]
    resampled = _resample(sums, resamples, seed)
    unpaired = []
    for number, (side, values) in enumerate(zip(sides, resampled, strict=True), start=1):
        means = _means(side, protocol)
        unpaired.append(
            {name: _unpaired_result(means[name], values[i], [seed, number]) for i, name in enumerate(names)}
        )
    results = unpaired[:1]
    for number in range(1, len(sides)):
        single = len(sums[0]) == len(sums[number]) == 1
        permuted = statistics.permuted_differences(sums[0][0], sums[number][0], resamples, seed) if single else None
        result = {}
        for i, name in enumerate(names):
            gains = statistics.mean_over_seeds(resampled[number][i], [seed, number + 1], baseline=resampled[0][i])
            result[name] = _paired_result(
                unpaired[0][name], unpaired[number][name], gains, None if permuted is None else permuted[:, i]
            )
        results.append(result)
    return _with_holm_correction(results)


def protocol_of(side: Side) -> Protocol:
    """Return the protocol under which a side was scored."""
    return protocols.load(side.runs[0].protocol)


def _resample(sums: Sequence[Floats], resamples: int, seed: int) -> list[Floats]:
    """Draw the same images for all sides; returns the metrics of each side (metrics, resamples, runs)."""
    drawn = statistics.resample(np.concatenate(sums), resamples, seed)  # (resamples, runs, metrics)
    ends = np.cumsum([len(side_values) for side_values in sums])[:-1]
    return [side_values.transpose(2, 0, 1) for side_values in np.split(drawn, ends, axis=1)]


def _means(side: Side, protocol: Protocol) -> dict[str, float | None]:
    """Return the mean of each metric over the runs of a side; None if a run has no value."""
    by_run = [metrics.compute(metrics.Sums.from_rows(run.rows, protocol.score)) for run in side.runs]
    names = metrics.names(protocol.score)
    known = {name: [value for run in by_run if (value := run[name]) is not None] for name in names}
    return {name: fmean(values) if len(values) == len(by_run) else None for name, values in known.items()}


def _unpaired_result(value: float | None, resampled: Floats, seed: Sequence[int]) -> MetricResult:
    """Return a side's result without the baseline, from resampled values (resamples, runs).

    The smallest difference is from a number whose error is assumed to be as large as this one's.
    """
    means = statistics.mean_over_seeds(resampled, seed)
    smallest = statistics.smallest_detectable_difference(means, with_seeds=resampled.shape[1] > 1)
    return MetricResult(value, statistics.interval(means), None if smallest is None else smallest * 2**0.5)


def _paired_result(
    baseline: MetricResult, unpaired: MetricResult, gains: Floats, permuted: Floats | None
) -> MetricResult:
    """Add the difference from the baseline, from resampled differences and, for single runs, permuted differences."""
    smallest = statistics.smallest_detectable_difference(gains, with_seeds=permuted is None)
    if unpaired.value is None or baseline.value is None:
        return replace(unpaired, smallest=smallest)
    gain = unpaired.value - baseline.value
    p = statistics.bootstrap_p_value(gains) if permuted is None else statistics.permutation_p_value(gain, permuted)
    return replace(unpaired, smallest=smallest, difference=gain, difference_interval=statistics.interval(gains), p=p)


def _with_holm_correction(results: list[dict[str, MetricResult]]) -> list[dict[str, MetricResult]]:
    """Fill in the corrected p-values, metric by metric."""
    for name in results[0]:
        tested = [(result, p) for result in results if (p := result[name].p) is not None]
        corrected = statistics.holm_correction([p for _, p in tested])
        for (result, _), holm in zip(tested, corrected, strict=True):
            result[name] = replace(result[name], holm=holm)
    return results


def expression_iou(side: Side) -> Floats:
    """Return the IoU of every expression in percent, the mean over the runs; nan if the protocol leaves it out."""
    score_half = protocol_of(side).score
    return np.asarray(100 * np.mean([metrics.iou(run.rows, score_half) for run in side.runs], axis=0))


def iou_change(first: Side, second: Side) -> Floats:
    """Return the change of IoU of every expression, without rounding errors."""
    return (expression_iou(second) - expression_iou(first)).round(10)
