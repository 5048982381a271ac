"""TEMPLATE, a small network to start from: say here what it does, and which paper it follows.

The image becomes features, each feature is weighted by the sentence, and convolutions turn the product into a mask.

B expressions, I images, T words, C channels, H W the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Method, Prediction, Words, repeat_for_expressions
from risbench.data.text import WordTokenizer
from risbench.nn.convolution import ConvNormReLU
from risbench.nn.logits import Logit
from risbench.nn.segmentation import area_average
from risbench.recipe import PositiveInt, Recipe, Section, validate_section


class Settings(Section):
    """[model] of recipe.toml, which explains every key."""

    channels: PositiveInt
    layers: PositiveInt


class ImageEncoder(nn.Module):
    """Convolutions, the first two of stride 2, and the position of every cell."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, kernel_size=5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.layers = nn.Sequential(
            ConvNormReLU(channels + 2, channels), *(ConvNormReLU(channels, channels) for _ in range(layers - 1))
        )

    def forward(self, image: Tensor) -> Tensor:
        """(I, 3, H, W) to (I, C, H/4, W/4)."""
        x = self.stem(image)
        rows = torch.linspace(-1, 1, x.shape[2], device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, x.shape[3], device=x.device, dtype=x.dtype)
        position = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, H/4, W/4)
        x = torch.cat((x, position.expand(len(x), -1, -1, -1)), dim=1)  # (I, C + 2, H/4, W/4)
        features: Tensor = self.layers(x)
        return features


class SentenceEncoder(nn.Module):
    """Word vectors and a GRU, whose state after the last word is the sentence."""

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, channels, padding_idx=0)
        self.gru = nn.GRU(channels, channels, batch_first=True)

    def forward(self, words: Words) -> Tensor:
        """Return the sentence of each expression: (B, C)."""
        states, _ = self.gru(self.vectors(words.ids))  # (B, T, C)
        last = words.mask.sum(dim=1) - 1  # (B,); what stands behind it is padding
        sentence: Tensor = states[torch.arange(len(last), device=last.device), last]
        return sentence


class Network(nn.Module):
    """Both encoders, and the decoder of their product."""

    def __init__(self, words: int, channels: int, layers: int) -> None:
        super().__init__()
        self.image = ImageEncoder(channels, layers)
        self.sentence = SentenceEncoder(words, channels)
        self.decoder = nn.Sequential(*(ConvNormReLU(channels, channels) for _ in range(layers)), Logit(channels))

    def forward(self, features: Tensor, words: Words) -> Tensor:
        """The image's features (B, C, H/4, W/4) and the words to the logits of the mask (B, H/4, W/4)."""
        logits: Tensor = self.decoder(features * self.sentence(words)[:, :, None, None])
        return logits


class Model(Method):
    """The network behind the harness's contract."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> WordTokenizer:
        """Make a vocabulary of all words of the training expressions."""
        return WordTokenizer.build(expressions, recipe.text.max_tokens)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        settings = validate_section(Settings, recipe.model, "model")
        return cls(Network(len(tokenizer), settings.channels, settings.layers))

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the image's features (I, C, H/4, W/4), before the words take part."""
        return (self.network.image(batch.image),)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy of the mask on the grid of the logits."""
        assert batch.mask is not None
        (features,) = repeat_for_expressions(self.encode_image(batch), batch.image_index)
        logits = self.network(features, batch.words)
        truth = area_average(batch.mask, (logits.shape[1], logits.shape[2]))  # (B, H/4, W/4)
        return {"total": functional.binary_cross_entropy_with_logits(logits, truth)}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the probability of every cell (B, H/4, W/4); `no_target` (B,) is for networks that answer it."""
        return Prediction(self.network(features[0], words).sigmoid())
