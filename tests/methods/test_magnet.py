"""What is particular to MagNet: its parts against plain computations, what is trained, its variants."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError

magnet = methods.module("magnet")
alignment, decoder, losses = (
    importlib.import_module(f"{magnet.__package__}.{name}") for name in ("alignment", "decoder", "losses")
)
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


def double(batch: Batch) -> Batch:
    assert batch.mask is not None
    return batch._replace(image=batch.image.double(), mask=batch.mask.double())


def masks(model: Any, batch: Batch) -> Tensor:
    output: Tensor = model.network(model.encode_image(batch)[0][batch.image_index], batch.words).masks
    return output


def test_a_word_gathers_pixels_of_its_image_and_no_word_counts_padding() -> None:
    """Against a computation of one expression at a time, without its padding."""
    torch.manual_seed(0)
    module = alignment.WordFusion(8, 5, released_mask=False).double()
    words, pixels = torch.randn(2, 6, 8).double(), torch.randn(2, 3, 4, 5).double()
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    output = module(words, module.project_pixels(pixels), mask)
    for n, length in enumerate((6, 3)):
        x, flat = words[n, :length], pixels[n].reshape(12, 5)
        keys, values = (functional.instance_norm(layer(flat).T[None])[0].T for layer in (module.key, module.value))
        gathered = (module.query(x) @ keys.T * 8**-0.5).softmax(dim=1) @ values
        vision = functional.instance_norm(module.out(gathered).T[None])[0].T
        expected = functional.gelu(module.project(functional.gelu(module.visual(x)) * vision))
        assert torch.allclose(output[n, :length], expected, rtol=0, atol=1e-12)


def test_the_released_mask_leaves_all_words_of_an_expression_the_same_vision() -> None:
    """Their queries are multiplied by 0, so that they gather the mean pixel, which is 0 once normalised."""
    torch.manual_seed(0)
    module = alignment.WordFusion(8, 5, released_mask=True).double()
    words, pixels, mask = torch.randn(1, 6, 8).double(), torch.randn(1, 3, 4, 5).double(), torch.ones(1, 6) > 0
    seen: list[Tensor] = []
    module.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(words, module.project_pixels(pixels), mask)
    assert seen[0].abs().max() < 1e-12
    mask[:, 4:] = False
    module(words, module.project_pixels(pixels), mask)
    assert seen[1][:, :4].abs().max() < 1e-12 and seen[1][:, 4:].abs().min() > 1e-3


def test_the_module_joins_full_resolution_and_four_grids() -> None:
    torch.manual_seed(0)
    module = alignment.CAM(8, 6, 0.0).double()
    pixels, words, mask = torch.randn(2, 5, 7, 8).double(), torch.randn(2, 4, 6).double(), torch.ones(2, 4) > 0
    fused, joined = module(pixels, words, mask)
    assert torch.equal(fused, module.full(pixels, words, mask))
    parts = []
    for branch, side in zip(module.pyramid, (1, 2, 3, 6), strict=True):
        pooled = functional.adaptive_avg_pool2d(pixels.permute(0, 3, 1, 2), side)  # (B, C, side, side)
        x = functional.conv2d(pooled, branch.widen.weight[:, :, None, None]).permute(0, 2, 3, 1)
        x = functional.gelu(
            functional.layer_norm(x, (32,), branch.norm.weight, branch.norm.bias, 1e-6) @ branch.narrow.weight.T
        )
        x = branch.fusion(x @ branch.reduce.weight.T, words, mask)
        parts.append(functional.interpolate(x.permute(0, 3, 1, 2), (5, 7), mode="bilinear", align_corners=True))
    x = torch.cat((torch.cat(parts, dim=1).permute(0, 2, 3, 1), fused), dim=3)
    first, norm, last, _ = module.mixer
    assert torch.allclose(joined, functional.gelu(last(norm(first(x)))), rtol=0, atol=1e-12)


def test_pixels_outside_of_the_mask_are_hidden_unless_that_is_every_pixel() -> None:
    mask = torch.full((2, 4, 4), -1.0)
    mask[0, :2, :2] = 3.0
    hidden = decoder.hidden_pixels(mask, (2, 2))
    assert hidden.tolist() == [[False, True, True, True], [False] * 4]
    odd = decoder.hidden_pixels(torch.tensor([[[0.0, -1e-3]]]), (1, 2))
    assert odd.tolist() == [[False, True]]  # 0.5 is not below 0.5


def test_each_layer_predicts_and_reads_the_next_of_three_scales(batch: Batch) -> None:
    model = build("decoder_layers=7").eval()
    encoded = model.network.encode(model.encode_image(batch)[0][batch.image_index], batch.words, last_words=False)
    decoded = model.network.decoder(encoded.maps)
    assert decoded.masks.shape == (3, 8, 16, 16) and decoded.features.shape == (3, 32, 16, 16)
    attentions = model.network.decoder.attention(encoded.maps)
    assert [tuple(x.shape[1:]) for x in attentions] == [(2, 2), (4, 4), (8, 8), (2, 2), (4, 4), (8, 8), (2, 2)]
    assert all(torch.allclose(x.sum(dim=(1, 2)), torch.ones(3)) for x in attentions)


def test_attention_stays_inside_of_the_mask_before_it(batch: Batch) -> None:
    model = build("prior=0.5").eval()
    maps = model.network.encode(model.encode_image(batch)[0][batch.image_index], batch.words, last_words=False).maps
    model.network.decoder.bias = -float(model.network.decoder(maps).masks[:, 0].detach().median())  # half lies inside
    predicted, attentions = model.network.decoder(maps).masks, model.network.decoder.attention(maps)
    hidden_cells = 0
    for number, attention in enumerate(attentions):
        hidden = decoder.hidden_pixels(predicted[:, number], tuple(attention.shape[1:]))
        assert not attention.flatten(1)[hidden].any()
        hidden_cells += int(hidden.sum())
    assert hidden_cells > 10


def test_mask_losses_are_means_over_all_predictions(batch: Batch) -> None:
    assert batch.mask is not None
    logits = torch.randn(3, 4, 16, 16)
    cross_entropy, dice = losses.mask_losses(logits, batch.mask)
    terms = []
    for k in range(4):
        size = (64, 64) if k == 3 else (16, 16)
        z = functional.interpolate(logits[:, k : k + 1], size, mode="bilinear", align_corners=True)[:, 0]
        truth = functional.adaptive_avg_pool2d(batch.mask, size)
        p, axes = z.sigmoid(), (1, 2)
        overlap, total = (p * truth).sum(axes), (p + truth).sum(axes)
        terms.append((functional.binary_cross_entropy(p, truth), (1 - (2 * overlap + 1) / (total + 1)).mean()))
    expected = [torch.stack(each).mean() for each in zip(*terms, strict=True)]
    assert torch.allclose(cross_entropy, expected[0], atol=1e-5) and torch.allclose(dice, expected[1], atol=1e-5)


def test_alignment_draws_pixels_of_the_referent_to_its_words(batch: Batch) -> None:
    """The loss of a word that equals the referent's pixels, and the opposite of all others, is near 0."""
    assert batch.mask is not None
    shares = functional.adaptive_avg_pool2d(batch.mask, 16)
    direction = functional.normalize(torch.randn(3, 8), dim=1)
    words = torch.where(batch.words.mask[:, :, None], direction[:, None], 9.0)  # padding points elsewhere
    features = torch.where(shares[:, None] > 0.5, direction[:, :, None, None], -direction[:, :, None, None])
    near = losses.alignment_loss(words, batch.words.mask, features, batch.mask, 0.1)
    far = losses.alignment_loss(-words, batch.words.mask, features, batch.mask, 0.1)
    border = ((shares > 0) & (shares < 1)).float().mean() * 10
    assert near < 1e-3 + border < far


