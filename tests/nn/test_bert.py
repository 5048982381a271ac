from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from risbench.api import Words
from risbench.errors import InputError
from risbench.nn.bert import Bert, local_folder

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


def save(network: Any, folder: Path) -> Path:
    """Write a folder of weights as the hub has it."""
    network.save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\n", encoding="utf-8")
    return folder


def assert_refused(bert: Any, source: str | Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        bert.load_pretrained(str(source))
    assert "\n" not in str(error.value)


def test_weights_are_loaded_from_a_folder(bert: Any, words: Words, tmp_path: Path) -> None:
    save(bert, tmp_path / "bert")
    other: Any = Bert(PIECES, WIDTH, LAYERS, HEADS, dropout=0.0)
    assert not torch.allclose(other.double().eval().hidden_states(words), bert.hidden_states(words), atol=1e-2)
    loaded = other.load_pretrained(str(tmp_path / "bert"))
    hashed = hashlib.sha256((tmp_path / "bert" / "model.safetensors").read_bytes()).hexdigest()
    assert (loaded.part, loaded.source, loaded.sha256) == ("BERT", str(tmp_path / "bert"), hashed)
    assert torch.allclose(other.double().eval().hidden_states(words), bert.hidden_states(words), rtol=0, atol=1e-12)


def test_weights_with_a_pooler_are_loaded_without_it(bert: Any, tmp_path: Path) -> None:
    pretrained = BertModel(bert.config)
    save(pretrained, tmp_path)
    bert.load_pretrained(str(tmp_path))
    assert all(torch.equal(p.float(), pretrained.get_parameter(name)) for name, p in bert.named_parameters())


def test_weights_are_loaded_as_bert_base_uncased_is_published(bert: Any, tmp_path: Path) -> None:
    """With the heads of pretraining, and normalisations under the names of TensorFlow."""
    tensors = {f"bert.{name}": tensor + 1 for name, tensor in bert.state_dict().items()}
    tensors |= {"bert.pooler.dense.bias": torch.ones(WIDTH), "cls.predictions.bias": torch.ones(PIECES)}
    names = {key: key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta") for key in tensors}
    save(bert, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({names[key]: tensor for key, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    bert.load_pretrained(str(tmp_path))
    assert all(torch.equal(p, tensors[f"bert.{name}"]) for name, p in bert.state_dict().items())


def test_a_weight_that_a_file_lacks_does_not_stay_random(bert: Any, tmp_path: Path) -> None:
    save(bert, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**bert.state_dict(), "embeddings.LayerNorm.weight": None}, tmp_path / "pytorch_model.bin")
    assert_refused(bert, tmp_path, "embeddings.LayerNorm.weight is a NoneType, no weight")
    tensors = bert.state_dict()
    del tensors["embeddings.LayerNorm.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    says = "do not fit this BERT: 1 of its 53 weights are missing, first embeddings.LayerNorm.weight. Give those of"
    assert_refused(bert, tmp_path, says)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "lacks config.json. Give a folder with config.json, vocab.txt and model.safetensors or pyt"),
        ("vocab.txt", "lacks vocab.txt. Give a folder"),
        ("model.safetensors", "lacks model.safetensors or pytorch_model.bin. Give a folder"),
    ],
)
def test_a_file_that_a_folder_lacks_is_named(bert: Any, tmp_path: Path, missing: str, says: str) -> None:
    (save(bert, tmp_path) / missing).unlink()
    assert_refused(bert, tmp_path, says)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b'{"num_attention_heads": 4}', "trained with 4 heads. Give model.text_heads=4"),
        ("model.safetensors", b"<html>", "model.safetensors is a web page"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "safetensors is a pointer of git-lfs"),
    ],
)
def test_a_file_that_is_damaged_is_named(bert: Any, tmp_path: Path, file: str, content: bytes, says: str) -> None:
    (save(bert, tmp_path) / file).write_bytes(content)
    assert_refused(bert, tmp_path, says)


def test_what_is_no_folder_is_one_sentence(bert: Any, tmp_path: Path) -> None:
    save(bert, tmp_path)
    for source in (tmp_path / "missing", "./missing", "a/b/missing"):
        assert_refused(bert, source, "missing does not exist. Give a folder with config.json, vocab.txt and")
    assert_refused(bert, tmp_path / "vocab.txt", "vocab.txt is no folder. Give a folder")


@pytest.mark.parametrize("size", [(41, 16, 3), (40, 32, 3), (40, 16, 2), (40, 16, 4)])
def test_weights_of_another_size_are_one_sentence(bert: Any, tmp_path: Path, size: tuple[int, int, int]) -> None:
    pieces, width, layers = size
    save(Bert(pieces, width, layers, HEADS, 0.0), tmp_path)
    assert_refused(bert, tmp_path, "do not fit this BERT: .*Give those of the same network and size")


def test_without_the_hub_the_cure_leads_to_weights(bert: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    needed = "config.json, vocab.txt and model.safetensors or pytorch_model.bin"
    assert_refused(
        bert, "bert-base-uncased", f"config.json. cannot be loaded.*text_weights=FOLDER .a folder with {needed}"
    )
    assert bert.load_pretrained(str(save(bert, tmp_path / "folder")))


def test_a_model_in_the_cache_of_the_hub_is_found(bert: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--bert-base-uncased"
    save(bert, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert local_folder("bert-base-uncased") == cached / "snapshots" / "0123"
    loaded = bert.load_pretrained("bert-base-uncased")
    assert (loaded.source, loaded.training_data) == ("bert-base-uncased", ("BookCorpus", "English Wikipedia"))


def test_a_folder_of_the_name_of_a_published_bert_is_the_user_s(
    bert: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    save(bert, tmp_path / "bert-base-uncased")
    assert bert.load_pretrained("bert-base-uncased").training_data is None
