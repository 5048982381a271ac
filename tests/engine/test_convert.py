"""Files as the authors of LAVT wrote them, of a network of a few channels."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from risbench.cli import app as cli
from risbench.engine import convert
from risbench.engine.checkpoint import Checkpoint
from risbench.errors import InputError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "red", "box", "the", *"abcdefghi"]
WIDTH, HEADS, WINDOW, CHANNELS, TEXT = 8, (1, 2, 2, 4), 3, 6, 64

File = dict[str, Any]
Make = Callable[[File], Path]


def manifest() -> dict[str, list[int]]:
    """Names and shapes of `model`, written down without risbench."""
    shapes: dict[str, list[int]] = {}

    def module(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = list(weight)
        if bias:
            shapes[f"{name}.bias"] = [weight[0]]

    module("backbone.patch_embed.proj", WIDTH, 3, 4, 4)
    module("backbone.patch_embed.norm", WIDTH)
    for stage, heads in enumerate(HEADS):
        width, layer = WIDTH * 2**stage, f"backbone.layers.{stage}"
        block = f"{layer}.blocks.0"
        shapes[f"{block}.attn.relative_position_bias_table"] = [(2 * WINDOW - 1) ** 2, heads]
        for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            module(f"{block}.{name}", rows * width, columns * width)
        for name in (f"{block}.norm1", f"{block}.norm2", f"backbone.norm{stage}"):
            module(name, width)
        attention = f"{layer}.fusion.image_lang_att"
        for name in (
            f"{layer}.fusion.vis_project",
            f"{layer}.fusion.project_mm",
            f"{attention}.f_query",
            f"{attention}.W",
        ):
            module(f"{name}.0", width, width, 1)
        for name in ("f_key", "f_value"):
            module(f"{attention}.{name}.0", width, TEXT, 1)
        for number in (0, 2):
            module(f"{layer}.res_gate.{number}", width, width, bias=False)
        if stage < 3:
            module(f"{layer}.downsample.reduction", 2 * width, 4 * width, bias=False)
            module(f"{layer}.downsample.norm", 4 * width)
    for level, below in ((4, 8 * WIDTH + 4 * WIDTH), (3, CHANNELS + 2 * WIDTH), (2, CHANNELS + WIDTH)):
        for number, channels in ((1, below), (2, CHANNELS)):
            module(f"classifier.conv{number}_{level}", CHANNELS, channels, 3, 3, bias=False)
            module(f"classifier.bn{number}_{level}", CHANNELS)
            shapes[f"classifier.bn{number}_{level}.running_mean"] = [CHANNELS]
            shapes[f"classifier.bn{number}_{level}.running_var"] = [CHANNELS]
    module("classifier.conv1_1", 2, CHANNELS, 1, 1)
    return shapes


def bert_manifest() -> dict[str, list[int]]:
    """Names and shapes of `bert_model`."""
    size: dict[str, Any] = {"vocab_size": len(PIECES), "hidden_size": TEXT, "intermediate_size": 4 * TEXT}
    config = BertConfig(**size, num_hidden_layers=1, num_attention_heads=1)
    bert = BertModel(config, add_pooling_layer=False)
    return {name: list(tensor.shape) for name, tensor in bert.state_dict().items()}


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    torch.manual_seed(len(shapes))
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {name: tensor.abs() + 1 if "running_var" in name else tensor for name, tensor in tensors.items()}


@pytest.fixture
def content() -> File:
    """A `lavt` file with all that training leaves in one."""
    model = filled(manifest())
    for stage in range(4):
        model[f"backbone.layers.{stage}.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
    for level in (2, 3, 4):
        model[f"classifier.bn1_{level}.num_batches_tracked"] = torch.tensor(53_000)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=5e-5, amsgrad=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
    torch.autograd.backward(layer(torch.ones(1, 2)).sum())
    optimizer.step()
    scheduler.step()
    return {
        "model": model,
        "bert_model": filled(bert_manifest()),
        "optimizer": optimizer.state_dict(),
        "epoch": 37,
        "args": Namespace(dataset="refcocog", splitBy="umd", model="lavt", mha="", lr=5e-5, device="cuda:0"),
        "lr_scheduler": scheduler.state_dict(),
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a file."""

    def write(content: File) -> Path:
        torch.save(content, tmp_path / "lavt.pth")
        return tmp_path / "lavt.pth"

    return write


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "pieces" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def refused(file: Path, vocabulary: Path, target: Path, match: str, dataset: str = "") -> None:
    """The file is refused in one sentence, and nothing is written."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(InputError, match=match) as caught:
        convert.convert("lavt", file, target, vocabulary, dataset)
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


def test_every_weight_arrives_and_the_rest_is_said(content: File, make: Make, vocabulary: Path, tmp_path: Path) -> None:
    said = convert.convert("lavt", make(content), tmp_path / "out", vocabulary)
    opened = Checkpoint(tmp_path / "out")
    model, tokenizer = opened.model()
    given = [value for key in ("model", "bert_model") for value in content[key].values() if value.is_floating_point()]
    ours = [value for value in model.state_dict().values() if value.is_floating_point()]
    assert sorted(float(value.double().sum()) for value in ours) == sorted(float(v.double().sum()) for v in given)
    assert int(model.state_dict()["network.decoder.levels.2.0.norm.num_batches_tracked"]) == 53_000
    assert said[0].startswith(f"{tmp_path / 'out'}: lavt, ")
    assert said[1:] == ["Left out, for nothing here needs it: 4 relative_position_index, 1 optimizer, 1 lr_scheduler"]
    assert tokenizer(["the left box"]).ids.tolist() == [[2, 8, 4, 7, 3] + [0] * 15]


def test_the_folder_says_where_the_weights_come_from(
    content: File, make: Make, vocabulary: Path, tmp_path: Path
) -> None:
    convert.convert("lavt", make(content), tmp_path / "out", vocabulary)
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
    assert facts.weights.startswith("released lavt, lavt.pth sha256 ")
    assert (model["width"], model["depths"], model["heads"], model["window"]) == (8, [1, 1, 1, 1], [1, 2, 2, 4], 3)
    assert (model["patch"], model["decoder_channels"]) == (4, 6)
    assert (model["text_width"], model["text_layers"], model["text_heads"]) == (64, 1, 1)
    assert (model["pretrained"], model["text_dropout"], model["loss"]) == (True, 0.0, "cross-entropy")


def test_what_the_authors_never_update_stays_frozen(
    content: File, make: Make, vocabulary: Path, tmp_path: Path
) -> None:
    convert.convert("lavt", make(content), tmp_path / "out", vocabulary)
    model, _ = Checkpoint(tmp_path / "out").model()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("network.text.emb", "network.gates.3."))}


def test_both_forms_hold_the_same_weights(content: File, make: Make, vocabulary: Path, tmp_path: Path) -> None:
    convert.convert("lavt", make(content), tmp_path / "two", vocabulary)
    inside = {f"text_encoder.{name}": tensor for name, tensor in content.pop("bert_model").items()}
    inside["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    content["model"] |= inside
    said = convert.convert("lavt", make(content), tmp_path / "one", vocabulary)
    two, one = Checkpoint(tmp_path / "two"), Checkpoint(tmp_path / "one")
    assert one.facts.sha256 == two.facts.sha256
    assert one.facts.variants == ["one"]
    assert (one.recipe.model["text_dropout"], one.recipe.model["loss"]) == (0.1, "dice")
    assert "1 position_ids" in said[1]


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
    content: File, make: Make, vocabulary: Path, tmp_path: Path, arguments: object, option: str, expected: str
) -> None:
    content["args"] = arguments
    said = convert.convert("lavt", make(content), tmp_path / "out", vocabulary, option)
    assert Checkpoint(tmp_path / "out").facts.training_data[0] == expected
    assert any("give --dataset NAME" in line for line in said) == (expected == "unknown")


def test_other_training_data_than_the_file_names_are_refused(
    content: File, make: Make, vocabulary: Path, tmp_path: Path
) -> None:
    match = "lavt.pth: it says that it was trained on refcocog, not on refcoco"
    refused(make(content), vocabulary, tmp_path / "out", match, "refcoco")
    refused(make(content), vocabulary, tmp_path / "out", "Unknown data set 'coco'", "coco")


def test_the_bare_weights_are_enough(content: File, make: Make, vocabulary: Path, tmp_path: Path) -> None:
    bare: File = {"model": filled(manifest()), "bert_model": filled(bert_manifest())}  # no counters, no buffers
    bare["model"]["backbone.norm0.bias"] = bare["model"]["backbone.norm0.weight"]  # in the same memory
    convert.convert("lavt", make(bare), tmp_path / "out", vocabulary)
    assert Checkpoint(tmp_path / "out").facts.epoch is None
    assert Checkpoint(tmp_path / "out").model()


def test_what_has_no_place_is_listed_and_not_used(content: File, make: Make, vocabulary: Path, tmp_path: Path) -> None:
    plain = convert.convert("lavt", make(content), tmp_path / "plain", vocabulary)
    content["model"] |= {
        "backbone.layers.0.blocks.0.attn.more": torch.ones(2),
        "fusions.0.visual.weight": torch.ones(8, 8),  # the name that ours has
    }
    content["bert_model"]["pooler.dense.bias"] = torch.ones(2)
    content["scaler"] = {}
    said = convert.convert("lavt", make(content), tmp_path / "out", vocabulary)
    assert [line for line in said if line not in plain][1:] == [
        f"Unexpected, and not used: {name}"
        for name in (
            "scaler",
            "backbone.layers.0.blocks.0.attn.more",
            "bert_model.pooler.dense.bias",
            "fusions.0.visual.weight",
        )
    ]
    assert Checkpoint(tmp_path / "out").facts.sha256 == Checkpoint(tmp_path / "plain").facts.sha256


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
            "is refused: .*PurePosixPath.* Nothing in it was run",
        ),
        (lambda content: content.update(args=Namespace(mha="4-4-4-4")), "trained with --mha 4-4-4-4"),
        (lambda content: content.update(bert_model=[1]), "its bert_model is a list"),
        (lambda content: content.update(model=3), "it holds model, bert_model, optimizer, epoch, args and 1 more"),
        (lambda content: content.clear(), "it holds nothing, but a file of LAVT holds model, bert_model"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_nothing_is_written(
    content: File, make: Make, vocabulary: Path, tmp_path: Path, damage: Callable[[File], object], match: str
) -> None:
    damage(content)
    refused(make(content), vocabulary, tmp_path / "out", f"lavt.pth.*{match}")


def test_a_truncated_file_is_said_to_be_damaged(content: File, make: Make, vocabulary: Path, tmp_path: Path) -> None:
    file = make(content)
    whole = file.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 20):
        file.write_bytes(whole[:size])
        refused(file, vocabulary, tmp_path / "out", "lavt.pth (cannot be read|is refused)")


class Code:
    """Runs a program when it is unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"{sys.executable} -c \"open('ran', 'w')\"",)


