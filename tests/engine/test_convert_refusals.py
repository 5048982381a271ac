"""Files that cannot be converted are refused in one sentence, and nothing is written."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from risbench.engine.checkpoint import Checkpoint
from risbench.engine.convert import convert_checkpoint
from risbench.errors import InputError

File = dict[str, Any]
Save = Callable[[File], Path]


def assert_refused(file: Path, vocabulary: Path, target: Path, match: str, dataset: str = "") -> None:
    """Check that the file is refused in one sentence, and that nothing is written."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(InputError, match=match) as caught:
        convert_checkpoint("lavt", file, target, vocabulary, dataset)
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


def test_other_training_data_than_the_file_names_are_refused(
    content: File, save: Save, vocabulary: Path, tmp_path: Path
) -> None:
    match = "lavt.pth: it says that it was trained on refcocog, not on refcoco"
    assert_refused(save(content), vocabulary, tmp_path / "out", match, "refcoco")
    assert_refused(save(content), vocabulary, tmp_path / "out", "Unknown data set 'coco'", "coco")


def without(part: str, *names: str) -> Callable[[File], object]:
    return lambda content: [content[part].pop(name) for name in names]


def replaced(part: str, name: str, value: object) -> Callable[[File], object]:
    return lambda content: content[part].update({name: value})


