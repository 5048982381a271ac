"""How far chance alone moves a metric and a difference: images drawn again, or swapped between two answers.

Expressions of one image share its difficulty, so images are drawn, with all their rows. A metric is a ratio of sums:
rows are summed by image once, and all resamples of all metrics are one matrix product, in blocks. It is float64, which
holds every sum of pixels exactly, whatever the order; float32 holds none beyond 17 million.

Intervals are percentile intervals, the 2.5 % and 97.5 % points of the resampled values. BCa would move both ends by
what it estimates of bias and skew. On simulated data it covers at most half a point more at 200 images, and moves the
ends by a hundredth of the interval at 1,500; it is undefined where all resamples agree, as P@0.9 of a weak method does,
and where seeds are drawn as well. Coverage is tested by simulation.
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
Ends = tuple[float, float]  # low, high
Name = TypeVar("Name")

RESAMPLES = 10_000
_BLOCK = 200  # resamples at a time: a few megabytes
_SHOWN = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)  # 2.80 standard errors
_TIE = 1e-9  # percent points: what rounding makes of equal differences


def intervals(
    rows: pd.DataFrame, protocol: Protocol, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals in percent, by metric; a metric without a value, or with one in a single image, has none."""
    return _intervals(metrics.names(protocol.score), resampled(by_image(rows, protocol), resamples, seed))


def intervals_of_parts(
    rows: pd.DataFrame,
    members: Mapping[Name, NDArray[np.bool_]],
    ratio: tuple[Floats, Floats],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[Name, list[float]]:
    """95 % intervals of a ratio of sums (see `ratios`) over parts of the rows.

    An image is drawn with its rows of every part, if it has any.
    """
    part, whole = ratio
    sums = _by_image(rows, [(part * mine, whole * mine) for mine in members.values()])
    return _intervals(members, resampled(sums, resamples, seed))


def by_image(rows: pd.DataFrame, protocol: Protocol) -> Floats:
    """What each of `metrics.names` divides, summed over the rows of an image: (metrics, 2, images), by image_id."""
    found, nothing = ratios(rows, protocol), np.zeros(len(rows))
    return _by_image(rows, [found.get(name, (nothing, nothing)) for name in metrics.names(protocol.score)])


def ratios(rows: pd.DataFrame, protocol: Protocol) -> dict[str, tuple[Floats, Floats]]:
    """What each metric divides, row by row; those that have no value are missing."""
    rule = protocol.score
    iou, aimed, told = metrics.iou(rows, rule), metrics.aimed(rows, rule), metrics.told(rows, rule)
    counted = ~np.isnan(iou)
    mean, (part, union) = (np.nan_to_num(iou), counted), metrics.pixels(rows, rule)
    found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        f"P@0.{k}": (reached, counted & aimed)
        for k, reached in zip(metrics.TENTHS, metrics.precise(rows, rule).T, strict=True)
    }
    found["pointing"] = metrics.pointed(rows, rule)
    if metrics.has_boundaries(rows):
        edges = metrics.iou(rows, rule, "boundary_")
        found[metrics.BOUNDARY] = np.nan_to_num(edges) * aimed, ~np.isnan(edges) & aimed
    if rule.no_target == "scored":
        found |= {"gIoU": mean, "cIoU": (part, union), "N-acc": (told & ~aimed, ~aimed), "T-acc": (told & aimed, aimed)}
        found = {name: ratio for name, ratio in found.items() if name not in metrics.UNRULED}
    else:
        found |= {"oIoU": (part, union), "mIoU": mean}
    return {name: (above.astype(np.float64), below.astype(np.float64)) for name, (above, below) in found.items()}


