"""Read this first: what the harness gives a method, and what it asks of one.

A method is a folder: methods/lts/ holds lts.py with a class Model(Method), recipe.toml and README.md. The harness
reads images and expressions, trains, samples masks to the scored size, scores and tabulates. A method turns a Batch
into named loss terms (training) or into a Prediction (evaluation), and nothing else.

The whole contract by example, a method that ignores the words:

    class Model(Method):
        @classmethod
        def tokenizer(cls, recipe, expressions):
            return WordTokenizer.build(expressions, recipe.text.max_tokens)

        @classmethod
        def build(cls, recipe, tokenizer):
            model = cls()
            model.net = nn.Conv2d(3, 1, kernel_size=7, stride=4, padding=3)
            return model

        def loss(self, batch):
            logits = self.net(batch.image)[batch.image_index, 0]                  # (B, H/4, W/4)
            truth = area_average(batch.mask, tuple(logits.shape[-2:]))             # (B, H/4, W/4)
            return {"total": functional.binary_cross_entropy_with_logits(logits, truth)}

        def encode_image(self, batch):
            return (self.net(batch.image)[:, 0].sigmoid(),)                       # (I, H/4, W/4)

        def predict_from(self, features, words):
            return Prediction(features[0])                                        # (B, H/4, W/4)

Letters: I images, B expressions, T words, H W the network input, h w any grid over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from risbench.data import text
from risbench.data.loader import Batch
from risbench.data.text import Tokenizer, Words
from risbench.errors import InputError
from risbench.recipe import Recipe, Value

__all__ = [
    "Batch",
    "Converted",
    "Method",
    "Panel",
    "Prediction",
    "Tokenizer",
    "Words",
    "peak_of",
    "repeat_for_expressions",
]


class Prediction(NamedTuple):
    """What a method says of a batch, on a grid of its own over the network input."""

    probability: Tensor  # (B, h, w) in [0, 1]
    peak: Tensor | None = None  # (B, 2) int64: row and column on that grid where the referent is said to be


class Panel(NamedTuple):
    """A map behind a prediction, for people."""

    title: str
    values: Tensor  # (h, w) in [0, 1], on any grid over the network input


class Converted(NamedTuple):
    """What a method finds in a checkpoint file of its authors."""

    tensors: dict[str, Tensor]  # the weights by the authors' names, in the shapes of ours
    released: Callable[[str], str]  # from the name of a weight of ours to the authors' name of it
    model: dict[str, Value]  # the settings of [model] that the shapes of the weights say
    variants: list[str]  # variants of the recipe besides the one with these settings
    vocabulary: str  # name on Hugging Face of the model whose word pieces they are
    pieces: int  # how many of them have an embedding
    dataset: str = ""  # what it was trained on; empty: the file does not say
    epoch: int | None = None  # as the file counts
    needless: Mapping[str, int] = {}  # what is of no use here, counted by kind
    left: Sequence[str] = ()  # names of what else is in the file


class Method(nn.Module, ABC):
    """Base class of every method's Model."""

    weights: str = "from scratch"  # which pretrained weights were loaded; goes into every record
    frozen: Mapping[str, str] = {}  # beginnings of the names of parameters that are not trained, and why

    @classmethod
    @abstractmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> Tokenizer:
        """Make the tokenizer, once before training; a vocabulary may be built from the training expressions."""

    @classmethod
    def load_tokenizer(cls, folder: Path) -> Tokenizer:
        """Load the tokenizer from a checkpoint's text/ folder."""
        return text.load(folder)

    @classmethod
    @abstractmethod
    def build(cls, recipe: Recipe, tokenizer: Any) -> Self:
        """Build the network without pretrained weights; `recipe.model` holds the method's own settings."""

    def load_pretrained(self, recipe: Recipe, tokenizer: Any) -> None:  # noqa: B027
        """Load the pretrained weights that training starts from, if the recipe names any, and set `weights`."""

    @classmethod
    def convert(cls, content: dict[str, Any]) -> Converted:
        """Find the weights in the content of a file that the method's authors released.

        Raises InputError, with a sentence that goes on after the file's name, where it is no such file.
        """
        raise InputError("it cannot be converted: this method knows no checkpoints of its authors. Train it instead.")

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalar terms by the paper's names; `total` is optimised, the others are logged."""

    @abstractmethod
    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute what does not depend on the words, once per image: tensors whose first dimension is I."""

    @abstractmethod
    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict from features that have been repeated for the expressions: first dimension B."""

    def predict(self, batch: Batch) -> Prediction:
        """Predict every expression of the batch."""
        return self.predict_from(repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words)

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """Maps behind the prediction of a batch of one expression; `tokens` are the places of a chosen word in its ids.

        `tokens` is empty where no word was chosen. Raises InputError where the method has nothing to show for them.
        """
        raise InputError("This method shows nothing but its mask: leave --explain out.")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser; a group may set its own lr or weight_decay. Default: all that need gradients."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def repeat_for_expressions(features: tuple[Tensor, ...], image_index: Tensor) -> tuple[Tensor, ...]:
    """Repeat per-image features for the expressions: (I, ...) to (B, ...)."""
    return tuple(feature[image_index] for feature in features)


def peak_of(response: Tensor) -> Tensor:
    """Row and column of the maximum of each map, the first in row order on ties: (B, h, w) to (B, 2)."""
    place = response.flatten(1).argmax(dim=1)  # (B,)
    return torch.stack((place // response.shape[-1], place % response.shape[-1]), dim=1)
