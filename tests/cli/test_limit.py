"""--limit: the first images of each split, and no result of them that passes for a whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import risbench
from risbench.engine.checkpoint import Checkpoint
from risbench.runs.job import Job
from risbench.scoring import predictions_file

RunCommand = Callable[..., tuple[int, str, str]]
TRAIN_OF_TWO_IMAGES = 6  # expressions of the small data set
TRAIN_OF_ONE_IMAGE = 3
REFERENCE = ["run", "--method", "reference/largest-object", "--split", "train", "--json"]


@pytest.fixture
def predictions(run_command: RunCommand, data_options: list[str], tmp_path: Path) -> Callable[..., Path]:
    """Predict the train split by a reference, and return the predictions file."""

    def predict(*options: str) -> Path:
        runs = tmp_path / "-".join(["runs", *options])
        code, _, err = run_command(*REFERENCE, *data_options, "--runs", runs, *options)
        assert code == 0, err
        return next(runs.glob("*/predictions/train-original.parquet"))

    return predict


def test_a_limited_record_is_partial_and_names_its_limit(
    run_command: RunCommand, data_options: list[str], tmp_path: Path
) -> None:
    code, out, err = run_command(*REFERENCE, *data_options, "--limit", "2")
    (record,) = json.loads(out)
    assert code == 0 and (record["n"], record["partial"], record["limit"]) == (TRAIN_OF_TWO_IMAGES, True, 2), err
    assert run_command(*REFERENCE, *data_options)[0] == 0
    code, out, _ = run_command("table", "--dataset", str(data_options[1]), "--format", "csv")
    rows = [line for line in out.splitlines() if line.startswith("comparison,") and "largest-object" in line]
    assert len(rows) == 2 and sum("first 2 images" in row for row in rows) == 1


def test_score_takes_the_limit_of_the_file(
    run_command: RunCommand, data_options: list[str], predictions: Callable[..., Path], small_root: Path
) -> None:
    limited, whole = predictions("--limit", "2"), predictions()
    header = predictions_file.read(limited).header
    assert header is not None and header.limit == 2

    def score(file: Path, *options: str) -> dict[str, object]:
        code, out, err = run_command("score", file, "--split", "train", *data_options, "--json", *options)
        assert code == 0, err
        return dict(json.loads(out))

    by_file = score(limited)
    assert (by_file["n"], by_file["partial"], by_file["limit"]) == (TRAIN_OF_TWO_IMAGES, True, 2)
    assert score(whole, "--limit", "2") == by_file
    assert risbench.score(limited, data_options[1], "train", data_root=str(small_root)) == by_file
    assert score(limited, "--limit", "1")["n"] == TRAIN_OF_ONE_IMAGE
    assert score(limited, "--protocol", "seqtr")["limit"] == 2
    assert "limit" not in score(whole) and "partial" not in score(whole)


def test_a_limit_above_that_of_the_file_is_refused(
    run_command: RunCommand, data_options: list[str], predictions: Callable[..., Path]
) -> None:
    code, _, err = run_command("score", predictions("--limit", "2"), "--split", "train", *data_options, "--limit", "3")
    assert code == 2 and err.startswith("error: Only the first 2 images of small train are predicted, not 3")


def test_other_programs_predict_the_first_images_only(
    run_command: RunCommand, data_options: list[str], predictions: Callable[..., Path], tmp_path: Path
) -> None:
    lines = predictions_file.read(predictions("--limit", "1"))
    text = [
        json.dumps({"sent_id": i, "segmentation": {"size": [48, 64], "counts": counts.decode()}})
        for i, counts in zip(lines.sent_id.tolist(), lines.counts, strict=True)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(text))
    arguments = ["score", "mine.jsonl", "--split", "train", *data_options, "--json"]
    assert "Without a prediction" in run_command(*arguments)[2]
    code, out, err = run_command(*arguments, "--limit", "1")
    assert code == 0 and json.loads(out)["n"] == TRAIN_OF_ONE_IMAGE, err


def test_limited_and_whole_predictions_are_never_compared(
    run_command: RunCommand, data_options: list[str], predictions: Callable[..., Path]
) -> None:
    limited, whole = predictions("--limit", "2"), predictions()
    code, _, err = run_command("compare", limited, whole, *data_options)
    assert code == 2 and "Compare answers to the same expressions" in err
    code, _, err = run_command("explain", limited, whole, "--protocol", "original,original", *data_options)
    assert code == 2 and "A is of the first 2 images of train, B of all images" in err
    code, out, err = run_command("compare", limited, limited, *data_options)
    assert code == 0 and "partial: measured on a part" in out, err
    code, out, err = run_command("explain", limited, "--protocol", "original,lavt", *data_options)
    assert code == 0 and "Measured on a part of the data set" in out, err


def test_a_limited_file_is_exported_and_makes_no_baseline(
    run_command: RunCommand, data_options: list[str], predictions: Callable[..., Path], tmp_path: Path
) -> None:
    limited = predictions("--limit", "2")
    code, _, err = run_command("export", limited, "--split", "train", *data_options, "--output", "coco.json")
    assert code == 0 and len(json.loads((tmp_path / "coco.json").read_text())) == TRAIN_OF_TWO_IMAGES, err
    code, _, err = run_command("check", "--update", "--baseline", "new.json", limited, *data_options)
    assert code == 2 and "a run with --limit" in err and not (tmp_path / "new.json").exists()


def test_the_whole_road_is_limited_and_what_is_trained_so_stays_partial(
    run_command: RunCommand, data_options: list[str], short_training: list[str], tmp_path: Path
) -> None:
    train = ["run", "--method", "lts", *data_options, "--split", "val", "--json", *short_training]
    code, out, err = run_command(*train, "--limit", "2")
    assert code == 0 and f"{TRAIN_OF_TWO_IMAGES} training expressions" in err, err
    (record,) = json.loads(out)
    assert (record["partial"], record["limit"], record["training_limit"]) == (True, 2, 2)
    (folder,) = (tmp_path / "runs").iterdir()
    best = folder / "checkpoints" / "best"
    assert Job.read(folder).limit == Checkpoint(best).facts.limit == 2

    code, out, err = run_command("run", "--checkpoint", best, *data_options, "--split", "val", "--json")
    (whole,) = json.loads(out)
    assert code == 0 and (whole["partial"], whole["limit"], whole["training_limit"]) == (True, 0, 2), err
    code, _, err = run_command(
        "predict", "--checkpoint", best, *data_options, "--split", "val", "--output", "a.parquet"
    )
    assert (
        code == 0
        and '"partial": true' in run_command("score", "a.parquet", "--split", "val", *data_options, "--json")[1]
    )
    code, _, err = run_command("run", "--resume", folder, "--limit", "3")
    assert code == 2 and "--resume takes no --limit" in err

    (tmp_path / "plan.txt").write_text(
        "\n".join(
            " ".join(["risbench", *map(str, [x for x in train if x != "--json"]), end]) for end in ("--limit 2", "")
        )
    )
    code, out, err = run_command("run", "--plan", "plan.txt", "--dry-run")
    assert code == 0 and "line 1: recorded already" in out and "line 2: starts" in out, err


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1000000001"])
def test_a_limit_that_is_no_number_of_images_is_one_sentence(run_command: RunCommand, limit: str) -> None:
    code, _, err = run_command("score", "a.parquet", "--split", "val", "--limit", limit)
    assert code == 2 and err.startswith("error: Invalid value for '--limit'") and err.count("\n") == 1
