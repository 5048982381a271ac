"""How LAVT is built: sizes of every variant, what is trained and how, which pretrained weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.swin import Swin

RECIPE = methods.recipe_file("lavt")
PIECES = 30522  # of bert-base-uncased
BERT = 108_891_648  # as measured in the authors' network, without its pooler


def build(variants: Sequence[str], *overrides: str, pieces: int = PIECES) -> Any:
    settings, _ = recipe.load(RECIPE, variants, overrides)
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(pieces - 4))]
    return methods.load("lavt").build(settings, WordPieceTokenizer(vocabulary, settings.text.max_tokens))


def on_meta(*variants: str) -> Any:
    with torch.device("meta"):
        return build(variants)


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_swin_base_has_the_parameters_of_the_authors_network() -> None:
    """As measured in their code, whose backbone holds fusions, gates and their normalisations."""
    network = on_meta().network
    assert size(network.backbone, network.fusions, network.gates, network.norms) == 98_196_856
    assert size(network.fusions, network.gates) == 11_316_480
    assert size(network.decoder) == 20_651_010
    assert size(network.text) == BERT


def swin_size(width: int, depths: Sequence[int], heads: Sequence[int], window: int) -> int:
    """Parameters of Swin without its classifier, by the paper."""
    total = 48 * width + 3 * width  # patches of 4x4 pixels, their bias and normalisation
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        c = width * 2**stage
        total += depth * (12 * c**2 + 13 * c + (2 * window - 1) ** 2 * head)  # attention, MLP, two norms; bias table
        total += (8 * c**2 + 8 * c) if stage < 3 else 0  # merging
    return total


def head_size(widths: Sequence[int], channels: int) -> int:
    """Parameters of fusions, gates, norms and decoder."""
    total = sum(4 * (c**2 + c) + 2 * (768 * c + c) + 2 * c**2 + 2 * c for c in widths)
    for below, width in zip([widths[3], channels, channels], widths[2::-1], strict=True):
        total += 9 * (below + width) * channels + 9 * channels**2 + 4 * channels
    return total + 2 * channels + 2


@pytest.mark.parametrize(
    ("variant", "backbone", "widths", "channels", "pinned"),
    [
        ("one", swin_size(128, [2, 2, 18, 2], [4, 8, 16, 32], 12), [128, 256, 512, 1024], 512, 227_739_514),
        ("window-7", swin_size(128, [2, 2, 18, 2], [4, 8, 16, 32], 7), [128, 256, 512, 1024], 512, 227_604_154),
        ("swin-tiny", swin_size(96, [2, 2, 6, 2], [3, 6, 12, 24], 7), [96, 192, 384, 768], 384, 154_950_524),
        ("swin-small", swin_size(96, [2, 2, 18, 2], [3, 6, 12, 24], 7), [96, 192, 384, 768], 384, 176_268_428),
        ("swin-large", swin_size(192, [2, 2, 18, 2], [6, 12, 24, 48], 12), [192, 384, 768, 1536], 768, 373_793_846),
        ("resnet101", 44_549_160 - 2049 * 1000, [256, 512, 1024, 2048], 1024, 273_333_826),  # less its classifier
    ],
)
def test_every_backbone_has_its_parameters_and_maps(
    variant: str, backbone: int, widths: list[int], channels: int, pinned: int
) -> None:
    model = on_meta(variant)
    assert size(model.network.backbone) == backbone
    assert size(model) == backbone + head_size(widths, channels) + BERT == pinned
    with torch.device("meta"):
        assert shapes(model.network.backbone) == [(1, 480 // 4 >> n, 480 // 4 >> n, c) for n, c in enumerate(widths)]


def shapes(backbone: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the four maps of a 480x480 image."""
    x, maps = backbone.embed(torch.empty(1, 3, 480, 480)), []
    for number in range(4):
        x = backbone.stage(number, backbone.merge(number - 1, x) if number else x)
        maps.append(tuple(x.shape))
    return maps


