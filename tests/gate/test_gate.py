"""The gate over the committed baselines: today's code passes, and a planted fault of each kind does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from risbench import methods
from risbench.analysis.sides import Asked
from risbench.data import images, rle
from risbench.data.index import Index
from risbench.engine import optim
from risbench.gate import baseline as baselines
from risbench.gate import check
from risbench.gate.baseline import Where
from risbench.gate.check import GOLDEN, NETWORK, TRAINING, Line
from risbench.scoring import protocol, statistics
from risbench.scoring.protocol import ScoreHalf

FOLDER = Path(__file__).parents[2] / "results" / "baselines"
ALL = sorted(path.stem for path in FOLDER.glob("*.json"))
NAMES = [name for name in ALL if (FOLDER / name / baselines.CHECKPOINT).is_dir()]
DEAF = 16.0  # oIoU of the largest object, and of every method here with its expressions permuted, on val of mini


def lines(name: str, *tiers: str) -> list[Line]:
    return [line for outcome in check.check(FOLDER / f"{name}.json", tiers, "", Where()) for line in outcome.lines]


def failures(name: str, *tiers: str) -> dict[str, list[str]]:
    """The numbers that failed, by check."""
    found: dict[str, list[str]] = {}
    for line in lines(name, *tiers):
        if line.failed:
            found.setdefault(line.check, []).append(line.number)
    return found


def test_every_method_has_a_baseline_with_pinned_weights_and_five_seeds_or_more() -> None:
    assert set(NAMES) == set(methods.names())
    for name in NAMES:
        base = baselines.read(FOLDER / f"{name}.json")
        assert base.training and base.training.method == name and base.flipped is not None
        assert (base.dataset, base.split) == ("mini", "val") and len(base.training.seeds) >= baselines.SEEDS


@pytest.mark.parametrize("name", ALL)
def test_todays_code_scores_and_predicts_as_the_baseline_did(name: str) -> None:
    assert failures(name, GOLDEN, NETWORK) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_training_that_does_not_listen_would_fail(name: str) -> None:
    base = baselines.read(FOLDER / f"{name}.json")
    assert base.training
    assert statistics.prediction_interval(baselines.of_seeds(base.training, "oIoU"), check.LEVEL)[0] > DEAF


def test_the_folder_of_a_baseline_is_a_run_to_compare() -> None:
    (line,) = check.two([str(FOLDER / "lts"), str(FOLDER / "protocols")], Asked(), margin=0).lines
    assert line.verdict == "better" and line.interval and line.interval[0] > 0


def test_every_protocol_that_asks_each_sentence_is_guarded() -> None:
    guarded = {under for name in ALL for under in baselines.read(FOLDER / f"{name}.json").scores}
    known = map(protocol.load, protocol.names())
    assert guarded >= {one.name for one in known if one.input.sentences == "each" and one.score.no_target == "refused"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [0.1, -0.1])
def test_a_threshold_off_by_a_tenth_is_found(name: str, fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = images.cut
    monkeypatch.setattr(images, "cut", lambda p, frame, threshold, *more: cut(p, frame, threshold + fault, *more))
    (numbers,) = failures(name, NETWORK).values()
    assert numbers[0].startswith("flipped pixels") and "oIoU" in numbers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("step", [(1, 0), (0, -1)])
def test_ground_truth_off_by_one_pixel_is_found(
    name: str, step: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = ScoreHalf.truth

    def moved(self: ScoreHalf, index: Index, ann_id: int, original: rle.Size) -> bytes:
        mask = rle.decode(truth(self, index, ann_id, original), self.size(original))
        return rle.encode(np.roll(mask, step, axis=(0, 1)))

    monkeypatch.setattr(ScoreHalf, "truth", moved)
    for line in lines(name, GOLDEN):
        if line.number in ("oIoU", "mIoU"):
            assert line.was and line.now and line.interval
            assert line.interval[0] <= line.now - line.was <= line.interval[1]
    found = failures(name, GOLDEN)
    assert set(found) == {f"{name}, golden, {under}" for under in baselines.read(FOLDER / f"{name}.json").scores}
    assert all({"oIoU", "mIoU", "intersection"} <= set(numbers) for numbers in found.values())


def swapped(monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    split: Callable[..., Any] = Index.split
    other = {first: second, second: first}
    monkeypatch.setattr(Index, "split", lambda self, name: split(self, other.get(name, name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_swapped_split_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(monkeypatch, "val", "testA")
    for outcome in check.check(FOLDER / f"{name}.json", (GOLDEN, NETWORK), "", Where()):
        assert outcome.failed and "testA" in outcome.notes[0]


@pytest.mark.slow
def test_a_training_on_a_swapped_split_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(monkeypatch, "train", "testB")
    assert "oIoU" in failures("lts", TRAINING)["lts, training"]


@pytest.mark.slow
def test_a_learning_rate_ten_times_too_high_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = optim.factor
    monkeypatch.setattr(optim, "factor", lambda *given: 10 * factor(*given))  # LTS learns as well with that
    assert "oIoU" in failures("coupalign", TRAINING)["coupalign, training"]
