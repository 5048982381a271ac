"""A run goes on with what it began with: moved data are the same data, and changed ones are refused."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.runs.inputs import Inputs, with_absolute_places
from risbench.runs.job import Job
from risbench.runs.opening import open_run, prepare_run
from risbench.runs.training import train


@pytest.fixture
def killed(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was killed in its second epoch."""
    step = Trainer._step

    def dying(self: Trainer, *arguments: object) -> Any:
        if self.position.epoch == 1:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        run = open_run(job.model_copy(update={"overrides": [*job.overrides, "train.epochs=2"]}), tmp_path / "runs")
        with pytest.raises(KeyboardInterrupt):
            train(run)
    return run.folder


def resume(folder: Path, **places: str) -> int | None:
    """Continue a run, and return its last epoch."""
    run = open_run(Job.read(folder).model_copy(update=places), folder.parent, folder)
    train(run)
    facts = json.loads((folder / "checkpoints" / "last" / "checkpoint.json").read_bytes())
    epoch: int = facts["epoch"]
    return epoch


def exchange_targets(root: Path) -> None:
    """Let every two refs of an image exchange their targets."""
    path = root / "small" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    for first, second in zip(refs[::2], refs[1::2], strict=True):
        if first["image_id"] == second["image_id"]:
            first["ann_id"], second["ann_id"] = second["ann_id"], first["ann_id"]
    path.write_bytes(pickle.dumps(refs, protocol=2))


def enlarge_image(root: Path) -> None:
    image = next((root / "images" / "small").iterdir())
    image.write_bytes(image.read_bytes() + b" ")


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")

    return change


def test_changed_annotations_are_refused_with_both_hashes(killed: Path, root: Path) -> None:
    begun = Inputs.read(killed)
    exchange_targets(root)
    with pytest.raises(InputError) as refused:
        resume(killed)
    today = prepare_run(Job.read(killed), killed.parent).index.hash
    assert begun is not None and today != begun.indices["small"]
    assert f"small {begun.indices['small'][:12]}" in str(refused.value) and f"small {today[:12]}" in str(refused.value)
    assert "--data-root" in str(refused.value)


def test_changed_images_are_refused(killed: Path, root: Path) -> None:
    enlarge_image(root)
    with pytest.raises(InputError, match="was begun with images of small .*--images"):
        resume(killed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("recipe.toml", "epochs = 2", "epochs = 3"), "recipe.toml is "),
        (edit("recipe.toml", "lr = 0.001", "lr = 0.01"), "recipe.toml is "),
        (edit("run.toml", "seed = 0", "seed = 1"), "run.toml was edited"),
        (edit("run.toml", '"image.size=64"', '"image.size=96"'), "run.toml was edited"),
    ],
)
def test_edited_files_of_a_run_are_refused(killed: Path, change: Callable[[Path], None], words: str) -> None:
    before = (killed / "checkpoints" / "last" / "checkpoint.json").read_bytes()
    change(killed)
    with pytest.raises(InputError, match=words):
        resume(killed)
    assert (killed / "checkpoints" / "last" / "checkpoint.json").read_bytes() == before


def test_a_run_goes_on_with_moved_data_and_keeps_their_new_place(killed: Path, root: Path) -> None:
    moved = shutil.move(root, root.with_name("moved"))
    with pytest.raises(InputError):
        resume(killed)
    assert resume(killed, dataset=f"{moved}/small.toml", data_root=str(moved)) == 2
    assert Job.read(killed).data_root == str(moved)
    assert resume(killed) == 2


