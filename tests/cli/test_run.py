"""`risbench run` and `predict`: training, checkpoints, protocols and references."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from risbench import recipe
from risbench.engine import predict
from risbench.errors import InputError
from risbench.runs.job import Job, resolve_settings
from risbench.scoring import predictions_file
from risbench.scoring.predictions import Predictions

RunCommand = Callable[..., tuple[int, str, str]]


def test_one_command_trains_predicts_scores_and_records(
    run_command: RunCommand, data_options: list[str], tmp_path: Path, short_training: list[str]
) -> None:
    code, out, err = run_command(
        "run", "--method", "lts", *data_options, "--split", "val,testA", "--seed", "0,1", "--json", *short_training
    )
    assert code == 0, err
    records = json.loads(out)
    assert [(r["split"], r["seed"]) for r in records] == [("val", 0), ("testA", 0), ("val", 1), ("testA", 1)]
    assert all(r["variants"] == ["tiny"] and r["n"] and r["cost"]["flops"] > 0 and r["leaked"] == 0 for r in records)
    for folder in (tmp_path / "runs").iterdir():
        for kind, suffix in (("predictions", "parquet"), ("rows", "parquet"), ("records", "json")):
            assert (folder / kind / f"val-original.{suffix}").is_file()
        assert (folder / "records" / "val-original-permuted.json").is_file()

    code, out, _ = run_command("table", "--format", "csv")
    assert code == 0 and "lts" in out and "small" in out


def test_a_checkpoint_is_evaluated_under_several_protocols(
    run_command: RunCommand, data_options: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_computed: list[str] = []

    def logging_predict_split(*arguments: Any, **keywords: Any) -> Predictions:
        files_computed.append(arguments[4].name)
        return predict_split(*arguments, **keywords)

    predict_split = predict.predict_split
    monkeypatch.setattr(predict, "predict_split", logging_predict_split)
    options = ["--split", "testB", "--protocol", "original,lts", "--json"]
    code, out, err = run_command("run", "--checkpoint", trained, *data_options, *options)
    assert code == 0, err
    by_protocol = {r["protocol"]: r for r in json.loads(out)}
    assert set(by_protocol) == {"original", "lts"}
    [run] = (tmp_path / "runs").iterdir()
    files = [run / "predictions" / f"testB-{name}.parquet" for name in by_protocol]
    assert files[0].read_bytes() == files[1].read_bytes()  # their input is the same for LTS
    assert files_computed == ["testB-original.parquet"]
    run_command("run", "--checkpoint", trained, *data_options, *options, "predict.threshold=0.3")
    assert files_computed[1:] == ["testB-original.parquet", "testB-lts.parquet"]

    file = tmp_path / "testB.parquet"
    code, _, err = run_command("predict", "--checkpoint", trained, *data_options, "--split", "testB", "--output", file)
    assert code == 0, err
    code, out, _ = run_command("score", file, *data_options, "--split", "testB", "--json")
    assert json.loads(out)["oIoU"] == by_protocol["original"]["metrics"]["oIoU"]


def test_a_run_under_lavt_is_stored_at_480_and_cut_at_20_words(
    run_command: RunCommand, data_options: list[str], trained: Path, tmp_path: Path
) -> None:
    options = ["--split", "testB", "--protocol", "lavt,lavt-train", "--json"]
    code, out, err = run_command("run", "--checkpoint", trained, *data_options, *options, "predict.images_per_batch=1")
    assert code == 0, err
    assert [(r["protocol"], r["n"], r["resized"]) for r in json.loads(out)] == [
        ("lavt", 3, False),
        ("lavt-train", 2, False),
    ]
    (folder,) = (tmp_path / "runs").iterdir()
    for name, number in (("lavt", 3), ("lavt-train", 2)):
        predictions = predictions_file.read(folder / "predictions" / f"testB-{name}.parquet")
        header = predictions.header
        assert header and header.scored_at == (480, 480) and header.input["max_tokens"] == 20
        assert len(predictions) == number and {*predictions.height, *predictions.width} == {480}
    code, out, _ = run_command("table")
    assert code == 0 and "lavt-train†" in out


def test_a_run_under_other_released_protocols_is_recorded_and_explained(
    run_command: RunCommand, data_options: list[str], trained: Path, tmp_path: Path
) -> None:
    options = ["--split", "testA", "--protocol", "original,cris,rela,simrec,zs-lavt", "--json"]
    code, out, err = run_command("run", "--checkpoint", trained, *data_options, *options)
    assert code == 0, err
    by_name = {record["protocol"]: record for record in json.loads(out)}
    assert [record["n"] for record in by_name.values()] == [3, 3, 3, 3, 2]
    (folder,) = (tmp_path / "runs").iterdir()
    files = [folder / "records" / f"testA-{name}.json" for name in ("original", "cris")]
    code, out, err = run_command("explain", *files, *data_options, "--format", "json")
    assert code == 0, err
    (table,) = json.loads(out)["tables"]
    assert [row["step"] for row in table["rows"]] == ["A", "comparison", "metric", "input half", "B minus A"]
    assert table["rows"][3]["value"] == by_name["cris"]["metrics"]["mIoU"]
    assert any("image_size 64 to 416, " in note and "[123, 117, 104]" in note for note in table["notes"])


@pytest.mark.parametrize(("words", "expected"), [("text.max_tokens=0", 15), ("text.max_tokens=3", 3)])
def test_overrides_of_a_checkpoint_set_the_number_of_words(
    trained: Path, small_card: Path, words: str, expected: int
) -> None:

    job = Job(checkpoint=str(trained), dataset=str(small_card), overrides=[words])
    assert resolve_settings(job)[0].text.max_tokens == expected  # 0: the max_words of the card


@pytest.mark.parametrize(
    "override", ["train.accumulate=2", "train.micro_batch=2", "train.lr=1", "model.stem_channels=8"]
)
def test_overrides_that_a_checkpoint_cannot_follow_are_refused(trained: Path, small_card: Path, override: str) -> None:
    job = Job(checkpoint=str(trained), dataset=str(small_card), overrides=[override])
    with pytest.raises(InputError, match=f"{override.partition('=')[0]} has no effect on a trained checkpoint"):
        resolve_settings(job)


def test_a_run_begun_with_a_former_key_is_resumed_with_its_stored_recipe(
    tmp_path: Path, small_card: Path, small_root: Path
) -> None:
    """Its run.toml keeps the override, which nobody can take back."""
    job = Job(method="lts", dataset=str(small_card), data_root=str(small_root), overrides=["train.batch_size=8"])
    stored, variants = resolve_settings(job)
    text = recipe.dumps(stored).replace("micro_batch = 32", "accumulate = 2")
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    former = job.model_copy(update={"overrides": [*job.overrides, "train.accumulate=2"]})
    with pytest.raises(InputError, match="set train.micro_batch"):
        resolve_settings(former)
    settings, names = resolve_settings(former, tmp_path)
    assert (settings.train.batch_size, settings.train.micro_batch, names) == (8, 4, variants)


@pytest.mark.parametrize("protocol", ["original", "lavt"])
def test_references_make_records(
    run_command: RunCommand, data_options: list[str], protocol: str, tmp_path: Path
) -> None:
    options = ["--protocol", protocol, "--split", "val", "--json"]
    code, out, _ = run_command("run", "--method", "reference/whole-image,oracle-32", *data_options, *options)
    assert code == 0
    floor, ceiling = json.loads(out)
    assert floor["metrics"]["oIoU"] < 50 < ceiling["metrics"]["oIoU"]
    assert (floor["protocol"], floor["resized"]) == (protocol, False)
    for kept in (tmp_path / "runs").iterdir():
        assert len(predictions_file.read(kept / "predictions" / f"val-{protocol}.parquet")) == floor["n"]


def test_settings_of_a_prediction_can_be_overridden(
    run_command: RunCommand, data_options: list[str], trained: Path
) -> None:
    overrides = ["image.size=32", "predict.threshold=0.1", "text.field=raw", "train.workers=0"]
    options = ["--checkpoint", trained, *data_options, "--split", "val", "--output", "x.parquet"]
    code, _, err = run_command("predict", *options, *overrides)
    assert code == 0, err
    header = predictions_file.read(Path("x.parquet")).header
    assert header is not None and (header.input["image_size"], header.input["threshold"]) == (32, 0.1)
    assert header.index  # distinguishes parts of another copy of the data
