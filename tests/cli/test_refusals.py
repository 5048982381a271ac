"""Input that the command line refuses: one sentence on stderr, exit code 2, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

RunCommand = Callable[..., tuple[int, str, str]]


BAD: list[tuple[list[str], str]] = [
    (["run", "--method", "ltx"], "Did you mean 'lts'"),
    (["run"], "Which method?"),
    (["run", "--method", "lts", "--dataset", "refCOCO"], "Did you mean 'refcoco'"),
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
    (["table", "lts-2", "--dataset", "minni"], "Known: grefcoco, mini"),
    (["table", "--dataset", "refcoc"], "refcoc"),
    (["table", "--records", "nowhere"], "nowhere"),
    (["score", "nofile.parquet", "--split", "val"], "nofile.parquet cannot be read"),
    (["explain", "nofile.parquet"], "two protocols for a predictions file"),
    (["explain", "nofile.json", "other.json", "--protocol", "lts"], "--protocol lts has no effect"),
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
def test_bad_input_is_one_sentence_and_exit_code_2(
    run_command: RunCommand, arguments: list[str], words: str, tmp_path: Path
) -> None:
    code, out, err = run_command(*arguments)
    assert code == 2
    assert words in err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not out and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("output", [".", "val", "val.jsonl", "folder.parquet"])
def test_predict_checks_its_output_before_any_work(run_command: RunCommand, output: str, tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    code, _, err = run_command("predict", "--checkpoint", "nowhere", "--split", "val", "--output", output)
    assert code == 2 and f"--output {output} does not name a predictions file" in err


def test_a_predictions_file_holds_one_split(run_command: RunCommand, data_options: list[str], trained: Path) -> None:
    options = ["--checkpoint", trained, *data_options, "--split", "val,testA", "--output", "x.parquet"]
    assert "one --split" in run_command("predict", *options)[2]


def test_an_unknown_split_is_refused_before_training(
    run_command: RunCommand, data_options: list[str], short_training: list[str]
) -> None:
    code, _, err = run_command("run", "--method", "lts", *data_options, "--split", "test", *short_training)
    assert code == 2 and "test" in err and "epoch 1" not in err


def test_a_checkpoint_of_another_method_or_with_variants_is_refused(
    run_command: RunCommand, data_options: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISBENCH_METHODS", "")
    assert "leave --variant out" in run_command("run", "--checkpoint", trained, "--variant", "tiny", *data_options)[2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.toml").write_text("")
    (tmp_path / "other" / "other.py").write_text("")
    assert (
        "is a checkpoint of lts (then: built-in), not of other. Give the method that trained it"
        in run_command("run", "--checkpoint", trained, "--method", "./other", *data_options)[2]
    )


@pytest.mark.parametrize("override", ["train.lr=1e-5", "train.epochs=3", "model.loc_weight=1.0", "train.seed=1"])
def test_an_override_without_effect_on_a_checkpoint_is_refused(
    run_command: RunCommand, data_options: list[str], trained: Path, override: str, tmp_path: Path
) -> None:
    key = override.partition("=")[0]
    code, _, err = run_command("run", "--checkpoint", trained, *data_options, override)
    assert code == 2 and key in err and err.count("\n") == 1
    assert ("Only image.*" in err) != (key == "train.seed")  # an unknown key is said to be unknown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [["train.lr=1e-5"], ["--seed", "1"], ["--protocol", "lts"], ["--runs", "runs"], ["--variant", "x"], ["--partial"]],
    ids=" ".join,
)
@pytest.mark.parametrize("command", ["run", "train"])
def test_resuming_takes_no_other_option(run_command: RunCommand, command: str, arguments: list[str]) -> None:
    code, _, err = run_command(command, "--resume", "nowhere", *arguments)
    label = arguments[0] if arguments[0].startswith("--") else "overrides of the recipe"
    assert code == 2 and f"--resume takes no {label}" in err


@pytest.mark.parametrize(
    "arguments",
    [["train.lr=1e-5"], ["--checkpoint", "nowhere"], ["--init", "nowhere"], ["--variant", "tiny"], ["--resume", "x"]],
    ids=" ".join,
)
def test_a_reference_takes_no_option_of_training(
    run_command: RunCommand, data_options: list[str], arguments: list[str]
) -> None:
    code, _, err = run_command("run", "--method", "reference/whole-image", *data_options, *arguments)
    assert code == 2 and "--method reference takes no" in err


def test_a_checkpoint_takes_no_init_and_no_seeds(
    run_command: RunCommand, data_options: list[str], trained: Path
) -> None:
    assert "leave one of them out" in run_command("run", "--checkpoint", trained, "--init", trained, *data_options)[2]
    for seeds in ("0,1", "1"):
        assert "leave --seed out" in run_command("run", "--checkpoint", trained, "--seed", seeds, *data_options)[2]


def test_training_alone_takes_one_protocol(run_command: RunCommand) -> None:
    code, _, err = run_command("train", "--method", "lts", "--protocol", "original,lts")
    assert code == 2 and "validates under one protocol, not original,lts: give one --protocol" in err
