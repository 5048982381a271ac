"""MagNet, "Mask Grounding for Referring Image Segmentation" (Chng et al., CVPR 2024).

Prediction follows the authors' released network and agrees with it to rounding. How it is trained is in no source that
we have: this is our reading, and README.md gives each decision with its reason.

B expressions, I images, T words, D text width, C channels, H W the network input. Stages count from the finest (H/4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Converted, Panel, Prediction, Words, repeat_for_expressions
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.deformable import DeformableEncoder
from risbench.nn.encoders import (
    Backbone,
    EncoderMethod,
    EncoderSettings,
    build_backbone,
    build_text_encoder,
    check_heads,
    check_taps,
)
from risbench.nn.fusion import LanguageGate
from risbench.nn.logits import upsample
from risbench.nn.mask_grounding import GroundingSettings, Hidden, MaskGrounding, build_grounding, wordless_maps
from risbench.nn.panels import attention_panel
from risbench.nn.parameters import weight_decay_groups
from risbench.recipe import (
    Field,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Recipe,
    validate_section,
)

from .alignment import CAM, SIDES, Pixels, WordFusion
from .convert import convert
from .decoder import SCALES, Decoded, MaskDecoder
from .losses import alignment_loss, mask_losses

_GUESSES = 3  # that `explain` shows
_LAST_WORDS = ("network.word_fusions.3.", "network.word_gates.3.")
# Biases of what is normalised over positions, or of all keys alike: gradients of rounding alone.
_INERT = re.compile(r"network\.(fusions\..*\.key|word_fusions\.\d\.(key|value|out))\.bias")
_UNDECAYED = ("bias_table", "embedding", "query", "place", "kinds")  # ends of the names of what is no weight matrix


class Settings(EncoderSettings, GroundingSettings):
    """[model] of recipe.toml, which explains every key."""

    text_taps: Annotated[list[PositiveInt], Field(min_length=4, max_length=4)]
    fusion_dropout: Fraction
    cam: bool
    released_mask: bool
    decoder_channels: PositiveInt
    pixel_layers: PositiveInt
    pixel_heads: PositiveInt
    pixel_points: PositiveInt
    pixel_hidden: PositiveInt
    decoder_layers: Annotated[int, Field(ge=SCALES)]
    decoder_heads: PositiveInt
    decoder_hidden: PositiveInt
    prior: Probability
    cross_entropy: NonNegativeFloat
    dice: NonNegativeFloat
    alignment: NonNegativeFloat
    alignment_temperature: PositiveFloat


class Encoded(NamedTuple):
    """The encoders' output for an image and a sentence."""

    maps: list[Tensor]  # four maps (B, h, w, C), the finest first
    words: Tensor  # (B, T, D), before or after they have read the last stage's pixels


