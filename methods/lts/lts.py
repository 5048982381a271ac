"""LTS, "Locate Then Segment: A Strong Pipeline for Referring Image Segmentation" (Jing et al., CVPR 2021).

No code of the authors is public; this follows the paper, and README.md lists our reading of what it leaves open.

B expressions, I images, T words, C channels, H W the network input. The paper counts feature levels from coarse to
fine: F_v1 at H/32, F_v2 at H/16, F_v3 at H/8.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from risbench.api import Batch, Method, Panel, Prediction, Words, at, peak_of
from risbench.data.text import WordTokenizer
from risbench.errors import InputError
from risbench.nn.darknet import darknet53, load_weights
from risbench.nn.segmentation import ASPPDeconvolution, area_average, summed_bce
from risbench.recipe import Field, Recipe, Section, section

from .glove import fill, random_vectors

_log = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """Word vectors, bidirectional GRU, mean over the words (section 3.2)."""

    def __init__(self, vectors: nn.Embedding, channels: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.gru = nn.GRU(vectors.embedding_dim, channels // 2, bidirectional=True, batch_first=True)

    def forward(self, words: Words) -> Tensor:
        """(B, T) to f_text (B, C); padding is left out of the GRU and of the mean."""
        lengths = words.mask.sum(dim=1)  # (B,)
        packed = pack_padded_sequence(self.vectors(words.ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)  # (B, T', C), zero behind the words
        return states.sum(dim=1) / lengths[:, None]


class Fusion(nn.Module):
    """Multi-modal feature F_m3 from three visual levels and the sentence (eq. 5-7)."""

    def __init__(self, visual: Sequence[int], text_channels: int, channels: int, slope: float) -> None:
        super().__init__()
        coarse, middle, fine = visual
        self.visual1 = projection(coarse, channels, slope)
        self.text = nn.Sequential(
            nn.Linear(text_channels, channels, bias=False), nn.BatchNorm1d(channels), nn.LeakyReLU(slope)
        )
        self.multi1 = projection(channels, channels, slope)
        self.visual2 = projection(middle, channels, slope)
        self.multi2 = projection(2 * channels, channels, slope)
        self.visual3 = projection(fine, channels, slope)

    def forward(self, visual: Sequence[Tensor], text: Tensor) -> Tensor:
        """F_v1 (B, C1, H/32, W/32), F_v2, F_v3 and f_text (B, C_t) to F_m3 (B, 2 channels, H/8, W/8)."""
        coarse, middle, fine = visual
        multi1 = self.visual1(coarse) * self.text(text)[:, :, None, None]
        multi2 = torch.cat((self.multi1(double(multi1)), self.visual2(middle)), dim=1)
        return torch.cat((self.multi2(double(multi2)), self.visual3(fine)), dim=1)


class RelevanceFilter(nn.Module):
    """Localisation: the sentence becomes a 1x1 kernel that answers where F_m3 fits it (eq. 8)."""

    def __init__(self, text_channels: int, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(text_channels, channels)

    def forward(self, multi: Tensor, text: Tensor) -> Tensor:
        """F_m3 (B, C, H/8, W/8) and f_text (B, C_t) to the logits of H_mask (B, H/8, W/8)."""
        return torch.einsum("bchw,bc->bhw", multi, self.kernel(text))


class LTS(nn.Module):
    """Locate with a filter made of the sentence, then segment around the answer."""

    def __init__(
        self, text: TextEncoder, fusion: Fusion, localisation: RelevanceFilter, segmentation: ASPPDeconvolution
    ) -> None:
        super().__init__()
        self.text = text
        self.fusion = fusion
        self.localisation = localisation
        self.segmentation = segmentation

    def forward(self, visual: Sequence[Tensor], words: Words) -> tuple[Tensor, Tensor]:
        """Visual levels (B, ...) to logits of H_mask (B, H/8, W/8) and of P_mask (B, H/4, W/4)."""
        text = self.text(words)  # (B, C_t)
        multi = self.fusion(visual, text)  # (B, C, H/8, W/8)
        heat = self.localisation(multi, text)  # (B, H/8, W/8)
        mask = self.segmentation(torch.cat((multi, heat[:, None]), dim=1))  # (B, H/4, W/4)
        return heat, mask


Positive = Annotated[int, Field(gt=0)]
Slope = Annotated[float, Field(ge=0, lt=1)]


class Settings(Section):
    """[model] of recipe.toml, which says what each key means."""

    pretrained: bool
    backbone_weights: str
    backbone_slope: Slope
    stem_channels: Positive
    stage_channels: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=5, max_length=5)]
    stage_depths: Annotated[list[Positive], Field(min_length=5, max_length=5)]
    glove: str
    word_width: Positive
    text_channels: Annotated[int, Field(gt=0, multiple_of=2)]  # half for each direction
    fusion_channels: Positive
    slope: Slope
    aspp_channels: Positive
    aspp_rates: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    loc_weight: Annotated[float, Field(ge=0)]


class Model(Method):
    """LTS behind the harness's contract."""

    def __init__(self, backbone: nn.Module, network: LTS, loc_weight: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = network
        self.loc_weight = loc_weight

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> WordTokenizer:
        """A vocabulary of all words of the training expressions."""
        return WordTokenizer.build(expressions, recipe.text.max_tokens)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordTokenizer) -> Self:
        """Build the network of section 3 with the numbers of [model]."""
        model = section(Settings, recipe.model, "model")
        _check_side(recipe.image.size)
        slope, text_channels, channels = model.slope, model.text_channels, model.fusion_channels
        backbone = darknet53(model.stem_channels, model.stage_channels, model.stage_depths, model.backbone_slope)
        network = LTS(
            TextEncoder(random_vectors(len(tokenizer), model.word_width), text_channels),
            Fusion(model.stage_channels[:1:-1], text_channels, channels, slope),
            RelevanceFilter(text_channels, 2 * channels),
            ASPPDeconvolution(2 * channels + 1, model.aspp_channels, model.aspp_rates, model.dropout, slope),
        )
        return cls(backbone, network, model.loc_weight)

    def load_pretrained(self, recipe: Recipe, tokenizer: WordTokenizer) -> None:
        """Darknet53's weights and GloVe's vectors, as [model] names them."""
        model = section(Settings, recipe.model, "model")
        if not model.pretrained:
            return
        loaded = load_weights(self.backbone, model.backbone_weights, model.backbone_slope)
        if not model.glove:
            _log.warning("No GloVe file is given (model.glove): word vectors start random; the paper's are GloVe's.")
        loaded_words = fill(self.network.text.vectors, tokenizer.vocabulary, model.glove) if model.glove else "random"
        self.weights = f"Darknet53 {loaded}; word vectors {loaded_words}"

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """F_v1 (I, C1, H/32, W/32), F_v2 (I, C2, H/16, W/16), F_v3 (I, C3, H/8, W/8)."""
        _check_side(batch.image.shape[-1])  # a protocol may set another size than the recipe
        fine, middle, coarse = self.backbone(batch.image)
        return coarse, middle, fine

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L = L_seg + lambda L_loc (eq. 11-13), on the grids of P_mask and H_mask."""
        assert batch.mask is not None
        heat, mask = self.network(at(self.encode_image(batch), batch.image_index), batch.words)
        seg = summed_bce(mask, area_average(batch.mask, (mask.shape[1], mask.shape[2])))
        loc = summed_bce(heat, area_average(batch.mask, (heat.shape[1], heat.shape[2])))
        return {"total": seg + self.loc_weight * loc, "L_seg": seg, "L_loc": loc}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """P_mask as the probability, the maximum of H_mask as the peak, on P_mask's grid."""
        heat, mask = self.network(features, words)
        peak = 2 * peak_of(heat) + 1  # H_mask is half as fine: the cell whose corner is the centre of the coarse cell
        return Prediction(mask.sigmoid(), peak)

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """H_mask, the heat map of Fig. 4: where the localisation module says that the referent is."""
        if tokens:
            raise InputError("LTS reads a sentence as a whole, without attention to its words: leave --word out.")
        heat, _ = self.network(at(self.encode_image(batch), batch.image_index), batch.words)
        values = heat[0].float().sigmoid()  # (H/8, W/8)
        return [Panel(f"H_mask, where the referent is: at most {values.max():.2f}", values)]


def _check_side(side: int) -> None:
    if side % 32:
        raise InputError(f"image.size={side} does not fit LTS, whose coarsest map is H/32: give a multiple of 32.")


def projection(in_channels: int, channels: int, slope: float) -> nn.Module:
    """g(x W): 1x1 convolution, batch normalisation, LeakyReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(slope)
    )


def double(x: Tensor) -> Tensor:
    """Up-sample by 2, bilinearly: (B, C, h, w) to (B, C, 2h, 2w)."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
