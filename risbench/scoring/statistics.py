"""How far chance alone moves a metric and a difference: bootstrap intervals, permutation tests, seeds.

Expressions of one image share its difficulty, so images are resampled with all their rows. A metric is a ratio of sums:
rows are summed by image once, and all resamples of all metrics are one matrix product, in blocks. Sums are float64,
which holds every sum of pixels exactly in any order; float32 is exact up to 17 million only.

Intervals are percentile intervals: the 2.5 % and 97.5 % points of the resampled values. BCa would also correct for bias
and skew. On simulated data it covers at most half a point more at 200 images, and moves the ends by a hundredth of the
interval at 1,500. It is undefined if all resamples agree, as for P@0.9 of a weak method, and if seeds vary as well.
Coverage is tested by simulation. Few images do not show how images differ: over 2 of them an interval covers the truth
in half of the cases, over 10 in 88 to 94 %, over 20 in 92 to 94 %. So there is no interval over fewer than 20, and no
p-value, which could not fall below 50 % at 2 images, while half of the intervals exclude 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench.scoring import metrics
from risbench.scoring.protocol import Protocol

Floats = NDArray[np.float64]
Interval = tuple[float, float]  # low, high
Ratio = tuple[Floats, Floats]  # numerator and denominator of every row
Name = TypeVar("Name")

RESAMPLES = 10_000
MIN_IMAGES = 20  # with a value of the metric: 95 % intervals over fewer cover the truth too rarely
NO_INTERVAL = f"No interval and no p-value (–): they need {MIN_IMAGES} images with a value of the metric."  # a note
_BLOCK = 200  # resamples at a time: a few megabytes
_DETECTABLE = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)  # 2.80 standard errors
_TIE = 1e-9  # percent points: equal differences may differ by rounding


def intervals(
    rows: pd.DataFrame, protocol: Protocol, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """Return the 95 % intervals in percent, by metric. A metric needs values in MIN_IMAGES images or more."""
    return _intervals_by_name(metrics.names(protocol.score), resample(sums_by_image(rows, protocol), resamples, seed))


def intervals_by_part(
    rows: pd.DataFrame,
    members: Mapping[Name, NDArray[np.bool_]],
    ratio: Ratio,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Name, list[float]]:
    """Return the 95 % intervals of a metric (see `ratio_terms`) over parts of the rows.

    The same images are resampled for all parts.
    """
    above, below = ratio
    sums = _sum_by_image(rows, [(above * member, below * member) for member in members.values()])
    return _intervals_by_name(members, resample(sums, resamples, seed))


def sums_by_image(rows: pd.DataFrame, protocol: Protocol) -> Floats:
    """Return numerators and denominators of `metrics.names`, summed by image: (metrics, 2, images), by image_id."""
    terms, zero = ratio_terms(rows, protocol), np.zeros(len(rows))
    return _sum_by_image(rows, [terms.get(name, (zero, zero)) for name in metrics.names(protocol.score)])


def ratio_terms(rows: pd.DataFrame, protocol: Protocol) -> dict[str, Ratio]:
    """Return the numerator and denominator of each metric, row by row; metrics without a value are missing."""
    score_half = protocol.score
    iou, target = metrics.iou(rows, score_half), metrics.has_target(rows, score_half)
    counted = ~np.isnan(iou)
    mean, overall = (np.nan_to_num(iou), counted), metrics.intersection_and_union(rows, score_half)
    terms: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        f"P@0.{k}": (hits, counted & target)
        for k, hits in zip(metrics.PRECISION_TENTHS, metrics.precision_hits(rows, score_half).T, strict=True)
    }
    terms["pointing"] = metrics.pointing_hits(rows, score_half)
    if metrics.has_boundaries(rows):
        boundary_iou = metrics.iou(rows, score_half, "boundary_")
        terms[metrics.BOUNDARY_IOU] = np.nan_to_num(boundary_iou) * target, ~np.isnan(boundary_iou) & target
    if score_half.no_target != "refused":
        correct = metrics.target_presence_correct(rows, score_half)
        terms |= {"gIoU": mean, "cIoU": overall}
        terms |= {"N-acc": (correct & ~target, ~target), "T-acc": (correct & target, target)}
        terms = {name: ratio for name, ratio in terms.items() if name not in metrics.UNDEFINED_WITH_NO_TARGET}
    else:
        terms |= {"oIoU": overall, "mIoU": mean}
    return {name: (above.astype(np.float64), below.astype(np.float64)) for name, (above, below) in terms.items()}


def _sum_by_image(rows: pd.DataFrame, ratios: Sequence[Ratio]) -> Floats:
    """Sum numerators and denominators by image: (ratios, 2, images)."""
    ids, image = np.unique(rows["image_id"], return_inverse=True)
    sums = [[np.bincount(image, weights=column) for column in columns] for columns in ratios]
    return np.array(sums, np.float64).reshape(-1, 2, len(ids))


# resamples and permutations


def resample(sums: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the ratios in percent over images drawn with replacement: (..., 2, images) -> (resamples, ...).

    A resample draws the same images for all ratios, so that ratios of two methods may be subtracted. nan: the
    denominator is 0, or is above 0 in fewer than MIN_IMAGES images.
    """
    images = sums.shape[-1]
    generator = np.random.default_rng(seed)

    def draw(block: int) -> NDArray[np.int64]:
        places = generator.integers(images, size=(block, images)) + images * np.arange(block)[:, None]
        return np.bincount(places.ravel(), minlength=block * images).reshape(block, images)

    values = _percent(_weighted_sums(sums, resamples, draw))
    values[:, _too_few_images(sums)] = np.nan
    return values