def test_code_in_a_file_is_not_run(
    content: File, make: Make, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = make({**content, "args": Namespace(dataset=Code())})
    torch.load(file, weights_only=False)
    assert Path("ran").exists()  # the trap works
    Path("ran").unlink()
    refused(file, vocabulary, tmp_path / "out", "is refused: .*system.* Nothing in it was run")
    assert not Path("ran").exists()


def test_other_word_pieces_are_refused(content: File, make: Make, vocabulary: Path, tmp_path: Path) -> None:
    vocabulary.write_text("\n".join(PIECES[:-1]) + "\n", encoding="utf-8")
    refused(make(content), vocabulary, tmp_path / "out", "vocab.txt has 17 word pieces, but .*lavt.pth has .* of 18")
    vocabulary.write_text("left\n", encoding="utf-8")
    refused(make(content), vocabulary, tmp_path / "out", "lacks .PAD.")


def test_word_pieces_that_cannot_be_had_ask_for_the_option(
    content: File, make: Make, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="'bert-base-uncased' .* could not be had .* --vocabulary FILE"):
        convert.convert("lavt", make(content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_taken_folder_is_left_alone(
    content: File, make: Make, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = make(content), tmp_path / "out"
    refused(file, vocabulary, vocabulary.parent, "no place for a checkpoint")
    refused(file, vocabulary, file, "no place for a checkpoint")
    assert vocabulary.is_file()
    target.mkdir()
    monkeypatch.chdir(target)
    refused(file, vocabulary, Path(), "no place for a checkpoint")
    monkeypatch.chdir(tmp_path)
    convert.convert("lavt", file, target, vocabulary)
    assert Checkpoint(target)


def test_a_method_without_released_checkpoints_says_so(
    content: File, make: Make, vocabulary: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="lavt.pth: it cannot be converted: this method knows no checkpoints"):
        convert.convert("lts", make(content), tmp_path / "out", vocabulary)


def test_a_converted_checkpoint_is_evaluated_by_the_command_line(
    content: File,
    make: Make,
    vocabulary: Path,
    tmp_path: Path,
    small_root: Path,
    small_card: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["risbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    said = ask("convert", "lavt", make(content), "out", "--vocabulary", vocabulary)
    assert said.startswith("out: lavt, ")
    options = ["--dataset", small_card, "--data-root", small_root, "--split", "val,testA", "--json", "image.size=64"]
    options += ["train.workers=0"]
    records = json.loads(ask("run", "--checkpoint", "out", *options))
    assert [(r["method"], r["split"], r["n"], r["seed"]) for r in records] == [
        ("lavt", "val", 4, None),
        ("lavt", "testA", 3, None),
    ]
    assert records[0]["training_data"][0] == "refcocog" and records[0]["weights"].startswith("released lavt, lavt.pth")
