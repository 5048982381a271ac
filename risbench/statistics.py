"""How far chance alone moves a metric: the bootstrap over images.

Expressions of one image share its difficulty, so images are drawn, with all their rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from risbench import metrics
from risbench.protocol import Protocol

Floats = NDArray[np.float64]
Name = TypeVar("Name")


def intervals(rows: pd.DataFrame, protocol: Protocol, resamples: int = 2000, seed: int = 0) -> dict[str, list[float]]:
    """95 % percentile intervals in percent, by metric; a metric without a value has none."""
    return _bootstrap(rows, _ratios(rows, protocol), resamples, seed)


def intervals_of_parts(
    rows: pd.DataFrame, members: Mapping[Name, NDArray[np.bool_]], resamples: int = 2000, seed: int = 0
) -> dict[Name, list[float]]:
    """95 % intervals of oIoU of parts of the rows; an image is drawn with its rows of every part, if it has any."""
    part, whole = rows["intersection"].to_numpy(np.float64), rows["union"].to_numpy(np.float64)
    return _bootstrap(rows, {name: (part * mine, whole * mine) for name, mine in members.items()}, resamples, seed)


def _bootstrap(
    rows: pd.DataFrame, ratios: Mapping[Name, tuple[Floats, Floats]], resamples: int, seed: int
) -> dict[Name, list[float]]:
    _, image = np.unique(rows["image_id"], return_inverse=True)
    images = int(image.max()) + 1
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    weights = weights.astype(np.float64)  # once, not in every product
    found = {}
    for name, (part, whole) in ratios.items():
        above, below = (weights @ np.bincount(image, weights=column) for column in (part, whole))
        values = 100 * above[below > 0] / below[below > 0]
        if len(values):
            found[name] = [float(value) for value in np.percentile(values, [2.5, 97.5])]
    return found


def _ratios(rows: pd.DataFrame, protocol: Protocol) -> dict[str, tuple[Floats, Floats]]:
    """Each metric as the columns whose sums it divides."""
    iou, precise = metrics.iou(rows, protocol.score), metrics.precise(rows, protocol.score)
    counted = (~np.isnan(iou)).astype(np.float64)
    hit = rows["peak_hit"].to_numpy()
    return {
        "oIoU": (rows["intersection"].to_numpy(np.float64), rows["union"].to_numpy(np.float64)),
        "mIoU": (np.nan_to_num(iou), counted),
        **{f"P@0.{k}": (precise[:, i].astype(np.float64), counted) for i, k in enumerate(metrics.TENTHS)},
        "pointing": ((hit == 1).astype(np.float64), (hit >= 0).astype(np.float64)),
    }
