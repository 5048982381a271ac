"""The rows of the LTS paper's tables: which parts each has, and what its parts compute."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch
from risbench.data.text import WordTokenizer
from risbench.errors import InputError

lts = methods.module("lts")
localisation = importlib.import_module(f"{lts.__package__}.localisation")
RECIPE = methods.recipe_file("lts")
TOKENIZER = WordTokenizer.build(["left red cup"], 15)

# variant: whether F_m3 reads the words, what makes H_mask, what makes P_mask, loss terms, parameters at full size
ROWS: dict[str, tuple[bool, str | None, str | None, set[str], int]] = {
    "full": (True, "RelevanceFilter", "ASPPDeconvolution", {"L_seg", "L_loc"}, 55_360_701),
    "fusion": (True, None, "Logit", {"L_seg"}, 45_322_429),
    "filter": (False, "RelevanceFilter", None, {"L_seg"}, 45_845_692),
    "fusion-filter": (True, "RelevanceFilter", None, {"L_seg"}, 46_371_004),
    "fusion-seg": (True, None, "ASPPDeconvolution", {"L_seg"}, 54_303_677),
    "filter-seg": (False, "RelevanceFilter", "ASPPDeconvolution", {"L_seg"}, 54_835_389),
    "fusion-filter-seg": (True, "RelevanceFilter", "ASPPDeconvolution", {"L_seg"}, 55_360_701),
    "transformer": (True, "Transformer", "ASPPDeconvolution", {"L_seg", "L_loc"}, 65_863_870),
    "filters-2": (True, "RelevanceFilter", "ASPPDeconvolution", {"L_seg", "L_loc"}, 56_410_301),
    "filters-3": (True, "RelevanceFilter", "ASPPDeconvolution", {"L_seg", "L_loc"}, 57_459_901),
    "word-filter": (True, "WordFilter", "ASPPDeconvolution", {"L_seg", "L_loc"}, 55_360_701),
    "star": (True, "Transformer", "ASPPDeconvolution", {"L_seg", "L_loc"}, 67_962_045),
    **{
        f"size-{side}": (True, "RelevanceFilter", "ASPPDeconvolution", {"L_seg", "L_loc"}, 55_360_701)
        for side in (320, 352, 384, 416, 448, 480)
    },
}
WITHOUT_SEG = ["filter", "fusion-filter"]


def build(*variants: str, overrides: tuple[str, ...] = ()) -> Any:
    """A network, always the same one."""
    settings, _ = recipe.load(RECIPE, variants, ["model.pretrained=false", *overrides])
    torch.manual_seed(0)
    return methods.load("lts").build(settings, TOKENIZER)


@pytest.fixture
def batch() -> Batch:
    """Three expressions of two images of 64 pixels."""
    torch.manual_seed(1)
    truth = torch.zeros(3, 64, 64)
    truth[0, 8:30, 8:30] = truth[1, 40:60, 20:50] = truth[2, 30:, :20] = 1
    words = TOKENIZER(["left red cup", "cup", "red cup"])
    return Batch(torch.randn(2, 3, 64, 64), torch.tensor([0, 0, 1]), words, truth)


@pytest.fixture
def multi() -> Tensor:
    """F_m3 (B, C, h, w)."""
    torch.manual_seed(2)
    return torch.randn(2, 8, 3, 5).double()


@pytest.fixture
def text() -> Any:
    """A sentence of three words and one of two."""
    torch.manual_seed(3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return lts.Text(torch.randn(2, 6).double(), torch.randn(2, 3, 6).double() * mask[..., None], mask)


def record_outputs(module: nn.Module) -> list[Tensor]:
    """Return a list to which every later output of a module is added."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda *call: outputs.append(call[2]))
    return outputs


def kind(module: nn.Module | None) -> str | None:
    return None if module is None else type(module).__name__


def test_every_variant_is_a_row_here() -> None:
    assert set(ROWS) == {"full", *recipe.variant_names(RECIPE)} - {"tiny"}


@pytest.mark.parametrize("variant", ROWS)
def test_a_row_has_exactly_its_parts(variant: str) -> None:
    with torch.device("meta"):
        network = (model := build(variant)).network
    reads_words, locates, segments, _, size = ROWS[variant]
    assert (network.fusion.text is not None) == reads_words
    assert (kind(network.localisation), kind(network.segmentation)) == (locates, segments)
    assert sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.parametrize("variant", ROWS)
def test_a_row_trains_whole_and_predicts(variant: str, batch: Batch) -> None:
    """On the small network; gradients reach every parameter, so that no part is idle."""
    model = build("tiny", *{variant} - {"full"})
    optimizer = torch.optim.SGD(model.parameter_groups(), lr=1e-4)
    for _ in range(2):  # the last normalisation of a residual block may start at zero
        optimizer.zero_grad()
        terms = model.train().loss(batch)
        torch.autograd.backward(terms["total"])
        optimizer.step()
    assert set(terms) == {"total", *ROWS[variant][3]} and all(term.isfinite() for term in terms.values())
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    with torch.inference_mode():
        probability, peak, _ = model.eval().predict(batch)
    side = 8 if variant in ("fusion", *WITHOUT_SEG) else 16  # H/8 without the segmentation module, else H/4
    assert probability.shape == (3, side, side) and probability.isfinite().all()
    assert (peak is None) == (ROWS[variant][1] is None)