class MagNet(nn.Module):
    """Two encoders, which read each other's state after every stage, and a decoder with one query."""

    def __init__(
        self,
        backbone: Backbone,
        text: Bert,
        taps: Sequence[int],
        fusions: Sequence[CAM],
        word_fusions: Sequence[WordFusion],
        decoder: MaskDecoder,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        self.taps = list(taps)
        self.fusions = nn.ModuleList(fusions)
        self.gates = nn.ModuleList(LanguageGate(width, functional.gelu) for width in backbone.widths[:-1])
        self.word_fusions = nn.ModuleList(word_fusions)
        self.word_gates = nn.ModuleList(LanguageGate(text.config.hidden_size) for _ in taps)
        self.decoder = decoder

    def encode_image(self, image: Tensor) -> Tensor:
        """Compute the first stage's map, before the words take part: (I, 3, H, W) to (I, H/4, W/4, C1)."""
        return self.backbone.stage(0, self.backbone.embed(image))

    def forward(self, first: Tensor, words: Words) -> Decoded:
        """The first stage's map (B, H/4, W/4, C1) and the words to the masks."""
        return cast(Decoded, self.decoder(self.encode(first, words, last_words=False).maps))

    def encode(self, first: Tensor, words: Words, last_words: bool) -> Encoded:
        """The first stage's map and the words to the encoders' output; for the mask the last words are not needed."""
        x, states, maps, last = first, self.text.embed(words), [], len(self.taps) - 1
        for stage, fusion in enumerate(self.fusions):
            if stage:
                x = self.backbone.stage(stage, self.backbone.merge(stage - 1, x))
            states = self._run_text(stage, states, words.mask)
            fused, joined = fusion(x, states, words.mask)
            maps.append(joined)
            if stage < last or last_words:
                states = self._read_pixels(stage, states, x, words.mask)
            if stage < last:
                x = self.gates[stage](x, fused)
        return Encoded(maps, states)

    def encode_words(self, maps: Sequence[Tensor], image_index: Tensor, words: Words) -> Tensor:
        """Run the text encoder alone, which reads four maps (I, h, w, C) of each expression's image: (B, T, D)."""
        states = self.text.embed(words)
        for stage, (x, fusion) in enumerate(zip(maps, self.word_fusions, strict=True)):
            states = self._run_text(stage, states, words.mask)
            keys, values = cast(WordFusion, fusion).project_pixels(x)
            pixels = Pixels(keys[image_index], values[image_index])
            states = self.word_gates[stage](states, fusion(states, pixels, words.mask))
        return states

    def _run_text(self, stage: int, states: Tensor, mask: Tensor) -> Tensor:
        return self.text.run_layers(states, mask, self.taps[stage - 1] if stage else 0, self.taps[stage])

    def _read_pixels(self, stage: int, states: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        fusion = cast(WordFusion, self.word_fusions[stage])
        return cast(Tensor, self.word_gates[stage](states, fusion(states, fusion.project_pixels(x), mask)))


class Model(EncoderMethod):
    """MagNet behind the harness's contract."""

    schema = Settings

    def __init__(self, network: MagNet, grounding: MaskGrounding | None, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.grounding = grounding
        width, channels = settings.text_width, settings.decoder_channels
        self.word_projection = nn.Linear(width, channels) if settings.alignment else None
        self.frozen = {"network.decoder.class_embedding.": "the class of a single query decides nothing"}
        if not settings.grounding and not settings.alignment:
            self.frozen |= dict.fromkeys(_LAST_WORDS, "without their losses nothing reads the words after stage 4")
        inert = (name for name, _ in self.named_parameters() if _INERT.fullmatch(name))
        self.frozen |= dict.fromkeys(inert, "the normalisation or the softmax behind it leaves nothing of this bias")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(self.frozen)))

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordPieceTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        settings = validate_section(Settings, recipe.model, "model")
        _check(settings)
        backbone, text = build_backbone(settings), build_text_encoder(settings, len(tokenizer))
        width, sides = settings.text_width, SIDES if settings.cam else ()
        fusions = [CAM(channels, width, settings.fusion_dropout, sides) for channels in backbone.widths]
        word_fusions = [WordFusion(width, channels, settings.released_mask) for channels in backbone.widths]
        decoder = _build_decoder(settings, backbone.widths)
        network = MagNet(backbone, text, settings.text_taps, fusions, word_fusions, decoder)
        grounding = build_grounding(settings, tokenizer, width, backbone.widths[-1], settings.text_dropout)
        return cls(network.to(memory_format=torch.channels_last), grounding, settings)

    @classmethod
    def convert(cls, content: dict[str, Any]) -> Converted:
        """Find the weights in a file that the authors released."""
        return convert(content)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mask losses of all predictions, cross-modal alignment, mask grounding."""
        assert batch.mask is not None
        settings, (per_image,) = self.settings, self.encode_image(batch)
        encoded = self.network.encode(per_image[batch.image_index], batch.words, bool(settings.alignment))
        decoded: Decoded = self.network.decoder(encoded.maps)
        cross_entropy, dice = mask_losses(decoded.masks, batch.mask)
        terms = {"cross-entropy": cross_entropy, "dice": dice}
        weights = {"cross-entropy": settings.cross_entropy, "dice": settings.dice}
        if self.word_projection is not None:
            projected = self.word_projection(encoded.words)  # (B, T, D)
            sides = (projected, batch.words.mask, decoded.features, batch.mask)
            terms["alignment"] = alignment_loss(*sides, settings.alignment_temperature)
            weights["alignment"] = settings.alignment
        if self.grounding is not None:
            terms["grounding"] = self._grounding_loss(self.grounding, per_image, batch)
            weights["grounding"] = settings.grounding
        total = torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum()
        return {"total": total, **terms}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the target's probability on the network input."""
        masks = self.network(features[0], words).masks[:, -1:]  # (B, 1, H/4, W/4)
        return Prediction(upsample(masks, self.input_size(features[0]), align_corners=True)[:, 0].sigmoid())

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """Return where the mask's query looks, and what the grounding predictor would fill in for a chosen word."""
        (first,) = repeat_for_expressions(self.encode_image(batch), batch.image_index)
        attentions = self.network.decoder.attention(self.network.encode(first, batch.words, last_words=False).maps)
        panels = []
        for number, attention in list(enumerate(attentions, start=1))[-SCALES:]:
            grid = f"{attention.shape[1]} x {attention.shape[2]}"
            title = f"the mask's query, layer {number} on {grid}"
            panels.append(attention_panel(title, attention[0].float(), "its attention", digits=1))
        return panels + ([self._word_panel(first, batch.words, tokens)] if tokens else [])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: biases, normalisations, queries, embeddings of scales, position biases have no decay."""
        return weight_decay_groups(self, lambda name, p: p.ndim < 2 or name.endswith(_UNDECAYED))

    def _grounding_loss(self, grounding: MaskGrounding, first: Tensor, batch: Batch) -> Tensor:
        """Hide words, and predict them; `first` is of the images (I, H/4, W/4, C1)."""
        assert batch.mask is not None
        inputs = self._grounding_inputs(first, batch.image_index, hidden := grounding.hide(batch.words))
        return cast(Tensor, grounding(*inputs, batch.mask, hidden, self.network.text.word_embeddings))

    def _grounding_inputs(self, first: Tensor, image_index: Tensor, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Return states of words, some hidden, which read pixels that have read no words, and the pixels."""
        maps = wordless_maps(self.network.backbone, first)
        return self.network.encode_words(maps, image_index, hidden.words), maps[-1][image_index]

    def _word_panel(self, first: Tensor, words: Words, tokens: Sequence[int]) -> Panel:
        """Return the predicted mask of the only expression, with guesses for a word that is hidden, in the title."""
        if self.grounding is None:
            raise InputError("This MagNet has no mask grounding (model.grounding=0): leave --word out.")
        probability = self.predict_from((first,), words).probability
        hidden = self.grounding.hide_at(words, tokens)
        inputs = self._grounding_inputs(first, torch.zeros_like(words.ids[:, 0]), hidden)
        logits = self.grounding.logits(*inputs, probability, hidden, self.network.text.word_embeddings)[0]  # (T, V)
        guesses = [self.grounding.guesses(logits[position], _GUESSES) for position in tokens]
        listed = "; ".join(", ".join(f"{piece} {100 * share:.0f} %" for piece, share in each) for each in guesses)
        return Panel(f"this mask for the hidden word: {listed}", probability[0].float())


def _build_decoder(settings: Settings, widths: Sequence[int]) -> MaskDecoder:
    """Build pixel decoder and mask decoder for maps of some widths, the finest first."""
    channels = settings.decoder_channels
    points = (settings.pixel_heads, settings.pixel_points)
    pixels = DeformableEncoder(widths[::-1], channels, settings.pixel_layers, *points, settings.pixel_hidden)
    layers, heads = settings.decoder_layers, settings.decoder_heads
    return MaskDecoder(pixels, channels, layers, heads, settings.decoder_hidden, settings.prior)


def _check(settings: Settings) -> None:
    """Raise InputError for settings that do not fit together."""
    check_taps(settings.text_taps, settings.text_layers)
    for key in ("pixel_heads", "decoder_heads"):
        check_heads("decoder_channels", settings.decoder_channels, key, getattr(settings, key))
    if settings.decoder_channels % 4:
        raise InputError(
            f"model.decoder_channels={settings.decoder_channels} does not fit sine encodings: give a multiple of 4."
        )
    if settings.backbone == "swin" and settings.cam and settings.width % 4:
        raise InputError(f"model.width={settings.width} cannot be shared by four grids: give a multiple of 4.")
    if not settings.cross_entropy and not settings.dice:
        raise InputError("model.cross_entropy=0 and model.dice=0 leave nothing that trains masks: set one of them.")
