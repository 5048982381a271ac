"""Hidden words, the loss of predicting them, and mask grounding in LAVT and CoupAlign."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.data.text import WordPieceTokenizer
from risbench.engine.checkpoint import Checkpoint, Facts, save
from risbench.errors import InputError
from risbench.nn.mask_grounding import MaskGrounding, wordless_maps
from risbench.nn.resnet import ResNet

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = [*SPECIAL, *(f"word{n}" for n in range(26))]
METHODS = ("lavt", "coupalign")


def build(vocabulary: list[str] = PIECES, p: float = 0.15) -> MaskGrounding:
    torch.manual_seed(0)
    return MaskGrounding(vocabulary, text_width=8, width=6, layers=2, heads=2, dropout=0.0, p=p)


def words(lengths: list[int], tokens: int = 8) -> Words:
    """[CLS], words, [SEP], padding."""
    torch.manual_seed(1)
    ids = torch.zeros(len(lengths), tokens, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, : length + 2] = torch.tensor([2, *torch.randint(4, 30, (length,)).tolist(), 3])
    return Words(ids, ids > 0)


def inputs(count: int, tokens: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, pixels, ground truths and embeddings of word pieces."""
    torch.manual_seed(2)
    truth = (torch.rand(count, 24, 32) > 0.7).float()
    return torch.randn(count, tokens, 8), torch.randn(count, 3, 4, 6), truth, torch.randn(30, 8)


def test_hidden_words_are_true_words_and_one_of_each_expression_at_least() -> None:
    module, expressions = build(), words([1, 3, 6] * 700)
    hidden = module.hide(expressions)
    chosen = hidden.targets >= 0
    assert torch.equal(hidden.words.mask, expressions.mask)
    assert (expressions.ids[chosen] > 3).all()  # no special piece, no padding
    assert (hidden.words.ids[chosen] == 1).all() and torch.equal(hidden.targets[chosen], expressions.ids[chosen])
    assert torch.equal(hidden.words.ids[~chosen], expressions.ids[~chosen])
    assert chosen.any(dim=1).all()
    shares = [float(chosen[row::3].float().sum() / (700 * length)) for row, length in enumerate((1, 3, 6))]
    expected = [1.0, 0.15 + 0.85**3 / 3, 0.15 + 0.85**6 / 6]
    assert shares == pytest.approx(expected, abs=0.02)


def test_what_is_hidden_follows_torch_s_seed_and_differs_from_one_call_to_the_next() -> None:
    module, expressions = build(), words([5] * 40)
    torch.manual_seed(3)
    first, second = module.hide(expressions), module.hide(expressions)
    torch.manual_seed(3)
    assert torch.equal(module.hide(expressions).targets, first.targets)
    assert not torch.equal(second.targets, first.targets)


def test_a_vocabulary_with_a_mask_hides_by_it_and_never_hides_it() -> None:
    module = build([*PIECES[:-1], "[MASK]"])
    expressions = words([4])
    expressions.ids[0, 1] = 29
    hidden = build([*PIECES[:-1], "[MASK]"], p=0.999).hide(expressions)
    assert module.hidden_id == 29 and hidden.words.ids[0, 2:5].tolist() == [29] * 3
    assert hidden.targets[0, 1] == -100


def test_a_chosen_word_is_hidden() -> None:
    expressions = words([4])
    hidden = build().hide_at(expressions, [2, 3, 7])
    assert (hidden.targets[0] >= 0).nonzero().flatten().tolist() == [2, 3]  # 7 is padding


