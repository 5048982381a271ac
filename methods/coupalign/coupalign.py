"""CoupAlign, "Coupling Word-Pixel with Sentence-Mask Alignments for Referring Image Segmentation" (NeurIPS 2022).

Its equations are in no source that we have: this is our reading, and README.md gives each decision with its reason.

B expressions, I images, T words, N masks, C and D channels, D_t text width, H W the network input, h w the grid of a
map. Stages count from the finest (H/4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Panel, Prediction, Words, repeat_for_expressions
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.convolution import ConvNormReLU
from risbench.nn.encoders import (
    Backbone,
    EncoderMethod,
    EncoderSettings,
    build_backbone,
    build_text_encoder,
    check_heads,
    check_taps,
)
from risbench.nn.fusion import mean_of_words
from risbench.nn.logits import target_probability, two_logits, upsample
from risbench.nn.mask_grounding import GroundingSettings, MaskGrounding, build_grounding, ground_words
from risbench.nn.panels import attention_panel
from risbench.nn.parameters import weight_decay_groups
from risbench.nn.segmentation import area_average
from risbench.recipe import (
    Field,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Recipe,
    validate_section,
)

from .alignment import SMA, WPA, Proposals
from .coherence import incoherence
from .contrast import pixel_contrast, prototype_contrast
from .generator import FPN, Attention, MaskGenerator

_MASK_PANELS = 6  # mask proposals that `explain` shows
_CONTRASTS = {"pairs": pixel_contrast, "prototype": prototype_contrast}


class Settings(EncoderSettings, GroundingSettings):
    """[model] of recipe.toml, which explains every key."""

    text_taps: Annotated[list[PositiveInt], Field(min_length=4, max_length=4)]
    alignment: bool
    alignment_width: PositiveInt
    alignment_heads: PositiveInt
    alignment_gate: PositiveFloat
    masks: NonNegativeInt
    mask_width: PositiveInt
    mask_layers: PositiveInt
    mask_heads: PositiveInt
    mask_dropout: Fraction
    mask_attention: Attention
    mask_weights: Literal["cosine", "product"]
    mask_temperature: PositiveFloat
    mask_coherence: NonNegativeFloat
    prior: Probability
    class_weights: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]
    contrast: NonNegativeFloat
    contrast_with: Literal["pairs", "prototype"]
    contrast_samples: Annotated[int, Field(gt=1)]
    temperature: PositiveFloat


class EncoderOutput(NamedTuple):
    """The outputs of both encoders for an image and a sentence."""

    maps: list[Tensor]  # S_o: four maps (B, h, w, C), the finest first
    words: Tensor  # (B, T, D_t)
    sentence: Tensor  # L_g (B, D_t)


class CoupAlign(nn.Module):
    """Two encoders, joined by word-pixel alignment after every stage."""

    def __init__(self, backbone: Backbone, text: Bert, taps: Sequence[int], alignments: nn.ModuleList) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        self.taps = list(taps)
        self.alignments = alignments  # one per stage, or empty
        self.norms = nn.ModuleList(map(nn.LayerNorm, backbone.widths))

    def encode_image(self, image: Tensor) -> Tensor:
        """Compute the first stage's map, before the words take part: (I, 3, H, W) to (I, H/4, W/4, C1)."""
        return self.backbone.stage(0, self.backbone.embed(image))

    def forward(self, first: Tensor, words: Words) -> EncoderOutput:
        """The first stage's map (B, H/4, W/4, C1) and the words to the output of both encoders."""
        x, states, maps, begin = first, self.text.embed(words), [], 0
        for number, (end, norm) in enumerate(zip(self.taps, self.norms, strict=True)):
            if number:
                x = self.backbone.stage(number, self.backbone.merge(number - 1, x))
            states, begin = self.text.run_layers(states, words.mask, begin, end), end
            if self.alignments:
                x, states = self.alignments[number](x, states, words.mask)
            maps.append(norm(x))
        return EncoderOutput(maps, states, mean_of_words(states, words.mask))

    def attention(self, first: Tensor, words: Words) -> list[Tensor]:
        """Return each word's attention to the pixels at every stage, (B, T, h, w)."""
        shares: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda wpa, inputs: shares.append(cast(WPA, wpa).attention(*inputs[:2])))
            for module in self.alignments
        ]
        try:
            self(first, words)
        finally:
            for hook in hooks:
                hook.remove()
        return shares


