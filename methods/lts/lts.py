"""LTS, "Locate Then Segment: A Strong Pipeline for Referring Image Segmentation" (Jing et al., CVPR 2021).

No code of the authors is public; this follows the paper, and README.md lists our reading of what it leaves open.

B expressions, I images, T words, C channels, H W the network input. The paper counts feature levels from coarse to
fine: F_v1 at H/32, F_v2 at H/16, F_v3 at H/8.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Annotated, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Method, Panel, Prediction, Pretrained, Words, peak_of, repeat_for_expressions
from risbench.data.pretrained import from_scratch
from risbench.data.text import WordTokenizer
from risbench.errors import InputError
from risbench.nn.darknet import darknet53, load_weights
from risbench.nn.logits import Logit
from risbench.nn.segmentation import ASPPDeconvolution, area_average, summed_bce
from risbench.recipe import (
    Field,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Recipe,
    Section,
    validate_section,
)

from .glove import load_glove, random_vectors
from .localisation import RelevanceFilter, Response, Transformer, WordFilter
from .text import Text, TextEncoder

_log = logging.getLogger(__name__)


class Fusion(nn.Module):
    """The multi-modal feature F_m3 of three visual levels and, optionally, the sentence (eq. 5-7)."""

    def __init__(self, visual: Sequence[int], text_channels: int | None, channels: int, slope: float) -> None:
        super().__init__()
        coarse, middle, fine = visual
        self.visual1 = projection(coarse, channels, slope)
        self.text: nn.Module | None = None
        if text_channels is not None:
            self.text = nn.Sequential(
                nn.Linear(text_channels, channels, bias=False), nn.BatchNorm1d(channels), nn.LeakyReLU(slope)
            )
        self.multi1 = projection(channels, channels, slope)
        self.visual2 = projection(middle, channels, slope)
        self.multi2 = projection(2 * channels, channels, slope)
        self.visual3 = projection(fine, channels, slope)

    def project_image(self, visual: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what is of the image alone: F_vi (I, C_i, h_i, w_i) to g(F_vi W_vi) (I, channels, h_i, w_i)."""
        coarse, middle, fine = visual
        return self.visual1(coarse), self.visual2(middle), self.visual3(fine)

    def forward(self, projected: Sequence[Tensor], sentence: Tensor) -> Tensor:
        """The projected levels (B, channels, h_i, w_i) and f_text (B, C_t) to F_m3 (B, 2 channels, H/8, W/8)."""
        multi1, middle, fine = projected
        if self.text is not None:
            multi1 = multi1 * self.text(sentence)[:, :, None, None]
        multi2 = torch.cat((project_upsampled(self.multi1, multi1), middle), dim=1)  # (B, 2 channels, H/16, W/16)
        return torch.cat((project_upsampled(self.multi2, multi2), fine), dim=1)


class LTS(nn.Module):
    """Locate the referent by the sentence, then segment it; rows of Table 2 leave out one of the two."""

    def __init__(
        self, text: TextEncoder, fusion: Fusion, localisation: nn.Module | None, segmentation: nn.Module | None
    ) -> None:
        super().__init__()
        self.text = text
        self.fusion = fusion
        self.localisation = localisation
        self.segmentation = segmentation

    def forward(self, projected: Sequence[Tensor], words: Words) -> tuple[Tensor | None, Tensor]:
        """Projected visual levels (B, C, h, w) to the logits of H_mask (B, H/8, W/8) and of P_mask (B, H/4, W/4).

        H_mask is None without localisation. P_mask is H_mask without segmentation; without both it is at H/8.
        """
        text: Text = self.text(words)
        multi = self.fusion(projected, text.sentence)  # (B, C, H/8, W/8)
        if self.localisation is None:
            assert self.segmentation is not None  # P_mask needs one of the two
            return None, self.segmentation(multi)
        heat = self.localisation(multi, text)  # (B, H/8, W/8)
        if self.segmentation is None:
            return heat, heat
        both = torch.cat((multi, heat[:, None]), dim=1)  # (B, C + 1, H/8, W/8)
        return heat, self.segmentation(both.to(memory_format=torch.channels_last))  # cat lost the layout


