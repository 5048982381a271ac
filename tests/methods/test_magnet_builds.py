"""How MagNet is built and trained: what has gradients, sizes, settings, learning by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError

RECIPE = methods.recipe_file("magnet")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{n}" for n in range(56))]


def build(*overrides: str, variants: tuple[str, ...] = ("tiny",)) -> Any:
    """A network, by default the small one from scratch, always the same one."""
    settings, _ = recipe.load(RECIPE, variants, [f"model.{override}" for override in overrides])
    torch.manual_seed(0)
    return methods.load("magnet").build(settings, WordPieceTokenizer(PIECES, settings.text.max_tokens))


def expressions(lengths: list[int], tokens: int = 6) -> Words:
    ids = torch.zeros(len(lengths), tokens, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor([2, *torch.randint(4, 60, (length - 2,)).tolist(), 3])
    return Words(ids, ids > 0)


@pytest.fixture
def batch() -> Batch:
    """Three expressions of two images of 64 pixels."""
    torch.manual_seed(1)
    truth = torch.zeros(3, 64, 64)
    truth[0, 8:30, 8:30] = truth[1, 40:60, 20:50] = truth[2, 30:, :20] = 1
    return Batch(torch.randn(2, 3, 64, 64), torch.tensor([0, 0, 1]), expressions([6, 3, 4]), truth)


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("variants", "idle"),
    [
        (("tiny",), {"network.decoder.class_embedding"}),
        (("tiny", "no-grounding"), {"network.decoder.class_embedding"}),
        (("tiny", "no-alignment"), {"network.decoder.class_embedding"}),
        (("tiny", "no-cam"), {"network.decoder.class_embedding"}),
        (
            ("tiny", "no-grounding", "no-alignment"),
            {"network.decoder.class_embedding", "network.word_fusions.3", "network.word_gates.3"},
        ),
    ],
)
def test_gradients_reach_every_parameter_that_is_trained(
    variants: tuple[str, ...], idle: set[str], batch: Batch
) -> None:
    model = build(variants=variants)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):  # points of the deformable attention do not depend on the positions before the first step
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(batch)["total"])
        optimizer.step()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == without
    assert all(name.startswith(tuple(model.frozen)) for name in without)
    parts = {prefix for prefix in model.frozen if prefix.endswith(".")}
    assert parts == {f"{prefix}." for prefix in idle}
    biases = set(model.frozen) - parts
    assert len(biases) == (16 if "no-cam" in variants else 32) and all(name.endswith(".bias") for name in biases)


def test_biases_that_are_not_trained_change_no_mask(batch: Batch) -> None:
    model = build("prior=0.5").double().eval()
    batch = batch._replace(image=batch.image.double())
    before = model.predict(batch).probability
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and name in model.frozen:
                parameter.add_(torch.randn_like(parameter))
    assert torch.allclose(model.predict(batch).probability, before, rtol=0, atol=1e-10)


def test_gates_of_both_sides_start_open_a_little() -> None:
    gates = [*build(variants=("tiny",)).network.gates, *build().network.word_gates]
    assert len(gates) == 7
    for layer in (layer for gate in gates for layer in (gate.inner, gate.outer)):
        assert 0.015 < float(layer.weight.detach().std()) < 0.026


def test_decay_acts_on_weight_matrices_alone() -> None:
    model = build()
    decayed, undecayed = ({id(p) for p in group["params"]} for group in model.parameter_groups())
    names = {name for name, p in model.named_parameters() if id(p) in undecayed and p.ndim > 1}
    assert {name.rpartition(".")[2] for name in names} == {
        *("relative_position_bias_table", "query", "place", "scale_embedding", "kinds")
    }
    assert len(decayed) + len(undecayed) == sum(p.requires_grad for p in model.parameters())


def test_the_network_has_the_parameters_of_the_authors() -> None:
    """As measured in their code; ours lacks what theirs never reads: norms, and the last gate of the image side."""
    settings, _ = recipe.load(RECIPE, [])
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(30518))]
    with torch.device("meta"):
        model: Any = methods.load("magnet").build(settings, WordPieceTokenizer(vocabulary, 20))
    network, widths = model.network, model.network.backbone.widths
    image_norms, last_gate, word_norms = sum(2 * width for width in widths), 2 * widths[-1] ** 2, 4 * 2 * 768
    image = size(network.backbone, network.fusions, network.gates) + image_norms + last_gate
    assert image == 152_769_656
    assert size(network.text, network.word_fusions, network.word_gates) + word_norms == 126_021_120
    assert size(network.decoder) == 17_997_314 and size(model.word_projection) == 196_864
    assert size(model.grounding) == 22_705_722


@pytest.mark.parametrize("variant", ["released", "joint", "no-grounding", "no-alignment", "no-cam", "resnet101"])
def test_variants_train_and_predict_on_the_small_network(variant: str, batch: Batch) -> None:
    """tests/test_methods.py builds all variants, those with wide backbones, too."""
    smaller = ["backbone=resnet18"] if variant == "resnet101" else []
    model = build(*smaller, variants=("tiny", variant)).train()
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=0.01)
    before = model.network.decoder.query.detach().clone()
    torch.autograd.backward(model.loss(batch)["total"])
    optimizer.step()
    assert not torch.equal(model.network.decoder.query, before)
    with torch.inference_mode():
        assert model.eval().predict(batch).probability.isfinite().all()


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("text_taps=[1, 2, 3]", "text_taps"),
        ("text_taps=[1, 3, 2, 4]", "text_taps=.1, 3, 2, 4. must rise"),
        ("width=6", "width=6 cannot be shared by four grids"),
        ("pixel_heads=2; decoder_channels=6", "decoder_channels=6 does not fit sine"),
        ("pixel_heads=3", "pixel_heads: 3 heads cannot share 32"),
        ("decoder_heads=5", "decoder_heads: 5 heads cannot share 32"),
        ("decoder_layers=2", "decoder_layers = 2"),
        ("grounding_heads=3", "grounding_heads: 3 heads cannot share 32"),
        ("grounding_probability=0", "grounding_probability = 0"),
        ("alignment_temperature=0", "alignment_temperature = 0"),
        ("grounding=-1", "grounding = -1"),
        ("pixel_points=0", "pixel_points = 0"),
    ],
)
def test_a_setting_that_makes_no_network_is_one_sentence(override: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        build(*override.split("; "))
    assert "\n" not in str(error.value)


def test_without_mask_losses_nothing_trains_masks() -> None:
    with pytest.raises(InputError, match="model.cross_entropy=0 and model.dice=0"):
        build("cross_entropy=0", "dice=0")


def test_a_few_expressions_are_learned_by_heart() -> None:
    model = build("prior=0.05")
    torch.manual_seed(2)
    truth = torch.zeros(4, 64, 64)
    truth[0, 4:28, 4:28] = truth[1, 36:60, 8:40] = truth[2, 10:50, 40:60] = truth[3, 30:60, 4:20] = 1
    batch = Batch(torch.randn(2, 3, 64, 64), torch.tensor([0, 0, 1, 1]), expressions([3, 4, 5, 6]), truth)
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=4e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(model.loss(batch)["total"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.inference_mode():
        predicted = model.eval().predict(batch).probability > 0.5
    overlap = (predicted & (truth > 0)).sum() / (predicted | (truth > 0)).sum()
    assert overlap > 0.8
