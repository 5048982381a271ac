"""The moving average of the weights: what is validated and kept, and what a resumed run goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from risbench import files
from risbench.engine import distributed, ema
from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.run import Run
from risbench.runs.training import train

Tensors = dict[str, Tensor]


@pytest.fixture
def job(small_root: Path, small_card: Path, short_training: list[str]) -> Job:
    """Two epochs of two steps."""
    settings = [*short_training, "train.epochs=2", "train.ema=0.3"]
    return Job(method="lts", dataset=str(small_card), overrides=settings, data_root=str(small_root), splits=["val"])


def weights(run: Run, name: str = "last") -> Tensors:
    return load_file(run.folder / "checkpoints" / name / "weights.safetensors")


def state(run: Run) -> dict[str, Any]:
    stored: dict[str, Any] = torch.load(run.folder / "checkpoints" / "last" / "state.pt", weights_only=True)
    return stored


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_seconds(log: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def killed_after(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train a run until the process dies in the middle of the second epoch; return the run that resumes it."""
    step = Trainer._step

    def dying(self: Trainer, *arguments: Any) -> Any:
        if self.position.epoch == 1:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    return open_run(Job.read(run.folder), run.folder.parent, resume=run.folder)


def test_the_average_is_kept_and_training_goes_on_from_the_raw_weights(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first step the average is the raw weights; then the decay is n - 1 of n + 9, and 0.3 at most."""
    raw: list[Tensors] = []
    update = ModelEmaV3.update

    def recorded(self: ModelEmaV3, model: nn.Module, step: int) -> None:
        raw.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        update(self, model, step)

    monkeypatch.setattr(ModelEmaV3, "update", recorded)
    run = open_run(job, tmp_path / "averaged")
    train(run)
    expected = raw[0]
    for tensors, decay in zip(raw[1:], (1 / 11, 2 / 12, 3 / 13), strict=True):
        expected = {
            name: decay * expected[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    kept = weights(run)
    assert all(torch.allclose(kept[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)
    assert same(state(run)["raw"], raw[-1]) and not same(kept, raw[-1])

    plain = open_run(job.model_copy(update={"overrides": [*job.overrides, "train.ema=0"]}), tmp_path / "plain")
    train(plain)
    assert same(weights(plain), raw[-1]) and "raw" not in state(plain)


def test_the_decay_ends_at_that_of_the_recipe() -> None:
    average = ema.start(nn.Linear(1, 1), 0.99)
    assert average is not None and ema.start(nn.Linear(1, 1), 0.0) is None
    decays = [average.get_decay(step) for step in (1, 2, 11, 990, 992, 10_000)]
    assert decays == pytest.approx([0, 1 / 11, 0.5, 989 / 999, 0.99, 0.99])


def test_the_averaged_model_is_validated(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[Tensors] = []
    synchronised: list[nn.Module] = []
    finish = Trainer._finish_epoch

    def recorded(self: Trainer, optimizer: Any) -> None:
        def validate(model: nn.Module) -> dict[str, float | None]:
            assert synchronised == [self.model, model] and model is not self.model
            validated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return {"oIoU": float(len(validated))}

        self.validate = validate
        synchronised.clear()
        finish(self, optimizer)

    monkeypatch.setattr(Trainer, "_finish_epoch", recorded)
    monkeypatch.setattr(distributed, "synchronise_buffers", lambda model, _: synchronised.append(model))
    run = open_run(job, tmp_path)
    train(run)
    assert len(validated) == 2 and not same(*validated)
    assert same(weights(run), validated[1]) and same(weights(run, "best"), validated[1])


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_run(job, tmp_path / "whole")
    train(whole)
    resumed = killed_after(open_run(job, tmp_path / "killed"), monkeypatch)
    train(resumed)
    assert same(weights(whole), weights(resumed)) and same(weights(whole, "best"), weights(resumed, "best"))
    assert same(state(whole)["raw"], state(resumed)["raw"])
    assert without_seconds(whole.folder / "log.jsonl") == without_seconds(resumed.folder / "log.jsonl")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "it lacks the raw weights"),
        ({}, "its raw weights are those of another network"),
        ({"weight": torch.zeros(2, 1), "bias": torch.zeros(1)}, "its raw weights are those of another network"),
        ({"weight": torch.zeros(1, 1).double(), "bias": torch.zeros(1)}, "those of another network"),
        ({"weight": "0", "bias": torch.zeros(1)}, "no attribute 'shape'"),
        (3, "no attribute 'items'"),
    ],
)
def test_other_raw_weights_are_refused(raw: Any, says: str) -> None:
    model = nn.Linear(1, 1)
    before = model.weight.item()
    with pytest.raises((ValueError, AttributeError), match=says):
        ema.restore(ema.start(model, 0.5), model, {} if raw is None else {"raw": raw})
    assert model.weight.item() == before


@pytest.mark.parametrize(
    ("decay", "says"), [(0.3, "it lacks the raw weights"), (0.0, "it holds raw weights without train.ema")]
)
def test_a_state_of_another_kind_is_one_sentence(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float, says: str
) -> None:
    settings = {"overrides": [*job.overrides, f"train.ema={decay}"]}
    resumed = killed_after(open_run(job.model_copy(update=settings), tmp_path), monkeypatch)
    last, stored = resumed.folder / "checkpoints" / "last", state(resumed)
    changed = {key: value for key, value in stored.items() if key != "raw"} if decay else {**stored, "raw": {}}
    torch.save(changed, last / "state.pt")
    facts = json.loads((last / "checkpoint.json").read_bytes())
    facts["state"] = files.sha256(last / "state.pt", files.DATA_LIMIT)
    (last / "checkpoint.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(InputError, match=rf"state.pt is no training state of this run \({says}\). .* with --init"):
        train(resumed)
