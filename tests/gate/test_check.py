"""The gate on a small data set: what has not changed passes, what has is found, bad input is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from risbench.cli import app as cli
from risbench.data import images, rle
from risbench.data.index import Index
from risbench.gate import baseline as baselines
from risbench.runs import run as running
from risbench.runs.job import Job
from risbench.scoring import predictions, protocol, references, statistics
from risbench.scoring.protocol import ScoreHalf

Ask = Callable[..., tuple[int, str, str]]
SHORT = ["train.batch_size=4", "train.per_image=1", "train.epochs=1", "image.size=64"]
SEEDS = range(5)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_root: Path) -> Ask:
    """Run `risbench check` in an empty folder; give its exit code, its answer and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RISBENCH_DATA", str(small_root))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["risbench", "check", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def file(small_index: Index, tmp_path: Path) -> Path:
    """Predictions of an oracle, which know their data set and split."""
    path = tmp_path / "oracle.parquet"
    predictions.write(path, references.predict("oracle-8", small_index, "val"))
    return path


@pytest.fixture
def kept(ask: Ask, file: Path, small_card: Path) -> Path:
    """A baseline of predictions alone."""
    code, _, err = ask("--update", "--baseline", "kept.json", file, "--dataset", small_card)
    assert (code, err) == (0, "")
    return Path("kept.json")