QUERY = "encoder.layer.0.attention.self.query.weight"
BLOCK = "backbone.layers.0.blocks.0"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            without("model", "backbone.norm2.bias", "backbone.layers.1.res_gate.2.weight"),
            "2 of 1.. weights are missing: backbone.layers.1.res_gate.2.weight, backbone.norm2.bias. Give a whole file",
        ),
        (
            lambda content: content["bert_model"].update({f"bert.{QUERY}": content["bert_model"].pop(QUERY)}),
            f"1 of 1.. weights are missing: bert_model.{QUERY}. Give",
        ),
        (
            lambda content: [content["model"].pop(key) for key in list(content["model"]) if ".fusion." in key],
            "48 of 1.. weights are missing: ([^,]*, ){2}[^,]* and 45 more. Give a whole file",
        ),
        (without("bert_model", QUERY), f"1 of 1.. weights are missing: bert_model.{QUERY}. Give"),
        (
            without("model", "backbone.patch_embed.proj.weight"),
            "the weight backbone.patch_embed.proj.weight is missing",
        ),
        (
            without("bert_model", "embeddings.word_embeddings.weight"),
            "the weight bert_model.embeddings.word_emb.* is mis",
        ),
        (lambda content: content.pop("bert_model"), "the weight text_encoder.embeddings.word_embeddings.weight is mis"),
        (
            replaced("bert_model", QUERY, torch.zeros(64, 60)),
            f"bert_model.{QUERY} is 64 x 60 float32, where a network of the file's sizes has 64 x 64 float32",
        ),
        (
            replaced("model", "classifier.conv1_1.bias", torch.zeros(2, dtype=torch.int64)),
            "classifier.conv1_1.bias is 2 int64, where .* has 2 float32",
        ),
        (replaced("model", "backbone.layers.1.fusion.vis_project.0.weight", torch.zeros(16, 16, 3)), "is 16 x 16 x 3 "),
        (replaced("model", "backbone.patch_embed.proj.weight", torch.zeros(8, 3)), "has the shape .8, 3., not 4 dim"),
        (replaced("model", f"{BLOCK}.attn.relative_position_bias_table", torch.zeros(26, 1)), "is 26 x 1 .* 25 x 1 "),
        (replaced("model", f"{BLOCK}.attn.relative_position_bias_table", torch.zeros(25, 3)), "3 heads cannot share 8"),
        (
            replaced("bert_model", "embeddings.word_embeddings.weight", torch.zeros(18, 70)),
            "70 wide, no multiple of 64",
        ),
        (replaced("model", "classifier.conv1_4.weight", torch.zeros(()).expand(2**40, 3, 3, 3)), "no network has"),
        (replaced("model", "backbone.norm0.bias", "text"), "backbone.norm0.bias is no dense tensor"),
        (replaced("model", "backbone.norm0.bias", torch.zeros(8, device="meta")), "norm0.bias is no dense tensor"),
        pytest.param(
            replaced("model", "backbone.norm0.bias", torch.zeros(8).to_sparse()),
            "backbone.norm0.bias is no dense tensor",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse"),
        ),
        (
            lambda content: content.update(args=PurePosixPath("a")),
            "is refused: .*PurePosixPath.* nothing in it was run",
        ),
        (lambda content: content.update(args=Namespace(mha="4-4-4-4")), "trained with --mha 4-4-4-4"),
        (lambda content: content.update(bert_model=[1]), "its bert_model is a list"),
        (lambda content: content.update(model=3), "it holds model, bert_model, optimizer, epoch, args and 1 more"),
        (lambda content: content.clear(), "it holds nothing, but a file of LAVT holds model, bert_model"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_nothing_is_written(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, damage: Callable[[File], object], match: str
) -> None:
    damage(content)
    assert_refused(save(content), vocabulary, tmp_path / "out", f"lavt.pth.*{match}")


def test_a_truncated_file_is_refused(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    file = save(content)
    whole = file.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 20):
        file.write_bytes(whole[:size])
        assert_refused(file, vocabulary, tmp_path / "out", "lavt.pth is (empty|cut off)")


class Code:
    """Runs a program when it is unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"{sys.executable} -c \"open('ran', 'w')\"",)


def test_code_in_a_file_is_not_run(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = save({**content, "args": Namespace(dataset=Code())})
    torch.load(file, weights_only=False)
    assert Path("ran").exists()  # the trap works
    Path("ran").unlink()
    assert_refused(file, vocabulary, tmp_path / "out", "is refused: .*system.* nothing in it was run")
    assert not Path("ran").exists()


def test_other_word_pieces_are_refused(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    vocabulary.write_text("\n".join(pieces[:-1]) + "\n", encoding="utf-8")
    assert_refused(
        save(content), vocabulary, tmp_path / "out", "vocab.txt has 17 word pieces, but .*lavt.pth has .* of 18"
    )
    vocabulary.write_text("left\n", encoding="utf-8")
    assert_refused(save(content), vocabulary, tmp_path / "out", "lacks .PAD.")


def test_missing_word_pieces_ask_for_the_option(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="'bert-base-uncased' .* cannot be downloaded .* --vocabulary FILE"):
        convert_checkpoint("lavt", save(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_taken_folder_is_left_alone(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = save(content), tmp_path / "out"
    assert_refused(file, vocabulary, vocabulary.parent, "no place for a checkpoint")
    assert_refused(file, vocabulary, file, "no place for a checkpoint")
    assert vocabulary.is_file()
    target.mkdir()
    monkeypatch.chdir(target)
    assert_refused(file, vocabulary, Path(), "no place for a checkpoint")
    monkeypatch.chdir(tmp_path)
    convert_checkpoint("lavt", file, target, vocabulary)
    assert Checkpoint(target)


def test_a_method_without_a_converter_says_so_before_it_reads_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^lts has no converter: .* Train it: risbench run --method lts.$"):
        convert_checkpoint("lts", tmp_path / "none.pth", tmp_path / "out")


def test_a_text_is_no_checkpoint_file(vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# LAVT: Language-Aware Vision Transformer\n")
    match = "README.md is text that begins with '# LAVT: .*'. Give another file.$"
    assert_refused(tmp_path / "README.md", vocabulary, tmp_path / "out", match)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, number: float
) -> None:
    content["model"]["backbone.norm2.bias"][3] = number
    content["bert_model"][QUERY][0, 0] = number
    match = "lavt.pth: 2 of 1.. weights hold NaN or infinite numbers, first backbone.norm2.bias"
    assert_refused(save(content), vocabulary, tmp_path / "out", match)


def test_a_number_that_is_none_and_is_not_used_does_no_harm(
    content: File, save: Save, vocabulary: Path, tmp_path: Path
) -> None:
    content["bert_model"]["pooler.dense.bias"] = torch.full((2,), float("nan"))
    assert convert_checkpoint("lavt", save(content), tmp_path / "out", vocabulary)


def test_weights_of_which_a_part_is_wrapped_are_refused(
    content: File, save: Save, vocabulary: Path, tmp_path: Path
) -> None:
    content["model"]["module.backbone.norm2.bias"] = torch.zeros(32)
    match = "lavt.pth, model: 1 of .* names begin with module., and the others do not. Save the weights of one network"
    assert_refused(save(content), vocabulary, tmp_path / "out", match)
