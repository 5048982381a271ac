"""A released file becomes a checkpoint that holds the same weights."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from risbench.cli import app
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.convert import convert_checkpoint

File = dict[str, Any]
Save = Callable[[File], Path]


def test_every_weight_is_converted_and_the_rest_is_listed(
    content: File, save: Save, vocabulary: Path, tmp_path: Path
) -> None:
    lines = convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary)
    opened = Checkpoint(tmp_path / "out")
    model, tokenizer = opened.model()
    released = [
        value for key in ("model", "bert_model") for value in content[key].values() if value.is_floating_point()
    ]
    ours = [value for value in model.state_dict().values() if value.is_floating_point()]
    assert sorted(float(value.double().sum()) for value in ours) == sorted(float(v.double().sum()) for v in released)
    assert int(model.state_dict()["network.decoder.levels.2.0.norm.num_batches_tracked"]) == 53_000
    assert lines[0].startswith(f"{tmp_path / 'out'}: lavt, ")
    assert lines[1:] == ["Left out because it is not needed: 4 relative_position_index, 1 optimizer, 1 lr_scheduler"]
    assert tokenizer(["the left box"]).ids.tolist() == [[2, 8, 4, 7, 3] + [0] * 15]


def test_the_checkpoint_records_the_origin_of_the_weights(
    content: File, save: Save, vocabulary: Path, tmp_path: Path
) -> None:
    convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary)
    opened = Checkpoint(tmp_path / "out")
    facts, model = opened.facts, opened.recipe.model
    assert (facts.method, facts.variants, facts.epoch, facts.seed, facts.training_seconds) == (
        "lavt",
        [],
        37,
        None,
        None,
    )
    assert facts.training_data == ["refcocog", "ImageNet-22k", "BookCorpus", "English Wikipedia"]
    file = hashlib.sha256((tmp_path / "lavt.pth").read_bytes()).hexdigest()
    assert [(one.source, one.sha256, one.hashed) for one in facts.pretrained] == [("lavt.pth", file, "file")]
    assert list(facts.pretrained[0].training_data or ()) == facts.training_data
    assert (model["width"], model["depths"], model["heads"], model["window"]) == (8, [1, 1, 1, 1], [1, 2, 2, 4], 3)
    assert (model["patch"], model["decoder_channels"]) == (4, 6)
    assert (model["text_width"], model["text_layers"], model["text_heads"]) == (64, 1, 1)
    assert (model["pretrained"], model["text_dropout"], model["loss"]) == (True, 0.0, "cross-entropy")


def test_parameters_that_the_authors_never_update_stay_frozen(
    content: File, save: Save, vocabulary: Path, tmp_path: Path
) -> None:
    convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary)
    model, _ = Checkpoint(tmp_path / "out").model()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("network.text.emb", "network.gates.3."))}


def test_both_forms_hold_the_same_weights(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    convert_checkpoint("lavt", save(content), tmp_path / "two", vocabulary)
    inside = {f"text_encoder.{name}": tensor for name, tensor in content.pop("bert_model").items()}
    inside["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    content["model"] |= inside
    lines = convert_checkpoint("lavt", save(content), tmp_path / "one", vocabulary)
    two, one = Checkpoint(tmp_path / "two"), Checkpoint(tmp_path / "one")
    assert one.facts.sha256 == two.facts.sha256
    assert one.facts.variants == ["one"]
    assert (one.recipe.model["text_dropout"], one.recipe.model["loss"]) == (0.1, "dice")
    assert "1 position_ids" in lines[1]


def wrapped(weights: File, prefix: str) -> File:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "network.module."])
def test_what_wrappers_add_to_the_names_is_left_out_and_said(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, prefix: str
) -> None:
    plain = convert_checkpoint("lavt", save(content), tmp_path / "plain", vocabulary)
    parts = {part: wrapped(content[part], prefix) for part in ("model", "bert_model")}
    lines = convert_checkpoint("lavt", save({**content, **parts}), tmp_path / "out", vocabulary)
    assert Checkpoint(tmp_path / "out").facts.sha256 == Checkpoint(tmp_path / "plain").facts.sha256
    assert [line.rpartition(":")[0] for line in lines if line not in plain][1:] == [
        f"{tmp_path / 'lavt.pth'}, {part}: left out of the names of the weights" for part in ("model", "bert_model")
    ]


@pytest.mark.parametrize("container", ["state_dict", ""])
def test_a_network_in_a_lightning_file_or_alone_is_read(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, container: str
) -> None:
    """With the text encoder inside, as `lavt_one` has it."""
    whole = content["model"] | wrapped(content["bert_model"], "text_encoder.")
    convert_checkpoint("lavt", save({"model": whole}), tmp_path / "plain", vocabulary)
    network = wrapped(whole, "model.")
    file = save({"state_dict": network, "global_step": 3} if container else network)
    lines = convert_checkpoint("lavt", file, tmp_path / "out", vocabulary)
    assert Checkpoint(tmp_path / "out").facts.sha256 == Checkpoint(tmp_path / "plain").facts.sha256
    assert lines[1] == f"{file}{', state_dict' if container else ''}: left out of the names of the weights: model."
    assert ("Unexpected, and not used: global_step" in lines) == bool(container)


def test_arrays_of_numpy_are_weights(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    convert_checkpoint("lavt", save(content), tmp_path / "plain", vocabulary)
    content["model"] = {name: tensor.numpy() for name, tensor in content["model"].items()}
    convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary)
    assert Checkpoint(tmp_path / "out").facts.sha256 == Checkpoint(tmp_path / "plain").facts.sha256


@pytest.mark.parametrize(
    ("arguments", "option", "expected"),
    [
        (Namespace(dataset="refcoco+", splitBy="unc"), "", "refcoco+"),
        (Namespace(dataset="refcocog", splitBy="google"), "", "refcocog-google"),
        (Namespace(dataset="refcoco", splitBy="unc"), "refcoco", "refcoco"),
        (Namespace(dataset="refcoco", splitBy="google"), "", "unknown"),
        (Namespace(dataset=["refcoco"]), "", "unknown"),
        (Namespace(), "refcoco", "refcoco"),
        ({"dataset": "refcoco"}, "", "unknown"),
        (None, "refcocog", "refcocog"),
    ],
)
def test_the_training_data_come_from_the_file_or_from_the_option(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, arguments: object, option: str, expected: str
) -> None:
    content["args"] = arguments
    lines = convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary, option)
    assert Checkpoint(tmp_path / "out").facts.training_data[0] == expected
    assert any("give --dataset NAME" in line for line in lines) == (expected == "unknown")


def test_the_bare_weights_are_enough(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    parts = ("model", "bert_model")
    bare: File = {part: {k: v for k, v in content[part].items() if v.is_floating_point()} for part in parts}
    bare["model"]["backbone.norm0.bias"] = bare["model"]["backbone.norm0.weight"]  # in the same memory
    convert_checkpoint("lavt", save(bare), tmp_path / "out", vocabulary)
    assert Checkpoint(tmp_path / "out").facts.epoch is None
    assert Checkpoint(tmp_path / "out").model()


def test_unknown_entries_are_listed_and_not_used(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    plain = convert_checkpoint("lavt", save(content), tmp_path / "plain", vocabulary)
    content["model"] |= {
        "backbone.layers.0.blocks.0.attn.more": torch.ones(2),
        "fusions.0.visual.weight": torch.ones(8, 8),  # the name that ours has
    }
    content["bert_model"]["pooler.dense.bias"] = torch.ones(2)
    content["scaler"] = {}
    lines = convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary)
    assert [line for line in lines if line not in plain][1:] == [
        f"Unexpected, and not used: {name}"
        for name in (
            "scaler",
            "backbone.layers.0.blocks.0.attn.more",
            "bert_model.pooler.dense.bias",
            "fusions.0.visual.weight",
        )
    ]
    assert Checkpoint(tmp_path / "out").facts.sha256 == Checkpoint(tmp_path / "plain").facts.sha256


def test_a_converted_checkpoint_is_evaluated_by_the_command_line(
    content: File,
    save: Save,
    vocabulary: Path,
    tmp_path: Path,
    small_root: Path,
    small_card: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def risbench(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["risbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert not ended.value.code
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    lines = risbench("convert", "lavt", save(content), "out", "--vocabulary", vocabulary)
    assert lines.startswith("out: lavt, ")
    options = ["--dataset", small_card, "--data-root", small_root, "--split", "val,testA", "--json", "image.size=64"]
    options += ["train.workers=0"]
    records = json.loads(risbench("run", "--checkpoint", "out", *options))
    assert [(r["method"], r["split"], r["n"], r["seed"]) for r in records] == [
        ("lavt", "val", 4, None),
        ("lavt", "testA", 3, None),
    ]
    assert records[0]["training_data"][0] == "refcocog" and records[0]["pretrained"][0]["source"] == "lavt.pth"
