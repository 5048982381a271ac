"""BERT (Devlin et al., NAACL 2019) from transformers, as the text encoder of several methods."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import BertConfig, BertModel

from risbench.api import Words
from risbench.errors import InputError
from risbench.nn import weights

POSITIONS = 512  # the longest sequence BERT has position embeddings for


class Bert(BertModel):  # type: ignore[no-untyped-call]
    """The encoder without its pooler."""

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

    def hidden(self, words: Words) -> Tensor:
        """Last hidden states: (B, T, width)."""
        answer = super().forward(input_ids=words.ids, attention_mask=words.mask.long())
        states: Tensor = answer.last_hidden_state
        return states

    def embed(self, words: Words) -> Tensor:
        """What the first layer reads: (B, T, width)."""
        states: Tensor = self.embeddings(input_ids=words.ids)
        return states

    def layers(self, states: Tensor, mask: Tensor, begin: int, end: int) -> Tensor:
        """Run some of the layers, counted from 0, `end` left out: states (B, T, width), words' mask (B, T)."""
        for layer in self.encoder.layer[begin:end]:
            answer = layer(states, attention_mask=mask[:, None, None])
            states = answer[0] if isinstance(answer, tuple) else answer  # a tuple before version 5 of transformers
        return states

    def load_pretrained(self, source: str) -> str:
        """Load weights: a model name of the Hugging Face hub, or a local folder that holds one.

        Raises InputError where the weights cannot be had or do not fit.
        """
        if Path(source).is_absolute() and not Path(source).is_dir():
            raise InputError(f"There is no folder {source} with weights of BERT. Give one, or a name of the hub.")
        with weights.from_hub(source):
            given = BertModel.from_pretrained(source, add_pooling_layer=False)
        try:
            self.load_state_dict(given.state_dict())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"The weights {source} do not fit this BERT: {reason} Give those of its size.") from None
        return f"BERT {source}"

    def train_only(self, layers: int) -> None:
        """Leave only the first `layers` layers to train, and neither the embeddings nor the layers behind."""
        for name, parameter in self.named_parameters():
            number = name.partition("encoder.layer.")[2].partition(".")[0]
            parameter.requires_grad_(number.isdecimal() and int(number) < layers)
