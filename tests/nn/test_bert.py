from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertModel

from risbench.api import Words
from risbench.errors import InputError
from risbench.nn.bert import Bert

PIECES, WIDTH, LAYERS, HEADS = 40, 16, 3, 2


@pytest.fixture
def bert() -> Any:
    torch.manual_seed(0)
    network: Any = Bert(PIECES, WIDTH, LAYERS, HEADS, dropout=0.0)
    return network.double().eval()


@pytest.fixture
def words() -> Words:
    ids = torch.randint(1, PIECES, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(7) < torch.tensor([[7], [2], [4]])
    return Words(ids * mask, mask)


def test_hidden_states_equal_those_of_transformers(bert: Any, words: Words) -> None:
    """With attention written out, and with the pooler, which our network lacks."""
    config = BertConfig(
        vocab_size=PIECES, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=64
    )
    config._attn_implementation = "eager"
    other: Any = BertModel(config)
    keys = other.load_state_dict(bert.state_dict(), strict=False)
    assert keys.missing_keys == ["pooler.dense.weight", "pooler.dense.bias"] and not keys.unexpected_keys
    expected: Tensor = other.double().eval()(input_ids=words.ids, attention_mask=words.mask.long()).last_hidden_state
    assert torch.allclose(bert.hidden_states(words)[words.mask], expected[words.mask], rtol=0, atol=1e-10)


def test_layers_in_parts_are_the_whole(bert: Any, words: Words) -> None:
    states = bert.embed(words)
    for begin, end in ((0, 1), (1, 3)):
        states = bert.run_layers(states, words.mask, begin, end)
    assert torch.allclose(states[words.mask], bert.hidden_states(words)[words.mask], rtol=0, atol=1e-12)


def test_padding_has_no_influence(bert: Any, words: Words) -> None:
    ids, mask = words
    expected = bert.hidden_states(words)
    other = bert.hidden_states(Words(torch.where(mask, ids, 9), mask))
    assert torch.allclose(other[mask], expected[mask], rtol=0, atol=1e-12)
    short = bert.hidden_states(Words(ids[1:2, :2], mask[1:2, :2]))
    assert torch.allclose(short[0], expected[1, :2], rtol=0, atol=1e-12)


def test_dropout_acts_in_training_alone(words: Words) -> None:
    bert: Any = Bert(PIECES, WIDTH, LAYERS, HEADS, dropout=0.5)
    assert not torch.equal(bert.train().hidden_states(words), bert.hidden_states(words))
    assert torch.equal(bert.eval().hidden_states(words), bert.hidden_states(words))


@pytest.mark.parametrize("layers", [0, 2, 3])
def test_only_the_first_layers_are_trained(bert: Any, words: Words, layers: int) -> None:
    bert.train_first_layers(3)  # the call before does not matter
    bert.train_first_layers(layers)
    trained = {name for name, parameter in bert.named_parameters() if parameter.requires_grad}
    expected = {f"encoder.layer.{layer}." for layer in range(layers)}
    assert {name[: len("encoder.layer.0.")] for name in trained} == expected
    assert len(trained) == 16 * layers
    if layers:
        torch.autograd.backward(bert.hidden_states(words).sum())
        assert {name for name, p in bert.named_parameters() if p.grad is not None} == trained


def test_weights_are_loaded_from_a_folder(bert: Any, words: Words, tmp_path: Path) -> None:
    bert.save_pretrained(tmp_path / "bert")
    other: Any = Bert(PIECES, WIDTH, LAYERS, HEADS, dropout=0.0)
    assert not torch.allclose(other.double().eval().hidden_states(words), bert.hidden_states(words), atol=1e-2)
    assert other.load_pretrained(str(tmp_path / "bert")) == f"BERT {tmp_path / 'bert'}"
    assert torch.allclose(other.double().eval().hidden_states(words), bert.hidden_states(words), rtol=0, atol=1e-12)


def test_weights_with_a_pooler_are_loaded_without_it(bert: Any, tmp_path: Path) -> None:
    """As bert-base-uncased is published."""
    pretrained = BertModel(bert.config)
    pretrained.save_pretrained(tmp_path)
    bert.load_pretrained(str(tmp_path))
    assert all(torch.equal(p.float(), pretrained.get_parameter(name)) for name, p in bert.named_parameters())


def test_a_missing_folder_is_one_sentence(bert: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder .*/missing "):
        bert.load_pretrained(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty cannot be loaded .*model.pretrained=false"):
        bert.load_pretrained(str(tmp_path / "empty"))


@pytest.mark.parametrize("size", [(41, 16, 3), (40, 32, 3), (40, 16, 2), (40, 16, 4)])
def test_weights_of_another_size_are_one_sentence(bert: Any, tmp_path: Path, size: tuple[int, int, int]) -> None:
    pieces, width, layers = size
    Bert(pieces, width, layers, HEADS, 0.0).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not fit this BERT: .*Give those of its size") as error:
        bert.load_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


def test_without_the_hub_the_sentence_says_what_else_can_be_done(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nCheck your connection")

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", offline)
    with pytest.raises(InputError, match=r"bert-base-uncased cannot be loaded \(OSError\).*model.pretrained=false"):
        bert.load_pretrained("bert-base-uncased")