def permuted_differences(first: Floats, second: Floats, permutations: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the differences second - first of ratios in percent, if a coin swaps the two methods in each image.

    Both are (..., 2, images) -> (permutations, ...). All rows of an image are swapped together. nan as in `resample`.
    """
    generator = np.random.default_rng(seed)

    def toss(block: int) -> NDArray[np.int64]:
        return generator.integers(2, size=(block, first.shape[-1]))

    moved = _weighted_sums(second - first, permutations, toss)
    differences: Floats = _percent(second.sum(-1) - moved) - _percent(first.sum(-1) + moved)
    differences[:, _too_few_images(first) | _too_few_images(second)] = np.nan
    return differences


def _too_few_images(sums: Floats) -> NDArray[np.bool_]:
    """Return which ratios have a denominator in fewer than MIN_IMAGES images: (..., 2, images) -> (...)."""
    return np.asarray(np.count_nonzero(sums[..., 1, :], axis=-1) < MIN_IMAGES)


def mean_over_seeds(values: Floats, seed: Sequence[int], baseline: Floats | None = None) -> Floats:
    """Return the mean over runs, or its difference from a baseline's, with the variance that other seeds would add.

    Both arguments are (resamples, runs) over the same resampled images; the result is (resamples,), as for single runs.
    Seeds add normal noise with the variance of `_seed_variance`. A few runs estimate it badly: intervals from it alone
    cover 88 % at 3 seeds a side. So deviations are stretched to those of Student's t with Satterthwaite's degrees of
    freedom, V^2 / sum of v^2 / (runs - 1): V is the whole variance, v the part from the seeds of a side. The part from
    the images, which are many, is taken as known. t is a normal deviate times sqrt(freedom / chi^2), drawn for each
    resample, so that p-values agree with intervals at every level. In simulation, intervals over 3, 5 and 10 seeds a
    side cover 93 to 96 %, whether seeds or images vary more; over 2 seeds at least 92 %. A single seed beside several
    cannot show its own variance, so these intervals cover less.
    """
    sides = [values] if baseline is None else [values, baseline]
    means: Floats = values.mean(axis=1) - (0 if baseline is None else baseline.mean(axis=1))
    seeds = [(_seed_variance(side), side.shape[1] - 1) for side in sides if side.shape[1] > 1]
    added, known = sum(variance for variance, _ in seeds), _without_nan(means)
    if not added or not len(known):
        return means
    generator = np.random.default_rng(seed)
    freedom = (known.var() + added) ** 2 / sum(variance**2 / count for variance, count in seeds)
    deviations = means - known.mean() + added**0.5 * generator.standard_normal(len(means))
    return np.asarray(known.mean() + deviations * np.sqrt(freedom / generator.chisquare(freedom, len(means))))


def _seed_variance(values: Floats) -> float:
    """Return the variance that seeds alone add to the mean over runs, at least 0: (resamples, runs).

    Runs differ by their seeds and by chance in each image. Resampled images already hold the latter: runs differ more
    in a resample than on average, by as much as chance in the images makes the averages differ.
    """
    known = values[~np.isnan(values).any(axis=1)]
    if not len(known):
        return 0.0
    between = known.mean(axis=0).var(ddof=1)
    by_images = known.var(axis=1, ddof=1).mean() - between
    alone: float = (between - by_images) / values.shape[1]
    return max(0.0, alone)


def _weighted_sums(sums: Floats, times: int, weights: Callable[[int], NDArray[np.int64]]) -> Floats:
    """Return the weighted sums over the images; `weights(block)` is (block, images): (..., images) -> (times, ...)."""
    columns = sums.reshape(-1, sums.shape[-1]).T
    blocks = [min(_BLOCK, times - start) for start in range(0, times, _BLOCK)]
    products = [weights(block).astype(np.float64) @ columns for block in blocks]
    return np.concatenate(products).reshape(times, *sums.shape[:-1])


def _percent(pairs: Floats) -> Floats:
    """Return the ratios of (..., 2) in percent; nan if the denominator is 0."""
    above, below = pairs[..., 0], pairs[..., 1]
    return 100 * np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


# intervals and p-values


def interval(values: Floats) -> Interval | None:
    """Return the 95 % percentile interval of resampled values; None if all are nan."""
    known = _without_nan(values)
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def prediction_interval(values: Sequence[float], level: float = 0.99) -> Interval:
    """Return the interval that holds one more value of a normal population with this probability, from two or more.

    mean +- t sqrt(1 + 1 / n) s, with Student's t of n - 1 degrees of freedom.
    """
    from scipy.special import stdtrit  # takes half a second, and no other command needs it

    known = np.array(values, np.float64)
    n = len(known)
    half_width = float(stdtrit(n - 1, (1 + level) / 2) * np.sqrt(1 + 1 / n) * known.std(ddof=1))
    return float(known.mean()) - half_width, float(known.mean()) + half_width


def smallest_detectable_difference(resampled_differences: Floats, with_seeds: bool = False) -> float | None:
    """Return the true difference that a test at the 5 % level detects in 80 % of cases: 2.80 standard errors.

    With few seeds there may be no standard error, so quantiles take its place: 97.5 % plus 80 %. None if the values do
    not spread.
    """
    known = _without_nan(resampled_differences)
    if len(known) < 2 or np.ptp(known) < _TIE:
        return None
    if with_seeds:
        return float(np.percentile(known, [97.5, 80]).sum() - np.percentile(known, [2.5, 20]).sum()) / 2
    return _DETECTABLE * float(np.std(known, ddof=1))


def permutation_p_value(difference: float, permuted: Floats) -> float | None:
    """Return the two-sided p-value: the share of permutations with as large a difference, the observed one included."""
    known = _without_nan(permuted)
    as_large = np.count_nonzero(np.abs(known) >= abs(difference) - _TIE)
    return (1 + as_large) / (1 + len(known)) if len(known) else None


def bootstrap_p_value(resampled_differences: Floats) -> float | None:
    """Return the two-sided p-value: twice the quantile of 0, from the rarer side.

    It is below 5 % exactly if `interval` excludes 0.
    """
    known = np.sort(_without_nan(resampled_differences))
    if not len(known):
        return None
    below, above = np.interp([_TIE, -_TIE], known, np.linspace(0, 1, len(known)))
    return float(np.clip(2 * min(below, 1 - above), 2 / (1 + len(known)), 1))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), in the order of the argument."""
    p = np.array(p_values, np.float64)
    rising = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[rising] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in corrected[np.argsort(rising)]]


def _without_nan(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _intervals_by_name(names: Iterable[Name], resamples: Floats) -> dict[Name, list[float]]:
    """Return the interval of each column of (resamples, names), if it has one."""
    ends = zip(names, map(interval, resamples.T), strict=True)
    return {name: list(pair) for name, pair in ends if pair}
