"""Runs that train nothing (train.epochs=0): pretrained weights become the checkpoint and are evaluated as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from risbench import methods, recipe
from risbench.nn.byte_pairs import BytePairTokenizer
from risbench.runs.job import Job
from risbench.runs.opening import prepare_run

RunCommand = Callable[..., tuple[int, str, str]]


def test_a_random_network_is_evaluated_on_images_of_mini(run_command: RunCommand, tmp_path: Path) -> None:
    options = ["--method", "clipseg", "--dataset", "mini", "--split", "val", "--limit", "2"]
    code, out, err = run_command("run", *options, "--json")
    assert code == 0, err
    [record] = json.loads(out)
    assert record["training_data"] == [] and record["pretrained"][0]["source"] == "" and record["leaked"] == 0
    assert (record["partial"], record["limit"], record["training_limit"]) == (True, 2, 0)
    assert (record["recipe"]["train"]["epochs"], record["cost"]["training_seconds"]) == (0, 0.0)
    assert record["metrics"]["oIoU"] is not None
    [folder] = (tmp_path / "runs").iterdir()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["best"]
    assert not (folder / "log.jsonl").exists()
    assert "nothing is trained; " in err

    code, out, err = run_command("run", "--resume", folder, "--json")
    assert code == 0, err
    assert json.loads(out)[0]["metrics"] == record["metrics"]
    best = folder / "checkpoints" / "best"
    code, out, err = run_command("run", "--checkpoint", best, *options[2:])
    assert code == 0, err
    assert "(untrained; partial: first 2 images" in " ".join(out.split())


def test_weights_of_a_folder_are_zero_shot_with_the_recipe_s_training_data(
    run_command: RunCommand, data_options: list[str], tmp_path: Path
) -> None:
    settings, _ = recipe.load(methods.recipe_file("clipseg"), ["tiny"])
    pairs = BytePairTokenizer.of_bytes(77, 77)
    folder = tmp_path / "weights"
    model: Any = methods.load("clipseg").build(settings, pairs)
    model.network.save_pretrained(folder)
    pairs.save(folder)
    declared = [f"model.weights={folder}", 'train.pretraining=["PhraseCut", "Visual Genome"]']
    code, out, err = run_command("run", "--method", "clipseg", *data_options, "--split", "testA", "--json", *declared)
    assert code == 0, err
    [record] = json.loads(out)
    assert record["training_data"] == ["PhraseCut", "Visual Genome"] and record["leaked"] is None
    assert record["pretrained"][0]["source"] == str(folder)
    code, out, err = run_command("table", "--records", "runs", "--format", "csv")
    assert code == 0 and "zero-shot; leaked unknown" in out, err


def test_a_network_that_answers_that_there_is_no_target_is_evaluated(
    run_command: RunCommand, data_options: list[str]
) -> None:
    code, out, err = run_command("run", "--method", "sam3", *data_options, "--split", "testB", "--json")
    assert code == 0, err
    [record] = json.loads(out)
    assert record["n"] == 3 and record["training_data"] == []
    assert record["metrics"]["oIoU"] is not None


def test_neither_train_nor_val_is_read(small_card: Path, small_root: Path, tmp_path: Path) -> None:
    job = Job(method="clipseg", dataset=str(small_card), data_root=str(small_root), splits=["testA"])
    assert prepare_run(job, tmp_path).training_splits() == []
    trained = job.model_copy(update={"variants": ["decoder"], "overrides": ["train.batch_size=4", "train.per_image=1"]})
    assert len(prepare_run(trained, tmp_path).training_splits()) == 2


def test_a_dry_run_says_that_nothing_is_trained(run_command: RunCommand, data_options: list[str]) -> None:
    code, out, err = run_command("run", "--method", "clipseg", *data_options, "--dry-run", "--json")
    assert code == 0, err
    [described] = json.loads(out)
    assert described["training"] is None and described["parameters"] > 1000 and described["seconds"] is None
    code, out, err = run_command("run", "--method", "clipseg", *data_options, "--dry-run")
    assert code == 0 and "epochs" not in out and "weights: from scratch" in out, err


def test_the_decoder_is_trained_where_its_variant_asks_for_it(
    run_command: RunCommand, data_options: list[str], short_training: list[str]
) -> None:
    options = ["--method", "clipseg", "--variant", "decoder", *data_options, "--split", "testB", "--json"]
    code, out, err = run_command("run", *options, *short_training)
    assert code == 0, err
    [record] = json.loads(out)
    assert record["variants"] == ["tiny", "decoder"] and record["training_data"] == ["small"]
    assert record["recipe"]["train"]["epochs"] == 1 and record["cost"]["training_seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--method", "lts", "train.epochs=0"],
            "those of lts are parts of a network that its recipe trains for 9 epoch",
        ),
        (["--method", "clipseg", "--variant", "decoder", "train.epochs=0"], "that its recipe trains for 10 epochs"),
        (["--method", "sam3", "train.epochs=2", "train.batch_size=4"], "SAM 3 is evaluated zero-shot here, and is not"),
        (["--method", "clipseg", "model.weights=nowhere/at/all"], "model.weights=nowhere/at/all does not exist"),
        (["--method", "sam3", "--protocol", "lavt"], "was built for image.size=112, and the input has 480 pixels"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence_and_leaves_no_run(
    run_command: RunCommand, data_options: list[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    code, out, err = run_command("run", *data_options, "--split", "testB", *arguments)
    error = err.splitlines()[-1]
    assert (code, out) == (2, "") and error.startswith("error: ") and says in error, err
    if "--protocol" not in arguments:  # a checkpoint is kept for another protocol
        assert not list((tmp_path / "runs").glob("*/checkpoints"))


def test_initial_weights_are_for_training(run_command: RunCommand, data_options: list[str], tmp_path: Path) -> None:
    code, _, err = run_command("train", "--method", "clipseg", *data_options)
    assert code == 0, err
    [best] = (tmp_path / "runs").glob("*/checkpoints/best")
    code, _, err = run_command("run", "--method", "clipseg", *data_options, "--init", best)
    assert code == 2 and "--init starts training, and train.epochs=0 trains nothing" in err


def test_the_list_says_what_weights_a_method_needs(run_command: RunCommand) -> None:
    code, out, _ = run_command("list", "--json")
    weights = json.loads(out)["weights"]
    assert code == 0 and weights["sam3"]["gated"] and weights["sam3"]["licence"].startswith("SAM License")
    assert (
        weights["clipseg"]["weights"] == {"weights": "CIDAS/clipseg-rd64-refined"} and weights["clipseg"]["zero_shot"]
    )
    assert set(weights["lavt"]["weights"]) == {"backbone_weights", "text_weights"} and not weights["lavt"]["zero_shot"]
    text = " ".join(run_command("list")[1].split())
    assert "weights: facebook/sam3, gated (accept their licence on the hub first); evaluated as they are" in text
