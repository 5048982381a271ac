"""CoupAlign, "Coupling Word-Pixel with Sentence-Mask Alignments for Referring Image Segmentation" (NeurIPS 2022).

Its equations are in no source at hand: this is our reading, and README.md gives each decision with its reason.

B expressions, I images, T words, N masks, C and D channels, H W the network input. Stages count from the finest (H/4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Panel, Prediction, Words, repeat_for_expressions
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.convolution import ConvNormReLU
from risbench.nn.encoders import Backbone, EncoderMethod, Encoders, Positive, Share, Two, check_heads, upsampled
from risbench.nn.segmentation import area_average
from risbench.recipe import Field, Recipe, section

from .alignment import SMA, WPA, pooled
from .contrast import pixel_contrast
from .generator import FPN, MaskGenerator

Weight = Annotated[float, Field(ge=0)]
_PANELS = 6  # mask proposals that `explain` shows


class Settings(Encoders):
    """[model] of recipe.toml, which says what each key means."""

    text_taps: Annotated[list[Positive], Field(min_length=4, max_length=4)]
    alignment: bool
    alignment_width: Positive
    alignment_heads: Positive
    alignment_gate: Annotated[float, Field(gt=0)]
    masks: Annotated[int, Field(ge=0)]
    mask_width: Positive
    mask_layers: Positive
    mask_heads: Positive
    mask_dropout: Share
    mask_temperature: Annotated[float, Field(gt=0)]
    prior: Annotated[float, Field(gt=0, lt=1)]
    class_weights: Two
    contrast: Weight
    contrast_samples: Annotated[int, Field(gt=1)]
    temperature: Annotated[float, Field(gt=0)]


class Encoded(NamedTuple):
    """What both encoders made of an image and a sentence."""

    maps: list[Tensor]  # S_o: four maps (B, h, w, C), the finest first
    words: Tensor  # (B, T, D_t)
    sentence: Tensor  # L_g (B, D_t)


class CoupAlign(nn.Module):
    """Two encoders that talk to each other at every stage, and a head that lets the sentence choose among masks."""

    def __init__(self, backbone: Backbone, text: Bert, taps: Sequence[int], alignments: nn.ModuleList) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        self.taps = list(taps)
        self.alignments = alignments  # one for each stage, or none
        self.norms = nn.ModuleList(map(nn.LayerNorm, backbone.widths))

    def encode_image(self, image: Tensor) -> Tensor:
        """(I, 3, H, W) to what the words have not touched yet, the first stage's map (I, H/4, W/4, C1)."""
        return self.backbone.stage(0, self.backbone.embed(image))

    def forward(self, first: Tensor, words: Words) -> Encoded:
        """The first stage's map (B, H/4, W/4, C1) and the words to what the encoders make of them together."""
        x, states, maps, begin = first, self.text.embed(words), [], 0
        for number, (end, norm) in enumerate(zip(self.taps, self.norms, strict=True)):
            if number:
                x = self.backbone.stage(number, self.backbone.merge(number - 1, x))
            states, begin = self.text.layers(states, words.mask, begin, end), end
            if self.alignments:
                x, states = self.alignments[number](x, states, words.mask)
            maps.append(norm(x))
        return Encoded(maps, states, pooled(states, words.mask))

    def attention(self, first: Tensor, words: Words) -> list[Tensor]:
        """Where each word looks at every stage: shares of the pixels, each (B, T, h, w)."""
        looks: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda own, given: looks.append(cast(WPA, own).attention(*given[:2])))
            for module in self.alignments
        ]
        try:
            self(first, words)
        finally:
            for hook in hooks:
                hook.remove()
        return looks


