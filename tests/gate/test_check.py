"""The check of a baseline on a small data set: what has not changed passes, what has changed fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from risbench.data import images, rle
from risbench.gate import baseline as baselines
from risbench.gate import check
from risbench.scoring import predictions_file, protocol, statistics

RunCommand = Callable[..., tuple[int, str, str]]


def answers(text: str) -> list[dict[str, Any]]:
    """The rows of the first table of a report."""
    return list(json.loads(text)["tables"][0]["rows"])


# predictions alone


def test_what_has_not_changed_passes_under_every_protocol_that_can_score_it(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path
) -> None:
    code, text, err = run_check("--baseline", predictions_baseline, "--dataset", small_card, "--format", "json")
    assert (code, err) == (0, "")
    verdicts = {row["check"]: row["verdict"] for row in answers(text)}
    known = map(protocol.load, protocol.names())
    usable = [x.name for x in known if x.input.sentences == "each" and x.score.no_target == "refused"]
    assert {f"kept, golden, {name}" for name in usable} <= set(verdicts) and set(verdicts.values()) == {"the same"}


def test_a_baseline_keeps_identities_and_counts_and_one_image_shows_no_change(
    run_check: RunCommand, predictions_baseline: Path
) -> None:
    rows = pd.read_parquet(predictions_baseline.with_suffix("") / "rows" / "val-original.parquet")
    assert list(rows) == [*baselines.kept_columns(rows)] and len(rows) == 4
    assert not (predictions_baseline.with_suffix("") / "checkpoints").exists()
    code, text, err = run_check("kept", "kept")
    assert code == 2 and "oIoU has no interval of a difference here, which needs 20 images with a value" in err


@pytest.mark.parametrize("step", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_ground_truth_off_by_one_pixel_is_found(
    run_check: RunCommand,
    predictions_baseline: Path,
    small_card: Path,
    step: tuple[int, int],
    shift_ground_truth: Callable[[tuple[int, int]], None],
) -> None:
    shift_ground_truth(step)
    code, text, _ = run_check("--baseline", predictions_baseline, "--dataset", small_card, "--format", "json")
    assert code == 1
    (oiou,) = [row for row in answers(text) if (row["check"], row["number"]) == ("kept, golden, original", "oIoU")]
    assert oiou["verdict"] == "FAILED: changed"
    assert oiou["was"] == baselines.read(predictions_baseline).scores["original"]["oIoU"] != oiou["is"]
    assert {row["check"] for row in answers(text)} == {
        f"kept, golden, {name}" for name in baselines.read(predictions_baseline).scores
    }
    flips = next(table for table in json.loads(text)["tables"] if table["title"].startswith("kept, golden, original"))
    assert len(flips["rows"]) == 4


def test_a_swapped_split_is_found(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path, swap_splits: Callable[[str, str], None]
) -> None:
    swap_splits("val", "testA")
    code, text, _ = run_check("--baseline", predictions_baseline, "--dataset", small_card)
    assert code == 1 and "kept, golden, original: Not in split 'testA'" in " ".join(text.split())


def test_one_pixel_of_one_mask_is_found(run_check: RunCommand, predictions_baseline: Path, small_card: Path) -> None:
    stored = baselines.predictions_path(baselines.read(predictions_baseline), predictions_baseline.with_suffix(""))
    masks = predictions_file.read(stored)
    size = (int(masks.height[2]), int(masks.width[2]))
    mask = rle.decode(masks.counts[2], size).copy()
    mask[0, 0] = not mask[0, 0]
    masks.counts[2] = rle.encode(mask)
    predictions_file.write(stored, masks)
    code, text, _ = run_check(
        "--baseline", predictions_baseline, "--dataset", small_card, "--tier", "golden", "--format", "json"
    )
    changed = {row["number"]: row["is"] - row["was"] for row in answers(text) if "original" in row["check"]}
    assert code == 1 and abs(changed.pop("union")) == 1 and "oIoU" in changed


def test_rows_that_changed_behind_equal_sums_are_found(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path
) -> None:
    file = predictions_baseline.with_suffix("") / "rows" / "val-original.parquet"
    rows = pd.read_parquet(file)
    rows.loc[[0, 3], "sent_id"] = rows.loc[[3, 0], "sent_id"].to_numpy()
    rows.to_parquet(file, index=False)
    code, text, _ = run_check("--baseline", predictions_baseline, "--dataset", small_card, "--format", "json")
    (first,) = [row for row in answers(text) if row["check"] == "kept, golden, original"]
    assert code == 1 and first["verdict"] == "FAILED: changed, though not in their sums"


# weights and trainings


def test_weights_and_training_come_to_the_same(run_check: RunCommand, runs_baseline: Path, small_card: Path) -> None:
    code, text, err = run_check("--baseline", runs_baseline, "--dataset", small_card, "--format", "json")
    assert code == 0, text + err
    verdicts = {row["check"]: row["verdict"] for row in answers(text)}
    assert verdicts["trained, network"] == "the same" and verdicts["trained, training"] == "the same as recorded"
    base = baselines.read(runs_baseline)
    assert (
        base.training
        and [result.seed for result in base.training.seeds] == [0, 1, 2, 3, 4]
        and base.flipped is not None
    )
    assert sorted(path.name for path in (runs_baseline.with_suffix("") / "checkpoints" / "best").iterdir()) == [
        *("checkpoint.json", "recipe.toml", "text", "weights.safetensors")
    ]


def test_a_training_is_compared_with_its_seeds(run_check: RunCommand, runs_baseline: Path, small_card: Path) -> None:
    content = json.loads(runs_baseline.read_text())
    for number, seed in enumerate(content["training"]["seeds"]):
        seed["metrics"] |= {"oIoU": 90.0 + number, "mIoU": 90.0 + number}
    runs_baseline.write_text(json.dumps(content))
    exit_code, text, _ = run_check(
        "--baseline", runs_baseline, "--dataset", small_card, "--tier", "training", "--format", "json"
    )
    verdicts = [row["verdict"] for row in answers(text)]
    assert exit_code == 1 and verdicts == ["FAILED: regression: below what chance explains"] * 2
    low, high = statistics.prediction_interval([90.0 + number for number in range(5)])
    assert all((row["interval low"], row["interval high"]) == (low, high) for row in answers(text))


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (None, "regression: below what chance explains"),
        (40.0, "regression: below what chance explains"),
        (50.0, "the same as recorded"),
        (53.0, "within chance"),
        (70.0, "above what chance explains: --update"),
    ],
)
def test_a_number_is_judged_by_what_chance_explains(runs_baseline: Path, now: float | None, verdict: str) -> None:
    training = baselines.read(runs_baseline).training
    assert training
    seeds = [
        seed.model_copy(update={"metrics": {**seed.metrics, "oIoU": 50.0 + number}})
        for number, seed in enumerate(training.seeds)
    ]
    result = check.trained_number("trained", "oIoU", training.model_copy(update={"seeds": seeds}), now)
    assert (result.verdict, result.failed) == (verdict, verdict.startswith("regression"))
    assert result.interval and result.interval[0] < 50 < 54 < result.interval[1]


def test_masks_that_differ_fail_beyond_the_pixels_that_may(
    run_check: RunCommand, runs_baseline: Path, small_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_masks = images.to_masks

    def with_another_pixel(*arguments: Any) -> Any:
        masks = to_masks(*arguments).clone()  # (b, H, W)
        masks[:, 0, 0] = ~masks[:, 0, 0]
        return masks

    monkeypatch.setattr(images, "to_masks", with_another_pixel)
    content = json.loads(runs_baseline.read_text())
    for allowed, code, verdict in ((4, 0, "4 may"), (3, 1, "FAILED: 3 may")):
        runs_baseline.write_text(json.dumps({**content, "flipped": allowed}))
        exit_code, text, _ = run_check(
            "--baseline", runs_baseline, "--dataset", small_card, "--tier", "network", "--format", "json"
        )
        first = answers(text)[0]
        assert exit_code == code and (first["was"], first["is"], first["verdict"]) == (0, 4, verdict)


def test_predictions_that_differ_only_in_their_peaks_are_found(
    run_check: RunCommand, runs_baseline: Path, small_card: Path
) -> None:
    stored = baselines.predictions_path(baselines.read(runs_baseline), runs_baseline.with_suffix(""))
    answer = predictions_file.read(stored)
    predictions_file.write(stored, replace(answer, peak_row=(answer.peak_row + 1) % answer.height))
    code, text, _ = run_check(
        "--baseline", runs_baseline, "--dataset", small_card, "--tier", "network", "--format", "json"
    )
    numbers = {row["number"]: row["is"] for row in answers(text)}
    assert code == 1 and numbers["flipped pixels, 4 masks"] == 0 and numbers["other peaks"] == 4


def test_stored_predictions_of_another_size_are_refused(
    run_check: RunCommand, runs_baseline: Path, small_card: Path
) -> None:
    """Masks of two sizes cannot be compared: pycocotools would read beyond the shorter one."""
    stored = baselines.predictions_path(baselines.read(runs_baseline), runs_baseline.with_suffix(""))
    answer = predictions_file.read(stored)
    large = rle.from_counts([9000 * 9000], (9000, 9000))
    sizes = np.full_like(answer.height, 9000)
    predictions_file.write(stored, replace(answer, height=sizes, width=sizes, counts=[large] * len(answer)))
    code, text, _ = run_check("--baseline", runs_baseline, "--dataset", small_card, "--tier", "network")
    assert code == 1 and "Stored in another size: sent_id " in " ".join(text.split()), text


def test_a_method_of_ones_own_is_found_again_where_the_user_names_it(
    run_check: RunCommand,
    five_runs: list[Path],
    tmp_path: Path,
    small_card: Path,
    small_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs of risbench 0.2 hold its path, which is not followed. The check is in a process that has not trained it."""
    shutil.copytree(Path(__file__).parents[2] / "methods" / "lts", tmp_path / "own" / "mine")
    (tmp_path / "own" / "mine" / "lts.py").rename(tmp_path / "own" / "mine" / "mine.py")
    copies = [tmp_path / run.name for run in five_runs]
    for run, copy in zip(five_runs, copies, strict=True):
        shutil.copytree(run, copy)
        text = (copy / "run.toml").read_text()
        (copy / "run.toml").write_text(text.replace('method = "lts"', 'method = "own/mine"'))
        facts = copy / "checkpoints" / "best" / "checkpoint.json"
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "method": "mine", "code": ""}))
    code, _, err = run_check("--update", "--baseline", "gate.json", *copies)
    assert code == 2 and "run.toml names code at a path as its method, 'own/mine'" in err
    monkeypatch.setenv("RISBENCH_METHODS", str(tmp_path / "own"))
    code, _, err = run_check("--update", "--baseline", "gate.json", *copies)
    assert (code, err) == (0, "")
    command = [sys.executable, "-m", "risbench", "check", "--baseline", "gate.json", "--dataset", str(small_card)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RISBENCH_DATA": str(small_root)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0 and "gate, network" in answer.stdout, answer.stdout + answer.stderr
    monkeypatch.delenv("RISBENCH_METHODS")
    code, _, err = run_check("--baseline", "gate.json", "--dataset", small_card)
    assert code == 2 and "Unknown method 'mine'" in err and "RISBENCH_METHODS=PATH" in err


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nothing else"])
@pytest.mark.parametrize("what", ["rows", "predictions"])
def test_damaged_files_of_a_baseline_are_no_regression(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path, what: str, damage: bytes
) -> None:
    (predictions_baseline.with_suffix("") / what / "val-original.parquet").write_bytes(damage)
    code, text, err = run_check("--baseline", predictions_baseline, "--dataset", small_card)
    assert (code, text) == (2, "") and f"{what}/val-original.parquet" in err and err.count("\n") == 1


def test_rows_of_other_expressions_are_no_regression(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path
) -> None:
    file = predictions_baseline.with_suffix("") / "rows" / "val-original.parquet"
    pd.read_parquet(file).iloc[:3].to_parquet(file, index=False)
    code, _, err = run_check("--baseline", predictions_baseline, "--dataset", small_card)
    assert code == 2 and "val-original.parquet has other expressions than the split" in err


def test_a_number_that_changed_over_the_same_rows_has_no_interval_and_no_flips(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path
) -> None:
    content = json.loads(predictions_baseline.read_text())
    content["scores"]["original"]["oIoU"] += 1
    del content["scores"]["original"]["P@0.6"]  # which was no metric then
    predictions_baseline.write_text(json.dumps(content))
    code, text, _ = run_check("--baseline", predictions_baseline, "--dataset", small_card, "--format", "json")
    (line,) = [row for row in answers(text) if row["check"] == "kept, golden, original"]
    assert code == 1 and (line["number"], line["verdict"]) == ("oIoU", "FAILED: changed, of the same rows")
    assert len(json.loads(text)["tables"]) == 1


# bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is no baseline in results/baselines: give --baseline NAME.json, or two runs."),
        (["--baseline", "none.json"], "The baseline none.json cannot be read (No such file or directory)"),
        (["--update", "--baseline", "none.json"], "The baseline none.json cannot be read (No such file or directory)"),
        (["--update", "--baseline", "kept", "oracle.parquet"], "--baseline kept does not name a baseline"),
        (["--update", "--baseline", "new.json", "."], "5 or more runs of one training with different seeds, not of 1"),
        (["--baseline", "kept.json", "--tier", "gold"], "Unknown tier 'gold'. Did you mean 'golden'?"),
        (["--baseline", "kept.json", "--tier", "network"], "has nothing for the tier network"),
        (["--baseline", "kept.json", "--margin", "1"], "A check of baselines takes no --margin"),
        (["oracle.parquet", "oracle.parquet", "--baseline", "kept.json"], "A check of two runs takes no --baseline"),
        (["oracle.parquet"], "A check compares two runs, not 1"),
        (["--update", "--tier", "golden", "--baseline", "kept.json"], "--update takes no --tier"),
    ],
)
def test_bad_input_is_one_sentence(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path, arguments: list[str], words: str
) -> None:
    more = ["--dataset", str(small_card)] if "kept.json" in arguments and "oracle.parquet" not in arguments else []
    code, _, err = run_check(*arguments, *more)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_baseline_that_is_none_and_one_of_other_annotations_are_refused(
    run_check: RunCommand, predictions_baseline: Path, small_card: Path
) -> None:
    content = json.loads(predictions_baseline.read_text())
    predictions_baseline.write_text(json.dumps({**content, "index": "0" * 64}))
    code, _, err = run_check("--baseline", predictions_baseline, "--dataset", small_card)
    assert code == 2 and "was made with other annotations (00000000)" in err
    predictions_baseline.write_text(json.dumps({**content, "scores": 3}))
    code, _, err = run_check("--baseline", predictions_baseline, "--dataset", small_card)
    assert code == 2 and "kept.json is no baseline (scores:" in err