class HeadOutput(NamedTuple):
    """What the head makes of the encoders' output."""

    features: Tensor  # of the pixels, (B, D, H/4, W/4)
    logits: Tensor  # of background and target, (B, 2, H/4, W/4)
    masks: Tensor | None  # logits of the proposals' shares (B, N, H/4, W/4), or None without proposals


class Head(nn.Module):
    """Logits from pixel embeddings and mask proposals, or from pixel embeddings alone."""

    def __init__(
        self, pixels: FPN, generator: MaskGenerator | None, align: SMA | None, width: int, prior: float
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.generator = generator
        self.align = align
        self.join = ConvNormReLU(2 * width if generator else width, width)
        self.logits = two_logits(width, prior)

    def forward(self, encoded: EncoderOutput) -> HeadOutput:
        """Return features and logits of the pixels, and the masks."""
        pyramid = self.pixels(encoded.maps)
        x = pyramid[0]  # (B, D, H/4, W/4)
        if self.generator is None or self.align is None:
            features = self.join(x)
            return HeadOutput(features, self.logits(features), None)
        queries, masks = self.generator(pyramid)  # (B, N, D), (B, N, H/4, W/4)
        written, signal = self.align(queries, encoded.sentence, masks, x)  # (B, D, H/4, W/4), (B, H/4, W/4)
        features = self.join(torch.cat((x, written), dim=1))
        background, target = self.logits(features).unbind(dim=1)
        return HeadOutput(features, torch.stack((background, target + signal), dim=1), masks)

    def proposals(self, encoded: EncoderOutput) -> Proposals:
        """Return the weighted mask proposals; there must be some."""
        assert self.generator is not None and self.align is not None
        pyramid = self.pixels(encoded.maps)
        _, masks = self.generator(pyramid)
        return self.align.align(encoded.sentence, masks, pyramid[0])


class Model(EncoderMethod):
    """CoupAlign behind the harness's contract."""

    schema = Settings

    def __init__(self, network: CoupAlign, head: Head, grounding: MaskGrounding | None, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.grounding = grounding
        self.settings = settings
        self.register_buffer("class_weights", torch.tensor(settings.class_weights), persistent=False)
        if head.generator is None and network.alignments:
            unused = ("network.alignments.3.to_words.", "network.alignments.3.word_gate")
            self.frozen = dict.fromkeys(unused, "without masks nothing reads the words after the last stage")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(self.frozen)))

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordPieceTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        settings = validate_section(Settings, recipe.model, "model")
        _check(settings)
        backbone, text = build_backbone(settings), build_text_encoder(settings, len(tokenizer))
        network = CoupAlign(backbone, text, settings.text_taps, _build_alignments(settings, backbone.widths))
        head = _build_head(settings, backbone.widths)
        grounding = build_grounding(
            settings, tokenizer, settings.text_width, backbone.widths[-1], settings.text_dropout
        )
        layout = torch.channels_last
        return cls(network.to(memory_format=layout), head.to(memory_format=layout), grounding, settings)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the network input, with class weights; contrast of pixels; incoherence of the masks."""
        assert batch.mask is not None
        settings = self.settings
        (first,) = self.encode_image(batch)
        features, logits, masks = self.head(self.network(first[batch.image_index], batch.words))
        logits = upsample(logits, batch.mask.shape[1:], align_corners=False)  # (B, 2, H, W)
        weights = cast(Tensor, self.class_weights).to(logits.dtype)
        segmentation = functional.cross_entropy(logits, batch.mask.long(), weights)
        terms = {"total": segmentation, "segmentation": segmentation}
        if settings.contrast:
            truth = area_average(batch.mask, (features.shape[2], features.shape[3]))  # (B, H/4, W/4)
            contrast = _CONTRASTS[settings.contrast_with]
            terms["auxiliary"] = contrast(features, truth, settings.contrast_samples, settings.temperature)
            terms["total"] = terms["total"] + settings.contrast * terms["auxiliary"]
        if masks is not None and settings.mask_coherence:
            terms["incoherence"] = incoherence(batch.image, batch.image_index, masks.sigmoid())
            terms["total"] = terms["total"] + settings.mask_coherence * terms["incoherence"]
        if self.grounding is not None:
            encoders = (self.network.backbone, self.network.text)
            terms["grounding"] = ground_words(self.grounding, *encoders, first, batch)
            terms["total"] = terms["total"] + settings.grounding * terms["grounding"]
        return terms

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the target's probability on the network input."""
        output = self.head(self.network(features[0], words))
        return Prediction(target_probability(output.logits, self.input_size(features[0]), align_corners=False))

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """Return the mask proposals of the highest weights, and a chosen word's attention to the pixels."""
        (first,) = repeat_for_expressions(self.encode_image(batch), batch.image_index)
        if tokens and not self.network.alignments:
            raise InputError("This CoupAlign has no word-pixel alignment (model.alignment=false): leave --word out.")
        if not tokens and self.head.generator is None:
            raise InputError("This CoupAlign has no mask proposals (model.masks=0): choose a word with --word.")
        masks = self._mask_panels(self.network(first, batch.words)) if self.head.generator is not None else []
        return masks + (self._word_panels(first, batch.words, tokens) if tokens else [])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: biases, normalisations, gates, queries and position biases have no weight decay."""
        return weight_decay_groups(
            self, lambda name, p: p.ndim < 2 or name.endswith(("queries", "bias_table", "kinds"))
        )

    def _mask_panels(self, encoded: EncoderOutput) -> list[Panel]:
        """Return the proposals with the highest weights for the first expression of a batch."""
        proposals = self.head.proposals(encoded)
        weights, order = proposals.weights[0].sort(descending=True, stable=True)
        panels = []
        for weight, number in zip(weights[:_MASK_PANELS].tolist(), order.tolist(), strict=False):
            mask = proposals.masks[0, number].float().sigmoid()  # (H/4, W/4)
            panels.append(Panel(f"mask {number}: weight {weight:.3f}, at most {mask.max():.2f}", mask))
        return panels

    def _word_panels(self, first: Tensor, words: Words, tokens: Sequence[int]) -> list[Panel]:
        """Return the attention of the word at `tokens` to the pixels, stage by stage."""
        panels = []
        for number, attention in enumerate(self.network.attention(first, words), start=1):
            shares = attention[0, list(tokens)].float().mean(dim=0)  # (h, w), over the pieces of the word
            panels.append(attention_panel(f"the word at stage {number}", shares, "its attention", digits=1))
        return panels


def _build_alignments(settings: Settings, widths: Sequence[int]) -> nn.ModuleList:
    """Build the word-pixel alignment of each stage, or an empty list."""
    width, heads, gate = settings.alignment_width, settings.alignment_heads, settings.alignment_gate
    stages = widths if settings.alignment else []
    return nn.ModuleList(WPA(stage_width, settings.text_width, width, heads, gate) for stage_width in stages)


def _build_head(settings: Settings, widths: Sequence[int]) -> Head:
    """Build the head, with mask proposals unless model.masks is 0."""
    width, generator, align = settings.mask_width, None, None
    if settings.masks:
        layers, heads, dropout = settings.mask_layers, settings.mask_heads, settings.mask_dropout
        generator = MaskGenerator(settings.masks, width, layers, heads, dropout, settings.mask_attention)
        temperature = settings.mask_temperature if settings.mask_weights == "cosine" else None
        align = SMA(settings.text_width, width, temperature)
    return Head(FPN(widths, width), generator, align, width, settings.prior)


def _check(settings: Settings) -> None:
    """Raise InputError for settings that do not fit together."""
    check_heads("alignment_width", settings.alignment_width, "alignment_heads", settings.alignment_heads)
    check_heads("mask_width", settings.mask_width, "mask_heads", settings.mask_heads)
    check_taps(settings.text_taps, settings.text_layers)
    if settings.masks == 1:
        raise InputError("model.masks=1 leaves the sentence nothing to choose: give at least 2, or 0 for none.")
    if settings.mask_width % 4:
        raise InputError(f"model.mask_width={settings.mask_width} does not fit sine encodings: give a multiple of 4.")
    if not settings.masks and not settings.alignment:
        raise InputError("model.masks=0 and model.alignment=false leave nothing that reads the words: set one of them.")