def test_weight_decay_acts_as_released() -> None:
    """Of the authors' backbone 253 tensors are decayed and 136 are not.

    The two of the last gate, which they decay though no gradient reaches them, are not in our optimiser at all: the
    authors' AdamW skips a tensor without gradient, so training is the same.
    """
    model = on_meta()
    decayed, undecayed = ({id(p) for p in group["params"]} for group in model.parameter_groups())
    assert [group.get("weight_decay") for group in model.parameter_groups()] == [None, 0.0]
    network = model.network
    backbone = [
        (name, parameter)
        for part in ("backbone", "fusions", "gates", "norms")
        for name, parameter in network.get_submodule(part).named_parameters(part)
    ]
    assert len(backbone) == 253 + 136
    left = [name for name, p in backbone if id(p) not in decayed | undecayed]
    assert left == ["gates.3.inner.weight", "gates.3.outer.weight"]
    assert sum(id(p) in decayed for _, p in backbone) == 253 - 2
    assert {id(p) for p in network.decoder.parameters()} <= decayed
    trained = {name.split(".")[2] for name, p in network.text.named_parameters() if id(p) in decayed}
    assert trained == {str(layer) for layer in range(10)}
    assert sum(id(p) in decayed for p in network.text.parameters()) == 10 * 16
    assert len(undecayed) == 136  # none of them BERT's or the decoder's


@pytest.mark.parametrize("override", ["model.pretrained=false", "model.text_weights="])
def test_text_from_scratch_is_trained_whole(override: str) -> None:
    with torch.device("meta"):
        model = build([], override)
    optimised = {id(p) for group in model.parameter_groups() for p in group["params"]}
    assert {id(p) for p in model.network.text.parameters()} <= optimised
    assert list(model.frozen) == ["network.gates.3."]


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return Batch(
        torch.randn(1, 3, 32, 32), torch.tensor([0, 0]), Words(5 * mask, mask), (torch.rand(2, 32, 32) > 0.5).float()
    )


def test_with_pretrained_text_only_the_named_part_is_frozen(batch: Batch) -> None:
    overrides = ["text_weights=somewhere", "text_layers=3", "text_layers_trained=1"]
    model = build(["tiny"], *(f"model.{override}" for override in overrides), pieces=30)
    torch.autograd.backward(model.loss(batch)["total"])
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(tuple(model.frozen))}
    assert set(model.frozen) == {
        "network.gates.3.",
        "network.text.embeddings.",
        "network.text.encoder.layer.1.",
        "network.text.encoder.layer.2.",
    }


@pytest.mark.parametrize("variant", [name for name in recipe.variant_names(RECIPE) if name != "tiny"])
def test_every_variant_trains_and_predicts(variant: str, batch: Batch) -> None:
    """On the small network, of which a variant of the backbone leaves the text encoder."""
    model = build(["tiny", variant], pieces=30)
    *_, last = model.network.decoder.modules()
    before = last.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=0.1)
    torch.autograd.backward(model.train().loss(batch)["total"])
    optimizer.step()
    assert not torch.equal(last.weight, before)
    with torch.inference_mode():
        probability = model.eval().predict(batch).probability
    assert probability.shape == (2, 32, 32) and probability.isfinite().all()


def test_the_segmentation_module_of_lts_takes_the_place_of_the_last_convolution(batch: Batch) -> None:
    plain, network = on_meta().network.decoder, on_meta("lts-seg").network.decoder
    assert [name for name, _ in network.named_children()] == ["levels", "segmentation"]
    assert size(network.levels) == size(plain.levels) and size(network) == 25_831_169
    assert (network.segmentation.aspp.convs[0][0].in_channels, len(network.segmentation.aspp.convs)) == (512, 5)
    model = build(["tiny", "lts-seg"], pieces=30)
    larger = batch._replace(image=torch.randn(1, 3, 64, 64), mask=torch.ones(2, 64, 64))  # one cell is normalised to 0
    torch.autograd.backward(model.loss(larger)["total"])
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(tuple(model.frozen))}
    outputs: list[Tensor] = []
    model.network.decoder.segmentation.register_forward_hook(lambda *call: outputs.append(call[2]))
    logits = model.network(model.encode_image(batch)[0][batch.image_index], batch.words)
    assert logits.shape == (2, 2, 16, 16)  # H/2
    assert torch.allclose(logits.softmax(dim=1)[:, 1], outputs[0].sigmoid())


