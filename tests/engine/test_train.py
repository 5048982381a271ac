from __future__ import annotations

import copy
import json
import pickle
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.plugins.precision.precision import Precision
from safetensors.torch import load_file

from risbench import methods
from risbench.api import Method, Pretrained
from risbench.data.loader import TrainingSamples
from risbench.data.pretrained import from_scratch
from risbench.engine import distributed
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.runs import opening
from risbench.runs.evaluation import evaluate
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import build_model, train

PARTS = (from_scratch("Darknet53"), from_scratch("word vectors"))
BY_HAND = Pretrained(part="backbone", source="by hand", training_data=("ImageNet-1k",))


@pytest.fixture
def job(small_root: Path, small_card: Path, short_training: list[str]) -> Job:
    three = [*short_training, "train.epochs=3", "train.milestones=[2]"]
    return Job(method="lts", dataset=str(small_card), overrides=three, data_root=str(small_root), splits=["val"])


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / name / "weights.safetensors")


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def killed_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Let the process die in the middle of the following epoch."""
    step = Trainer._step

    def dying(self: Trainer, *arguments: object) -> list[dict[str, torch.Tensor]]:
        if self.position.epoch == epochs:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", dying)


@pytest.mark.parametrize("precision", [Precision(), MixedPrecision("16-mixed", "cpu")])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """16-mixed, which Fabric refuses on the CPU by name, is there for the state of its scaler."""

    def start(_: str) -> Fabric:
        return Fabric(accelerator="cpu", devices=1, plugins=[copy.deepcopy(precision)])

    monkeypatch.setattr(distributed, "start", start)
    whole = open_run(job, tmp_path / "whole")
    train(whole)

    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        killed = open_run(job, tmp_path / "killed")
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    resumed = open_run(Job.read(killed.folder), tmp_path, resume=killed.folder)
    train(resumed)

    assert same(weights(whole.folder), weights(resumed.folder))
    assert same(weights(whole.folder, "best"), weights(resumed.folder, "best"))
    scalers = [Checkpoint(run.folder / "checkpoints" / "last").state()["scaler"] for run in (whole, resumed)]
    assert scalers[0] == scalers[1] and bool(scalers[0]) == isinstance(precision, MixedPrecision)
    lines = [logged(whole.folder), logged(resumed.folder)]
    for line in (*lines[0], *lines[1]):
        line.pop("seconds", None)
    assert lines[0] == lines[1]


def test_a_run_killed_in_its_first_epoch_starts_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(patch, 0)
        killed = open_run(job, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    resumed = open_run(Job.read(killed.folder), tmp_path, resume=killed.folder)
    assert (train(resumed).facts.epoch or 0) >= 1


def test_seeds_repeat_and_differ(job: Job, tmp_path: Path) -> None:
    folders = []
    for number, seed in enumerate((0, 0, 1)):
        run = open_run(job.model_copy(update={"seed": seed}), tmp_path / str(number))
        train(run)
        folders.append(run.folder)
    assert same(weights(folders[0]), weights(folders[1]))
    assert not same(weights(folders[0]), weights(folders[2]))


def test_the_log_has_losses_and_validation_of_each_epoch(job: Job, tmp_path: Path) -> None:
    run = open_run(job, tmp_path)
    train(run)
    lines = logged(run.folder)
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert all(set(line["loss"]) == {"total", "L_seg", "L_loc"} for line in lines[::2])
    assert all("oIoU" in line["val"] for line in lines[1::2])
    assert [line["lr"] for line in lines[::2]] == pytest.approx([1e-3, 1e-3, 1e-4])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[type[Method]]:
    """The classes of the models that pretrained weights were loaded into."""
    calls: list[type[Method]] = []

    def load(model: Method, *_: object) -> list[Pretrained]:
        calls.append(type(model))
        return [BY_HAND]

    monkeypatch.setattr(methods.load("lts"), "load_pretrained", load)
    return calls


def test_pretrained_weights_are_loaded_once_for_a_new_run_alone(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[type[Method]]
) -> None:
    """A checkpoint, an initial one and a resumed run hold their weights: the files behind them may be gone."""
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        run = open_run(job, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert loaded == [methods.load("lts")]
    last = run.folder / "checkpoints" / "last"
    assert Checkpoint(last).facts.pretrained == (BY_HAND,)
    assert Checkpoint(last).facts.training_data == ["small", "ImageNet-1k"]

    resumed = open_run(Job.read(run.folder), tmp_path, resume=run.folder)
    opened = train(resumed)
    assert opened.facts.pretrained == Checkpoint(last).facts.pretrained == (BY_HAND,)
    assert evaluate(resumed, opened)[0].pretrained == (BY_HAND,)

    evaluated = job.model_copy(update={"method": "", "overrides": [], "checkpoint": str(opened.folder)})
    evaluation = open_run(evaluated, tmp_path / "evaluated")
    assert evaluate(evaluation, train(evaluation))[0].pretrained == (BY_HAND,)

    once = {"overrides": [*job.overrides, "train.epochs=1", "train.milestones=[]"], "init": str(opened.folder)}
    second = train(open_run(job.model_copy(update=once), tmp_path / "second"))
    assert second.facts.pretrained == (opened.facts.as_pretrained(),)
    assert (
        second.facts.pretrained[0].pretrained == (BY_HAND,) and second.facts.pretrained[0].sha256 == opened.facts.sha256
    )
    assert len(loaded) == 1


def test_a_run_killed_before_its_first_checkpoint_loads_pretrained_weights_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[type[Method]]
) -> None:
    with monkeypatch.context() as patch:
        killed_after(patch, 0)
        run = open_run(job, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    resumed = open_run(Job.read(run.folder), tmp_path, resume=run.folder)
    assert train(resumed).facts.pretrained == (BY_HAND,)
    assert len(loaded) == 2


def test_init_starts_from_the_weights_and_words_of_a_checkpoint(job: Job, tmp_path: Path) -> None:
    first = open_run(job, tmp_path / "first")
    train(first)
    again = job.model_copy(
        update={
            "init": str(first.folder / "checkpoints" / "last"),
            "overrides": [*job.overrides, "train.lr=1e-12", "train.epochs=1", "train.milestones=[]"],
        }
    )
    second = open_run(again, tmp_path / "second")
    opened = train(second)
    before, after = weights(first.folder), weights(second.folder)
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learned)
    (begun_with,) = opened.facts.pretrained
    assert begun_with.source.startswith("checkpoint ") and begun_with.pretrained == PARTS


def test_the_training_data_of_an_initial_checkpoint_count(
    job: Job, small_card: Path, small_root: Path, tmp_path: Path
) -> None:
    once = job.model_copy(update={"overrides": [*job.overrides, "train.epochs=1", "train.milestones=[]"]})
    first = train(open_run(once, tmp_path))
    facts = {**json.loads((first.folder / "checkpoint.json").read_text(encoding="utf-8"))}
    facts["training_data"] = ["small", "COCO", "ImageNet-1k"]
    (first.folder / "checkpoint.json").write_text(json.dumps(facts), encoding="utf-8")
    second = train(open_run(once.model_copy(update={"init": str(first.folder)}), tmp_path))
    assert second.facts.training_data == ["small", "COCO", "ImageNet-1k"]


def test_training_refuses_an_initial_checkpoint_of_another_method(job: Job, tmp_path: Path) -> None:
    first = train(open_run(job, tmp_path)).folder
    facts = json.loads((first / "checkpoint.json").read_text(encoding="utf-8"))
    (first / "checkpoint.json").write_text(json.dumps({**facts, "method": "other", "code": "0" * 64}), encoding="utf-8")
    with pytest.raises(InputError, match="a checkpoint of other .*, not of lts"):
        open_run(job.model_copy(update={"init": str(first)}), tmp_path)


def test_accumulation_is_the_mean_of_its_micro_batches(job: Job, tmp_path: Path) -> None:
    """With normalisation frozen, two micro-batches of two give the gradient of one batch of four."""
    run = open_run(job, tmp_path)
    sources = [(index, index.split("train")) for index in run.training_indices]
    torch.manual_seed(0)
    model, tokenizer = build_model(run, sources, [(0, row) for row in range(10)])
    samples = TrainingSamples(
        sources=sources,
        rows=[(0, row) for row in range(10)],
        field="sent",
        tokenizer=tokenizer,
        image=run.settings.image,
    )
    gradients = []
    for batches in ([[0, 1, 2, 3]], [[0, 1], [2, 3]]):
        model.zero_grad()
        for batch in batches:
            torch.autograd.backward(model.eval().loss(samples[batch].batch)["total"] / len(batches))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_with_micro_batches_trains(job: Job, tmp_path: Path, size: int) -> None:
    run = open_run(job.model_copy(update={"overrides": [*job.overrides, f"train.micro_batch={size}"]}), tmp_path)
    assert (train(run).facts.epoch or 0) >= 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=6", "train.per_image=4"], "take a multiple of 4"),
        (["train.batch_size=8", "train.per_image=4", "train.micro_batch=3"], "raise train.micro_batch to 4"),
        (["train.accumulate=2"], "no key any more: set train.micro_batch"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_before_data_are_read(
    job: Job, tmp_path: Path, overrides: list[str], words: str
) -> None:
    wrong = job.model_copy(update={"overrides": [*job.overrides, *overrides], "data_root": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=words):
        open_run(wrong, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_setting_that_building_refuses_leaves_no_folder(job: Job, tmp_path: Path) -> None:
    wrong = job.model_copy(update={"overrides": [*job.overrides, "image.size=65"]})
    with pytest.raises(InputError, match="image.size=65 does not fit LTS"):
        train(open_run(wrong, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("largest", [0.0, 0.25])
@pytest.mark.parametrize("micro_batch", [4, 2])
def test_the_gradient_of_a_step_is_no_longer_than_the_recipe_says(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: float, micro_batch: int
) -> None:
    """Measured in the optimiser. LTS sums its loss, so the gradient is long unless it is clipped."""
    lengths = []

    def step(optimizer: torch.optim.AdamW, *_: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        lengths.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    overrides = [*job.overrides, "train.epochs=1", "train.milestones=[]", f"train.clip_norm={largest}"]
    overrides.append(f"train.micro_batch={micro_batch}")
    train(open_run(job.model_copy(update={"overrides": overrides}), tmp_path))
    assert len(lengths) == 2
    if largest:
        assert lengths == pytest.approx([largest] * 2, rel=1e-4)
    else:
        assert min(lengths) > 1


def test_warm_up_reaches_the_optimiser(job: Job, tmp_path: Path) -> None:
    """Ten expressions by four make two steps an epoch (the rest is dropped), so three epochs of warm-up are six."""
    run = open_run(
        job.model_copy(update={"overrides": [*job.overrides, "train.warmup=3", "train.milestones=[]"]}), tmp_path
    )
    train(run)
    assert [line["lr"] for line in logged(run.folder)[::2]] == pytest.approx([2e-3 / 6, 4e-3 / 6, 1e-3])


def test_mixed_precision_reaches_the_layers_in_training(job: Job, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    def record(module: torch.nn.Module, _: object, output: object) -> None:
        if module.training and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            assert isinstance(output, torch.Tensor)
            seen.add(output.dtype)

    short = [*job.overrides, "train.epochs=1", "train.milestones=[]"]
    for precision, expected in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        seen.clear()
        with torch.nn.modules.module.register_module_forward_hook(record):
            mixed = job.model_copy(update={"overrides": [*short, f"train.precision={precision}"]})
            train(open_run(mixed, tmp_path / precision))
        assert seen == {expected}


@pytest.mark.parametrize(
    ("sizes", "cure"),
    [
        ((4, 1), r"raise train.micro_batch \(to 4 at most\), or raise image.size"),
        ((3, 2), r"raise train.micro_batch \(to 3 at most\)"),
        ((1, 1), r"raise train.batch_size \(to 2 at least\) and train.micro_batch \(to 2 at least\)"),
    ],
)
def test_a_micro_batch_that_cannot_be_normalised_is_one_sentence(
    job: Job, tmp_path: Path, sizes: tuple[int, int], cure: str
) -> None:
    overrides = [f"train.batch_size={sizes[0]}", f"train.micro_batch={sizes[1]}"]
    run = open_run(job.model_copy(update={"overrides": [*job.overrides, *overrides]}), tmp_path)
    with pytest.raises(InputError, match=f"one expression .*: {cure}"):
        train(run)


def test_a_loss_that_is_not_finite_is_one_sentence(job: Job, tmp_path: Path) -> None:
    run = open_run(job.model_copy(update={"overrides": [*job.overrides, "train.lr=1e20"]}), tmp_path)
    with pytest.raises(InputError, match=r"no longer finite in epoch 1, step 2 of 2 .* of small. Lower train.lr\."):
        train(run)


def test_runs_started_in_the_same_second_have_different_folders(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    monkeypatch.setattr(opening, "datetime", now)
    names = [open_run(job, tmp_path / "runs").folder.name for _ in range(3)]
    assert names[0].endswith("-20260102-030405") and names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]
    assert all((tmp_path / "runs" / name / "run.toml").is_file() for name in names)


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run.toml"):
        Job.read(tmp_path)


@pytest.mark.parametrize(("content", "words"), [(b"# \xff", "utf-8"), (b"seed = 'x'", "dataset: Field required")])
def test_a_broken_run_file_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(InputError, match=rf"run.toml cannot be read \(.*{words}"):
        Job.read(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_needs_its_splits_before_it_starts(job: Job, small_root: Path, tmp_path: Path, split: str) -> None:
    root = shutil.copytree(small_root, tmp_path / "root")
    refs = [ref for ref in pickle.loads((root / "small" / "refs(unc).p").read_bytes()) if ref["split"] != split]
    (root / "small" / "refs(unc).p").write_bytes(pickle.dumps(refs))
    partial = job.model_copy(update={"data_root": str(root), "partial": True, "splits": []})
    with pytest.raises(InputError, match=f"holds no split {split}"):
        open_run(partial, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
