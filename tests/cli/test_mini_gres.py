"""mini-gres through the commands: listed, examined, trained on, answered by a threshold, scored and tabulated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from risbench.scoring import predictions_file

RunCommand = Callable[..., tuple[int, str, str]]
FEW_IMAGES = ["--dataset", "mini-gres", "--protocol", "grefcoco", "--split", "val", "--limit", "2"]
FEW_STEPS = ["train.epochs=1", "train.batch_size=8", "train.micro_batch=8", "train.validate_every=1", "image.size=64"]


def test_it_is_listed_indexed_and_sound(run_command: RunCommand) -> None:
    assert "data set   mini-gres  (mini-gres (generated))" in run_command("list")[1]
    listed = run_command("data", "list")[1]
    assert "mini-gres: mini-gres (generated)\n  expressions: train 5666, val 900, testA 898, testB 923" in listed
    code, out, err = run_command("data", "index", "mini-gres")
    assert code == 0 and "val: 160 images, 685 refs, 900 expressions" in out and "(partial)" not in out, err
    code, out, err = run_command("data", "make", "mini-gres")
    assert code == 0 and "exists already" in out, err


def test_a_protocol_without_the_rule_is_refused(run_command: RunCommand) -> None:
    code, out, err = run_command("run", "--method", "lavt", "--dataset", "mini-gres", "--split", "val")
    assert (code, out) == (2, "") and "237 of 900 expressions of mini-gres val have no target" in err
    assert "give --protocol grefcoco" in err


def test_lavt_trains_and_a_threshold_answers_no_target(run_command: RunCommand, tmp_path: Path) -> None:
    code, out, err = run_command("run", "--method", "lavt", *FEW_IMAGES, *FEW_STEPS, "--json")
    assert code == 0, err
    [record] = json.loads(out)
    assert record["metrics"]["gIoU"] is not None and "none" in record["slices"]["targets"]
    [run] = (tmp_path / "runs").iterdir()
    stored = predictions_file.read(run / "predictions" / "val-grefcoco.parquet")
    assert stored.no_target is None and stored.largest_probability is not None
    assert run_command("no-target", run / "predictions" / "val-grefcoco.parquet", "--json")[0] == 0

    below = float(np.median(stored.largest_probability))  # some expressions lie below it, and some do not
    checkpoint = run / "checkpoints" / "best"
    override = f"predict.no_target_below={below}"
    code, out, err = run_command(
        "run", "--checkpoint", checkpoint, *FEW_IMAGES, override, "--runs", "answered", "--json"
    )
    assert code == 0, err
    [record] = json.loads(out)
    answered = next((tmp_path / "answered").iterdir()) / "predictions" / "val-grefcoco.parquet"
    with_answers = predictions_file.read(answered)
    assert with_answers.counts == stored.counts and with_answers.header
    assert with_answers.header.recipe["predict"]["no_target_below"] == record["recipe"]["predict"]["no_target_below"]
    assert with_answers.no_target is not None
    assert with_answers.no_target.tolist() == (stored.largest_probability < below).tolist()
    assert 0 < with_answers.no_target.sum() < len(with_answers)

    where = ["--dataset", "mini-gres", "--split", "val", "--protocol", "grefcoco"]
    code, out, err = run_command("score", answered, *where, "--json")
    summary = json.loads(out)
    assert code == 0 and {name: summary[name] for name in ("gIoU", "cIoU", "N-acc", "T-acc")} == {
        name: record["metrics"][name] for name in ("gIoU", "cIoU", "N-acc", "T-acc")
    }, err
    code, out, err = run_command("table", "--dataset", "mini-gres", "--records", "answered")
    assert code == 0 and "mini-gres val" in out and "lavt" in out and "N-acc" in out, (out, err)

    Image.new("RGB", (40, 30), (200, 30, 30)).save("photo.png")
    code, out, err = run_command("segment", "photo.png", "the red box", "--checkpoint", checkpoint)
    assert code == 0 and "here is meant" not in out, err


def test_floors_are_measured_with_those_of_the_answer(run_command: RunCommand) -> None:
    code, out, err = run_command("run", "--method", "reference", *FEW_IMAGES, "--json")
    assert code == 0, err
    metrics = {record["method"].removeprefix("reference/"): record["metrics"] for record in json.loads(out)}
    assert {name: (values["N-acc"], values["T-acc"]) for name, values in metrics.items() if "-no-target" in name} == {
        "always-no-target": (100, 0),
        "never-no-target": (0, 100),
    }
    assert metrics["never-no-target"]["gIoU"] == pytest.approx(metrics["whole-image"]["gIoU"])
