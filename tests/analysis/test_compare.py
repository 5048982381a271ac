"""Paired comparison: agreement with loops written out, flips counted by hand, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from risbench.analysis import compare
from risbench.analysis.compare_tables import compare_tables
from risbench.analysis.run_rows import RunRows
from risbench.analysis.sides import Side
from risbench.errors import InputError
from risbench.render import Table
from risbench.scoring import metrics, protocol, statistics

ORIGINAL = protocol.load("original")
IMAGES, EXPRESSIONS = 24, 4


def rows(seed: int, better: float = 0.0) -> pd.DataFrame:
    """Answers to the same 96 expressions of 24 images, with IoU that images share and a peak that hits or not."""
    truth, generator = np.random.default_rng(0), np.random.default_rng(seed)
    image = np.repeat(np.arange(IMAGES), EXPRESSIONS)
    true_area = truth.integers(50, 500, len(image))
    iou = (truth.random(IMAGES)[image] * 0.6 + generator.random(len(image)) * 0.4 + better).clip(0, 1)
    part = (true_area * iou).astype(int)
    return pd.DataFrame(
        {
            "sent_id": 7 * np.arange(len(image)) + 5,
            "image_id": 100 + image,
            "intersection": part,
            "union": true_area,
            "predicted_area": part,
            "true_area": true_area,
            "peak_hit": generator.integers(0, 2, len(image)),
            "boundary_intersection": part // 4,
            "boundary_union": true_area // 3,
        }
    )


def side(name: str, *tables: pd.DataFrame) -> Side:
    runs = [RunRows(Path(f"{name}{i}.parquet"), table, "small", "val", "original") for i, table in enumerate(tables)]
    return Side(name, tuple(runs))


A, B, C = side("A", rows(1)), side("B", rows(2, 0.05)), side("C", rows(3, 0.01))
SEEDS = side("S", rows(4), rows(5), rows(6, 0.1))


def value(name: str, tables: list[pd.DataFrame]) -> float:
    """Mean of a metric over tables."""
    values = [metrics.compute(metrics.Sums.from_rows(table, ORIGINAL.score))[name] for table in tables]
    return float(np.mean([x for x in values if x is not None]))


@pytest.mark.parametrize("name", metrics.NAMES)
def test_differences_and_intervals_agree_with_a_paired_bootstrap_written_out(name: str) -> None:
    results = compare.compare([A, B, C], resamples=50, seed=8)
    draws = np.random.default_rng(8).integers(IMAGES, size=(50, IMAGES))
    of_image = np.arange(IMAGES * EXPRESSIONS).reshape(IMAGES, EXPRESSIONS)
    for other, result in zip((B, C), (by_metric[name] for by_metric in results[1:]), strict=True):
        ours, theirs = A.runs[0].rows, other.runs[0].rows
        gains = []
        for places in draws:
            drawn = of_image[places].ravel()
            gains.append(value(name, [theirs.iloc[drawn]]) - value(name, [ours.iloc[drawn]]))
        assert result.value == value(name, [theirs])
        assert result.difference == pytest.approx(value(name, [theirs]) - value(name, [ours]))
        assert result.difference_interval == pytest.approx(np.percentile(gains, [2.5, 97.5]))
        smallest = (1.959964 + 0.841621) * np.std(gains, ddof=1)
        assert result.smallest == (pytest.approx(smallest, rel=1e-6) if smallest else None)


@pytest.mark.parametrize("name", metrics.NAMES)
def test_p_values_agree_with_swaps_written_out(name: str) -> None:
    result = compare.compare([A, B], resamples=200, seed=8)[1][name]
    assert result.difference is not None
    ours, theirs = A.runs[0].rows, B.runs[0].rows
    image = np.repeat(np.arange(IMAGES), EXPRESSIONS)
    as_large = 1
    for coins in np.random.default_rng(8).integers(2, size=(200, IMAGES)).astype(bool):
        first, second = ours.copy(), theirs.copy()
        first[coins[image]], second[coins[image]] = theirs[coins[image]], ours[coins[image]]
        as_large += abs(value(name, [second]) - value(name, [first])) >= abs(result.difference) - 1e-9
    assert result.p == result.holm == as_large / 201


def test_the_order_of_the_sides_turns_the_sign_and_nothing_else() -> None:
    there, back = compare.compare([A, B])[1]["oIoU"], compare.compare([B, A])[1]["oIoU"]
    assert there.difference is not None and back.difference is not None
    assert there.difference_interval and back.difference_interval
    assert there.difference == -back.difference
    assert there.difference_interval == pytest.approx([-end for end in reversed(back.difference_interval)])
    assert there.p == back.p
    assert there.smallest == pytest.approx(back.smallest)


def test_several_sides_are_corrected_metric_by_metric() -> None:
    results = compare.compare([A, B, C, A], resamples=500)
    for name in metrics.NAMES:
        p = [by_metric[name].p for by_metric in results[1:]]
        assert [by_metric[name].holm for by_metric in results[1:]] == statistics.holm_correction(
            [p_value for p_value in p if p_value is not None]
        )
    assert results[0]["oIoU"].p is None


def test_the_same_answers_do_not_differ() -> None:
    for result in compare.compare([A, A], resamples=100)[1].values():
        assert (result.difference, result.p, result.smallest) == (0, 1, None)
        assert result.difference_interval == pytest.approx((0, 0), abs=1e-9)
    first, _, flips = compare_tables([A, A])
    assert [cell.text for cell in first.rows[1][5:8]] == ["0", "0", "96"]
    assert not flips.rows and flips.notes == ("None: every expression has the same IoU.",)


def test_seeds_are_averaged_and_widen_the_interval() -> None:
    result = compare.compare([A, SEEDS], resamples=4000)[1]["oIoU"]
    single = [compare.compare([A, side("S", run.rows)], resamples=4000)[1]["oIoU"] for run in SEEDS.runs]
    assert result.value == value("oIoU", [run.rows for run in SEEDS.runs])
    assert result.difference_interval and all(x.difference_interval for x in single)
    assert np.ptp(result.difference_interval) > max(np.ptp(x.difference_interval or ()) for x in single)
    same = compare.compare([A, side("S", *[SEEDS.runs[0].rows] * 3)], resamples=4000)[1]["oIoU"]
    assert same.difference_interval == pytest.approx(single[0].difference_interval)


def test_seeds_of_two_sides_are_drawn_apart() -> None:
    result = compare.compare([SEEDS, replace(SEEDS, name="B")], resamples=500)[1]["oIoU"]
    assert result.difference == 0 and result.difference_interval
    assert np.ptp(result.difference_interval) > 5


def test_of_an_interval_over_seeds_zero_is_outside_where_p_is_below_five_percent() -> None:
    for better in (0.0, 0.02, 0.04, 0.06, 0.1, 0.2, 0.4):
        result = compare.compare([A, side("S", rows(4, better), rows(5, better))], resamples=999)[1]["mIoU"]
        assert result.difference_interval and result.p is not None
        low, high = result.difference_interval
        assert (low > 0 or high < 0) == (result.p < 0.05)


def test_a_metric_without_a_value_has_no_difference() -> None:
    silent = side("B", rows(2).assign(peak_hit=-1))
    result = compare.compare([A, silent], resamples=50)[1]["pointing"]
    assert (result.value, result.interval, result.smallest) == (None, None, None)
    assert (result.difference, result.difference_interval, result.p, result.holm) == (None, None, None, None)
    assert compare.compare([SEEDS, silent], resamples=50)[1]["pointing"] == result
    names = [row[1].value for row in compare_tables([A, silent])[1].rows]
    assert names == [name for name in metrics.NAMES if name != "pointing"]


@pytest.mark.parametrize("images", [1, 2, 19])
def test_few_images_have_no_interval_no_p_and_no_smallest_difference(images: int) -> None:
    few = images * EXPRESSIONS
    first, second = (side(x.name, x.runs[0].rows.iloc[:few]) for x in (A, B))
    for sides in ([first, second], [first, side("S", *(run.rows.iloc[:few] for run in SEEDS.runs))]):
        for result in (x["mIoU"] for x in compare.compare(sides, resamples=50)):
            assert result.value is not None
            assert (result.interval, result.smallest, result.difference_interval) == (None, None, None)
            assert (result.p, result.holm) == (None, None)


def test_few_images_are_said_once_and_shown_as_a_dash() -> None:
    tables = compare_tables([side(x.name, x.runs[0].rows.iloc[:8]) for x in (A, B)])
    assert [table.notes.count(statistics.NO_INTERVAL) for table in tables] == [1, 0, 0]
    (_, row) = tables[0].as_dicts()
    assert row["difference"] is not None
    assert [row[key] for key in ("oIoU low", "difference low", "difference high", "p")] == [None] * 4
    shown = dict(zip(tables[0].names(), tables[0].rows[1], strict=True))
    assert shown["p"].text == shown["smallest difference"].text == "–"
    assert statistics.NO_INTERVAL not in compare_tables([A, B])[0].notes


def by_hand() -> tuple[Side, Side]:
    before = pd.DataFrame({"intersection": [10, 50, 90, 40, 0], "union": [100, 100, 100, 100, 100]})
    after = before.assign(intersection=[80, 45, 90, 0, 95])
    sent, image = [1, 2, 3, 4, 5], [1, 1, 2, 2, 3]
    first, second = (
        table.assign(sent_id=sent, image_id=image, predicted_area=60, true_area=90, peak_hit=-1)
        for table in (before, after)
    )
    return side("A", first), side("B", second)


def test_wins_losses_ties_and_flips_are_those_counted_by_hand() -> None:
    headline, _, flips = compare_tables(by_hand(), flips=2, texts={1: "left cup", 4: "right | cup"})
    assert [cell.value for cell in headline.rows[1][5:8]] == [2, 2, 1]
    assert [[cell.value for cell in row] for row in flips.rows] == [
        ["B against A", "", 5, 3, 0.0, 95.0, 95.0],
        ["B against A", "left cup", 1, 1, 10.0, 80.0, 70.0],
        ["B against A", "right | cup", 4, 2, 40.0, 0.0, -40.0],
        ["B against A", "", 2, 1, 50.0, 45.0, -5.0],
    ]
    assert len(compare_tables(by_hand(), flips=0)) == 2


def test_one_file_shows_what_it_could_show_against_a_number() -> None:
    (table,) = compare_tables([A], "mIoU")
    drawn = statistics.resample(statistics.sums_by_image(A.runs[0].rows, ORIGINAL))[:, 1]
    smallest = table.rows[0][table.names().index("smallest difference")]
    assert smallest.value == pytest.approx(2.801585 * 2**0.5 * drawn.std(ddof=1), rel=1e-6)
    assert smallest.remark == "(unpaired)"


def test_notes_explain_what_stands_there_and_nothing_else() -> None:
    def notes(table: Table) -> str:
        return "\n".join(table.notes)

    pair, several = (notes(compare_tables(sides)[0]) for sides in ([A, B], [A, SEEDS, C]))
    assert "over images, 10,000 resamples" in pair and "swapped" in pair and "Holm" not in pair and "seed" not in pair
    assert "over seeds and images" in several and "Holm" in several and "A, C: one seed" in several
    assert "swapped" not in notes(compare_tables([SEEDS, A])[0])
    assert "partial" not in pair and "resized" not in pair
    marked = Side("B", (replace(B.runs[0], partial=True, resized=True),))
    text = notes(compare_tables([A, marked])[0])
    assert "partial: measured on a part of the data set" in text and "resized: predicted at the images" in text
    with pytest.raises(InputError, match="Did you mean 'mIoU'"):
        compare_tables([A, B], "mIou")


# the command

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_compare(run_command: RunCommand, tmp_path: Path) -> RunCommand:
    """Run `risbench compare` in a folder that holds rows of two runs."""
    for name, table in (("a", rows(1)), ("b", rows(2, 0.05))):
        (tmp_path / name / "rows").mkdir(parents=True)
        table.to_parquet(tmp_path / name / "rows" / "val-original.parquet")
    return partial(run_command, "compare")


def test_the_command_prints_a_terminal_markdown_and_json(run_compare: RunCommand) -> None:
    code, shown, err = run_compare("a", "b", "--flips", "3")
    assert code == 0, err
    assert "oIoU on val, protocol original" in shown and "B: b/rows/val-original.parquet." in shown
    code, markdown, _ = run_compare("a", "b", "--format", "markdown", "--metric", "mIoU")
    assert (
        code == 0 and "**mIoU on val, protocol original**" in markdown and "| B against A (b against a) |" in markdown
    )
    code, text, _ = run_compare("a", "b", "--format", "json")
    first, every, flips = json.loads(text)["tables"]
    result = compare.compare([A, B])[1]["oIoU"]
    row = first["rows"][1]
    assert [row[key] for key in ("oIoU", "difference", "p", "p (Holm)", "smallest difference")] == [
        *(result.value, result.difference, result.p, result.p, result.smallest)
    ]
    assert (row["oIoU low"], row["oIoU high"]) == result.interval
    assert (row["difference low"], row["difference high"]) == result.difference_interval
    assert row["wins"] + row["losses"] + row["ties"] == 96
    assert [row["metric"] for row in every["rows"]] == list(metrics.NAMES)
    assert len(flips["rows"]) == 20 and flips["rows"][0]["change"] > 0 > flips["rows"][-1]["change"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "nowhere"], "nowhere does not exist"),
        (["a", "b", "--split", "testA"], "a has no rows of testA under 'original', but val-original"),
        (["a", "b", "--metric", "IoU"], "Unknown metric 'IoU'"),
        (["a", "b", "--format", "docx"], "Unknown format 'docx'"),
        (["a", "b", "--data-root", "x"], "give --dataset beside --data-root"),
        (["a", "b", "--protocol", "orignal"], "Did you mean 'original'"),
    ],
)
def test_bad_input_is_one_sentence(run_compare: RunCommand, arguments: list[str], words: str) -> None:
    code, out, err = run_compare(*arguments)
    assert (code, out) == (2, "")
    assert words in err and err.startswith("error: ") and err.count("\n") == 1
