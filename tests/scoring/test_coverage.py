"""How often 95 % intervals cover a true value that is known, by simulation: over images, expressions and few images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from risbench.scoring import statistics

Floats = NDArray[np.float64]
Drawn = tuple[Floats, Floats]  # what a metric divides: (data sets, images, expressions)
EXPRESSIONS = 6  # of an image
TRUE = {"oIoU": 62.0, "mIoU": 50.0, "P@0.5": 50.0, "pointing": 50.0}


def drawn(generator: Generator, data_sets: int, images: int) -> dict[str, Drawn]:
    """Expressions that share their image's object size and, four times in five, its IoU.

    In half of the images objects are four times as large and IoU is even in [0.4, 1], in the others in [0, 0.6]. So
    mean IoU and P@0.5 are 50, and oIoU is (4 x 0.7 + 1 x 0.3) / (4 + 1).
    """
    shape = (data_sets, images, EXPRESSIONS)
    large = generator.random((data_sets, images, 1)) < 0.5
    single, shared = generator.random(shape), generator.random((data_sets, images, 1))
    iou = 0.4 * large + 0.6 * np.where(generator.random(shape) < 0.8, shared, single)
    union = np.where(large, 4.0, 1.0) * generator.uniform(0.5, 1.5, shape)
    ones = np.ones(shape)
    return {
        "oIoU": (iou * union, union),
        "mIoU": (iou, ones),
        "P@0.5": ((iou >= 0.5).astype(np.float64), ones),
        "pointing": ((generator.random(shape) < iou).astype(np.float64), ones),
    }


def covered(sums: Floats, true: float) -> float:
    """How many in a hundred intervals of (data sets, 2, clusters) hold the true value."""
    values = statistics.resample(sums, resamples=1000)
    ends = [statistics.interval(column) for column in values.T]
    return 100 * float(np.mean([end is not None and end[0] <= true <= end[1] for end in ends]))


def by_image(pair: Drawn) -> Floats:
    return np.stack([part.sum(axis=2) for part in pair], axis=1)


@pytest.mark.parametrize("metric", TRUE)
def test_intervals_over_images_cover_the_truth_and_those_over_expressions_do_not(metric: str) -> None:
    above, below = drawn(np.random.default_rng(0), 2000, 200)[metric]
    assert 93 <= covered(by_image((above, below)), TRUE[metric]) <= 97
    naive = np.stack([above[:500].reshape(500, -1), below[:500].reshape(500, -1)], axis=1)
    assert covered(naive, TRUE[metric]) < 90


# few images


def two_methods(generator: Generator, data_sets: int, images: int) -> tuple[Floats, Floats]:
    """Two methods that are equally good: sums of oIoU (data sets, 2, images), in objects of two sizes."""
    of_image = (data_sets, images, 1)
    hard, size = generator.random(of_image), np.where(generator.random(of_image) < 0.5, 4.0, 1.0)
    sums = []
    for _ in range(2):
        iou = hard + generator.normal(0, 0.2, of_image) + generator.normal(0, 0.1, (data_sets, images, EXPRESSIONS))
        sums.append(by_image((iou * size, np.broadcast_to(size, iou.shape))))
    return sums[0], sums[1]


def coverage(images: int, data_sets: int) -> dict[str, float]:
    """Percent of data sets: coverage of three metrics and of a difference, p of at most 5 %, and p against interval."""
    data = drawn(np.random.default_rng(images), data_sets, images)
    shares = {name: covered(by_image(data[name]), TRUE[name]) for name in ("oIoU", "mIoU", "P@0.5")}
    first, second = two_methods(np.random.default_rng(images), data_sets, images)
    gains = statistics.resample(second, 1000) - statistics.resample(first, 1000)
    permuted = statistics.permuted_differences(first, second, 999)
    before, after = (100 * sums[:, 0].sum(axis=-1) / sums[:, 1].sum(axis=-1) for sums in (first, second))
    p = np.array([statistics.permutation_p_value(*pair) for pair in zip(after - before, permuted.T, strict=True)])
    ends = np.array([statistics.interval(column) for column in gains.T])
    excludes = (ends[:, 0] > 0) | (ends[:, 1] < 0)
    tested = {"difference": ~excludes, "p <= 5 %": p <= 0.05, "disagree": (p <= 0.05) != excludes}
    return shares | {name: 100 * float(np.mean(those)) for name, those in tested.items()}


def test_intervals_cover_the_truth_from_the_smallest_number_of_images_on(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = coverage(statistics.MIN_IMAGES, 1500)
    assert min(enough[name] for name in ("oIoU", "mIoU", "P@0.5", "difference")) > 90
    assert enough["disagree"] < 5
    monkeypatch.setattr(statistics, "MIN_IMAGES", 2)
    too_few = coverage(5, 500)
    assert max(too_few["oIoU"], too_few["difference"]) < 87 and too_few["disagree"] > 10


@pytest.mark.slow
def test_coverage_by_the_number_of_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the figures of docs/numbers.md."""
    enough = statistics.MIN_IMAGES
    monkeypatch.setattr(statistics, "MIN_IMAGES", 2)
    by_images = {images: coverage(images, 3000) for images in (2, 3, 5, 10, 20, 30, 50)}
    with capsys.disabled():
        print("\nimages", *by_images[2], sep=" | ")
        for images, shares in by_images.items():
            print(images, *(f"{share:.1f}" for share in shares.values()), sep=" | ")
    for images, shares in by_images.items():
        covers = [shares[name] for name in ("oIoU", "mIoU", "P@0.5", "difference")]
        assert (min(covers) > 91) == (images >= enough)