class Settings(Section):
    """[model] of recipe.toml, which explains every key."""

    pretrained: bool
    backbone_weights: str
    backbone_slope: Fraction
    stem_channels: PositiveInt
    stage_channels: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=5, max_length=5)]
    stage_depths: Annotated[list[PositiveInt], Field(min_length=5, max_length=5)]
    glove: str
    word_width: PositiveInt
    text_channels: Annotated[int, Field(gt=0, multiple_of=2)]  # half of them for each direction
    fusion_channels: PositiveInt
    slope: Fraction
    aspp_channels: PositiveInt
    aspp_rates: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    dropout: Fraction
    loc_weight: NonNegativeFloat
    # Parts that rows of the ablations leave out. Older checkpoints lack these keys; the defaults are their network.
    fusion: bool = True
    filters: NonNegativeInt = 1
    word_filter: bool = False
    transformer: bool = False
    transformer_heads: PositiveInt = 4
    transformer_hidden: PositiveInt = 1024
    segmentation: bool = True

    @property
    def has_localisation(self) -> bool:
        """Whether there is a localisation module, which makes H_mask."""
        return self.filters > 0 or self.transformer


class Model(Method):
    """LTS behind the harness's contract."""

    def __init__(self, backbone: nn.Module, network: LTS, loc_weight: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = network
        self.loc_weight = loc_weight

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> WordTokenizer:
        """Make a vocabulary of all words of the training expressions."""
        return WordTokenizer.build(expressions, recipe.text.max_tokens)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordTokenizer) -> Self:
        """Build the network of section 3 with the numbers of [model]."""
        settings = validate_section(Settings, recipe.model, "model")
        _check_parts(settings)
        _check_side(recipe.image.size)
        slope, text_channels, channels = settings.slope, settings.text_channels, settings.fusion_channels
        backbone = darknet53(
            settings.stem_channels, settings.stage_channels, settings.stage_depths, settings.backbone_slope
        )
        network = LTS(
            TextEncoder(random_vectors(len(tokenizer), settings.word_width), text_channels),
            Fusion(settings.stage_channels[:1:-1], text_channels if settings.fusion else None, channels, slope),
            _build_localisation(settings),
            _build_segmentation(settings),
        )
        layout = torch.channels_last
        return cls(backbone.to(memory_format=layout), network.to(memory_format=layout), settings.loc_weight)

    def load_pretrained(self, recipe: Recipe, tokenizer: WordTokenizer) -> list[Pretrained]:
        """Load Darknet53's weights and GloVe's vectors, as [model] names them."""
        settings = validate_section(Settings, recipe.model, "model")
        if not settings.pretrained:
            return []
        backbone = load_weights(self.backbone, settings.backbone_weights, settings.backbone_slope)
        if settings.glove:
            return [backbone, load_glove(self.network.text.vectors, tokenizer.vocabulary, settings.glove)]
        _log.warning("No GloVe file is given (model.glove): word vectors start random; the paper's are GloVe's.")
        return [backbone, from_scratch("word vectors")]

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute g(F_vi W_vi) (I, C, h, w), the coarsest level first: at H/32, H/16 and H/8."""
        _check_side(batch.image.shape[-1])  # a protocol may set another size than the recipe
        fine, middle, coarse = self.backbone(batch.image)
        return self.network.fusion.project_image((coarse, middle, fine))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L = L_seg + lambda L_loc (eq. 11-13), on the grids of P_mask and H_mask; only L_seg when lambda is 0."""
        assert batch.mask is not None
        heat, mask = self.network(repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words)
        seg = summed_bce(mask, area_average(batch.mask, (mask.shape[1], mask.shape[2])))
        if not self.loc_weight:
            return {"total": seg, "L_seg": seg}
        loc = summed_bce(heat, area_average(batch.mask, (heat.shape[1], heat.shape[2])))
        return {"total": seg + self.loc_weight * loc, "L_seg": seg, "L_loc": loc}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Return P_mask as the probability and the maximum of H_mask, if there is one, as the peak on P_mask's grid."""
        heat, mask = self.network(features, words)
        if heat is None:
            return Prediction(mask.sigmoid())
        scale = mask.shape[-1] // heat.shape[-1]  # 2: the peak is the cell whose corner is the coarse cell's centre
        return Prediction(mask.sigmoid(), scale * peak_of(heat) + scale // 2)

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """Return H_mask, the heat map of Fig. 4."""
        if tokens:
            raise InputError("LTS shows H_mask, a map of the whole sentence, not of a word: leave --word out.")
        heat, _ = self.network(repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words)
        if heat is None:
            raise InputError("This LTS has no localisation and so no H_mask to show: leave --explain out.")
        values = heat[0].float().sigmoid()  # (H/8, W/8)
        return [Panel(f"H_mask, where the referent is: at most {values.max():.2f}", values)]


def _build_localisation(settings: Settings) -> nn.Module | None:
    """Build the module that makes H_mask, or None."""
    text_channels, channels = settings.text_channels, 2 * settings.fusion_channels
    response: nn.Module | None = None
    if settings.word_filter:
        response = WordFilter(text_channels, channels)
    elif settings.filters:
        response = RelevanceFilter(text_channels, channels, settings.filters)
    if not settings.transformer:
        return response
    response = response or Response(channels)
    return Transformer(text_channels, channels, settings.transformer_heads, settings.transformer_hidden, response)


def _build_segmentation(settings: Settings) -> nn.Module | None:
    """Build the module that makes P_mask, or None when P_mask is H_mask."""
    channels = 2 * settings.fusion_channels
    if settings.segmentation:
        in_channels = channels + settings.has_localisation  # F_m3 and H_mask
        return ASPPDeconvolution(
            in_channels, settings.aspp_channels, settings.aspp_rates, settings.dropout, settings.slope
        )
    return None if settings.has_localisation else Logit(channels)


def _check_parts(settings: Settings) -> None:
    """Raise InputError for parts that do not fit together."""
    if not (settings.fusion or settings.has_localisation):
        raise InputError(
            "model.fusion=false and model.filters=0 leave nothing that reads the words: set model.fusion=true, "
            "model.filters=1 or model.transformer=true."
        )
    if settings.word_filter and settings.filters != 1:
        raise InputError(
            f"model.filters={settings.filters} with model.word_filter=true: each word filters once. Give 1."
        )
    if settings.loc_weight and not (settings.has_localisation and settings.segmentation):
        raise InputError(
            f"model.loc_weight={settings.loc_weight} trains H_mask beside P_mask, but one of them is missing. Give 0."
        )
    channels, heads = 2 * settings.fusion_channels, settings.transformer_heads
    if settings.transformer and channels % math.lcm(heads, 4):  # 4: sine and cosine of rows and of columns
        raise InputError(
            f"model.transformer_heads={heads}, and the four parts of a position, cannot share {channels} channels "
            f"(twice model.fusion_channels). Give channels that are a multiple of {math.lcm(heads, 4)}."
        )


def _check_side(side: int) -> None:
    """Raise InputError for an input whose coarsest map is no whole number of cells."""
    if side % 32:
        raise InputError(f"image.size={side} does not fit LTS, whose coarsest map is H/32: give a multiple of 32.")


def projection(in_channels: int, channels: int, slope: float) -> nn.Sequential:
    """Return g(x W): 1x1 convolution, batch normalisation, LeakyReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(slope)
    )


def project_upsampled(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Return g(F' W), where F' is x up-sampled twofold: (B, C, h, w) to (B, channels, 2h, 2w).

    A 1x1 convolution and bilinear up-sampling are linear and commute; the convolution comes first, at a quarter of the
    cost.
    """
    convolution, normalisation, activation = layers
    return cast(Tensor, activation(normalisation(upsample_twofold(convolution(x)))))


def upsample_twofold(x: Tensor) -> Tensor:
    """Double the resolution bilinearly: (B, C, h, w) to (B, C, 2h, 2w)."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