def test_a_recipe_that_is_older_than_the_segmentation_module_builds_lavt() -> None:
    settings, _ = recipe.load(RECIPE, ["tiny"])
    older = {key: value for key, value in settings.model.items() if key not in ("segmentation", "aspp_channels")}
    model: Any = methods.load("lavt").build(settings.model_copy(update={"model": older}), range(30))
    assert list(model.state_dict()) == list(build(["tiny"], pieces=30).state_dict())


def test_dropout_of_the_text_is_on_in_lavt_one_alone() -> None:
    def dropout(*variants: str) -> set[float]:
        return {m.p for m in on_meta(*variants).network.text.modules() if isinstance(m, nn.Dropout)}

    assert dropout() == {0.0} and dropout("one") == {0.1}


def test_pretrained_weights_are_loaded_where_they_are_named(tmp_path: Path) -> None:
    torch.manual_seed(2)
    swin, bert = Swin(8, [1, 1, 1, 1], [1, 1, 1, 1], 4, 2, 0.0), Bert(30, 16, 1, 2, 0.0)
    sizes = ["width=8", "depths=[1, 1, 1, 1]", "heads=[1, 1, 1, 1]", "window=4", "patch=2"]
    sizes += ["text_width=16", "text_layers=1", "text_heads=2"]
    torch.save(swin.state_dict(), tmp_path / "swin.pth")
    bert.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    files = {"backbone_weights": tmp_path / "swin.pth", "text_weights": tmp_path / "bert"}

    def loaded(pretrained: str, *names: str) -> tuple[Any, list[tuple[str, str]]]:
        overrides = [f"model.{each}" for each in (*sizes, *(f"{name}={files[name]}" for name in names))]
        settings, _ = recipe.load(RECIPE, ["tiny"], [f"model.pretrained={pretrained}", *overrides])
        model: Any = methods.load("lavt").build(settings, range(30))
        parts = model.load_pretrained(settings, range(30))
        return model.network, [(part.part, part.source) for part in parts]

    network, parts = loaded("true", "backbone_weights", "text_weights")
    assert parts == [("Swin", "swin.pth"), ("BERT", str(tmp_path / "bert"))]
    assert same(network.backbone, swin) and same(network.text, bert)
    network, parts = loaded("true", "text_weights")
    assert parts == [("backbone", ""), ("BERT", str(tmp_path / "bert"))]
    assert not same(network.backbone, swin) and same(network.text, bert)
    network, parts = loaded("false", "backbone_weights", "text_weights")
    assert parts == []
    assert not same(network.backbone, swin) and not same(network.text, bert)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = list(zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    return all(torch.equal(*pair) for pair in pairs)


def test_word_pieces_are_those_of_the_pretrained_text_or_of_the_training_text(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cup", "red", "##der"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    Bert(len(pieces), 16, 1, 2, 0.0).save_pretrained(tmp_path)

    def tokenizer(pretrained: str) -> Any:
        overrides = ["text.max_tokens=6", f"model.text_weights={tmp_path}", f"model.pretrained={pretrained}"]
        settings, _ = recipe.load(RECIPE, ["tiny"], overrides)
        return methods.load("lavt").tokenizer(settings, 4 * ["the left mug"])

    assert tokenizer("true")(["redder cup"]).ids.tolist() == [[2, 6, 7, 5, 3, 0]]
    assert "mug" in tokenizer("false").vocabulary and "cup" not in tokenizer("false").vocabulary
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(InputError, match="lacks vocab.txt. Give a folder with config.json, vocab.txt and model.safe"):
        tokenizer("true")
