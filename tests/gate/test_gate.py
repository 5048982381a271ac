"""The gate over the committed baselines: today's code passes, and a planted fault of each kind does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from risbench import methods, recipe
from risbench.analysis.run_rows import RunOptions
from risbench.data import images
from risbench.engine import optim
from risbench.gate import baseline as baselines
from risbench.gate.baseline import DataLocation
from risbench.gate.check import GOLDEN, LEVEL, NETWORK, TRAINING, check_baseline
from risbench.gate.check_runs import check_runs
from risbench.gate.outcome import CheckedNumber, Outcome
from risbench.scoring import protocol, statistics

FOLDER = Path(__file__).parents[2] / "results" / "baselines"
ALL = sorted(path.stem for path in FOLDER.glob("*.json"))
NAMES = [name for name in ALL if (FOLDER / name / baselines.CHECKPOINT).is_dir()]
DEAF = 16.0  # oIoU of the largest object, and of every method here with its expressions permuted, on val of mini


def check(name: str, *tiers: str) -> list[Outcome]:
    return check_baseline(FOLDER / f"{name}.json", tiers, DataLocation())


def checked_numbers(name: str, *tiers: str) -> list[CheckedNumber]:
    return [number for outcome in check(name, *tiers) for number in outcome.numbers]


def failures(name: str, *tiers: str) -> dict[str, list[str]]:
    """The numbers that failed, by check."""
    failed: dict[str, list[str]] = {}
    for checked in checked_numbers(name, *tiers):
        if checked.failed:
            failed.setdefault(checked.check, []).append(checked.number)
    return failed


def test_every_method_has_a_baseline_with_pinned_weights_and_five_seeds_or_more() -> None:
    """Zero-shot methods have none: their weights are no product of this code, and lie elsewhere."""
    assert set(NAMES) == {name for name in methods.names() if recipe.load(methods.recipe_file(name))[0].trains}
    for name in NAMES:
        base = baselines.read(FOLDER / f"{name}.json")
        assert base.training and base.training.method == name and base.flipped is not None
        assert (base.dataset, base.split) == ("mini", "val") and len(base.training.seeds) >= baselines.MIN_SEEDS


@pytest.mark.parametrize("name", ALL)
def test_todays_code_scores_and_predicts_as_the_baseline_did(name: str) -> None:
    assert failures(name, GOLDEN, NETWORK) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_does_not_listen_would_fail(name: str) -> None:
    base = baselines.read(FOLDER / f"{name}.json")
    assert base.training
    assert statistics.prediction_interval(baselines.seed_values(base.training, "oIoU"), LEVEL)[0] > DEAF


def test_the_folder_of_a_baseline_is_a_run_to_compare() -> None:
    (number,) = check_runs([str(FOLDER / "lts"), str(FOLDER / "protocols")], RunOptions(), margin=0).numbers
    assert number.verdict == "better" and number.interval and number.interval[0] > 0


def test_every_protocol_that_evaluates_each_sentence_is_guarded() -> None:
    guarded = {key for name in ALL for key in baselines.read(FOLDER / f"{name}.json").scores}
    known = map(protocol.load, protocol.names())
    assert guarded >= {x.name for x in known if x.input.sentences == "each" and x.score.no_target == "refused"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [0.1, -0.1])
def test_a_threshold_off_by_a_tenth_is_found(name: str, fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    to_masks = images.to_masks
    monkeypatch.setattr(
        images, "to_masks", lambda p, frame, threshold, *more: to_masks(p, frame, threshold + fault, *more)
    )
    (numbers,) = failures(name, NETWORK).values()
    assert numbers[0].startswith("flipped pixels") and "oIoU" in numbers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("step", [(1, 0), (0, -1)])
def test_ground_truth_off_by_one_pixel_is_found(
    name: str, step: tuple[int, int], shift_ground_truth: Callable[[tuple[int, int]], None]
) -> None:
    shift_ground_truth(step)
    for checked in checked_numbers(name, GOLDEN):
        if checked.number in ("oIoU", "mIoU"):
            assert checked.was and checked.now and checked.interval
            assert checked.interval[0] <= checked.now - checked.was <= checked.interval[1]
    failed = failures(name, GOLDEN)
    assert set(failed) == {
        f"{name}, golden, {protocol_name}" for protocol_name in baselines.read(FOLDER / f"{name}.json").scores
    }
    assert all({"oIoU", "mIoU", "intersection"} <= set(numbers) for numbers in failed.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_swapped_split_is_found(name: str, swap_splits: Callable[[str, str], None]) -> None:
    swap_splits("val", "testA")
    for outcome in check(name, GOLDEN, NETWORK):
        assert outcome.failed and "testA" in outcome.notes[0]


@pytest.mark.slow
def test_a_training_on_a_swapped_split_is_found(swap_splits: Callable[[str, str], None]) -> None:
    swap_splits("train", "testB")
    assert "oIoU" in failures("lts", TRAINING)["lts, training"]


@pytest.mark.slow
def test_a_learning_rate_ten_times_too_high_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = optim.rate_factor
    monkeypatch.setattr(optim, "rate_factor", lambda *given: 10 * factor(*given))
    assert "oIoU" in failures("coupalign", TRAINING)["coupalign, training"]
