"""The command line as a user meets it: whole commands, in this process."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from risbench import methods
from risbench.cli import app as cli
from risbench.data.index import Index
from risbench.runs.job import Job, settings_of
from risbench.scoring import predictions, references

Answer = tuple[int, str, str]
Ask = Callable[..., Answer]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ask:
    """Run risbench in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr("sys.argv", ["risbench", *map(str, arguments)])
        try:
            cli.main()
            code: object = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int), code
        return code, out, err

    return run


@pytest.fixture
def where(small_root: Path, small_card: Path) -> list[str]:
    return ["--dataset", str(small_card), "--data-root", str(small_root)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_root: Path, small_card: Path, short: list[str]) -> Path:
    """A checkpoint of one short epoch."""
    from risbench.runs import run as running

    job = Job(method="lts", dataset=str(small_card), overrides=short, data_root=str(small_root))
    return running.start(job, tmp_path_factory.mktemp("runs")).train(resume=False).folder


def test_one_command_trains_predicts_scores_and_records(
    ask: Ask, where: list[str], tmp_path: Path, short: list[str]
) -> None:
    code, out, err = ask("run", "--method", "lts", *where, "--split", "val,testA", "--seed", "0,1", "--json", *short)
    assert code == 0, err
    records = json.loads(out)
    assert [(r["split"], r["seed"]) for r in records] == [("val", 0), ("testA", 0), ("val", 1), ("testA", 1)]
    assert all(r["variants"] == ["tiny"] and r["n"] and r["cost"]["flops"] > 0 and r["leaked"] == 0 for r in records)
    for folder in (tmp_path / "runs").iterdir():
        for kind, suffix in (("predictions", "parquet"), ("rows", "parquet"), ("records", "json")):
            assert (folder / kind / f"val-original.{suffix}").is_file()
        assert (folder / "records" / "val-original-permuted.json").is_file()

    code, out, _ = ask("table", "--format", "csv")
    assert code == 0 and "lts" in out and "small" in out


