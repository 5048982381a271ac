"""The threshold of the no-target answer: chosen on val by gIoU, against a search by hand, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import no_target, predictions_file, protocol
from risbench.scoring.no_target import choose_threshold
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.score import score_predictions

RULE, GSVA = protocol.load("grefcoco"), protocol.load("gsva")
RunCommand = Callable[..., tuple[int, str, str]]


def predictions(index: Index, largest: list[float], split: str = "val") -> Predictions:
    """The ground truth of every target, and the whole image where there is none."""
    rows = index.split(split)
    sizes = list(zip(rows.height.tolist(), rows.width.tolist(), strict=True))
    counts = [
        index.ground_truth(target, "union") if index.members(target) else rle.from_counts([0, h * w], (h, w))
        for target, (h, w) in zip(rows.ann_id.tolist(), sizes, strict=True)
    ]
    nothing = [None] * len(rows)
    return Predictions.build(None, rows.sent_id.tolist(), sizes, counts, nothing, largest_probability=largest)


def largest_by_hand(index: Index, with_target: list[float], without: float) -> list[float]:
    numbers = iter(with_target)
    return [next(numbers) if index.members(target) else without for target in index.split("val").ann_id.tolist()]


@pytest.mark.parametrize("rule", [RULE, GSVA], ids=lambda rule: str(rule.name))
def test_a_threshold_that_tells_apart_is_found_in_the_middle(sets_index: Index, rule: Any) -> None:
    made = predictions(sets_index, largest_by_hand(sets_index, [0.91, 0.8, 0.7], 0.3))
    choice = choose_threshold(made, sets_index, rule)
    assert choice.below == 0.5
    assert (choice.without["N-acc"], choice.without["T-acc"]) == (0, 100)
    assert (choice.with_threshold["N-acc"], choice.with_threshold["T-acc"]) == (100, 100)
    assert choice.with_threshold["gIoU"] == pytest.approx((choice.without["gIoU"] or 0) + 25)


def test_no_threshold_is_chosen_where_none_is_better(sets_index: Index) -> None:
    for largest in (largest_by_hand(sets_index, [0.2, 0.3, 0.4], 0.9), [0.5] * 4):
        choice = choose_threshold(predictions(sets_index, largest), sets_index, RULE)
        assert choice.below == 0 and choice.with_threshold == choice.without


def test_it_is_the_best_of_all_thresholds_and_its_metrics_are_those_of_a_score(sets_index: Index) -> None:
    generator = np.random.default_rng(0)
    for _ in range(6):
        largest = generator.random(4).round(2).tolist()
        made = predictions(sets_index, largest)
        between = [0.001, *(number + 0.005 for number in largest)]  # one below all, and one above each
        summaries = {
            below: score_predictions(answered(made, below), sets_index, "val", RULE).summary for below in between
        }
        choice = choose_threshold(made, sets_index, RULE)
        empty = score_predictions(made, sets_index, "val", RULE).summary
        best = max(empty["gIoU"], *(summary["gIoU"] for summary in summaries.values()))
        assert choice.with_threshold["gIoU"] == pytest.approx(best)
        if choice.below:
            chosen = score_predictions(answered(made, choice.below), sets_index, "val", RULE).summary
            assert choice.with_threshold == {name: chosen[name] for name in choice.with_threshold}
        assert choice.without == {name: empty[name] for name in choice.without}


def answered(made: Predictions, below: float) -> Predictions:
    assert made.largest_probability is not None
    return replace(made, no_target=(made.largest_probability < below).astype(np.int8))


@pytest.mark.parametrize(
    ("low", "high", "number"),
    [(0.3, 0.7, 0.5), (0.30, 0.31, 0.305), (0.91, 0.912, 0.911), (0.98, 1.0, 0.99), (0.999, 1.0, 0.9995)],
)
def test_a_threshold_has_few_decimals_and_stays_between(low: float, high: float, number: float) -> None:
    assert no_target._shortest_between(low, high) == number


def header(split: str = "val", below: float = 0.0) -> Header:
    recipe = {"predict": {"no_target_below": below}} if below else {}
    return Header(dataset="sets", split=split, input={}, method="lts", recipe=recipe)


def test_what_cannot_be_chosen_from_is_refused_in_a_sentence(sets_index: Index) -> None:
    made = predictions(sets_index, [0.1, 0.2, 0.3, 0.4])
    flags = np.zeros(4, np.int8)
    refused: list[tuple[Predictions, str, str]] = [
        (replace(made, header=header("testA")), "grefcoco", "are of testA: no_target_below is chosen on val alone"),
        (replace(made, no_target=flags), "grefcoco", "The method answers itself whether there is a target"),
        (replace(made, no_target=flags, header=header()), "grefcoco", "The method answers itself"),
        (replace(made, largest_probability=None), "grefcoco", "does not hold the largest probability"),
        (replace(made, largest_probability=np.array([0.1, np.nan, 0.2, 0.3], np.float32)), "grefcoco", "does not hold"),
        (made, "lavt", "The protocol 'lavt' has no rule for no-target answers: give --protocol grefcoco"),
        (made.take(np.arange(3)), "grefcoco", "Without a prediction: sent_id"),
    ]
    for given, name, says in refused:
        with pytest.raises(InputError, match=says) as error:
            choose_threshold(given, sets_index, protocol.load(name))
        assert "\n" not in str(error.value)


def test_another_threshold_may_be_chosen_from_predictions_that_were_made_with_one(sets_index: Index) -> None:
    made = predictions(sets_index, largest_by_hand(sets_index, [0.91, 0.8, 0.7], 0.3))
    with_one = replace(made, header=header(below=0.95), no_target=np.ones(4, np.int8))
    assert choose_threshold(with_one, sets_index, RULE) == choose_threshold(made, sets_index, RULE)


def test_the_command_prints_the_override_or_that_there_is_none(
    run_command: RunCommand, sets_root: Path, sets_index: Index
) -> None:
    where = ["--dataset", sets_root / "sets.toml", "--data-root", sets_root]
    made = predictions(sets_index, largest_by_hand(sets_index, [0.91, 0.8, 0.7], 0.3))
    predictions_file.write(Path("val.parquet"), made)
    code, out, err = run_command("no-target", "val.parquet", *where)
    assert (code, err) == (0, "") and out.endswith("\npredict.no_target_below=0.5\n") and "N-acc 100" in out
    code, out, err = run_command("no-target", "val.parquet", *where, "--json")
    assert json.loads(out) == choose_threshold(made, sets_index, RULE)._asdict()
    predictions_file.write(Path("val.parquet"), replace(made, largest_probability=np.full(4, 0.5, np.float32)))
    code, out, err = run_command("no-target", "val.parquet", *where)
    assert code == 0 and "No threshold has a higher gIoU on val" in out
