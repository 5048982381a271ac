"""LTS, "Locate Then Segment: A Strong Pipeline for Referring Image Segmentation" (Jing et al., CVPR 2021).

No code of the authors is public; this follows the paper, and README.md lists our reading of what it leaves open.

B expressions, I images, T words, C channels, H W the network input. The paper counts feature levels from coarse to
fine: F_v1 at H/32, F_v2 at H/16, F_v3 at H/8.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Annotated, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Method, Panel, Prediction, Words, peak_of, repeat_for_expressions
from risbench.data.text import WordTokenizer
from risbench.errors import InputError
from risbench.nn.darknet import darknet53, load_weights
from risbench.nn.segmentation import ASPPDeconvolution, Logit, area_average, summed_bce
from risbench.recipe import Field, Recipe, Section, section

from .glove import fill, random_vectors
from .localisation import RelevanceFilter, Response, Transformer, WordFilter
from .text import Text, TextEncoder

_log = logging.getLogger(__name__)


class Fusion(nn.Module):
    """Multi-modal feature F_m3 from three visual levels and the sentence, or from the levels alone (eq. 5-7)."""

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

    def forward(self, visual: Sequence[Tensor], sentence: Tensor) -> Tensor:
        """F_v1 (B, C1, H/32, W/32), F_v2, F_v3 and f_text (B, C_t) to F_m3 (B, 2 channels, H/8, W/8)."""
        coarse, middle, fine = visual
        multi1 = self.visual1(coarse)
        if self.text is not None:
            multi1 = multi1 * self.text(sentence)[:, :, None, None]
        multi2 = torch.cat((self.multi1(double(multi1)), self.visual2(middle)), dim=1)
        return torch.cat((self.multi2(double(multi2)), self.visual3(fine)), dim=1)


class LTS(nn.Module):
    """Locate by the sentence, then segment around the answer; the rows of Table 2 leave out one or the other."""

    def __init__(
        self, text: TextEncoder, fusion: Fusion, localisation: nn.Module | None, segmentation: nn.Module | None
    ) -> None:
        super().__init__()
        self.text = text
        self.fusion = fusion
        self.localisation = localisation
        self.segmentation = segmentation

    def forward(self, visual: Sequence[Tensor], words: Words) -> tuple[Tensor | None, Tensor]:
        """Visual levels (B, ...) to logits of H_mask (B, H/8, W/8), None without localisation, and of P_mask.

        P_mask is at H/4; without the segmentation module it is at H/8: H_mask itself, or what F_m3 alone says.
        """
        text: Text = self.text(words)
        multi = self.fusion(visual, text.sentence)  # (B, C, H/8, W/8)
        if self.localisation is None:
            assert self.segmentation is not None  # something must make P_mask
            return None, self.segmentation(multi)
        heat = self.localisation(multi, text)  # (B, H/8, W/8)
        if self.segmentation is None:
            return heat, heat
        return heat, self.segmentation(torch.cat((multi, heat[:, None]), dim=1))


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
    # The rows of the ablations; checkpoints that are older than these keys hold the network of the defaults.
    fusion: bool = True
    filters: Annotated[int, Field(ge=0)] = 1
    word_filter: bool = False
    transformer: bool = False
    transformer_heads: Positive = 4
    transformer_hidden: Positive = 1024
    segmentation: bool = True

    @property
    def locates(self) -> bool:
        """Whether there is an H_mask."""
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
        """A vocabulary of all words of the training expressions."""
        return WordTokenizer.build(expressions, recipe.text.max_tokens)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordTokenizer) -> Self:
        """Build the network of section 3 with the numbers of [model]."""
        model = section(Settings, recipe.model, "model")
        _check_parts(model)
        _check_side(recipe.image.size)
        slope, text_channels, channels = model.slope, model.text_channels, model.fusion_channels
        backbone = darknet53(model.stem_channels, model.stage_channels, model.stage_depths, model.backbone_slope)
        network = LTS(
            TextEncoder(random_vectors(len(tokenizer), model.word_width), text_channels),
            Fusion(model.stage_channels[:1:-1], text_channels if model.fusion else None, channels, slope),
            _localisation(model),
            _segmentation(model),
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
        """L = L_seg + lambda L_loc (eq. 11-13), on the grids of P_mask and H_mask; L_seg alone where lambda is 0."""
        assert batch.mask is not None
        heat, mask = self.network(repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words)
        seg = summed_bce(mask, area_average(batch.mask, (mask.shape[1], mask.shape[2])))
        if not self.loc_weight:
            return {"total": seg, "L_seg": seg}
        loc = summed_bce(heat, area_average(batch.mask, (heat.shape[1], heat.shape[2])))
        return {"total": seg + self.loc_weight * loc, "L_seg": seg, "L_loc": loc}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """P_mask as the probability; the maximum of H_mask, where there is one, as the peak, on P_mask's grid."""
        heat, mask = self.network(features, words)
        if heat is None:
            return Prediction(mask.sigmoid())
        finer = mask.shape[-1] // heat.shape[-1]  # 2: the peak is the cell whose corner is the coarse cell's centre
        return Prediction(mask.sigmoid(), finer * peak_of(heat) + finer // 2)

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """H_mask, the heat map of Fig. 4: where the localisation module says that the referent is."""
        if tokens:
            raise InputError("LTS shows H_mask, a map of the whole sentence and of no word: leave --word out.")
        heat, _ = self.network(repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words)
        if heat is None:
            raise InputError("This LTS has no localisation, and so no H_mask to show: leave --explain out.")
        values = heat[0].float().sigmoid()  # (H/8, W/8)
        return [Panel(f"H_mask, where the referent is: at most {values.max():.2f}", values)]


def _localisation(model: Settings) -> nn.Module | None:
    """The module that makes H_mask, if there is one."""
    text_channels, channels = model.text_channels, 2 * model.fusion_channels
    response: nn.Module | None = None
    if model.word_filter:
        response = WordFilter(text_channels, channels)
    elif model.filters:
        response = RelevanceFilter(text_channels, channels, model.filters)
    if not model.transformer:
        return response
    response = response or Response(channels)
    return Transformer(text_channels, channels, model.transformer_heads, model.transformer_hidden, response)


def _segmentation(model: Settings) -> nn.Module | None:
    """The module that makes P_mask; none where P_mask is H_mask."""
    channels = 2 * model.fusion_channels
    if model.segmentation:
        in_channels = channels + model.locates  # F_m3 and H_mask
        return ASPPDeconvolution(in_channels, model.aspp_channels, model.aspp_rates, model.dropout, model.slope)
    return None if model.locates else Logit(channels)


def _check_parts(model: Settings) -> None:
    """Refuse parts that do not fit together."""
    if not (model.fusion or model.locates):
        raise InputError(
            "model.fusion=false and model.filters=0 leave nothing that reads the words: set model.fusion=true, "
            "model.filters=1 or model.transformer=true."
        )
    if model.word_filter and model.filters != 1:
        raise InputError(f"model.filters={model.filters} with model.word_filter=true: each word filters once, give 1.")
    if model.loc_weight and not (model.locates and model.segmentation):
        raise InputError(
            f"model.loc_weight={model.loc_weight} trains H_mask beside P_mask, but they are not both there: give 0."
        )
    channels, heads = 2 * model.fusion_channels, model.transformer_heads
    if model.transformer and channels % math.lcm(heads, 4):  # 4: sine and cosine of rows and of columns
        raise InputError(
            f"model.transformer_heads={heads}, and the four parts of a position, cannot share {channels} channels "
            f"(twice model.fusion_channels). Give channels that are a multiple of {math.lcm(heads, 4)}."
        )


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
