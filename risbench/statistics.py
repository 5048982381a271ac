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

from risbench import metrics
from risbench.protocol import Protocol

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
    """95 % intervals in percent, by metric; a metric without a value has none."""
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
    divide by.
    """
    images = sums.shape[-1]
    generator = np.random.default_rng(seed)

    def drawn(block: int) -> NDArray[np.int64]:
        places = generator.integers(images, size=(block, images)) + images * np.arange(block)[:, None]
        return np.bincount(places.ravel(), minlength=block * images).reshape(block, images)

    return _percent(_weighted(sums, resamples, drawn))


def swapped(first: Floats, second: Floats, permutations: int = RESAMPLES, seed: int = 0) -> Floats:
    """Differences second - first of ratios in percent, had a coin swapped the two in each image: (permutations, ...).

    Both are (..., 2, images); rows of an image are swapped together.
    """
    generator = np.random.default_rng(seed)

    def coins(block: int) -> NDArray[np.int64]:
        return generator.integers(2, size=(block, first.shape[-1]))

    moved = _weighted(second - first, permutations, coins)
    return _percent(second.sum(-1) - moved) - _percent(first.sum(-1) + moved)


def over_seeds(values: Floats, seed: Sequence[int]) -> Floats:
    """The mean over runs, which are drawn with replacement, too: (resamples, runs, ...) -> (resamples, ...).

    Drawn runs deviate from the mean of all by sqrt(n / (n - 1)) times what they do: n of them drawn from n would spread
    by only (n - 1) / n of the variance that their seeds have. Few seeds still tell little: where they outweigh images,
    intervals over 3 seeds a side cover 88 % instead of 95 %, over 10 a side 93 % (tested by simulation).
    """
    resamples, runs = values.shape[:2]
    if runs == 1:
        return np.asarray(values[:, 0])
    drawn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    weights = 1 / runs + np.sqrt(runs / (runs - 1)) * (drawn - 1 / runs)
    return np.asarray(np.einsum("br,br...->b...", weights, values))


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


def smallest_difference(resampled_differences: Floats) -> float | None:
    """The true difference that is found in 80 % of all cases at the 5 % level: 2.80 standard errors."""
    known = _known(resampled_differences)
    return _SHOWN * float(np.std(known, ddof=1)) if len(known) > 1 else None


def p_of_swaps(difference: float, permuted: Floats) -> float | None:
    """The share of permutations in which the difference is as large, either way; what was observed is one of them."""
    known = _known(permuted)
    as_large = np.count_nonzero(np.abs(known) >= abs(difference) - _TIE)
    return (1 + as_large) / (1 + len(known)) if len(known) else None


def p_of_resamples(resampled_differences: Floats) -> float | None:
    """Twice the share of resampled differences on the rarer side of zero: below 5 % where the interval excludes it."""
    known = _known(resampled_differences)
    rarer = min(np.count_nonzero(known <= _TIE), np.count_nonzero(known >= -_TIE))
    return min(1.0, 2 * (1 + rarer) / (1 + len(known))) if len(known) else None


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