class Head(nn.Module):
    """Pixel embeddings, mask proposals, and the prediction made of both; without proposals, of pixels alone."""

    def __init__(
        self, pixels: FPN, generator: MaskGenerator | None, align: SMA | None, width: int, prior: float
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.generator = generator
        self.align = align
        self.join = ConvNormReLU(2 * width if generator else width, width)
        self.logits = nn.Conv2d(width, 2, kernel_size=1)
        with torch.no_grad():
            cast(Tensor, self.logits.bias)[1] += torch.tensor(prior).logit()

    def forward(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """To features of the pixels (B, D, H/4, W/4) and logits of background and object (B, 2, H/4, W/4)."""
        x = self.pixels(encoded.maps)  # (B, D, H/4, W/4)
        if self.generator is not None and self.align is not None:
            queries = self.generator(encoded.maps[-1])  # (B, N, D)
            gathered, signal = self.align(queries, encoded.sentence, x)  # (B, D, H/4, W/4), (B, H/4, W/4)
            features = self.join(torch.cat((x, gathered), dim=1))
            background, object_ = self.logits(features).unbind(dim=1)
            return features, torch.stack((background, object_ + signal), dim=1)
        features = self.join(x)
        return features, self.logits(features)


class Model(EncoderMethod):
    """CoupAlign behind the harness's contract."""

    schema = Settings

    def __init__(self, network: CoupAlign, head: Head, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.settings = settings
        self.register_buffer("class_weights", torch.tensor(settings.class_weights), persistent=False)
        if head.generator is None and network.alignments:
            unused = ("network.alignments.3.to_words.", "network.alignments.3.word_gate")
            self.frozen = dict.fromkeys(unused, "without masks nothing reads the words behind the last stage")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(self.frozen)))

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordPieceTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        model = section(Settings, recipe.model, "model")
        _check(model)
        backbone, text = model.build(len(tokenizer))
        alignments = nn.ModuleList(
            WPA(width, model.text_width, model.alignment_width, model.alignment_heads, model.alignment_gate)
            for width in (backbone.widths if model.alignment else [])
        )
        network = CoupAlign(backbone, text, model.text_taps, alignments)
        width, coarsest = model.mask_width, backbone.widths[-1]
        generator = align = None
        if model.masks:
            generator = MaskGenerator(
                model.masks, coarsest, width, model.mask_layers, model.mask_heads, model.mask_dropout
            )
            align = SMA(model.text_width, width, model.mask_temperature)
        head = Head(FPN(backbone.widths, width), generator, align, width, model.prior)
        return cls(network.to(memory_format=torch.channels_last), head.to(memory_format=torch.channels_last), model)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy with class weights on the network input, and the contrast of pixels at H/4."""
        assert batch.mask is not None
        first = repeat_for_expressions(self.encode_image(batch), batch.image_index)[0]
        features, logits = self.head(self.network(first, batch.words))
        whole = upsampled(logits, batch.mask.shape[1:], align_corners=False)  # (B, 2, H, W)
        weights = cast(Tensor, self.class_weights).to(whole.dtype)
        segmentation = functional.cross_entropy(whole, batch.mask.long(), weights)
        terms = {"total": segmentation, "segmentation": segmentation}
        if self.settings.contrast:
            truth = area_average(batch.mask, (features.shape[2], features.shape[3]))  # (B, H/4, W/4)
            terms["auxiliary"] = pixel_contrast(
                features, truth, self.settings.contrast_samples, self.settings.temperature
            )
            terms["total"] = segmentation + self.settings.contrast * terms["auxiliary"]
        return terms

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Probability of the object on the network input."""
        _, logits = self.head(self.network(features[0], words))  # (B, 2, H/4, W/4)
        size = [length * self.network.backbone.stride for length in features[0].shape[1:3]]
        margin = upsampled(logits[:, 1:] - logits[:, :1], size, align_corners=False)[:, 0]  # (B, H, W); it is linear
        return Prediction(margin.float().sigmoid())

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """The mask proposals of the highest weights, and at which pixels a chosen word looks at every stage."""
        head, (first,) = self.head, repeat_for_expressions(self.encode_image(batch), batch.image_index)
        if tokens and not self.network.alignments:
            raise InputError("This CoupAlign has no word-pixel alignment (model.alignment=false): leave --word out.")
        if not tokens and head.generator is None:
            raise InputError("This CoupAlign has no mask proposals (model.masks=0): choose a word with --word.")
        panels = []
        if head.generator is not None and head.align is not None:
            encoded = self.network(first, batch.words)
            queries, pixels = head.generator(encoded.maps[-1]), head.pixels(encoded.maps)
            aligned = head.align.align(queries, encoded.sentence, pixels)
            weights, order = aligned.weights[0].sort(descending=True, stable=True)
            for weight, number in zip(weights[:_PANELS].tolist(), order.tolist(), strict=False):
                mask = aligned.masks[0, number].float().sigmoid()  # (H/4, W/4)
                panels.append(Panel(f"mask {number}: weight {weight:.3f}, at most {mask.max():.2f}", mask))
        for number, looks in enumerate(self.network.attention(first, batch.words) if tokens else [], start=1):
            share = looks[0, list(tokens)].float().mean(dim=0)  # (h, w), over the pieces of the word
            most = share.max()
            title = f"the word at stage {number}: {100 * share.min():.1f} to {100 * most:.1f} % of its attention"
            panels.append(Panel(title, share / most.clamp(min=torch.finfo(share.dtype).tiny)))
        return panels

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay for biases, normalisations, gates, queries and position biases."""
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[parameter.ndim < 2 or name.endswith(("queries", "bias_table"))].append(parameter)
        return [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}]


def _check(model: Settings) -> None:
    """Refuse settings that do not fit together."""
    check_heads("alignment_width", model.alignment_width, "alignment_heads", model.alignment_heads)
    check_heads("mask_width", model.mask_width, "mask_heads", model.mask_heads)
    if model.text_taps != sorted(set(model.text_taps)) or model.text_taps[-1] != model.text_layers:
        raise InputError(
            f"model.text_taps={model.text_taps} must rise and end with the last of {model.text_layers} layers "
            "(model.text_layers)."
        )
    if model.masks == 1:
        raise InputError("model.masks=1 leaves the sentence nothing to choose: give at least 2, or 0 for none.")
    if model.mask_width % 4:
        raise InputError(f"model.mask_width={model.mask_width} does not fit sine encodings: give a multiple of 4.")
    if not model.masks and not model.alignment:
        raise InputError("model.masks=0 and model.alignment=false leave nothing that reads the words: set one of them.")
