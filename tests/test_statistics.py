"""Intervals: agreement with a bootstrap written out, and what clusters of rows must and must not change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from risbench import metrics, protocol, statistics
from risbench.protocol import Protocol

ORIGINAL, LTS = protocol.load("original"), protocol.load("lts")
LEFT_OUT = ORIGINAL.model_copy(update={"score": ORIGINAL.score.model_copy(update={"empty_union": "nan"})})


def rows(number: int = 60, images: int = 12, seed: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    union = generator.integers(0, 50, number)
    part = generator.integers(0, union + 1)
    hit = generator.integers(0, 2, number)
    image = generator.integers(0, images, number) * 1000
    return pd.DataFrame({"image_id": image, "intersection": part, "union": union, "peak_hit": hit})


@pytest.mark.parametrize("rule", [ORIGINAL, LTS, LEFT_OUT])
def test_intervals_agree_with_a_bootstrap_written_out(rule: Protocol) -> None:
    table = rows()
    found = statistics.intervals(table, rule, resamples=40, seed=5)
    by_image = [part for _, part in table.groupby("image_id")]
    share = np.full(len(by_image), 1 / len(by_image))
    weights = np.random.default_rng(5).multinomial(len(by_image), share, size=40)
    values = []
    for weight in weights:
        drawn = pd.concat([part for part, times in zip(by_image, weight, strict=True) for _ in range(times)])
        values.append(metrics.compute(metrics.Sums.of(drawn, rule.score)))
    for name in metrics.NAMES:
        expected = np.percentile([value[name] for value in values], [2.5, 97.5])
        assert found[name] == pytest.approx(expected, rel=1e-12)


def test_intervals_of_parts_agree_with_a_bootstrap_of_the_whole_written_out() -> None:
    table = rows()
    members = {3: np.arange(60) % 7 == 0, "rest": np.arange(60) % 7 > 0, "none": np.zeros(60, bool)}
    found = statistics.intervals_of_parts(table, members, resamples=40, seed=5)
    images = np.unique(table["image_id"])
    weights = np.random.default_rng(5).multinomial(len(images), np.full(len(images), 1 / len(images)), size=40)
    for name in (3, "rest"):
        mine = table[members[name]]
        values = []
        for weight in weights:
            drawn = pd.concat([mine[mine["image_id"] == i] for i in np.repeat(images, weight)])
            if drawn["union"].sum():
                values.append(100 * drawn["intersection"].sum() / drawn["union"].sum())
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-12)
    assert set(found) == {3, "rest"}


def test_the_interval_holds_the_value_and_is_the_same_for_the_same_seed() -> None:
    table = rows()
    values = metrics.compute(metrics.Sums.of(table, ORIGINAL.score))
    found = statistics.intervals(table, ORIGINAL)
    for name, value in values.items():
        assert value is not None
        assert found[name][0] < value < found[name][1]
    assert statistics.intervals(table, ORIGINAL) == found
    assert statistics.intervals(table, ORIGINAL, seed=1) != found


def test_more_expressions_of_the_same_images_do_not_narrow_the_interval() -> None:
    once = statistics.intervals(rows(), ORIGINAL)
    thrice = statistics.intervals(pd.concat([rows()] * 3), ORIGINAL)
    assert thrice == {name: pytest.approx(bounds) for name, bounds in once.items()}
    more_images = pd.concat([rows().assign(image_id=rows()["image_id"] + k) for k in range(3)])
    narrower = statistics.intervals(more_images, ORIGINAL)
    assert np.ptp(narrower["mIoU"]) < 0.7 * np.ptp(once["mIoU"])


def test_one_image_has_no_spread() -> None:
    table = rows().assign(image_id=4)
    values = metrics.compute(metrics.Sums.of(table, ORIGINAL.score))
    assert statistics.intervals(table, ORIGINAL) == {name: pytest.approx([v, v]) for name, v in values.items()}


def test_a_metric_without_a_value_has_no_interval() -> None:
    assert "pointing" not in statistics.intervals(rows().assign(peak_hit=-1), ORIGINAL)
    assert statistics.intervals(rows().assign(peak_hit=-1, union=0, intersection=0), LEFT_OUT) == {}