def test_a_run_with_relative_places_goes_on_in_another_folder(
    killed: Path, job: Job, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(root)
    relative = job.model_copy(update={"dataset": "small.toml", "data_root": ".", "images": "images/small"})
    run = open_run(relative, tmp_path / "relative")
    monkeypatch.chdir(tmp_path)
    stored = Job.read(run.folder)
    assert (stored.dataset, stored.data_root) == (str(root / "small.toml"), str(root))
    assert stored.images == str(root / "images" / "small")
    assert resume(run.folder) == 1


def test_exchanged_initial_weights_are_refused_and_moved_ones_are_not(killed: Path, job: Job, tmp_path: Path) -> None:
    initial = shutil.copytree(killed / "checkpoints" / "last", tmp_path / "initial")
    run = open_run(job.model_copy(update={"init": str(initial)}), tmp_path / "second")
    moved = shutil.move(initial, tmp_path / "moved")
    assert resume(run.folder, init=str(moved)) == 1 and Job.read(run.folder).init == str(moved)
    resume(killed)
    shutil.rmtree(moved)
    shutil.copytree(killed / "checkpoints" / "last", moved)
    with pytest.raises(InputError, match="was begun with the checkpoint .* of --init, and today"):
        resume(run.folder)


def test_a_file_that_the_recipe_names_is_not_exchanged_before_the_first_checkpoint(job: Job, tmp_path: Path) -> None:
    vectors = tmp_path / "glove.txt"
    vectors.write_text("the" + " 0.1" * 300 + "\n")
    named = job.model_copy(update={"overrides": [*job.overrides, f"model.glove={vectors}"]})
    run = open_run(named, tmp_path / "runs")
    assert run.lock is not None
    run.lock.release()
    vectors.write_text("the" + " 0.2" * 300 + "\n")
    with pytest.raises(InputError, match=r"was begun with a file \w+ \(sha256\) as model\.glove"):
        resume(run.folder)


def test_a_run_of_an_older_risbench_goes_on_with_a_warning_and_keeps_hashes_from_then_on(
    killed: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Job.read(killed).write(killed)
    assert Inputs.read(killed) is None
    with caplog.at_level(logging.WARNING):
        assert resume(killed) == 2
    assert "does not say which data it began with" in caplog.text
    exchange_targets(root)
    with pytest.raises(InputError, match="was begun with small"):
        resume(killed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff", "cannot be read"),
        (b"dataset = ", "cannot be read"),
        (b"dataset = 3", "dataset: "),
        (b'dataset = "mini"\nseed = -1', "seed: "),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_run_file_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        Job.read(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"\xff", b"[model", b"[model]\nx = 1", b"x = " + b"[" * 100_000])
def test_a_damaged_or_missing_recipe_of_a_run_is_one_sentence(job: Job, tmp_path: Path, content: bytes | None) -> None:
    folder = open_run(job, tmp_path / "runs").folder
    (folder / "recipe.toml").unlink() if content is None else (folder / "recipe.toml").write_bytes(content)
    with pytest.raises(InputError, match="recipe.toml") as refused:
        open_run(Job.read(folder), tmp_path / "runs", folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("inputs", ["inputs = 3", "[inputs]\noptions = 3", "[inputs]\nindices = []"])
def test_damaged_hashes_are_one_sentence(tmp_path: Path, inputs: str) -> None:
    (tmp_path / "run.toml").write_text(f'dataset = "mini"\n{inputs}\n')
    assert Job.read(tmp_path).dataset == "mini"
    with pytest.raises(InputError, match=r"run.toml cannot be read \(inputs"):
        Inputs.read(tmp_path)


@pytest.mark.parametrize("value", ["a\x01b", 'a"b\\c', "tab\tline\nend\r", "\x7f", "\u2028é"])
def test_a_job_with_any_text_reads_back_the_same(tmp_path: Path, value: str) -> None:
    job = Job(dataset=value, overrides=[value], data_root=value)
    job.write(tmp_path)
    assert Job.read(tmp_path) == job
    assert tomllib.loads((tmp_path / "run.toml").read_text(encoding="utf-8"))["overrides"] == [value]


def test_a_path_that_is_not_utf_8_is_refused_before_a_folder_is_made(job: Job, root: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(root) + b"\xff")
    shutil.copytree(root, odd)
    with pytest.raises(InputError, match="not text in UTF-8"):
        open_run(job.model_copy(update={"data_root": odd}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_generated_data_set_has_no_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_places(Job(dataset="mini"), ["mini"]).data_root == ""
    assert with_absolute_places(Job(dataset="refcoco"), ["refcoco"]).data_root == str(tmp_path / "data")
    with pytest.raises(InputError, match="has no effect.*Leave --data-root"):
        prepare_run(Job(method="lts", dataset="mini", data_root=str(tmp_path)), tmp_path)