def test_every_term_is_logged_and_weighted(batch: Batch) -> None:
    model = build("cross_entropy=2", "dice=3", "alignment=0.5", "grounding=0.25")
    terms = model.loss(batch)
    weights = {"cross-entropy": 2, "dice": 3, "alignment": 0.5, "grounding": 0.25}
    assert set(terms) == {"total", *weights}
    assert torch.allclose(terms["total"], sum(w * terms[name] for name, w in weights.items()), rtol=1e-5)


def test_the_masks_are_trained_on_whole_expressions_and_only_grounding_hides_words(batch: Batch) -> None:
    model, read = build(), []
    model.network.text.embeddings.register_forward_pre_hook(
        lambda *call: read.append(call[2]["input_ids"]), with_kwargs=True
    )
    model.loss(batch)
    whole, hidden = read
    assert torch.equal(whole, batch.words.ids) and (hidden == 1).any(dim=1).all()


def test_what_is_grounded_has_not_seen_the_hidden_words(batch: Batch) -> None:
    """Other words behind the hidden ones change neither pixels nor states, from which they are predicted."""
    model = build().eval()
    first, hidden = model.encode_image(batch)[0], model.grounding.hide(batch.words)
    other = hidden._replace(targets=torch.where(hidden.targets >= 0, 9, -100))
    for a, b in zip(
        *(model._grounding_inputs(first, batch.image_index, each) for each in (hidden, other)), strict=True
    ):
        assert torch.equal(a, b)
    changed = Words(hidden.words.ids.clone(), hidden.words.mask)
    changed.ids[:, 1] = 11
    states, pixels = model._grounding_inputs(first, batch.image_index, hidden._replace(words=changed))
    assert not torch.equal(states, model._grounding_inputs(first, batch.image_index, hidden)[0])
    assert torch.equal(pixels, model._grounding_inputs(first, batch.image_index, hidden)[1])


