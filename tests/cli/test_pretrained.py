"""Where pretrained weights come from, from the command line to records and tables."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from risbench import methods, recipe
from risbench.data.text import WordTokenizer
from risbench.nn import darknet

RunCommand = Callable[..., tuple[int, str, str]]
COCO = 'train.pretraining=["COCO"]'


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A darknet file of the small backbone, under a name that once counted as no pretraining."""
    torch.manual_seed(0)
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"])
    model: Any = methods.load("lts").build(settings, WordTokenizer.build(["red"], 5))
    numbers = [tensor.detach().numpy().ravel() for tensor in darknet._in_file_order(model.backbone)]
    path = tmp_path_factory.mktemp("weights") / "random_init.weights"
    path.write_bytes(np.array([0, 2, 5, 0, 0], "<i4").tobytes() + np.concatenate(numbers).astype("<f4").tobytes())
    return path


@pytest.fixture
def options(file: Path, data_options: list[str], short_training: list[str]) -> list[str]:
    network = [f"model.backbone_weights={file}", "model.backbone_slope=0.1"]
    return ["--method", "lts", *data_options, "--split", "val", *short_training, *network]


def parts(pretrained: list[dict[str, Any]]) -> list[tuple[str, str, list[str] | None]]:
    return [(one["part"], one["source"], one["training_data"]) for one in pretrained]


def test_a_dry_run_shows_what_is_loaded_and_what_it_was_trained_on(
    run_command: RunCommand, options: list[str], file: Path
) -> None:
    for more, data, words in (([], None, "training data unknown"), ([COCO], ["COCO"], "COCO")):
        code, out, err = run_command("run", *options, *more, "--dry-run", "--json")
        assert code == 0, err
        (described,) = json.loads(out)
        assert parts(described["pretrained"]) == [("Darknet53", file.name, data), ("word vectors", "", [])]
        assert described["pretrained"][0]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        code, out, err = run_command("run", *options, *more, "--dry-run")
        assert f"weights: Darknet53 {file.name} ({words}; sha256 " in out, err


@pytest.mark.parametrize("override", ["model.backbone_weights=", "model.pretrained=false"])
def test_a_declaration_without_weights_is_refused_and_its_cure_works(
    run_command: RunCommand, options: list[str], override: str
) -> None:
    code, out, err = run_command("run", *options, override, COCO, "--dry-run")
    assert code == 2 and "but none are loaded. Leave train.pretraining empty: 'train.pretraining=[]'." in err, out
    code, out, err = run_command("run", *options, override, COCO, "train.pretraining=[]", "--dry-run")
    assert code == 0 and "weights: from scratch" in out, err


def test_weights_of_a_file_are_of_unknown_data_in_records_tables_and_later_runs(
    run_command: RunCommand, options: list[str], file: Path
) -> None:
    code, out, err = run_command("run", *options, "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    assert parts(record["pretrained"]) == [("Darknet53", file.name, None), ("word vectors", "", [])]
    assert (record["training_data"], record["leaked"]) == (["small", "unknown"], None)
    code, out, err = run_command("table", "--records", "runs", "--format", "csv")
    assert code == 0 and "training data unknown" in out, err

    (best,) = Path("runs").glob("*/checkpoints/best")
    code, out, err = run_command("run", *options, "--init", best, "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    (initial,) = record["pretrained"]
    assert (initial["part"], initial["training_data"]) == ("network", ["small", "unknown"])
    assert parts(initial["pretrained"])[0] == ("Darknet53", file.name, None)
    assert (record["training_data"], record["leaked"]) == (["small", "unknown"], None)


def test_coco_is_never_a_share_of_0_and_a_number_with_its_list_of_images(
    run_command: RunCommand, options: list[str], small_root: Path, small_card: Path, tmp_path: Path
) -> None:
    code, out, err = run_command("run", *options, COCO, "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    assert (record["training_data"], record["leaked"]) == (["small", "COCO"], None)
    code, out, err = run_command("table", "--records", "runs", "--format", "csv")
    assert code == 0 and "cross-data set; leaked unknown" in out, err

    root = shutil.copytree(small_root, tmp_path / "root")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2014.json").write_text('{"images": [{"id": 4}, {"id": 9}]}')
    (best,) = Path("runs").glob("*/checkpoints/best")
    evaluated = ["--dataset", str(small_card), "--data-root", str(root), "--split", "val,testA"]
    code, out, err = run_command("run", "--checkpoint", best, *evaluated, "--json")
    assert code == 0, err
    assert {record["split"]: record["leaked"] for record in json.loads(out)} == {"val": 100.0, "testA": 0.0}
