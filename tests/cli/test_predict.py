"""`risbench predict`: one process at a time writes a file, and a record names the code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from risbench import methods
from risbench.engine import predict
from risbench.scoring import predictions_file
from risbench.scoring.predictions import Predictions

RunCommand = Callable[..., tuple[int, str, str]]


def test_a_second_process_is_refused_and_leaves_the_file_of_the_first_alone(
    run_command: RunCommand, data_options: list[str], trained: Path, tmp_path: Path
) -> None:
    command = ["predict", "--checkpoint", trained, *data_options, "--split", "val", "--output", "val.parquet"]
    with FileLock(tmp_path / ".val.parquet.lock"):
        code, out, err = run_command(*command)
    assert (code, out) == (2, "")
    assert err == "error: Another process is at work on val.parquet: wait for its end, or stop it.\n"
    assert not (tmp_path / "val.parquet").exists() and not (tmp_path / "val.parts").exists()
    code, _, err = run_command(*command)
    assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["val.parquet"]  # neither the lock nor parts


def test_a_prediction_killed_with_other_images_begins_again(
    run_command: RunCommand,
    data_options: list[str],
    trained: Path,
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (small_root / "images" / "small").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    batch, computed = predict._predict_batch, []

    def killed(*arguments: object) -> Predictions:
        computed.append(1)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_predict_batch", killed)
    command = ["predict", "--checkpoint", trained, *data_options, "--split", "train", "predict.images_per_batch=1"]
    assert run_command(*command, "--output", "a.parquet")[0] != 0
    assert len(list((tmp_path / "a.parts").iterdir())) == 1  # with both batches
    assert run_command(*command, "--images", images, "--output", "a.parquet")[0] == 0
    assert len(computed) == 3 + 3  # three batches, none of which is of the first images


def test_a_record_names_the_code_that_trained_and_the_code_that_predicted(
    run_command: RunCommand, data_options: list[str], trained: Path, tmp_path: Path
) -> None:
    code, out, err = run_command("run", "--checkpoint", trained, *data_options, "--split", "val", "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    assert record["code"] == record["training_code"] == methods.code_hash("lts")
    (run,) = (tmp_path / "runs").iterdir()
    header = predictions_file.read(run / "predictions" / "val-original.parquet").header
    assert header and header.code == record["code"]
