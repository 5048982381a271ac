"""LAVT, "Language-Aware Vision Transformer for Referring Image Segmentation" (Yang et al., CVPR 2022).

It follows the authors' released network and agrees with it to rounding; README.md lists the differences.

B expressions, I images, T words, D text width, C channels, H W the network input. Stages count from the finest (H/4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.api import Batch, Converted, Panel, Prediction, Words, repeat_for_expressions
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.encoders import Backbone, EncoderMethod, EncoderSettings, build_backbone, build_text_encoder
from risbench.nn.fusion import PWAM, LanguageGate
from risbench.nn.logits import target_probability, upsample
from risbench.nn.mask_grounding import GroundingSettings, MaskGrounding, build_grounding, ground_words
from risbench.nn.panels import attention_panel
from risbench.nn.parameters import weight_decay_groups
from risbench.nn.segmentation import ASPPDeconvolution, soft_dice
from risbench.recipe import Field, Fraction, PositiveFloat, PositiveInt, Probability, Recipe, validate_section

from .compilation import compile_modules
from .convert import convert
from .decoder import Decoder


class Settings(EncoderSettings, GroundingSettings):
    """[model] of recipe.toml, which explains every key."""

    text_layers_trained: PositiveInt
    fusion_dropout: Fraction
    decoder_channels: PositiveInt
    loss: Literal["cross-entropy", "dice"]
    class_weights: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]
    compile: bool
    # Older checkpoints lack the next keys; the defaults describe their network.
    prior: Probability = 0.5
    segmentation: bool = False
    aspp_channels: PositiveInt = 256
    aspp_rates: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)] = [6, 12, 18]


class LAVT(nn.Module):
    """A backbone whose stages read the sentence between their blocks and the patch merging."""

    def __init__(self, backbone: Backbone, text: Bert, decoder: Decoder, fusion_dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        width = text.config.hidden_size
        self.fusions = nn.ModuleList(PWAM(channels, width, fusion_dropout) for channels in backbone.widths)
        self.gates = nn.ModuleList(map(LanguageGate, backbone.widths))  # the last gate is never called
        self.norms = nn.ModuleList(map(nn.LayerNorm, backbone.widths))
        self.decoder = decoder

    def encode_image(self, image: Tensor) -> Tensor:
        """Compute the first stage's map, before the words take part: (I, 3, H, W) to (I, H/4, W/4, C1)."""
        return self.backbone.stage(0, self.backbone.embed(image))

    def forward(self, first: Tensor, words: Words) -> Tensor:
        """The first stage's map (B, H/4, W/4, C1) to the decoder's logits of background and target (B, 2, h, w)."""
        return cast(Tensor, self.decoder(self.fused_maps(first, self.text.hidden_states(words), words.mask)))

    def fused_maps(self, first: Tensor, states: Tensor, mask: Tensor) -> list[Tensor]:
        """The first stage's map and the words' hidden states (B, T, D) to four normalised F_i (B, h, w, C)."""
        stages = self._run_stages(first, states, mask)
        return [norm(fused) for norm, (_, fused) in zip(self.norms, stages, strict=True)]

    def attention(self, first: Tensor, words: Words) -> list[Tensor]:
        """Return each pixel's attention to the words in each of the four stages, (B, h, w, T)."""
        states = self.text.hidden_states(words)
        stages = self._run_stages(first, states, words.mask)
        return [
            cast(PWAM, fusion).attention(x, states, words.mask)
            for fusion, (x, _) in zip(self.fusions, stages, strict=True)
        ]

    def _run_stages(self, x: Tensor, states: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield V_i and F_i of each stage, both (B, h, w, C)."""
        for number, (fusion, gate) in enumerate(zip(self.fusions, self.gates, strict=True)):
            if number:
                x = self.backbone.stage(number, self.backbone.merge(number - 1, x))
            fused = fusion(x, states, mask)
            yield x, fused
            if number + 1 < len(self.fusions):
                x = gate(x, fused)


class Model(EncoderMethod):
    """LAVT behind the harness's contract."""

    schema = Settings

    def __init__(self, network: LAVT, grounding: MaskGrounding | None, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.grounding = grounding
        self.grounding_weight = settings.grounding
        self.objective = settings.loss
        self.register_buffer("class_weights", torch.tensor(settings.class_weights), persistent=False)
        self.frozen = {"network.gates.3.": "the decoder reads the last stage's map before its gate"}
        if settings.pretrained and settings.text_weights:
            network.text.train_first_layers(settings.text_layers_trained)
            self.frozen |= _frozen_text_parameters(settings)
        for parameter in network.gates[-1].parameters():
            parameter.requires_grad_(False)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordPieceTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        settings = validate_section(Settings, recipe.model, "model")
        backbone, text = build_backbone(settings), build_text_encoder(settings, len(tokenizer))
        decoder = Decoder(backbone.widths, settings.decoder_channels, settings.prior, _build_segmentation(settings))
        network = LAVT(backbone, text, decoder, settings.fusion_dropout)
        if settings.compile:
            compile_modules([*backbone.blocks(), *network.fusions, *network.gates, decoder])
        grounding = build_grounding(
            settings, tokenizer, settings.text_width, backbone.widths[-1], settings.text_dropout
        )
        return cls(network.to(memory_format=torch.channels_last), grounding, settings)

    @classmethod
    def convert(cls, content: dict[str, Any]) -> Converted:
        """Find the weights in a file that the authors released: `lavt` or `lavt_one`."""
        return convert(content)

    def logits(self, features: tuple[Tensor, ...], words: Words) -> Tensor:
        """Return logits of background and target on the network input (B, 2, H, W), as the authors' network does."""
        return upsample(self.network(features[0], words), self.input_size(features[0]), align_corners=True)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy with class weights, or Dice, on the network input; mask grounding, if the recipe has it."""
        assert batch.mask is not None
        features = self.encode_image(batch)
        logits = self.logits(repeat_for_expressions(features, batch.image_index), batch.words)  # (B, 2, H, W)
        if self.objective == "dice":
            total = dice(logits.softmax(dim=1), batch.mask)
        else:
            weights = cast(Tensor, self.class_weights).to(logits.dtype)
            total = functional.cross_entropy(logits, batch.mask.long(), weights)
        if self.grounding is None:
            return {"total": total, self.objective: total}
        hidden = ground_words(self.grounding, self.network.backbone, self.network.text, features[0], batch)
        return {"total": total + self.grounding_weight * hidden, self.objective: total, "grounding": hidden}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the target's probability on the network input; it is above 0.5 where the target is the argmax."""
        logits = self.network(features[0], words)  # (B, 2, h, w)
        return Prediction(target_probability(logits, self.input_size(features[0]), align_corners=True))

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """Return the share of each pixel's attention that a word has in the PWAM of each stage."""
        if not tokens:
            raise InputError("LAVT shows which pixels attend to a word: choose one of the expression with --word.")
        (first,) = repeat_for_expressions(self.encode_image(batch), batch.image_index)
        panels = []
        for number, attention in enumerate(self.network.attention(first, batch.words), start=1):
            shares = attention[0][..., list(tokens)].float().sum(dim=-1)  # (h, w), over the pieces of the word
            panels.append(attention_panel(f"PWAM of stage {number}", shares, "a pixel's attention", digits=0))
        return panels

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: the backbone's normalisations and bias tables have no weight decay, as released."""
        return weight_decay_groups(self, lambda name, _: _is_undecayed(name))


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss, averaged over classes and expressions (our reading): (B, 2, H, W) and (B, H, W) of 0 or 1."""
    return soft_dice(probability, torch.stack((1 - mask, mask), dim=1))


def _build_segmentation(settings: Settings) -> ASPPDeconvolution | None:
    """Build the segmentation module of LTS, which replaces the decoder's last convolution, if the settings name it."""
    if not settings.segmentation:
        return None
    sizes = (settings.decoder_channels, settings.aspp_channels, settings.aspp_rates)
    return ASPPDeconvolution(*sizes, dropout=0.0, slope=0.1, prior=settings.prior)


def _is_undecayed(name: str) -> bool:
    """Whether the released recipe excludes a parameter from weight decay; it names parts of the authors' `backbone`."""
    in_backbone = name.startswith(("network.backbone.", "network.norms."))
    return in_backbone and ("norm" in name or "relative_position_bias_table" in name)


def _frozen_text_parameters(settings: Settings) -> dict[str, str]:
    """Return the frozen parts of BERT by the prefix of their names, with the reason."""
    reason = "the authors leave it out of the optimiser"
    frozen_layers = range(settings.text_layers_trained, settings.text_layers)
    return {"network.text.embeddings.": reason} | {f"network.text.encoder.layer.{n}.": reason for n in frozen_layers}
