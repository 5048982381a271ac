"""The folder of a run: it appears whole, and one without results does not stay."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from risbench import files
from risbench.engine.train import Trainer
from risbench.errors import InputError
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

HERE = files._temporary(Path("x")).name.split(".")[-2].partition("-")[0]


def changed(job: Job, *overrides: str) -> Job:
    return job.model_copy(update={"overrides": [*job.overrides, *overrides]})


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_folder_appears_whole_wherever_its_making_is_killed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The process dies before the first, second, ... of these calls, until one run is not killed any more."""
    real, runs = getattr(os, call), tmp_path / "runs"
    for point in range(1, 100):
        left = [point]

        def dying(*arguments: Any, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            with suppress(KeyboardInterrupt):
                open_run(job, runs)
        folders = [path for path in runs.glob("*") if not path.name.startswith(".")]
        assert all((folder / name).is_file() for folder in folders for name in ("run.toml", "recipe.toml"))
        if left[0] > 0:
            break
    assert point > 1 and len(folders) >= 1


def test_what_killed_processes_left_is_swept_when_a_run_goes_on(job: Job, tmp_path: Path) -> None:
    run = open_run(job, tmp_path / "runs")
    places = [run.folder, run.folder / "predictions" / "val.parts"]
    places[1].mkdir(parents=True)
    left = [place / f".x.{host}-999999999-aa.tmp" for place in places for host in (HERE, "0" * 8)]
    for path in left:
        path.write_bytes(b"half")
    beside = run.folder.with_name(f".run.{HERE}-999999999-aa.tmp")
    beside.mkdir()
    open_run(Job.read(run.folder), tmp_path / "runs", run.folder)
    assert not any(path.exists() for path in [*left, beside])


def test_a_new_run_that_fails_in_its_first_step_leaves_nothing(job: Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no longer finite.* Nothing of the run is kept."):
        train(open_run(changed(job, "train.lr=1e30"), tmp_path / "runs"))
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_that_fails_after_its_first_checkpoint_is_kept(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def failing(self: Trainer, *arguments: object) -> Any:
        if self.position.epoch == 1:
            raise InputError("No.")
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", failing)
    run = open_run(changed(job, "train.epochs=2"), tmp_path / "runs")
    with pytest.raises(InputError, match="^No.$"):
        train(run)
    assert (run.folder / "checkpoints" / "last").is_dir()


def test_what_only_data_show_is_checked_before_a_folder_is_made(job: Job, root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There are 10 training expressions .*train.batch_size=12"):
        open_run(changed(job, "train.batch_size=12"), tmp_path / "runs")
    with pytest.raises(InputError, match="There are 6 training expressions .*train.batch_size=8"):
        open_run(changed(job, "train.batch_size=8", "train.sentences=random"), tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"There is no image .*empty.* \(4 images of train, val are missing\)"):
        open_run(job.model_copy(update={"images": str(tmp_path / "empty")}), tmp_path / "runs")
    image = sorted((root / "images" / "small").iterdir())[3]  # the one of val
    image.unlink()
    with pytest.raises(InputError, match=f"There is no image {image}. Copy it there"):
        open_run(job, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_same_data_are_not_trained_on_twice(job: Job, root: Path, tmp_path: Path) -> None:
    card = root / "small.toml"
    (root / "same.toml").write_text(card.read_text().replace('name = "small"', 'name = "same"'))
    for names in ([card, card], [card, root / "same.toml"], [card, root / ".." / "root" / "small.toml"]):
        text = ",".join(f'"{name}"' for name in names)
        with pytest.raises(InputError, match="train.datasets"):
            open_run(changed(job, f"train.datasets=[{text}]"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
