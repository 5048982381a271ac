"""Intervals and tests: agreement with loops written out, tests on simulated data, and what clusters must change."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from risbench.scoring import metrics, protocol, statistics
from risbench.scoring.protocol import Protocol

Floats = NDArray[np.float64]
Drawn = tuple[Floats, Floats]  # sums of two methods: (data sets, 2, images)
ORIGINAL, LTS, GREFCOCO = map(protocol.load, ("original", "lts", "grefcoco"))
LEFT_OUT = ORIGINAL.model_copy(update={"score": ORIGINAL.score.model_copy(update={"empty_union": "nan"})})


def rows(number: int = 150, images: int = 25, seed: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    union = generator.integers(0, 50, number)
    part = generator.integers(0, union + 1)
    hit = generator.integers(0, 2, number)
    image = generator.integers(0, images, number) * 1000
    edges = {"boundary_intersection": part // 3, "boundary_union": union // 2}
    return pd.DataFrame({"image_id": image, "intersection": part, "union": union, "peak_hit": hit, **edges})


# intervals


@pytest.mark.parametrize("rule", [ORIGINAL, LTS, LEFT_OUT, GREFCOCO])
def test_intervals_agree_with_a_bootstrap_written_out(rule: Protocol) -> None:
    generator = np.random.default_rng(1)
    table = rows().assign(no_target=generator.integers(0, 2, 150), said_no_target=generator.integers(0, 2, 150))
    table.loc[table["no_target"] == 1, ["intersection", "boundary_intersection"]] = 0
    intervals = statistics.intervals(table, rule, resamples=40, seed=5)
    by_image = [part for _, part in table.groupby("image_id")]
    values = []
    for places in np.random.default_rng(5).integers(len(by_image), size=(40, len(by_image))):
        drawn = pd.concat([by_image[place] for place in places])
        values.append(metrics.compute(metrics.Sums.from_rows(drawn, rule.score)))
    assert set(intervals) == {name for name, value in values[0].items() if value is not None}
    for name in intervals:
        expected = np.percentile([value[name] for value in values], [2.5, 97.5])
        assert intervals[name] == pytest.approx(expected, rel=1e-12)


def test_intervals_of_parts_agree_with_a_bootstrap_of_the_whole_written_out() -> None:
    table = rows()
    members = {3: np.arange(150) % 3 == 0, "rest": np.arange(150) % 3 > 0, "none": np.zeros(150, bool)}
    intervals = statistics.intervals_by_part(
        table, members, statistics.ratio_terms(table, ORIGINAL)["oIoU"], resamples=40, seed=5
    )
    images = np.unique(table["image_id"])
    draws = np.random.default_rng(5).integers(len(images), size=(40, len(images)))
    for name in (3, "rest"):
        part = table[members[name]]
        values = []
        for places in draws:
            drawn = pd.concat([part[part["image_id"] == image] for image in images[places]])
            if drawn["union"].sum():
                values.append(100 * drawn["intersection"].sum() / drawn["union"].sum())
        assert intervals[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), rel=1e-12)
    assert set(intervals) == {3, "rest"}


def test_resamples_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = statistics.sums_by_image(rows(), ORIGINAL)
    first = statistics.resample(sums, 250), statistics.permuted_differences(sums, sums[::-1], 250)
    monkeypatch.setattr(statistics, "_BLOCK", 37)
    again = statistics.resample(sums, 250), statistics.permuted_differences(sums, sums[::-1], 250)
    assert all(map(np.allclose, first, again))


def test_the_interval_holds_the_value_and_is_the_same_for_the_same_seed() -> None:
    table = rows()
    values = metrics.compute(metrics.Sums.from_rows(table, ORIGINAL.score))
    intervals = statistics.intervals(table, ORIGINAL)
    for name, value in values.items():
        assert value is not None
        assert intervals[name][0] < value < intervals[name][1]
    assert statistics.intervals(table, ORIGINAL) == intervals
    assert statistics.intervals(table, ORIGINAL, seed=1) != intervals


def test_more_expressions_of_the_same_images_do_not_narrow_the_interval() -> None:
    once = statistics.intervals(rows(), ORIGINAL)
    thrice = statistics.intervals(pd.concat([rows()] * 3), ORIGINAL)
    assert thrice == {name: pytest.approx(bounds) for name, bounds in once.items()}
    more_images = pd.concat([rows().assign(image_id=rows()["image_id"] + k) for k in range(3)])
    narrower = statistics.intervals(more_images, ORIGINAL)
    assert np.ptp(narrower["mIoU"]) < 0.7 * np.ptp(once["mIoU"])


@pytest.mark.parametrize(("images", "has_intervals"), [(1, False), (2, False), (19, False), (20, True)])
def test_intervals_need_twenty_images(images: int, has_intervals: bool) -> None:
    table = rows().assign(image_id=np.arange(150) % images)
    assert bool(statistics.intervals(table, ORIGINAL, resamples=50)) == has_intervals
    sums = statistics.sums_by_image(table, ORIGINAL)
    permuted = statistics.permuted_differences(sums, sums[..., ::-1], permutations=50)
    p = [statistics.permutation_p_value(0.1, column) for column in permuted.T]
    assert all((value is not None) == has_intervals for value in p)


def test_the_images_are_those_with_a_value_of_the_metric_and_the_part() -> None:
    table = rows()
    few = table["image_id"].isin(np.unique(table["image_id"])[:5]).to_numpy()
    silent = table.assign(peak_hit=table["peak_hit"].where(few, -1))
    assert set(metrics.NAMES) - set(statistics.intervals(silent, ORIGINAL)) == {"pointing"}
    overall = statistics.ratio_terms(table, ORIGINAL)["oIoU"]
    intervals = statistics.intervals_by_part(table, {"five images": few, "the others": ~few}, overall)
    assert set(intervals) == {"the others"}


def test_a_metric_without_a_value_has_no_interval() -> None:
    assert "pointing" not in statistics.intervals(rows().assign(peak_hit=-1), ORIGINAL)
    without = rows().drop(columns=["boundary_intersection", "boundary_union"])
    assert metrics.BOUNDARY_IOU not in statistics.intervals(without, ORIGINAL)
    assert statistics.intervals(without.assign(peak_hit=-1, union=0, intersection=0), LEFT_OUT) == {}


# paired


def test_swapping_agrees_with_every_swap_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MIN_IMAGES", 5)
    five = rows()["image_id"] // 1000 % 5
    first, second = (statistics.sums_by_image(rows(seed=seed).assign(image_id=five), LTS) for seed in (3, 4))
    images = first.shape[-1]
    every = []
    for swaps in product([False, True], repeat=images):
        a_side, b_side = (np.where(swaps, b, a).sum(axis=-1) for a, b in ((first, second), (second, first)))
        every.append(100 * (b_side[:, 0] / b_side[:, 1] - a_side[:, 0] / a_side[:, 1]))
    values = statistics.permuted_differences(first, second, permutations=4000)
    for name, column, expected in zip(metrics.NAMES, values.T, np.array(every).T, strict=True):
        seen = np.unique(column.round(9))
        assert set(seen) == set(np.unique(expected.round(9))), name
        observed = expected[0]
        exact = np.mean(np.abs(expected) >= abs(observed) - 1e-9)
        assert statistics.permutation_p_value(observed, column) == pytest.approx(exact, abs=0.03)


def null(generator: Generator, data_sets: int, gain: float = 0.0) -> Drawn:
    """Two methods on the same images: sums of mIoU (data sets, 2, images), of which the second is better by `gain`."""
    images, expressions = 100, 5
    hard = generator.random((data_sets, images, 1))
    answers = [hard + generator.normal(0, 0.2, (data_sets, images, 1)) for _ in range(2)]
    iou = [answer + generator.normal(0, 0.1, (data_sets, images, expressions)) for answer in answers]
    counted = np.full((data_sets, images), float(expressions))
    first, second = (np.stack([part.sum(axis=2), counted], axis=1) for part in (iou[0], iou[1] + gain))
    return first, second


def significant(first: Floats, second: Floats) -> float:
    """How many in a hundred data sets have a p-value of at most 5 %."""
    values = [100 * sums[:, 0].sum(axis=-1) / sums[:, 1].sum(axis=-1) for sums in (first, second)]
    permuted = statistics.permuted_differences(first, second, permutations=999)
    p = [statistics.permutation_p_value(*pair) for pair in zip(values[1] - values[0], permuted.T, strict=True)]
    return 100 * float(np.mean([value is not None and value <= 0.05 for value in p]))


def test_equally_good_methods_differ_in_one_data_set_of_twenty() -> None:
    assert 3.5 <= significant(*null(np.random.default_rng(1), 2000)) <= 6.5


def test_the_smallest_difference_is_found_in_four_of_five_data_sets() -> None:
    first, second = null(np.random.default_rng(2), 300)
    gains = statistics.resample(second, resamples=500) - statistics.resample(first, resamples=500)
    smallest = [statistics.smallest_detectable_difference(column) for column in gains.T]
    typical = float(np.mean([value for value in smallest if value is not None]))
    assert 76 <= significant(*null(np.random.default_rng(3), 1000, typical / 100)) <= 84


def test_p_values_count_the_observed_difference_and_are_one_for_equal_methods() -> None:
    assert statistics.permutation_p_value(2.0, np.array([1.0, -2.0, 3.0, 0.5])) == 3 / 5
    assert statistics.permutation_p_value(9.0, np.arange(9.0)) == 0.1
    assert statistics.permutation_p_value(0.0, np.zeros(9)) == 1
    assert statistics.bootstrap_p_value(np.arange(1.0, 40)) == 2 / 40
    assert statistics.bootstrap_p_value(np.zeros(9)) == 1
    assert statistics.permutation_p_value(1.0, np.full(3, np.nan)) is None


def test_holm_agrees_with_its_steps_written_out() -> None:
    assert statistics.holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm_correction([0.5, 0.6]) == [1, 1]
    p_values = np.random.default_rng(0).random(9) ** 3
    for place, corrected in enumerate(statistics.holm_correction(list(p_values))):
        no_larger = [i for i in range(9) if p_values[i] <= p_values[place]]
        steps = [p_values[i] * (9 - sum(p_values < p_values[i])) for i in no_larger]
        assert corrected == pytest.approx(min(1, max(steps)))
    assert statistics.holm_correction([]) == []


# seeds


Sides = tuple[Floats, Floats]  # resamples of both sides' runs: (resamples, runs, data sets)


def two_sides(runs: int, by_seed: float, data_sets: int, gain: float = 0.0) -> Sides:
    """Sides of several runs on the same 100 images, of which the second is better by `gain`, in percent.

    A side's IoU of an image has its own share of chance, a run's of an image as much, and a run's of all images
    `by_seed`.
    """
    generator, images = np.random.default_rng(runs), 100
    hard = generator.random((1, data_sets, images))
    first, second = (
        hard
        + generator.normal(0, 0.1, (1, data_sets, images))
        + generator.normal(0, 0.1, (runs, data_sets, images))
        + generator.normal(0, by_seed, (runs, data_sets, 1))
        for _ in range(2)
    )
    sums = np.stack([np.concatenate([first, second + gain / 100]), np.ones((2 * runs, data_sets, images))], axis=2)
    values = statistics.resample(sums, 1000)
    return values[:, :runs], values[:, runs:]


def gains_of(sides: Sides) -> list[Floats]:
    """The differences of every data set."""
    pairs = zip(sides[0].T, sides[1].T, strict=True)
    return [statistics.mean_over_seeds(b.T, [0, number], baseline=a.T) for number, (a, b) in enumerate(pairs)]


@pytest.mark.parametrize("by_seed", [0.1, 0.015, 0.005])  # the last two: as images make of a run, and less
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_intervals_over_few_seeds_cover_the_truth_and_p_values_agree(runs: int, by_seed: float) -> None:
    covering = []
    for gains in gains_of(two_sides(runs, by_seed, 1000)):
        low, high = statistics.interval(gains) or (np.nan, np.nan)
        p = statistics.bootstrap_p_value(gains)
        assert p is not None and (p < 0.05) == (low > 0 or high < 0)
        covering.append(low <= 0 <= high)
    assert 93 <= 100 * np.mean(covering) <= 97


@pytest.mark.parametrize("by_seed", [0.1, 0.005])
def test_the_smallest_difference_over_few_seeds_is_found_in_four_of_five_data_sets(by_seed: float) -> None:
    smallest = [
        statistics.smallest_detectable_difference(g, with_seeds=True) for g in gains_of(two_sides(5, by_seed, 300))
    ]
    typical = float(np.mean([value for value in smallest if value is not None]))
    p = [statistics.bootstrap_p_value(gains) for gains in gains_of(two_sides(5, by_seed, 1000, typical))]
    assert 75 <= 100 * np.mean([value is not None and value < 0.05 for value in p]) <= 87


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_seeds_alone_make_students_t_of_the_standard_error_of_their_mean(runs: int) -> None:
    of_runs = np.random.default_rng(runs).normal(60, 2, runs)
    means = statistics.mean_over_seeds(np.broadcast_to(of_runs, (100_000, runs)), [0])
    t = {2: (1.000, 6.314), 3: (0.816, 2.920), 5: (0.741, 2.132)}[runs]  # 75 % and 95 % of a table of Student's t
    expected = of_runs.mean() + np.multiply(t, of_runs.std(ddof=1) / runs**0.5)
    assert np.percentile(means, [75, 95]) == pytest.approx(expected, rel=0.01)
    assert np.median(means) == pytest.approx(of_runs.mean(), abs=0.05)


def width(resampled: Floats) -> float:
    low, high = statistics.interval(resampled) or (np.nan, np.nan)
    return high - low


def test_seeds_widen_the_interval_of_images_and_one_seed_does_not() -> None:
    hard = np.random.default_rng(0).random(100)
    sums = [np.array([[hard + gain * run, np.ones(100)] for run in range(3)]) for gain in (0, 0.05)]
    alike, apart = (statistics.resample(part, 4000) for part in sums)  # (runs, 2, images) -> (4000, 3)
    assert (statistics.mean_over_seeds(alike[:, :1], [0]) == alike[:, 0]).all()
    assert (statistics.mean_over_seeds(apart[:, 1:2], [0], apart[:, :1]) == apart[:, 1] - apart[:, 0]).all()
    assert width(statistics.mean_over_seeds(alike, [0])) == pytest.approx(width(alike[:, 0]))
    assert width(statistics.mean_over_seeds(apart, [0])) > 1.2 * width(alike[:, 0])


def test_a_resample_in_which_a_run_has_no_value_is_left_out() -> None:
    values = np.random.default_rng(0).normal(50, 1, (2000, 3)) + [0, 2, 4]
    without = np.where(np.arange(2000)[:, None] % 4 == 0, np.nan, values)
    means = statistics.mean_over_seeds(without, [0])
    assert (np.isnan(means) == np.isnan(without[:, 0])).all()
    assert statistics.interval(means) == pytest.approx(
        statistics.interval(statistics.mean_over_seeds(values, [0])), rel=0.05
    )
    assert statistics.interval(statistics.mean_over_seeds(np.full((9, 3), np.nan), [0])) is None


def test_values_without_spread_have_no_smallest_detectable_difference() -> None:
    for with_seeds in (False, True):
        assert statistics.smallest_detectable_difference(np.full(9, 3.0), with_seeds) is None
        assert statistics.smallest_detectable_difference(np.array([3.0]), with_seeds) is None
    normal = np.random.default_rng(0).normal(0, 1, 100_000)
    assert statistics.smallest_detectable_difference(normal) == pytest.approx(2.80, abs=0.02)
    assert statistics.smallest_detectable_difference(normal, with_seeds=True) == pytest.approx(2.80, abs=0.02)


def test_a_prediction_interval_holds_one_more_seed_at_its_level() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(35, 1.5, (4000, 6))
    for level in (0.9, 0.99):
        ends = [statistics.prediction_interval(row[:5], level) for row in draws]
        inside = np.mean([low <= row[5] <= high for (low, high), row in zip(ends, draws, strict=True)])
        assert abs(inside - level) < 3 * (level * (1 - level) / len(draws)) ** 0.5