@pytest.mark.parametrize("side", [320, 352, 384, 416, 448, 480])
def test_a_size_is_that_of_table_6(side: int) -> None:
    assert recipe.load(RECIPE, [f"size-{side}"])[0].image.size == side


def test_a_size_comes_behind_tiny_too() -> None:
    assert recipe.load(RECIPE, ["tiny", "size-320"])[0].image.size == 320
    batch = Batch(torch.randn(1, 3, 320, 320), torch.tensor([0]), TOKENIZER(["cup"]), None)
    with torch.inference_mode():
        assert build("tiny", "size-320").eval().predict(batch).probability.shape == (1, 80, 80)


@pytest.mark.parametrize("variant", WITHOUT_SEG)
def test_without_the_segmentation_module_p_mask_is_h_mask(variant: str, batch: Batch) -> None:
    model = build("tiny", variant).eval()
    heat = record_outputs(model.network.localisation)
    probability, peak, _ = model.predict(batch)
    assert torch.equal(probability, heat[0].sigmoid())
    for number, place in enumerate(peak):
        assert heat[0][number][tuple(place)] == heat[0][number].max()


def test_with_fusion_alone_p_mask_is_a_1x1_convolution_of_f_m3(batch: Batch) -> None:
    model = build("tiny", "fusion").eval()
    fused, layer = record_outputs(model.network.fusion), model.network.segmentation
    probability = model.predict(batch).probability
    expected = functional.conv2d(fused[0], layer.weight, layer.bias)[:, 0]
    assert torch.allclose(probability, expected.sigmoid(), atol=1e-6)


@pytest.mark.parametrize(("variant", "known"), [("filter-seg", False), ("fusion-seg", True)])
def test_f_m3_knows_the_words_by_the_fusion_alone(variant: str, known: bool, batch: Batch) -> None:
    model = build("tiny", variant).eval()
    fused = record_outputs(model.network.fusion)
    before = model.predict(batch).probability
    after = model.predict(batch._replace(words=TOKENIZER(["red", "left cup", "left"]))).probability
    assert torch.equal(fused[0], fused[1]) != known
    assert not torch.equal(before, after)


def test_the_row_without_l_loc_is_the_full_network_trained_by_l_seg(batch: Batch) -> None:
    full, row = build("tiny"), build("tiny", "fusion-filter-seg")
    assert all(map(torch.equal, full.state_dict().values(), row.state_dict().values()))
    terms = full.loss(batch)
    assert torch.equal(row.loss(batch)["total"], terms["L_seg"])
    assert torch.allclose(terms["total"], terms["L_seg"] + 0.1 * terms["L_loc"])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_each_filtering_sees_f_m3_weighted_by_the_answer_before(times: int, multi: Tensor, text: Any) -> None:
    layer = localisation.RelevanceFilter(6, 8, times).double()
    for number in range(2):
        kernels = (layer.kernel.weight @ text.sentence[number] + layer.kernel.bias).reshape(times, 8)
        heat = torch.einsum("chw,c->hw", multi[number], kernels[0])
        for kernel in kernels[1:]:
            heat = heat + torch.einsum("chw,c->hw", multi[number] * heat.sigmoid(), kernel)
        assert torch.allclose(layer(multi, text)[number], heat, rtol=0, atol=1e-12)


def test_each_word_is_a_kernel_and_padding_is_none(multi: Tensor, text: Any) -> None:
    layer = localisation.WordFilter(6, 8).double()
    for number, length in enumerate([3, 2]):
        kernels = text.words[number, :length] @ layer.kernel.weight.T + layer.kernel.bias
        heat = torch.einsum("chw,c->hw", multi[number], kernels[0])
        for kernel in kernels[1:]:
            heat = heat + torch.einsum("chw,c->hw", multi[number] * heat.sigmoid(), kernel)
        assert torch.allclose(layer(multi, text)[number], heat, rtol=0, atol=1e-12)


def test_the_order_of_words_matters_to_their_kernels(multi: Tensor, text: Any) -> None:
    layer = localisation.WordFilter(6, 8).double()
    turned = text._replace(words=text.words[:, [1, 0, 2]])
    assert not torch.allclose(layer(multi, turned), layer(multi, text))


