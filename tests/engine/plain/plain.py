"""A method for tests of the trainer: no normalisation and no dropout, and its loss is a mean over the expressions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Method, Prediction, Words, repeat_for_expressions
from risbench.data.text import WordTokenizer
from risbench.nn.segmentation import area_average
from risbench.recipe import Recipe, Section, validate_section


class Settings(Section):
    """[model] of recipe.toml, which explains every key."""

    channels: int
    spoilt: list[int]


class Model(Method):
    """Features of the image times those of the mean word, and one logit for each cell."""

    def __init__(self, settings: Settings, words: int) -> None:
        super().__init__()
        self.settings = settings
        self.image = nn.Conv2d(3, settings.channels, kernel_size=8, stride=8)
        self.words = nn.Embedding(words, settings.channels)
        self.logit = nn.Linear(settings.channels, 1)
        self.calls = 0

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> WordTokenizer:
        """Make a vocabulary of all words of the training expressions."""
        return WordTokenizer.build(expressions, recipe.text.max_tokens)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        return cls(validate_section(Settings, recipe.model, "model"), len(tokenizer))

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the image's features (I, C, H/8, W/8)."""
        return (self.image(batch.image),)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy and, with half its weight, the mean probability."""
        assert batch.mask is not None
        logits = self._logits(repeat_for_expressions(self.encode_image(batch), batch.image_index)[0], batch.words)
        truth = area_average(batch.mask, (logits.shape[1], logits.shape[2]))
        entropy = functional.binary_cross_entropy_with_logits(logits, truth)
        area = logits.sigmoid().mean()
        self.calls += 1
        if self.settings.spoilt == [int(os.environ.get("RANK", "0")), self.calls]:
            area = area * torch.nan
        return {"total": entropy + 0.5 * area, "entropy": entropy, "area": area}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the probability of every cell (B, H/8, W/8)."""
        return Prediction(self._logits(features[0], words).sigmoid())

    def _logits(self, features: Tensor, words: Words) -> Tensor:
        mask = words.mask[:, :, None]
        sentence = (self.words(words.ids) * mask).sum(dim=1) / mask.sum(dim=1)  # (B, C)
        logits: Tensor = self.logit((features * sentence[:, :, None, None]).movedim(1, -1))[..., 0]
        return logits