def _by_image(rows: pd.DataFrame, ratios: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Sum columns by image: (ratios, 2, images)."""
    ids, image = np.unique(rows["image_id"], return_inverse=True)
    sums = [[np.bincount(image, weights=column) for column in columns] for columns in ratios]
    return np.array(sums, np.float64).reshape(-1, 2, len(ids))


# chance


def resampled(sums: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Ratios, in percent, of as many images drawn with replacement: (..., 2, images) -> (resamples, ...).

    All ratios are of the same drawn images, so that those of two answers may be subtracted. nan: there is nothing to
    divide by, or in fewer than two images, which tell nothing of how images differ.
    """
    images = sums.shape[-1]
    generator = np.random.default_rng(seed)

    def drawn(block: int) -> NDArray[np.int64]:
        places = generator.integers(images, size=(block, images)) + images * np.arange(block)[:, None]
        return np.bincount(places.ravel(), minlength=block * images).reshape(block, images)

    values = _percent(_weighted(sums, resamples, drawn))
    values[:, np.count_nonzero(sums[..., 1, :], axis=-1) < 2] = np.nan
    return values


def swapped(first: Floats, second: Floats, permutations: int = RESAMPLES, seed: int = 0) -> Floats:
    """Differences second - first of ratios in percent, had a coin swapped the two in each image: (permutations, ...).

    Both are (..., 2, images); rows of an image are swapped together.
    """
    generator = np.random.default_rng(seed)

    def coins(block: int) -> NDArray[np.int64]:
        return generator.integers(2, size=(block, first.shape[-1]))

    moved = _weighted(second - first, permutations, coins)
    return _percent(second.sum(-1) - moved) - _percent(first.sum(-1) + moved)


def over_seeds(values: Floats, seed: Sequence[int], baseline: Floats | None = None) -> Floats:
    """The mean over runs, or its difference from a baseline's, had other seeds been drawn, too.

    Both are (resamples, runs) over the same drawn images; (resamples,) comes out, as it is for single runs. Seeds add
    normal noise of the variance that they make (`_of_seeds`). A few runs tell it badly: intervals from it alone cover
    88 % at 3 seeds a side. So deviations are stretched to those of Student's t with Satterthwaite's degrees of freedom,
    V^2 / sum of v^2 / (runs - 1): V is the whole variance, v the part of a side's seeds; the part of the images, which
    are many, is taken to be known. t is a normal deviation times sqrt(freedom / chi^2), drawn for each resample, so
    p-values agree with intervals at every level. In simulation, intervals over 3, 5 and 10 seeds a side cover 93 to
    96 %, whether seeds or images outweigh; those over 2 at least 92 %. One seed beside several tells nothing of its own
    share, so they cover less.
    """
    sides = [values] if baseline is None else [values, baseline]
    drawn: Floats = values.mean(axis=1) - (0 if baseline is None else baseline.mean(axis=1))
    seeds = [(_of_seeds(side), side.shape[1] - 1) for side in sides if side.shape[1] > 1]
    added, known = sum(variance for variance, _ in seeds), _known(drawn)
    if not added or not len(known):
        return drawn
    generator = np.random.default_rng(seed)
    freedom = (known.var() + added) ** 2 / sum(variance**2 / count for variance, count in seeds)
    deviations = drawn - known.mean() + added**0.5 * generator.standard_normal(len(drawn))
    return np.asarray(known.mean() + deviations * np.sqrt(freedom / generator.chisquare(freedom, len(drawn))))


def _of_seeds(values: Floats) -> float:
    """The variance that seeds alone add to the mean over runs, at least 0: (resamples, runs).

    Runs differ by their seeds and by chance in each image. Drawn images hold the latter already: they make runs differ
    more in a resample than on average, by as much as chance in the images makes the averages differ.
    """
    known = values[~np.isnan(values).any(axis=1)]
    if not len(known):
        return 0.0
    between = known.mean(axis=0).var(ddof=1)
    by_images = known.var(axis=1, ddof=1).mean() - between
    alone: float = (between - by_images) / values.shape[1]
    return max(0.0, alone)


def _weighted(sums: Floats, times: int, weights: Callable[[int], NDArray[np.int64]]) -> Floats:
    """Weighted sums over the images; `weights(block)` is (block, images): (..., images) -> (times, ...)."""
    columns = sums.reshape(-1, sums.shape[-1]).T
    blocks = [min(_BLOCK, times - start) for start in range(0, times, _BLOCK)]
    products = [weights(block).astype(np.float64) @ columns for block in blocks]
    return np.concatenate(products).reshape(times, *sums.shape[:-1])


def _percent(pairs: Floats) -> Floats:
    """Ratios of (..., 2), in percent."""
    above, below = pairs[..., 0], pairs[..., 1]
    return 100 * np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


# what follows from it


def interval(values: Floats) -> Ends | None:
    """95 % percentile interval of resampled values; None where there is none."""
    known = _known(values)
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def prediction_interval(values: Sequence[float], level: float = 0.99) -> Ends:
    """Where one more value of the same normal population lies with this probability (Student's t); two or more given.

    mean +- t sqrt(1 + 1 / n) s, with n - 1 degrees of freedom.
    """
    from scipy.special import stdtrit  # half a second, which no other command should wait for

    known = np.array(values, np.float64)
    n = len(known)
    reach = float(stdtrit(n - 1, (1 + level) / 2) * np.sqrt(1 + 1 / n) * known.std(ddof=1))
    return float(known.mean()) - reach, float(known.mean()) + reach


def smallest_difference(resampled_differences: Floats, of_seeds: bool = False) -> float | None:
    """The true difference that is found in 80 % of all cases at the 5 % level: 2.80 standard errors; None without any.

    Where few seeds are drawn, too, there may be no standard error: the same of the quantiles, 97.5 % plus 80 %.
    """
    known = _known(resampled_differences)
    if len(known) < 2 or np.ptp(known) < _TIE:
        return None
    if of_seeds:
        return float(np.percentile(known, [97.5, 80]).sum() - np.percentile(known, [2.5, 20]).sum()) / 2
    return _SHOWN * float(np.std(known, ddof=1))


def p_of_swaps(difference: float, permuted: Floats) -> float | None:
    """The share of permutations in which the difference is as large, either way; what was observed is one of them."""
    known = _known(permuted)
    as_large = np.count_nonzero(np.abs(known) >= abs(difference) - _TIE)
    return (1 + as_large) / (1 + len(known)) if len(known) else None


def p_of_resamples(resampled_differences: Floats) -> float | None:
    """Twice the quantile of zero, from the rarer side: below 5 % exactly where `interval` excludes it."""
    known = np.sort(_known(resampled_differences))
    if not len(known):
        return None
    below, above = np.interp([_TIE, -_TIE], known, np.linspace(0, 1, len(known)))
    return float(np.clip(2 * min(below, 1 - above), 2 / (1 + len(known)), 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), in the order given."""
    p = np.array(p_values, np.float64)
    rising = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[rising] * np.arange(len(p), 0, -1)).clip(max=1)
    return [float(value) for value in corrected[np.argsort(rising)]]


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _intervals(names: Iterable[Name], drawn: Floats) -> dict[Name, list[float]]:
    found = zip(names, map(interval, drawn.T), strict=True)
    return {name: list(ends) for name, ends in found if ends}