def test_the_transformer_is_one_layer_of_a_decoder_over_places(multi: Tensor, text: Any) -> None:
    """Step by step, one expression and one head at a time; a memory of one vector tells every position the same."""
    torch.manual_seed(0)
    module = localisation.Transformer(6, 8, heads=4, hidden=16, response=localisation.Response(8)).double()
    layer, width = module.layer, 8 // 4
    heat = module(multi, text)
    with torch.inference_mode():
        assert torch.allclose(module.eval()(multi, text), heat, rtol=0, atol=1e-12)  # torch may take another path there
    for number in range(2):
        x = multi[number].flatten(1).T + places(3, 5, 8)  # (hw, C)
        queries, keys, values = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=1)
        heads = []
        for part in (slice(start, start + width) for start in range(0, 8, width)):
            scores = queries[:, part] @ keys[:, part].T / width**0.5
            heads.append(scores.softmax(dim=1) @ values[:, part])
        x = layer.norm1(x + layer.self_attn.out_proj(torch.cat(heads, dim=1)))
        cross = layer.multihead_attn
        memory = module.memory(text.sentence[number]) @ cross.in_proj_weight[16:].T + cross.in_proj_bias[16:]
        x = layer.norm2(x + cross.out_proj(memory))
        x = layer.norm3(x + layer.linear2(layer.linear1(x).relu()))
        weight, bias = module.response.logit.weight[0, :, 0, 0], module.response.logit.bias
        assert torch.allclose(heat[number].flatten(), x @ weight + bias, rtol=0, atol=1e-5)  # places are float32


def places(height: int, width: int, channels: int) -> Tensor:
    """Fixed positional encodings (hw, C): sines of row and column, then cosines, of falling frequency."""
    falling = 10000 ** (-torch.arange(channels // 4) / (channels // 4))
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width))  # (hw, 2)
    angles = (cells[..., None] * falling).flatten(1)  # (hw, C/2)
    return torch.cat((angles.sin(), angles.cos()), dim=1).double()


def test_the_transformers_numbers_are_the_papers() -> None:
    with torch.device("meta"):
        layer = build("transformer").network.localisation.layer
    assert (layer.self_attn.embed_dim, layer.self_attn.num_heads, layer.linear1.out_features) == (1024, 4, 1024)


def test_star_filters_twice_what_the_transformer_answers() -> None:
    with torch.device("meta"):
        response = build("star").network.localisation.response
    assert isinstance(response, localisation.RelevanceFilter) and response.times == 2
    assert recipe.load(RECIPE, ["star"])[0].image.size == 480


@pytest.mark.parametrize("variant", ["transformer", "filter", "word-filter", "star"])
def test_h_mask_is_shown_where_there_is_one(variant: str, batch: Batch) -> None:
    model = build("tiny", variant).eval()
    one = Batch(batch.image[:1], torch.tensor([0]), TOKENIZER(["cup"]), None)
    heat = record_outputs(model.network.localisation)
    [panel] = model.explain(one, [])
    assert torch.equal(panel.values, heat[0][0].sigmoid())
    with pytest.raises(InputError, match="leave --word out"):
        model.explain(one, [0])


@pytest.mark.parametrize("variant", ["fusion", "fusion-seg"])
def test_without_localisation_there_is_no_h_mask_to_show(variant: str, batch: Batch) -> None:
    one = Batch(batch.image[:1], torch.tensor([0]), TOKENIZER(["cup"]), None)
    with pytest.raises(InputError, match="no H_mask to show: leave --explain out"):
        build("tiny", variant).eval().explain(one, [])


@pytest.mark.parametrize(
    ("variants", "overrides", "message"),
    [
        (["fusion-seg"], ["fusion=false"], "model.fusion=false and model.filters=0 leave nothing that reads the words"),
        (["filters-2", "word-filter"], [], "model.filters=2 with model.word_filter=true"),
        ([], ["segmentation=false"], "model.loc_weight=0.1 trains H_mask beside P_mask"),
        (["fusion-seg"], ["loc_weight=0.2"], "model.loc_weight=0.2 trains H_mask beside P_mask"),
        (["transformer"], ["transformer_heads=5"], "model.transformer_heads=5.* 48 channels .*multiple of 20"),
        (["star"], ["fusion_channels=5"], "cannot share 10 channels .*multiple of 4"),
        ([], ["filters=-1"], "model.filters = -1 is wrong"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_sentence(
    variants: list[str], overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        build("tiny", *variants, overrides=tuple(f"model.{override}" for override in overrides))
    assert "\n" not in str(error.value)


def test_variants_of_several_tables_compose() -> None:
    network = build("tiny", "transformer", "fusion-filter").network
    assert kind(network.localisation) == "Transformer" and kind(network.segmentation) is None
    assert kind(network.localisation.response) == "RelevanceFilter"


def test_a_recipe_that_is_older_than_the_rows_builds_the_full_network(batch: Batch) -> None:
    settings, _ = recipe.load(RECIPE, ["tiny"])
    newer = ("fusion", "filters", "word_filter", "segmentation")
    older = {k: v for k, v in settings.model.items() if k not in newer and not k.startswith("transformer")}
    torch.manual_seed(0)
    model: Any = methods.load("lts").build(settings.model_copy(update={"model": older}), TOKENIZER)
    full = build("tiny")
    assert list(model.state_dict()) == list(full.state_dict())
    assert torch.equal(model.eval().predict(batch).probability, full.eval().predict(batch).probability)