def test_a_checkpoint_is_evaluated_under_several_protocols(
    ask: Ask, where: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from risbench.engine import predict

    computed: list[str] = []

    def counted(*given: Any) -> predictions.Predictions:
        computed.append(given[4].name)
        return whole(*given)

    whole = predict.predict
    monkeypatch.setattr(predict, "predict", counted)
    options = ["--split", "testB", "--protocol", "original,lts", "--json"]
    code, out, err = ask("run", "--checkpoint", trained, *where, *options)
    assert code == 0, err
    by_run = {r["protocol"]: r for r in json.loads(out)}
    assert set(by_run) == {"original", "lts"}
    [run] = (tmp_path / "runs").iterdir()
    files = [run / "predictions" / f"testB-{name}.parquet" for name in by_run]
    assert files[0].read_bytes() == files[1].read_bytes()  # their input is the same for LTS
    assert computed == ["testB-original.parquet"]
    ask("run", "--checkpoint", trained, *where, *options, "predict.threshold=0.3")
    assert computed[1:] == ["testB-original.parquet", "testB-lts.parquet"]

    file = tmp_path / "testB.parquet"
    code, _, err = ask("predict", "--checkpoint", trained, *where, "--split", "testB", "--output", file)
    assert code == 0, err
    code, out, _ = ask("score", file, *where, "--split", "testB", "--json")
    assert json.loads(out)["oIoU"] == by_run["original"]["metrics"]["oIoU"]


def test_a_run_under_lavt_is_stored_at_480_and_cut_at_20_words(
    ask: Ask, where: list[str], trained: Path, tmp_path: Path
) -> None:
    options = ["--split", "testB", "--protocol", "lavt,lavt-train", "--json"]
    code, out, err = ask("run", "--checkpoint", trained, *where, *options, "predict.images_per_batch=1")
    assert code == 0, err
    assert [(r["protocol"], r["n"], r["resized"]) for r in json.loads(out)] == [
        ("lavt", 3, False),
        ("lavt-train", 2, False),
    ]
    (folder,) = (tmp_path / "runs").iterdir()
    for name, number in (("lavt", 3), ("lavt-train", 2)):
        found = predictions.read(folder / "predictions" / f"testB-{name}.parquet")
        assert found.header and found.header.scored_at == (480, 480) and found.header.input["max_tokens"] == 20
        assert len(found) == number and {*found.height, *found.width} == {480}
    code, out, _ = ask("table")
    assert code == 0 and "lavt-train†" in out


def test_a_run_under_other_released_protocols_is_recorded_and_explained(
    ask: Ask, where: list[str], trained: Path, tmp_path: Path
) -> None:
    options = ["--split", "testA", "--protocol", "original,cris,rela,simrec,zs-lavt", "--json"]
    code, out, err = ask("run", "--checkpoint", trained, *where, *options)
    assert code == 0, err
    by_name = {record["protocol"]: record for record in json.loads(out)}
    assert [record["n"] for record in by_name.values()] == [3, 3, 3, 3, 2]
    (folder,) = (tmp_path / "runs").iterdir()
    files = [folder / "records" / f"testA-{name}.json" for name in ("original", "cris")]
    code, out, err = ask("explain", *files, *where, "--format", "json")
    assert code == 0, err
    (table,) = json.loads(out)["tables"]
    assert [row["step"] for row in table["rows"]] == ["A", "comparison", "metric", "input half", "B minus A"]
    assert table["rows"][3]["value"] == by_name["cris"]["metrics"]["mIoU"]
    assert any("image_size 64 to 416, " in note and "[123, 117, 104]" in note for note in table["notes"])


def test_tables_are_listed_and_printed_by_name(ask: Ask) -> None:
    for given, told in ((["lts-2"], "NAME"), (["--format", "csv"], "--format"), (["--records", "."], "--records")):
        code, out, err = ask("table", *given, "--list")
        assert (code, out) == (2, "")
        assert err == f"error: --list takes no {told}, which would have no effect: leave that out.\n"
    code, out, _ = ask("table", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][::13] == ["comparison", "leaders"]
    code, out, _ = ask("table", "coupalign-supplement-3", "--format", "markdown")
    assert code == 0 and "| 100 | published | 75.49 |" in re.sub(" +", " ", out)


@pytest.mark.parametrize(("words", "expected"), [("text.max_tokens=0", 15), ("text.max_tokens=3", 3)])
def test_a_checkpoint_is_evaluated_with_as_many_words_as_asked(
    trained: Path, small_card: Path, words: str, expected: int
) -> None:

    job = Job(checkpoint=str(trained), dataset=str(small_card), overrides=[words])
    assert settings_of(job)[0].text.max_tokens == expected  # 0: as the card says


@pytest.mark.parametrize("protocol", ["original", "lavt"])
def test_floors_and_ceilings_are_records_too(ask: Ask, where: list[str], protocol: str, tmp_path: Path) -> None:
    options = ["--protocol", protocol, "--split", "val", "--json"]
    code, out, _ = ask("run", "--method", "reference/whole-image,oracle-32", *where, *options)
    assert code == 0
    floor, ceiling = json.loads(out)
    assert floor["metrics"]["oIoU"] < 50 < ceiling["metrics"]["oIoU"]
    assert (floor["protocol"], floor["resized"]) == (protocol, False)
    for kept in (tmp_path / "runs").iterdir():
        assert len(predictions.read(kept / "predictions" / f"val-{protocol}.parquet")) == floor["n"]


def test_masks_of_the_images_size_scored_under_lavt_are_said_to_be_resized(
    ask: Ask, where: list[str], small_index: Index, tmp_path: Path
) -> None:
    predictions.write(tmp_path / "val.parquet", references.predict("oracle-32", small_index, "val"))
    for protocol, resized in (("lavt", True), ("original", None)):
        code, out, _ = ask(
            "score", tmp_path / "val.parquet", *where, "--split", "val", "--protocol", protocol, "--json"
        )
        assert code == 0 and json.loads(out).get("resized") is resized


def test_score_prints_the_documented_object(ask: Ask, where: list[str], small_index: Index, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    found = references.predict("largest-object", small_index, "train")
    lines = [
        {"sent_id": int(s), "segmentation": {"size": [int(h), int(w)], "counts": c.decode()}}
        for s, h, w, c in zip(found.sent_id, found.height, found.width, found.counts, strict=True)
    ]
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    code, out, _ = ask("score", file, *where, "--split", "train", "--protocol", "lts", "--json")
    assert code == 0
    precision = {f"P@0.{tenth}" for tenth in range(5, 10)}
    keys = {"dataset", "split", "protocol", "n", "oIoU", "mIoU", "pointing", "intersection", "union"} | precision
    assert keys <= set(json.loads(out))
    assert json.loads(out)["pointing"] is None
    (part,) = json.loads(out)["slices"]["same-class distractors"].values()
    assert (part["n"], part["oIoU"]) == (10, json.loads(out)["oIoU"])
    assert set(part) == {"n", "oIoU", "mIoU", "intervals"}

    code, out, _ = ask("score", file, *where, "--split", "train", "--protocol", "lts")
    assert code == 0 and "{" not in out
    value, shown = f"{part['oIoU']:.2f}", "[{:.2f}, {:.2f}]".format(*part["intervals"]["oIoU"])
    assert f"oIoU by same-class distractors\n  0               10 expressions  {value} {shown}\n" in out


def test_segment_draws_a_picture(ask: Ask, trained: Path, small_root: Path, tmp_path: Path) -> None:
    image = next((small_root / "images" / "small").glob("*.jpg"))
    output = tmp_path / "out" / "left.png"
    code, out, err = ask("segment", image, "the left one", "--checkpoint", trained, "--output", output)
    assert code == 0, err
    with Image.open(output) as picture:
        assert picture.width >= 1000
    assert re.search(r"\d % of the image", out)


def test_segment_explains_itself_or_says_why_not(ask: Ask, trained: Path, small_root: Path, tmp_path: Path) -> None:
    image = next((small_root / "images" / "small").glob("*.jpg"))
    code, out, err = ask("segment", image, "the left one", "--checkpoint", trained, "--explain")
    assert code == 0 and "% of the image" in out, err
    with Image.open(tmp_path / "segment.png") as picture:
        assert picture.width >= 1500  # a third column: H_mask
    for word, says in (("left", "LTS shows H_mask, a map of the whole sentence"), ("cup", "its words: the left one.")):
        code, out, err = ask(
            "segment", image, "the left one", "--checkpoint", trained, "--explain", "--word", word, "--output", "x.png"
        )
        assert (code, out) == (2, "") and says in err and err.count("\n") == 1
        assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("options", [[], ["--explain"]])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_segment_draws_a_strip_of_pixels(
    ask: Ask, trained: Path, size: tuple[int, int], options: list[str], tmp_path: Path
) -> None:
    Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "strip.png")
    code, _, err = ask("segment", tmp_path / "strip.png", "the left one", "--checkpoint", trained, *options)
    assert code == 0, err
    with Image.open(tmp_path / "segment.png") as picture:
        assert max(picture.size) <= 2500


@pytest.mark.parametrize("output", [".", "val", "val.jsonl", "folder.parquet"])
def test_predict_wants_the_name_of_a_predictions_file_before_any_work(ask: Ask, output: str, tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    code, _, err = ask("predict", "--checkpoint", "nowhere", "--split", "val", "--output", output)
    assert code == 2 and f"--output {output} does not name a predictions file" in err


@pytest.mark.parametrize("output", [".", "picture", "picture.docx"])
def test_segment_wants_the_name_of_a_picture_before_any_work(ask: Ask, output: str) -> None:
    code, _, err = ask("segment", "none.jpg", "a cup", "--checkpoint", "nowhere", "--output", output)
    assert code == 2 and f"--output {output} does not name a picture" in err


def test_data_index_and_doctor_say_what_they_found(ask: Ask, small_root: Path, small_card: Path) -> None:
    code, out, _ = ask("data", "index", small_card, "--data-root", small_root)
    assert code == 0 and "val: 1 images, 2 refs, 4 expressions" in out
    code, out, _ = ask("data", "doctor", small_card, "--data-root", small_root)
    assert code == 0 and "overlapping" in out


BAD: list[tuple[list[str], str]] = [
    (["run", "--method", "ltx"], "Did you mean 'lts'"),
    (["run"], "Which method?"),
    (["run", "--method", "lts", "--dataset", "refcoc"], "Did you mean 'refcoco'"),
    (["run", "--method", "lts", "--dataset", "refcoco", "--data-root", "nowhere"], "nowhere does not exist"),
    (["run", "--method", "lts", "--variant", "tinny"], "Did you mean 'tiny'"),
    (["run", "--method", "lts", "--seed", "one"], "--seed 'one'"),
    (["run", "--method", "lts", "--seed", "0,4294967296"], "from 0 to 4294967295"),
    (["train", "--method", "lts", "--seed", "99999999999"], "from 0 to 4294967295"),
    (["run", "--method", "lts", "train.epoch=2"], "Did you mean 'train.epochs'"),
    (["run", "--method", "lts", "--protocol", "orignal"], "Did you mean 'original'"),
    (["run", "--method", "reference/largest"], "reference"),
    (["run", "--resume", "nowhere"], "nowhere is not a run"),
    (["run", "--checkpoint", "nowhere"], "nowhere is not a checkpoint"),
    (["run", "--method", "lts", "--protocol", ","], "Under which protocol?"),
    (["segment", "none.jpg", " ", "--checkpoint", "nowhere"], "The expression is empty"),
    (["run", "--method", "reference", "--runs", "/proc/nowhere"], "/proc/nowhere"),
    (["table", "--format", "docx"], "format 'docx'"),
    (["table", "lts-22"], "Did you mean 'lts-2'"),
    (["table", "lts-2", "--dataset", "minni"], "Did you mean 'mini'"),
    (["table", "--dataset", "refcoc"], "refcoc"),
    (["table", "--records", "nowhere"], "nowhere"),
    (["score", "nofile.parquet", "--split", "val"], "nofile.parquet cannot be read"),
    (["explain", "nofile.parquet"], "two protocols for a predictions file"),
    (["explain", "nofile.json", "other.json", "--protocol", "lts"], "names 1 protocols for 0 predictions files"),
    (["explain", "nofile.json", "other.json"], "nofile.json cannot be read"),
    (["explain", "nofile.parquet", "--protocol", "original,lavd"], "Did you mean 'lavt'"),
    (["data", "index", "refcoco", "--data-root", "."], "refs(unc).p"),
    (["predict", "--checkpoint", "nowhere", "--split", "val", "--output", "x.parquet"], "nowhere is not a checkpoint"),
    (["segment", "none.jpg", "a cup", "--checkpoint", "nowhere"], "nowhere is not a checkpoint"),
    (["segment", "none.jpg", "a cup", "--checkpoint", ""], "is not a checkpoint"),
    (
        ["segment", "none.jpg", "a cup", "--checkpoint", "nowhere", "--word", "cup"],
        "add --explain, or leave --word out",
    ),
    (["run", "--checkpoint", "."], "is not a checkpoint"),
    (["run", "--checkpoint", ""], "Which method?"),
    (["predict", "--checkpoint", "", "--split", "val", "--output", "x.parquet"], "Which checkpoint?"),
    (["data", "make", "refcoco"], "not generated"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(ask: Ask, arguments: list[str], words: str, tmp_path: Path) -> None:
    code, out, err = ask(*arguments)
    assert code == 2
    assert words in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not out and not (tmp_path / "runs").exists()


def test_a_predictions_file_is_of_one_split(ask: Ask, where: list[str], trained: Path) -> None:
    options = ["--checkpoint", trained, *where, "--split", "val,testA", "--output", "x.parquet"]
    assert "one --split" in ask("predict", *options)[2]


def test_a_split_that_is_not_there_is_refused_before_training(ask: Ask, where: list[str], short: list[str]) -> None:
    code, _, err = ask("run", "--method", "lts", *where, "--split", "test", *short)
    assert code == 2 and "test" in err and "epoch 1" not in err


def test_a_checkpoint_of_another_method_or_with_variants_is_refused(
    ask: Ask, where: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "__path__", [*methods.__path__])  # a method given by path is searched for from then on
    monkeypatch.setenv("RISBENCH_METHODS", "")
    assert "leave --variant out" in ask("run", "--checkpoint", trained, "--variant", "tiny", *where)[2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.toml").write_text("")
    (tmp_path / "other" / "other.py").write_text("")
    assert "not of other. Leave --method out" in ask("run", "--checkpoint", trained, "--method", "other", *where)[2]


@pytest.mark.parametrize("override", ["train.lr=1e-5", "train.epochs=3", "model.loc_weight=1.0", "train.seed=1"])
def test_an_override_that_a_checkpoint_leaves_without_effect_is_refused(
    ask: Ask, where: list[str], trained: Path, override: str, tmp_path: Path
) -> None:
    key = override.partition("=")[0]
    code, _, err = ask("run", "--checkpoint", trained, *where, override)
    assert code == 2 and key in err and err.count("\n") == 1
    assert ("Only image.*" in err) != (key == "train.seed")  # an unknown key is said to be unknown
    assert not (tmp_path / "runs").exists()


def test_what_a_prediction_depends_on_can_be_overridden(ask: Ask, where: list[str], trained: Path) -> None:
    overrides = ["image.size=32", "predict.threshold=0.1", "text.field=raw", "train.workers=0"]
    options = ["--checkpoint", trained, *where, "--split", "val", "--output", "x.parquet"]
    code, _, err = ask("predict", *options, *overrides)
    assert code == 0, err
    header = predictions.read(Path("x.parquet")).header
    assert header is not None and (header.input["image_size"], header.input["threshold"]) == (32, 0.1)
    assert header.index  # parts of another copy of the data are told apart by it


@pytest.mark.parametrize(
    "given",
    [["train.lr=1e-5"], ["--seed", "1"], ["--method", "lts"], ["--runs", "runs"], ["--data-root", "."], ["--partial"]],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["run", "train"])
def test_resuming_takes_no_other_option(ask: Ask, command: str, given: list[str]) -> None:
    code, _, err = ask(command, "--resume", "nowhere", *given)
    shown = given[0] if given[0].startswith("--") else "overrides of the recipe"
    assert code == 2 and f"--resume takes no {shown}" in err


@pytest.mark.parametrize(
    "given",
    [["train.lr=1e-5"], ["--checkpoint", "nowhere"], ["--init", "nowhere"], ["--variant", "tiny"], ["--resume", "x"]],
    ids=" ".join,
)
def test_a_reference_takes_no_option_of_training(ask: Ask, where: list[str], given: list[str]) -> None:
    code, _, err = ask("run", "--method", "reference/whole-image", *where, *given)
    assert code == 2 and "--method reference takes no" in err


def test_a_checkpoint_is_neither_trained_on_nor_seeded(ask: Ask, where: list[str], trained: Path) -> None:
    assert "leave one of them out" in ask("run", "--checkpoint", trained, "--init", trained, *where)[2]
    assert "leave --seed out" in ask("run", "--checkpoint", trained, "--seed", "0,1", *where)[2]


def test_an_incomplete_predictions_file_names_the_missing(
    ask: Ask, where: list[str], small_index: Index, tmp_path: Path
) -> None:
    import numpy as np

    found = references.predict("whole-image", small_index, "val").take(np.array([0, 1], dtype=np.intp))
    predictions.write(tmp_path / "half.parquet", found)
    code, _, err = ask("score", tmp_path / "half.parquet", *where, "--split", "val")
    missing = [str(s) for s in small_index.split("val").sent_id[2:]]
    assert code == 2 and all(sent_id in err for sent_id in missing)


def test_torch_beside_a_foreign_torchvision_is_recognised(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from risbench.cli import doctor

    def broken(name: str) -> object:
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
        return None

    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=broken, metadata=importlib.metadata))
    code, out, _ = ask("doctor")
    assert code == 1
    assert "BROKEN" in out and "--force-reinstall torch torchvision" in out
