"""BERT (Devlin et al., NAACL 2019) from transformers, the text encoder of several methods. B expressions, T words."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import BertConfig, BertModel

from risbench.api import Words
from risbench.errors import InputError
from risbench.nn import weights

POSITIONS = 512  # position embeddings, which is the longest sequence


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

    def hidden_states(self, words: Words) -> Tensor:
        """Return the last hidden states: (B, T, width)."""
        output = super().forward(input_ids=words.ids, attention_mask=words.mask.long())
        states: Tensor = output.last_hidden_state
        return states

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

    def load_pretrained(self, source: str) -> str:
        """Load weights: a model name of the Hugging Face hub, or a local folder with a model; return what was loaded.

        Raises InputError when the weights cannot be had or do not fit.
        """
        if Path(source).is_absolute() and not Path(source).is_dir():
            raise InputError(f"There is no folder {source} with weights of BERT. Give another, or a name of the hub.")
        with weights.explain_hub_errors(source):
            pretrained = BertModel.from_pretrained(source, add_pooling_layer=False)
        try:
            self.load_state_dict(pretrained.state_dict())
        except RuntimeError as error:
            raise weights.misfit(source, "BERT", error) from None
        return f"BERT {source}"

    def train_first_layers(self, layers: int) -> None:
        """Train the first `layers` layers only: freeze the embeddings and the later layers."""
        for name, parameter in self.named_parameters():
            number = name.partition("encoder.layer.")[2].partition(".")[0]
            parameter.requires_grad_(number.isdecimal() and int(number) < layers)