@pytest.fixture(scope="module")
def runs(small_root: Path, small_card: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One training with five seeds."""
    folder, made = tmp_path_factory.mktemp("runs"), []
    for seed in SEEDS:
        job = Job(method="lts", dataset=str(small_card), data_root=str(small_root), splits=["val"], overrides=SHORT)
        run = running.start(job.model_copy(update={"seed": seed}), folder)
        run.evaluate(run.train(resume=False))
        made.append(run.folder)
    return made


@pytest.fixture
def trained(ask: Ask, runs: list[Path], small_card: Path) -> Path:
    """A baseline of five seeds."""
    code, _, err = ask("--update", "--baseline", "trained.json", *runs, "--dataset", small_card)
    assert (code, err) == (0, "")
    return Path("trained.json")


def answers(text: str) -> list[dict[str, Any]]:
    """The rows of the first table of a report."""
    return list(json.loads(text)["tables"][0]["rows"])


# predictions alone


def test_what_has_not_changed_passes_under_every_protocol_that_can_score_it(
    ask: Ask, kept: Path, small_card: Path
) -> None:
    code, text, err = ask("--baseline", kept, "--dataset", small_card, "--format", "json")
    assert (code, err) == (0, "")
    found = {row["check"]: row["verdict"] for row in answers(text)}
    known = map(protocol.load, protocol.names())
    under = [one.name for one in known if one.input.sentences == "each" and one.score.no_target == "refused"]
    assert {f"kept, golden, {name}" for name in under} <= set(found) and set(found.values()) == {"the same"}


def test_a_baseline_keeps_identities_and_counts_and_one_image_shows_no_change(ask: Ask, kept: Path) -> None:
    rows = pd.read_parquet(kept.with_suffix("") / "rows" / "val-original.parquet")
    assert list(rows) == [*baselines.kept_rows(rows)] and len(rows) == 4
    assert not (kept.with_suffix("") / "checkpoints").exists()
    code, text, err = ask("kept", "kept")
    assert code == 2 and "oIoU has no interval of a difference here: give another --metric, or more images" in err


def shifted(down: int, right: int) -> Callable[..., bytes]:
    """Ground truth that lies some pixels away."""
    truth = ScoreHalf.truth

    def moved(self: ScoreHalf, index: Index, ann_id: int, original: rle.Size) -> bytes:
        size = self.size(original)
        mask = rle.decode(truth(self, index, ann_id, original), size)
        return rle.encode(np.roll(mask, (down, right), axis=(0, 1)))

    return moved


@pytest.mark.parametrize("step", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_ground_truth_off_by_one_pixel_is_found(
    ask: Ask, kept: Path, small_card: Path, step: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoreHalf, "truth", shifted(*step))
    code, text, _ = ask("--baseline", kept, "--dataset", small_card, "--format", "json")
    assert code == 1
    (oiou,) = [row for row in answers(text) if (row["check"], row["number"]) == ("kept, golden, original", "oIoU")]
    assert oiou["verdict"] == "FAILED: changed"
    assert oiou["was"] == baselines.read(kept).scores["original"]["oIoU"] != oiou["is"]
    assert {row["check"] for row in answers(text)} == {f"kept, golden, {name}" for name in baselines.read(kept).scores}
    flips = next(table for table in json.loads(text)["tables"] if table["title"].startswith("kept, golden, original"))
    assert len(flips["rows"]) == 4


def test_a_swapped_split_is_found(ask: Ask, kept: Path, small_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split: Callable[..., Any] = Index.split
    other = {"val": "testA", "testA": "val"}
    monkeypatch.setattr(Index, "split", lambda self, name: split(self, other.get(name, name)))
    code, text, _ = ask("--baseline", kept, "--dataset", small_card)
    assert code == 1 and "kept, golden, original: Not in split 'testA'" in " ".join(text.split())


def test_one_pixel_of_one_mask_is_found(ask: Ask, kept: Path, small_card: Path) -> None:
    stored = baselines.predictions_file(baselines.read(kept), kept.with_suffix(""))
    found = predictions.read(stored)
    size = (int(found.height[2]), int(found.width[2]))
    mask = rle.decode(found.counts[2], size).copy()
    mask[0, 0] = not mask[0, 0]
    found.counts[2] = rle.encode(mask)
    predictions.write(stored, found)
    code, text, _ = ask("--baseline", kept, "--dataset", small_card, "--tier", "golden", "--format", "json")
    changed = {row["number"]: row["is"] - row["was"] for row in answers(text) if "original" in row["check"]}
    assert code == 1 and abs(changed.pop("union")) == 1 and "oIoU" in changed


def test_rows_that_changed_behind_equal_sums_are_found(ask: Ask, kept: Path, small_card: Path) -> None:
    file = kept.with_suffix("") / "rows" / "val-original.parquet"
    rows = pd.read_parquet(file)
    rows.loc[[0, 3], "sent_id"] = rows.loc[[3, 0], "sent_id"].to_numpy()
    rows.to_parquet(file, index=False)
    code, text, _ = ask("--baseline", kept, "--dataset", small_card, "--format", "json")
    (first,) = [row for row in answers(text) if row["check"] == "kept, golden, original"]
    assert code == 1 and first["verdict"] == "FAILED: changed, though not in their sums"


def test_an_update_shows_what_it_changes(
    ask: Ask, kept: Path, small_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("--update", "--baseline", kept, "--dataset", small_card, "--format", "json")
    before = kept.read_text()
    assert json.loads(ask(*again)[1])["tables"][0]["rows"] == []
    assert {**json.loads(kept.read_text()), "created": ""} == {**json.loads(before), "created": ""}
    monkeypatch.setattr(ScoreHalf, "truth", shifted(1, 0))
    rows = json.loads(ask(*again)[1])["tables"][0]["rows"]
    was = json.loads(before)["scores"]["original"]["oIoU"]
    (oiou,) = [row for row in rows if row["number"] == "oIoU, original"]
    assert oiou["was"] == was and oiou["is"] == baselines.read(kept).scores["original"]["oIoU"] != was
    assert ask("--baseline", kept, "--dataset", small_card)[0] == 0


# weights and trainings


def test_weights_and_training_come_to_the_same(ask: Ask, trained: Path, small_card: Path) -> None:
    code, text, err = ask("--baseline", trained, "--dataset", small_card, "--format", "json")
    assert code == 0, text + err
    verdicts = {row["check"]: row["verdict"] for row in answers(text)}
    assert verdicts["trained, network"] == "the same" and verdicts["trained, training"] == "the same as recorded"
    base = baselines.read(trained)
    assert base.training and [one.seed for one in base.training.seeds] == list(SEEDS) and base.flipped is not None
    assert sorted(path.name for path in (trained.with_suffix("") / "checkpoints" / "best").iterdir()) == [
        *("checkpoint.json", "recipe.toml", "text", "weights.safetensors")
    ]


def test_an_update_trains_every_seed_again(ask: Ask, trained: Path, small_card: Path) -> None:
    before = trained.read_text()
    code, text, err = ask("--update", "--baseline", trained, "--dataset", small_card, "--format", "json")
    assert code == 0 and json.loads(text)["tables"][0]["rows"] == [], text + err
    ours, theirs = json.loads(before)["training"], json.loads(trained.read_text())["training"]
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize(
    ("recorded", "code", "verdict"),
    [
        (90.0, 1, "FAILED: regression: below what chance explains"),
        (-50.0, 0, "above what chance explains: --update"),
    ],
)
def test_a_training_is_held_against_its_seeds(
    ask: Ask, trained: Path, small_card: Path, recorded: float, code: int, verdict: str
) -> None:
    content = json.loads(trained.read_text())
    for number, seed in enumerate(content["training"]["seeds"]):
        seed["metrics"] |= {"oIoU": recorded + number, "mIoU": recorded + number}
    trained.write_text(json.dumps(content))
    found, text, _ = ask("--baseline", trained, "--dataset", small_card, "--tier", "training", "--format", "json")
    assert found == code and [row["verdict"] for row in answers(text)] == [verdict] * 2
    low, high = statistics.prediction_interval([recorded + number for number in SEEDS])
    assert all((row["interval low"], row["interval high"]) == (low, high) for row in answers(text))


def test_masks_that_differ_fail_beyond_the_pixels_that_may(
    ask: Ask, trained: Path, small_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = images.cut

    def with_another_pixel(*given: Any) -> Any:
        masks = cut(*given).clone()  # (b, H, W)
        masks[:, 0, 0] = ~masks[:, 0, 0]
        return masks

    monkeypatch.setattr(images, "cut", with_another_pixel)
    content = json.loads(trained.read_text())
    for allowed, code, verdict in ((4, 0, "4 may"), (3, 1, "FAILED: 3 may")):
        trained.write_text(json.dumps({**content, "flipped": allowed}))
        found, text, _ = ask("--baseline", trained, "--dataset", small_card, "--tier", "network", "--format", "json")
        first = answers(text)[0]
        assert found == code and (first["was"], first["is"], first["verdict"]) == (0, 4, verdict)


def test_answers_that_differ_only_in_what_else_they_say_are_found(ask: Ask, trained: Path, small_card: Path) -> None:
    stored = baselines.predictions_file(baselines.read(trained), trained.with_suffix(""))
    found = predictions.read(stored)
    predictions.write(stored, replace(found, peak_row=(found.peak_row + 1) % found.height))
    code, text, _ = ask("--baseline", trained, "--dataset", small_card, "--tier", "network", "--format", "json")
    numbers = {row["number"]: row["is"] for row in answers(text)}
    assert code == 1 and numbers["flipped pixels, 4 masks"] == 0 and numbers["other peaks"] == 4


def test_a_method_given_by_its_path_is_found_again(
    ask: Ask, runs: list[Path], tmp_path: Path, small_card: Path, small_root: Path
) -> None:
    """In a process of its own, which has not trained it."""
    shutil.copytree(Path(__file__).parents[2] / "methods" / "lts", tmp_path / "own" / "mine")
    (tmp_path / "own" / "mine" / "lts.py").rename(tmp_path / "own" / "mine" / "mine.py")
    made = [tmp_path / run.name for run in runs]
    for run, copy in zip(runs, made, strict=True):
        shutil.copytree(run, copy)
        job = tomllib.loads((copy / "run.toml").read_text())
        Job(**{**job, "method": "own/mine"}).write(copy)
        facts = copy / "checkpoints" / "best" / "checkpoint.json"
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "method": "mine"}))
    code, _, err = ask("--update", "--baseline", "gate.json", *made)
    assert (code, err) == (0, "")
    command = [sys.executable, "-m", "risbench", "check", "--baseline", "gate.json", "--dataset", str(small_card)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RISBENCH_DATA": str(small_root)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0 and "gate, network" in answer.stdout, answer.stdout + answer.stderr


def test_an_update_leaves_the_old_baseline_whatever_fails(
    ask: Ask, kept: Path, file: Path, small_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}

    def failing(source: Path, target: Path) -> None:
        if Path(target) == kept:
            raise OSError(28, "No space left on device")
        replaced(source, target)

    before, replaced = whole(), os.replace
    monkeypatch.setattr(os, "replace", failing)
    assert ask("--update", "--baseline", kept, file, "--dataset", small_card)[0] == 2
    assert whole() == before


def test_an_update_replaces_nothing_but_a_baseline(ask: Ask, file: Path, small_card: Path) -> None:
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years")
    for _ in range(2):
        code, _, err = ask("--update", "--baseline", "precious.json", file, "--dataset", small_card)
        assert code == 2 and "precious, where the files of precious.json go, is something else" in err
        assert Path("precious/thesis.txt").read_text() == "years"
        Path("precious.json").write_text("{}")


@pytest.mark.parametrize("damage", [b"", b"PAR1 and nothing else"])
@pytest.mark.parametrize("what", ["rows", "predictions"])
def test_damaged_files_of_a_baseline_are_no_regression(
    ask: Ask, kept: Path, small_card: Path, what: str, damage: bytes
) -> None:
    (kept.with_suffix("") / what / "val-original.parquet").write_bytes(damage)
    code, text, err = ask("--baseline", kept, "--dataset", small_card)
    assert (code, text) == (2, "") and f"{what}/val-original.parquet" in err and err.count("\n") == 1


def test_rows_of_other_expressions_are_no_regression(ask: Ask, kept: Path, small_card: Path) -> None:
    file = kept.with_suffix("") / "rows" / "val-original.parquet"
    pd.read_parquet(file).iloc[:3].to_parquet(file, index=False)
    code, _, err = ask("--baseline", kept, "--dataset", small_card)
    assert code == 2 and "val-original.parquet holds other expressions than the split" in err


def test_a_number_that_changed_over_the_same_rows_has_no_interval_and_no_flips(
    ask: Ask, kept: Path, small_card: Path
) -> None:
    content = json.loads(kept.read_text())
    content["scores"]["original"]["oIoU"] += 1
    del content["scores"]["original"]["P@0.6"]  # which was no metric then
    kept.write_text(json.dumps(content))
    code, text, _ = ask("--baseline", kept, "--dataset", small_card, "--format", "json")
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
def test_bad_input_is_one_sentence(ask: Ask, kept: Path, small_card: Path, arguments: list[str], words: str) -> None:
    more = ["--dataset", str(small_card)] if "kept.json" in arguments and "oracle.parquet" not in arguments else []
    code, _, err = ask(*arguments, *more)
    assert code == 2 and words in err and err.count("\n") == 1


def test_a_baseline_that_is_none_and_one_of_other_annotations_are_refused(
    ask: Ask, kept: Path, small_card: Path
) -> None:
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "index": "0" * 64}))
    code, _, err = ask("--baseline", kept, "--dataset", small_card)
    assert code == 2 and "was made with other annotations (00000000)" in err
    kept.write_text(json.dumps({**content, "scores": 3}))
    code, _, err = ask("--baseline", kept, "--dataset", small_card)
    assert code == 2 and "kept.json is no baseline (scores:" in err


def test_runs_that_are_not_one_training_are_refused(ask: Ask, runs: list[Path], tmp_path: Path) -> None:
    new = ("--update", "--baseline", "new.json")
    code, _, err = ask(*new, *runs[:4], runs[0])
    assert code == 2 and "have the seeds 0, 1, 2, 3, 0: give each seed once" in err
    other = tmp_path / "other"
    shutil.copytree(runs[4], other)
    job = tomllib.loads((other / "run.toml").read_text())
    Job(**{**job, "overrides": ["train.epochs=2"]}).write(other)
    code, _, err = ask(*new, *runs[:4], other)
    assert code == 2 and "The runs differ in overrides" in err
    assert not Path("new.json").exists() and not Path("new").exists()
