"""Records: round trip, the names of the design, provenance, and broken files by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from risbench import datasets
from risbench.data import pretrained
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import protocol, record, references, statistics
from risbench.scoring.metrics import NAMES
from risbench.scoring.record import Record
from risbench.scoring.score import score_predictions

ORIGINAL = protocol.load("original")


@pytest.fixture(scope="module")
def floor(small_index: Index) -> Record:
    predictions = references.predict("random-object", small_index, "train", seed=3)
    scored = score_predictions(predictions, small_index, "train", ORIGINAL, boundaries=True)
    assert predictions.header
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "MIN_IMAGES", 2)  # it has three images
        return record.make(scored, small_index, predictions.header, ORIGINAL, seed=3, cost={"parameters": 0})


def test_a_record_names_method_data_and_settings(floor: Record, small_index: Index, small_card: Path) -> None:
    assert (floor.method, floor.dataset, floor.split) == ("reference/random-object", "small", "train")
    assert (floor.protocol, floor.seed, floor.n, floor.partial) == ("original", 3, 10, False)
    assert tuple(floor.metrics) == NAMES
    assert set(floor.intervals) == set(NAMES)
    assert list(floor.slices["kind of expression"]) == ["category", "colour", "location", "relation", "size"]
    assert floor.slices["same-class distractors"]["0"].n == 10
    assert floor.card == datasets.load(str(small_card)).file_sha256
    assert floor.index == small_index.hash
    assert floor.cost == {"parameters": 0}
    assert floor.created.endswith("+00:00")
    assert {"risbench", "python", "numpy", "pycocotools"} <= set(floor.versions)


def test_a_record_comes_back_as_it_was_written(floor: Record, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / "records" / "testA-original.json"
    record.write(path, floor)
    assert record.read(path) == floor
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_kinds_of_a_record_from_before_there_were_slices_are_a_slice(floor: Record, tmp_path: Path) -> None:
    older = floor.model_dump(mode="json", exclude={"slices"})
    kinds = {"colour": {"n": 1, "oIoU": 40.0, "mIoU": None}}
    (tmp_path / "with.json").write_text(json.dumps({**older, "kinds": kinds}))
    (tmp_path / "without.json").write_text(json.dumps({**older, "kinds": {}}))
    with_kinds, without = record.find([tmp_path])
    assert list(with_kinds.slices) == ["kind of expression"]
    assert with_kinds.slices["kind of expression"]["colour"].model_dump() == {**kinds["colour"], "intervals": {}}
    assert without.slices == {}
    record.write(tmp_path / "again.json", with_kinds)
    assert record.read(tmp_path / "again.json") == with_kinds


def test_a_record_of_an_older_version_or_after_a_byte_order_mark_is_read(floor: Record, tmp_path: Path) -> None:
    older = floor.model_dump(mode="json", exclude={"code", "training_code"})
    (tmp_path / "one.json").write_text(json.dumps(older), encoding="utf-8-sig")
    assert record.read(tmp_path / "one.json") == floor
    assert (floor.code, floor.training_code) == ("", "")


def test_a_file_is_sorted_json_with_the_names_of_the_design(floor: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "one.json", floor)
    values = json.loads((tmp_path / "one.json").read_text())
    assert list(values) == sorted(values)
    assert {"method", "variants", "dataset", "split", "protocol", "seed", "n", "metrics", "intervals"} <= set(values)
    low, high = values["intervals"]["oIoU"]
    assert low <= values["metrics"]["oIoU"] <= high


def test_keeping_a_score_writes_its_rows_and_its_record_under_names_that_tell_a_control(
    small_index: Index, tmp_path: Path
) -> None:
    predictions = references.predict("whole-image", small_index, "val")
    kept = record.score_and_write(tmp_path, predictions, small_index, "val", ORIGINAL, seed=0)
    dealt = references.permute_within_images(predictions, small_index.split("val"))
    control = record.score_and_write(
        tmp_path, dealt, small_index, "val", ORIGINAL, seed=0, control=references.PERMUTED_CONTROL
    )
    assert record.find([tmp_path]) == [control, kept]
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == {
        "records/val-original.json",
        "records/val-original-permuted.json",
        "rows/val-original.parquet",
        "rows/val-original-permuted.parquet",
    }
    rows = pd.read_parquet(tmp_path / "rows" / "val-original.parquet")
    assert rows.equals(score_predictions(predictions, small_index, "val", ORIGINAL, boundaries=True).rows)
    assert record.score_and_write(None, predictions, small_index, "val", ORIGINAL, seed=0).metrics == kept.metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrix": {}}, "Unknown key in the record .*broken.json: 'metrix'. Did you mean 'metrics'?"),
        ({"n": "many"}, "broken.json is not a record: n: Input should be a valid integer"),
        ({"format": 2}, "broken.json is not a record: format: Input should be 1"),
        ({"metrics": {"oIoU": "high"}}, "broken.json is not a record: metrics.oIoU: "),
        ({"slices": {"a": {"0": {"n": 1}}}}, "broken.json is not a record: slices.a.0.oIoU: Field required"),
        ({"n": 0}, "broken.json is not a record: n: Input should be greater than or equal to 1"),
        ({"n": -3}, "broken.json is not a record: n: Input should be greater than or equal to 1"),
        ({"n": "12"}, "broken.json is not a record: n: Input should be a valid integer"),
        ({"seed": -1}, "broken.json is not a record: seed: Input should be greater than or equal to 0"),
        ({"metrics": {"oIoU": 100.5}}, "broken.json is not a record: metrics.oIoU: Input should be less than"),
        ({"metrics": {"oIoU": -1}}, "broken.json is not a record: metrics.oIoU: Input should be greater than"),
        ({"metrics": {"oIoU": float("nan")}}, r"broken.json is not a record: Invalid JSON \(NaN is no number of JSON"),
        ({"metrics": {"oIoU": 10**400}}, "broken.json is not a record: metrics.oIoU: "),
        (
            {"intervals": {"oIoU": [60.0, 40.0]}},
            "intervals.oIoU: Value error, the low end 60.0 of an interval lies above",
        ),
        ({"intervals": {"oIoU": [60.0]}}, "intervals.oIoU: List should have at least 2 items"),
        ({"intervals": {"oIoU": [1.0, 1000.0]}}, "intervals.oIoU.1: Input should be less than"),
        ({"leaked": 101}, "broken.json is not a record: leaked: Input should be less than"),
        ({"cost": {"flops": -1}}, "broken.json is not a record: cost.flops"),
        ({"slices": {"a": {"0": {"n": 1, "oIoU": 300.0, "mIoU": 1.0}}}}, "slices.a.0.oIoU: Input should be less than"),
        ({"slices": {"a": {"0": {"n": -1, "oIoU": 3.0, "mIoU": 1.0}}}}, "slices.a.0.n: Input should be greater"),
        ({"kinds": {"size": 3}}, "broken.json is not a record: slices.kind of expression.size: "),
    ],
)
def test_a_wrong_value_names_file_and_key(
    floor: Record, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "broken.json").write_text(json.dumps({**floor.model_dump(mode="json"), **change}))
    with pytest.raises(InputError, match=message):
        record.read(tmp_path / "broken.json")


def test_invalid_json_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="broken.json is not a record: Invalid JSON"):
        record.find([tmp_path])
    for text, reason in (("[" * 100_000, "nested too deeply"), ('{"n": 1, "n": 2}', "the key 'n' stands twice")):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(InputError, match=f"broken.json is not a record: Invalid JSON .*{reason}"):
            record.read(tmp_path / "broken.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="pipe.json is a device or a pipe"):
        record.read(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="none.json cannot be read: No such file"):
        record.read(tmp_path / "none.json")
    with pytest.raises(InputError, match="nowhere is not a folder"):
        record.find([tmp_path / "nowhere"])


def test_records_are_found_below_folders_by_path(floor: Record, tmp_path: Path) -> None:
    for name in ("b", "a"):
        path = tmp_path / "runs" / name / "records" / "one.json"
        record.write(path, floor.model_copy(update={"method": name}))
    (tmp_path / "runs" / "a" / "checkpoints" / "best").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "checkpoints" / "best" / "checkpoint.json").write_text("{}")
    records = record.find([tmp_path / "runs", tmp_path / "runs" / "b"])
    assert [record_.method for record_ in records] == ["a", "b"]


def test_other_json_is_left_out_with_a_warning_and_a_damaged_record_is_refused(
    floor: Record, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record.write(tmp_path / "one.json", floor)
    other_files = {
        "coco.json": [{"image_id": 1, "segmentation": {}}],
        "score.json": {"oIoU": 1.0, "protocol": "original"},
    }
    for name, values in other_files.items():
        (tmp_path / name).write_text(json.dumps(values))
    assert record.find([tmp_path]) == [floor]
    assert [logged.getMessage() for logged in caplog.records] == [
        f"{tmp_path / name} is not a record: left out." for name in other_files
    ]
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    assert record.find([tmp_path]) == [floor]
    (tmp_path / "damaged.json").write_text(json.dumps({"method": "lts", "protocol": "original", "metrics": {}}))
    with pytest.raises(InputError, match="damaged.json is not a record: variants: Field required"):
        record.find([tmp_path])


def test_a_copy_of_a_record_is_found_once(floor: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "one.json", floor)
    shutil.copy(tmp_path / "one.json", tmp_path / "two.json")
    assert record.find([tmp_path]) == [floor]


def test_the_commit_of_a_changed_checkout_is_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_REPOSITORY", tmp_path)
    assert record.environment()["commit"] == ""  # no checkout
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    assert record.environment()["commit"] == ""  # no commit yet
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], cwd=tmp_path, check=True)
    commit = record.environment()["commit"]
    assert len(commit) == 40
    (tmp_path / "untracked").write_text("")
    assert record.environment()["commit"] == commit
    (tmp_path / "file").write_text("two")
    assert record.environment()["commit"] == commit + "+dirty"


def test_the_device_is_the_cpu_unless_the_caller_says_otherwise(floor: Record) -> None:
    assert floor.device == record.environment()["device"] == "cpu"


def test_a_record_with_half_a_pair_of_surrogates_is_refused(floor: Record, tmp_path: Path) -> None:
    values = floor.model_dump(mode="json") | {"device": "\ud800"}
    (tmp_path / "one.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"one.json is not a record: half a pair of surrogates stands in its text\."):
        record.read(tmp_path / "one.json")


def test_committed_records_of_networks_from_scratch_say_so_and_keep_their_numbers() -> None:
    folder = Path(__file__).parents[2] / "results" / "records"
    for path in folder.rglob("*.json"):
        values, read = json.loads(path.read_bytes()), record.read(path)
        assert pretrained.describe(read.pretrained) == "from scratch" and not pretrained.are_loaded(read.pretrained)
        assert (read.training_data, read.leaked) == (values["training_data"], values.get("leaked")), path
        assert Record.model_validate(read.model_dump(mode="json")) == read
