"""A file of MagNet's authors becomes a checkpoint with the same weights, or is refused in one sentence."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from risbench import methods, recipe
from risbench.api import Words
from risbench.engine import convert
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.convert import convert_checkpoint
from risbench.errors import InputError

File = dict[str, Any]
Save = Callable[[File], Path]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "red", "box", "the", *"abcdefghi"]
GATE = "language_model.res_gates.2.0.weight"


def _files() -> Any:
    spec = importlib.util.spec_from_file_location("magnet_files", Path(__file__).with_name("magnet_files.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = _files()
SMALL = FILES.Sizes(8, (1, 1, 1, 1), (1, 2, 2, 4), 3, 64, 4, len(PIECES), 16, 1, 12, 3, 20)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """The weights of a network of a few channels; do not change them."""
    torch.manual_seed(0)
    return {name: 0.1 * torch.randn(shape) for name, shape in FILES.manifest(SMALL).items()}


@pytest.fixture
def content(weights: dict[str, torch.Tensor]) -> File:
    """The content of a file, with what training leaves in it."""
    index = {
        f"image_model.layers.{stage}.blocks.0.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64)
        for stage in range(4)
    }
    arguments = Namespace(dataset="refcocog", splitBy="umd", mha="", ck_bert="bert-base-uncased")
    return {"model": {**weights, **index}, "optimizer": {}, "epoch": 39, "args": arguments, "lr_scheduler": {}}


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(content: File) -> Path:
        torch.save(content, tmp_path / "magnet.pth")
        return tmp_path / "magnet.pth"

    return write


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "pieces" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def test_every_weight_that_is_read_is_converted(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    lines = convert_checkpoint("magnet", save(content), tmp_path / "out", vocabulary)
    opened = Checkpoint(tmp_path / "out")
    model, _ = opened.model()
    unread = ("image_model.norm", "image_model.layers.3.res_gate", "language_model.norms")
    released = [
        value for name, value in content["model"].items() if value.is_floating_point() and not name.startswith(unread)
    ]
    ours = list(model.state_dict().values())
    assert sorted(float(v.double().sum()) for v in ours) == sorted(float(v.double().sum()) for v in released)
    assert lines[1].startswith(f"{tmp_path / 'out'}: magnet released, ")
    assert "4 relative_position_index, 18 weights that the released network never reads, 1 optimizer" in lines[3]
    facts, settings = opened.facts, opened.recipe.model
    assert (facts.variants, facts.epoch, facts.training_data[0]) == (["released"], 39, "refcocog")
    assert settings["released_mask"] is True and settings["grounding"] == 0
    assert (settings["width"], settings["text_taps"], settings["decoder_layers"]) == (8, [1, 2, 3, 4], 3)
    assert (settings["pixel_layers"], settings["pixel_hidden"], settings["decoder_hidden"]) == (1, 12, 20)


@pytest.mark.parametrize(("gate", "says"), [(0.0, "Zero means that they are shut"), (0.5, "these are not: words read")])
def test_the_gates_of_the_language_side_are_described_first(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, gate: float, says: str
) -> None:
    shut = {name: torch.zeros_like(value) for name, value in content["model"].items() if ".res_gates." in name}
    content["model"] |= shut
    content["model"][GATE] = torch.full((64, 64), gate) * -torch.eye(64)
    first, *_ = convert_checkpoint("magnet", save(content), tmp_path / "out", vocabulary)
    assert first.startswith(
        f"Largest absolute value of the language side's gates (language_model.res_gates): {gate:g}."
    )
    assert says in first


def test_shut_gates_make_the_mask_of_no_influence(content: File, save: Save, vocabulary: Path, tmp_path: Path) -> None:
    """As risbench says when it converts such a file; with open gates the released mask changes the answer."""
    torch.manual_seed(1)
    image, ids = torch.randn(1, 3, 64, 64).double(), torch.tensor([[2, 8, 4, 7, 3, 0]])

    def difference(target: str) -> float:
        convert_checkpoint("magnet", save(content), tmp_path / target, vocabulary)
        model: Any = Checkpoint(tmp_path / target).model()[0].double().eval()
        answers = []
        for released in (True, False):
            for fusion in model.network.word_fusions:
                fusion.released_mask = released
            with torch.inference_mode():
                answers.append(model.network(model.network.encode_image(image), Words(ids, ids > 0)).masks)
        return float((answers[0] - answers[1]).abs().max())

    assert difference("open") > 1e-9
    content["model"] |= {
        name: torch.zeros_like(value) for name, value in content["model"].items() if ".res_gates." in name
    }
    assert difference("shut") == 0


@pytest.mark.parametrize("container", ["state_dict", ""])
def test_weights_of_other_training_scripts_and_alone_are_read(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, container: str
) -> None:
    convert_checkpoint("magnet", save(content), tmp_path / "plain", vocabulary)
    wrapped = {f"module.{name}": value for name, value in content["model"].items()}
    convert_checkpoint(
        "magnet", save({container: wrapped} if container else wrapped), tmp_path / "out", vocabulary, "refcoco"
    )
    assert Checkpoint(tmp_path / "out").facts.sha256 == Checkpoint(tmp_path / "plain").facts.sha256
    assert Checkpoint(tmp_path / "out").facts.training_data[0] == "refcoco"


@pytest.mark.parametrize("variants", [["swin-tiny"], ["swin-small"], []])
def test_the_shapes_determine_the_variant(variants: list[str]) -> None:
    path = methods.recipe_file("magnet")
    model = recipe.load(path, variants)[0].model
    sizes = FILES.TINY if variants else FILES.BASE
    sizes = sizes._replace(depths=model["depths"])
    content = {name: torch.zeros(()).expand(shape) for name, shape in FILES.manifest(sizes).items()}
    settings, matched = convert._settings(path, methods.load("magnet").convert({"model": content}))
    assert matched == [*variants, "released"] and settings == recipe.load(path, matched)[0]


def without(*names: str) -> Callable[[File], object]:
    return lambda content: [content["model"].pop(name) for name in names]


def replaced(name: str, value: object) -> Callable[[File], object]:
    return lambda content: content["model"].update({name: value})


OFFSETS = "classifier.pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.weight"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (without("image_model.layers.1.mixer.0.weight", "lang_proj.bias"), "2 of .* weights are missing: "),
        (without(GATE), f"the weight {GATE} is missing. Give a whole file of MagNet"),
        (without("image_model.patch_embed.proj.weight"), "the weight image_model.patch_embed.proj.weight is missing"),
        (without("classifier.pixel_decoder.mask_features.weight"), "the weight classifier.* is missing"),
        (replaced("lang_proj.bias", torch.zeros(15)), "lang_proj.bias is 15 float32, where .* has 16 float32"),
        (replaced("lang_proj.bias", torch.zeros(16, dtype=torch.int64)), "lang_proj.bias is 16 int64, where"),
        (replaced(OFFSETS, torch.zeros(192, 16)), "sampling_offsets.weight is 192 x 16 .* has 256 x 16"),
        (replaced("image_model.layers.0.pyramids.0.1.weight", torch.zeros(32, 8, 3, 3)), "is 32 x 8 x 3 x 3 "),
        (replaced("lang_proj.bias", "text"), "lang_proj.bias is no dense tensor, so this is no file of MagNet"),
        (replaced("lang_proj.bias", torch.full((16,), float("nan"))), "1 of .* weights hold NaN"),
        (lambda content: content.update(args=PurePosixPath("a")), "is refused: .*nothing in it was run"),
        (lambda content: content.update(args=Namespace(mha="4-4-4-4")), "trained with --mha 4-4-4-4"),
        (
            lambda content: content.update(model=3),
            "it holds model, optimizer, .* but a file of MagNet holds model, opt",
        ),
        (lambda content: content.clear(), "it holds nothing, but a file of MagNet holds"),
        (
            lambda content: [content["model"].pop(n) for n in list(content["model"]) if ".encoder.layer.3." in n],
            "its BERT has 3 layers, which four stages cannot share",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    content: File, save: Save, vocabulary: Path, tmp_path: Path, damage: Callable[[File], object], match: str
) -> None:
    damage(content)
    file = save(content)
    with pytest.raises(InputError, match=match) as error:
        convert_checkpoint("magnet", file, tmp_path / "out", vocabulary)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_file_of_lavt_is_refused(save: Save, vocabulary: Path, tmp_path: Path) -> None:
    file = save({"model": {"backbone.patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, "bert_model": {}})
    with pytest.raises(
        InputError, match="the weight image_model.patch_embed.proj.weight is missing. Give a whole file"
    ):
        convert_checkpoint("magnet", file, tmp_path / "out", vocabulary)