def test_the_words_read_pixels_and_change_the_mask(batch: Batch) -> None:
    model = build().eval()
    before = masks(model, batch)
    with torch.no_grad():
        model.network.word_fusions[0].project.weight.mul_(-3)
    assert not torch.equal(masks(model, batch), before)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (36, 60), (32, 32)])
def test_any_size_that_patches_fill_is_predicted_at_that_size(size: tuple[int, int], batch: Batch) -> None:
    model = build().eval()
    with torch.inference_mode():
        probability = model.predict(batch._replace(image=torch.randn(2, 3, *size))).probability
    assert probability.shape == (3, *size) and probability.isfinite().all()


def test_padded_words_change_nothing(batch: Batch) -> None:
    model, batch = build("prior=0.5").double().eval(), double(batch)
    ids, mask = batch.words
    expected = masks(model, batch)
    other = batch._replace(words=Words(torch.where(mask, ids, 7), mask))
    wide = batch._replace(words=Words(*(functional.pad(part, (0, 5)) for part in batch.words)))
    short = batch._replace(image_index=torch.tensor([0]), words=Words(ids[1:2, :3], mask[1:2, :3]))
    assert torch.allclose(masks(model, other), expected, rtol=0, atol=1e-10)
    assert torch.allclose(masks(model, wide), expected, rtol=0, atol=1e-10)
    assert torch.allclose(masks(model, short)[0], expected[1], rtol=0, atol=1e-10)


def test_in_float32_a_batch_decides_all_but_a_few_pixels_as_single_expressions() -> None:
    """Rounding can move a pixel over the threshold of masked attention; here with about half of it inside."""
    model = build("prior=0.5").eval()
    torch.manual_seed(4)
    words = expressions([3, 4, 5, 6] * 10)
    images, index = torch.randn(10, 3, 64, 64), torch.arange(40) // 4
    with torch.inference_mode():
        logits = masks(model, Batch(images, index, words, None))[:, -1]
        model.network.decoder.bias = -float(logits.median())
        together = model.predict(Batch(images, index, words, None)).probability
        alone = torch.cat(
            [
                model.predict(
                    Batch(images[i : i + 1], torch.tensor([0]), Words(*(part[n : n + 1] for part in words)), None)
                ).probability
                for n, i in enumerate(index.tolist())
            ]
        )
    assert 0.1 < (together > 0.5).float().mean() < 0.9
    differing = int(((together > 0.5) != (alone > 0.5)).sum())
    assert differing <= together.numel() * 1e-4
    assert (together - alone).abs().median() < 1e-6


def test_checkpointing_changes_neither_loss_nor_gradients(batch: Batch) -> None:
    gradients = []
    for checkpointing in ("false", "true"):
        model = build(f"activation_checkpointing={checkpointing}", "drop_path=0.3").train()
        torch.manual_seed(3)
        loss = model.loss(batch)["total"]
        torch.autograd.backward(loss)
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1]) > 100
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_bfloat16_trains_and_predicts(batch: Batch) -> None:
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch)
        torch.autograd.backward(terms["total"])
        probability = model.eval().predict(batch).probability
    assert probability.dtype == torch.float32 and all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_explanations_show_the_query_and_guess_a_hidden_word(batch: Batch) -> None:
    model = build().eval()
    one = Batch(batch.image[:1], torch.tensor([0]), Words(*(part[:1] for part in batch.words)), None)
    panels = model.explain(one, [])
    assert [panel.title.partition(":")[0] for panel in panels] == [
        f"the mask's query, layer {n} on {side} x {side}" for n, side in ((1, 2), (2, 4), (3, 8))
    ]
    *_, word = model.explain(one, [2, 3])
    assert word.title.startswith("this mask for the hidden word: word") and word.title.count("%") == 6
    assert torch.equal(word.values, model.predict(one).probability[0])
    with pytest.raises(InputError, match="no mask grounding .*leave --word out"):
        build(variants=("tiny", "no-grounding")).eval().explain(one, [2])