def test_without_a_word_that_can_be_hidden_the_loss_is_zero_and_gradients_are_finite() -> None:
    module, expressions = build(), words([0, 0])
    hidden = module.hide(expressions)
    loss = module(*inputs(2)[:3], hidden, inputs(2)[3])
    torch.autograd.backward(loss)
    assert loss.item() == 0 and (hidden.targets < 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_the_loss_is_the_mean_cross_entropy_of_the_hidden_words() -> None:
    module, expressions = build(p=0.5), words([6, 2, 0])
    hidden, (states, pixels, truth, embeddings) = module.hide(expressions), inputs(3)
    logits = module.logits(states, pixels, truth, hidden, embeddings)
    losses = [
        functional.cross_entropy(logits[row, place], hidden.targets[row, place])
        for row in range(3)
        for place in range(8)
        if hidden.targets[row, place] >= 0
    ]
    loss = module(states, pixels, truth, hidden, embeddings)
    assert len(losses) > 3 and torch.allclose(loss, torch.stack(losses).mean())


def test_the_predictor_reads_words_pixels_and_mask_but_no_padding() -> None:
    module, expressions = build().double().eval(), words([4, 2])
    hidden = module.hide(expressions)
    states, pixels, truth, embeddings = (x.double() for x in inputs(2))
    logits = module.logits(states, pixels, truth, hidden, embeddings)
    for changed in ((states.flip(0), pixels, truth), (states, pixels.flip(0), truth), (states, pixels, 1 - truth)):
        assert not torch.allclose(module.logits(*changed, hidden, embeddings), logits, atol=1e-6)
    states[1, 4:] = 7.0  # padding of the second expression
    again = module.logits(states, pixels, truth, hidden, embeddings)
    assert torch.allclose(again[1, :4], logits[1, :4], rtol=0, atol=1e-12)


def test_guesses_are_the_most_likely_pieces() -> None:
    logits = torch.full((30,), -9.0)
    logits[7], logits[5] = 2.0, 1.0
    (first, share), (second, _) = build().guesses(logits, 2)
    assert (first, second) == ("word3", "word1") and share == pytest.approx(0.731, abs=1e-3)


def test_a_predictor_learns_a_word_that_the_mask_alone_tells() -> None:
    """Half of the masks are on the left and mean word 4, the others are on the right and mean word 5."""
    module, embeddings = build(), torch.nn.Parameter(inputs(1)[3])
    expressions = words([1] * 16, tokens=3)
    side = torch.arange(16) % 2
    expressions.ids[:, 1] = 4 + side
    truth = torch.zeros(16, 24, 32)
    truth[side == 0, :, :16] = truth[side == 1, :, 16:] = 1
    states, pixels = torch.zeros(16, 3, 8), torch.zeros(16, 3, 4, 6)
    optimizer = torch.optim.Adam([*module.parameters(), embeddings], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = module(states, pixels, truth, module.hide(expressions), embeddings)
        torch.autograd.backward(loss)
        optimizer.step()
    assert loss.item() < 0.1


def test_the_pass_without_words_leaves_running_statistics_as_they_are() -> None:
    backbone = ResNet("resnet18").train()
    first = backbone.stage(0, backbone.embed(torch.randn(2, 3, 64, 64)))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    maps = wordless_maps(backbone, first)
    assert [tuple(x.shape[1:3]) for x in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def model_of(method: str, *variants: str) -> tuple[Any, recipe.Recipe, WordPieceTokenizer]:
    settings, _ = recipe.load(methods.recipe_file(method), ["tiny", *variants], ["image.size=64"])
    tokenizer = WordPieceTokenizer(PIECES, settings.text.max_tokens)
    torch.manual_seed(0)
    return methods.load(method).build(settings, tokenizer), settings, tokenizer


def batch_of(tokenizer: WordPieceTokenizer) -> Batch:
    torch.manual_seed(1)
    truth = torch.zeros(3, 64, 64)
    truth[:, 10:40, 20:50] = 1
    texts = tokenizer(["word1 word2", "word3", "word4 word5 word6"])
    return Batch(torch.randn(2, 3, 64, 64), torch.tensor([0, 0, 1]), texts, truth)


@pytest.mark.parametrize("name", METHODS)
def test_the_variant_adds_a_term_and_changes_nothing_else(name: str) -> None:
    plain, _, tokenizer = model_of(name)
    model, settings, _ = model_of(name, "mask-grounding")
    shared = plain.state_dict()
    model.load_state_dict(shared, strict=False)
    assert {key for key in model.state_dict() if not key.startswith("grounding.")} == set(shared)
    batch = batch_of(tokenizer)
    torch.manual_seed(5)
    expected = plain.loss(batch)
    torch.manual_seed(5)
    terms = model.loss(batch)
    assert set(terms) == {*expected, "grounding"} and terms["grounding"] > 1
    weight = settings.model["grounding"]
    assert torch.allclose(terms["total"], expected["total"] + weight * terms["grounding"])
    assert all(torch.equal(terms[key], value) for key, value in expected.items() if key != "total")
    with torch.inference_mode():
        assert torch.equal(model.eval().predict(batch).probability, plain.eval().predict(batch).probability)


@pytest.mark.parametrize("name", METHODS)
def test_its_gradients_reach_the_predictor_and_both_encoders(name: str) -> None:
    model, _, tokenizer = model_of(name, "mask-grounding")
    torch.autograd.backward(model.loss(batch_of(tokenizer))["grounding"])
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(f"grounding.{key}" in reached for key, _ in model.grounding.named_parameters())
    assert "network.backbone.layers.3.blocks.0.mlp.fc2.weight" in reached
    assert "network.text.embeddings.word_embeddings.weight" in reached


def test_a_checkpoint_of_the_variant_holds_the_predictor(tmp_path: Any) -> None:
    model, settings, tokenizer = model_of("lavt", "mask-grounding")
    facts = Facts(
        method="lavt", variants=["tiny"], training_data=[], pretrained=(), seed=0, epoch=1, training_seconds=0.0
    )
    save(tmp_path / "best", model, tokenizer, settings, facts)
    opened, _ = Checkpoint(tmp_path / "best").model()
    assert torch.equal(opened.state_dict()["grounding.bias"], model.state_dict()["grounding.bias"])


def test_a_tokenizer_without_a_list_of_pieces_is_refused() -> None:
    settings, _ = recipe.load(methods.recipe_file("lavt"), ["tiny", "mask-grounding"])
    with pytest.raises(InputError, match="model.grounding=0.1 hides word pieces, which this range does not name"):
        methods.load("lavt").build(settings, range(30))
