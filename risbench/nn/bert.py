"""BERT (Devlin et al., NAACL 2019) from transformers, the text encoder of several methods. B expressions, T words."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download
from torch import Tensor
from transformers import BertConfig, BertModel

from risbench import files
from risbench.api import Words
from risbench.data.pretrained import Pretrained, bert_data
from risbench.errors import InputError
from risbench.nn import weights

POSITIONS = 512  # position embeddings, which is the longest sequence
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
_SIZES, _PIECES = "config.json", "vocab.txt"
_NEEDED = f"a folder with {_SIZES}, {_PIECES} and {' or '.join(WEIGHTS)}"
_LEFT_OUT = ("cls.", "pooler.", "embeddings.position_ids")  # the heads of pretraining, and a buffer of older files


class Bert(BertModel):  # type: ignore[no-untyped-call]
    """BERT's encoder without its pooler."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, dropout: float) -> None:
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=POSITIONS,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        super().__init__(config, add_pooling_layer=False)

    @property
    def word_embeddings(self) -> Tensor:
        """The embeddings of the word pieces, (V, width)."""
        return self.embeddings.word_embeddings.weight

    def hidden_states(self, words: Words) -> Tensor:
        """Return the last hidden states: (B, T, width). Transformers' forward would wait for the mask on the CPU."""
        return self.run_layers(self.embed(words), words.mask, 0, len(self.encoder.layer))

    def embed(self, words: Words) -> Tensor:
        """Return the embeddings, the input of the first layer: (B, T, width)."""
        states: Tensor = self.embeddings(input_ids=words.ids)
        return states

    def run_layers(self, states: Tensor, mask: Tensor, begin: int, end: int) -> Tensor:
        """Run layers `begin` to `end` - 1, counted from 0: states (B, T, width) and mask (B, T) to new states."""
        for layer in self.encoder.layer[begin:end]:
            output = layer(states, attention_mask=mask[:, None, None])
            states = output[0] if isinstance(output, tuple) else output  # a tuple before version 5 of transformers
        return states

    def load_pretrained(self, source: str) -> Pretrained:
        """Load weights: a model name of the Hugging Face hub, or a local folder with a model; return what was loaded.

        Raises InputError when the weights cannot be had or do not fit.
        """
        folder = local_folder(source)
        _check_heads(folder / _SIZES, self.config.num_attention_heads)
        path = next(folder / name for name in WEIGHTS if (folder / name).is_file())
        weights.load_whole(self, _adapt(weights.read_tensors(path), source), source, "BERT")
        data = None if folder == Path(source) else bert_data(source)
        return weights.of_file("BERT", path).model_copy(update={"source": source, "training_data": data})

    def train_first_layers(self, layers: int) -> None:
        """Train the first `layers` layers only: freeze the embeddings and the later layers."""
        for name, parameter in self.named_parameters():
            number = name.partition("encoder.layer.")[2].partition(".")[0]
            parameter.requires_grad_(number.isdecimal() and int(number) < layers)


def local_folder(source: str) -> Path:
    """Return the folder of BERT's sizes, word pieces and weights: `source`, or that of a model name in the hub's cache.

    Raises InputError, which names the file, when one of them is missing, or when the hub cannot be reached.
    """
    folder = Path(source)
    if weights.is_hub_name(source):
        return _download(source)
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"model.text_weights={source} {problem}. Give {_NEEDED}, or a name of the hub.")
    missing = [name for name in (_SIZES, _PIECES) if not (folder / name).is_file()]
    missing += [] if any((folder / name).is_file() for name in WEIGHTS) else [" or ".join(WEIGHTS)]
    if missing:
        raise InputError(f"model.text_weights={source} lacks {', '.join(missing)}. Give {_NEEDED}.")
    return folder


def _download(name: str) -> Path:
    """Return the folder of a model of the hub in its cache, after what is missing there has been fetched."""
    folder = _fetch(name, _SIZES).parent
    _fetch(name, _PIECES)
    with suppress(InputError):  # an older model has the other file only
        _fetch(name, WEIGHTS[0])
        return folder
    _fetch(name, WEIGHTS[1])
    return folder


def _fetch(name: str, file: str) -> Path:
    with weights.explain_hub_errors(f"{name} ({file})", f"model.text_weights=FOLDER ({_NEEDED})"):
        return Path(hf_hub_download(name, file))


def _check_heads(path: Path, heads: int) -> None:
    """Refuse weights that were trained with another number of heads, which no shape shows."""
    try:
        config = files.parse_json(files.read_bytes(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}). Copy the folder of the weights again.") from None
    trained = config.get("num_attention_heads", heads) if isinstance(config, dict) else heads
    if trained != heads:
        raise InputError(f"{path}: BERT was trained with {trained} heads. Give model.text_heads={trained}.")


def _adapt(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the encoder's weights under their names of today. Raises InputError when two have one name."""
    names = {key: _todays_name(key) for key in tensors}
    names = {key: name for key, name in names.items() if not name.startswith(_LEFT_OUT)}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        keys = " and as ".join(key for key, name in names.items() if name == twice[0])
        raise InputError(f"The weights {source} hold {twice[0]} twice, as {keys}. Give a file of one network.")
    return {name: tensors[key] for key, name in names.items()}


def _todays_name(key: str) -> str:
    """Return a name without the prefix of pretraining's network, and with torch's names of a normalisation."""
    name = key.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
