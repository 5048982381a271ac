"""Read this first: what the harness provides to a method, and what it requires of it.

A method is a folder: methods/lts/ holds lts.py with a class Model(Method), recipe.toml and, for its readers, README.md.
The harness reads images and expressions, trains, samples masks to the scored size, scores and tabulates. A method only
turns a Batch into named loss terms (training) or into a Prediction (evaluation). `risbench method new NAME` writes such
a folder, and `risbench method check PATH` examines one; docs/add-a-method.md lists what it demands.

A complete method, which ignores the words:

    from torch import nn
    from torch.nn import functional

    from risbench.api import Method, Prediction
    from risbench.data.text import WordTokenizer
    from risbench.nn.segmentation import area_average


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
from risbench.data.pretrained import Pretrained
from risbench.data.text import Tokenizer, Words
from risbench.errors import InputError
from risbench.recipe import Recipe, Value

__all__ = [
    "Batch",
    "Converted",
    "Method",
    "Panel",
    "Prediction",
    "Pretrained",
    "Tokenizer",
    "Words",
    "peak_of",
    "repeat_for_expressions",
]


class Prediction(NamedTuple):
    """A method's prediction of a batch, on any grid over the network input."""

    probability: Tensor  # (B, h, w) in [0, 1]
    peak: Tensor | None = None  # (B, 2) int64: row and column of the referent on that grid
    no_target: Tensor | None = None  # (B,) in [0, 1]: probability that the expression refers to nothing in the image


class Panel(NamedTuple):
    """A map that explains a prediction, to be drawn."""

    title: str
    values: Tensor  # (h, w) in [0, 1], on any grid over the network input


class Converted(NamedTuple):
    """The content of a checkpoint file that a method's authors released."""

    tensors: dict[str, Tensor]  # the weights under the authors' names, in our shapes
    released: Callable[[str], str]  # from our name of a weight to the authors'
    model: dict[str, Value]  # settings of [model] that follow from the weights' shapes
    variants: list[str]  # variants of the recipe besides the one with these settings
    vocabulary: str  # name on Hugging Face of the model whose word pieces the weights use
    pieces: int  # number of word pieces that have an embedding
    dataset: str = ""  # training data; empty: the file does not name it
    pretraining: Sequence[str] | None = None  # data of the weights that its training began from; None: unknown
    epoch: int | None = None  # as the file counts epochs
    needless: Mapping[str, int] = {}  # entries that are not needed, counted by kind
    left: Sequence[str] = ()  # names of unknown entries
    notes: Sequence[str] = ()  # what to know about the weights; said before all else


class Method(nn.Module, ABC):
    """Base class of every method's Model."""

    pretrained: tuple[Pretrained, ...] = ()  # what load_pretrained returned; stored in every record
    frozen: Mapping[str, str] = {}  # reasons by the prefix of names of parameters that are not trained

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

    def load_pretrained(self, recipe: Recipe, tokenizer: Any) -> Sequence[Pretrained]:
        """Load the pretrained weights that the recipe names; return a value for each part, also one left as it was.

        The training data of a file are None: the harness puts in what the recipe declares (train.pretraining).
        """
        return ()

    @classmethod
    def convert(cls, content: dict[str, Any]) -> Converted:
        """Find the weights in the content of a file that the method's authors released.

        What wrappers such as DataParallel add to the names of weights is left out already. Raises InputError when it is
        another file; the message continues a sentence that begins with the file's name. A method without its own
        `convert` has no converter.
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalar loss terms under the paper's names; `total` is optimised, the rest is logged.

        They are means over the expressions: the trainer weights those of a micro-batch by its number of expressions.
        """

    @abstractmethod
    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute, once per image, the features that do not depend on the words: tensors (I, ...)."""

    @abstractmethod
    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict from features that have been repeated for the expressions: tensors (B, ...)."""

    def predict(self, batch: Batch) -> Prediction:
        """Predict every expression of the batch."""
        return self.predict_from(repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words)

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """Return maps that explain the prediction of a batch of one expression.

        `tokens` are the positions of a chosen word in its ids, or empty. Raises InputError when there is no such map.
        """
        raise InputError("This method has no maps to explain its mask: leave --explain out.")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for the optimiser, which may set lr or weight_decay. Default: all trained parameters in one."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def repeat_for_expressions(features: tuple[Tensor, ...], image_index: Tensor) -> tuple[Tensor, ...]:
    """Repeat per-image features for the expressions: (I, ...) to (B, ...)."""
    return tuple(feature[image_index] for feature in features)


def peak_of(response: Tensor) -> Tensor:
    """Return row and column of each map's maximum, the first in row order on ties: (B, h, w) to (B, 2)."""
    position = response.flatten(1).argmax(dim=1)  # (B,)
    return torch.stack((position // response.shape[-1], position % response.shape[-1]), dim=1)
