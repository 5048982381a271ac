"""LAVT, "Language-Aware Vision Transformer for Referring Image Segmentation" (Yang et al., CVPR 2022).

Follows the authors' released network, with which this one agrees to rounding; README.md lists where it departs.

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
from risbench.nn.encoders import Backbone, EncoderMethod, Encoders, Positive, Share, Two, upsampled
from risbench.nn.segmentation import ASPPDeconvolution
from risbench.recipe import Field, Recipe, section

from .convert import convert
from .decoder import Decoder
from .fusion import PWAM, LanguageGate


class Settings(Encoders):
    """[model] of recipe.toml, which says what each key means."""

    text_layers_trained: Positive
    fusion_dropout: Share
    decoder_channels: Positive
    loss: Literal["cross-entropy", "dice"]
    class_weights: Two
    compile: bool
    prior: Annotated[float, Field(gt=0, lt=1)] = 0.5  # checkpoints older than this and the next keys hold the defaults
    segmentation: bool = False
    aspp_channels: Positive = 256
    aspp_rates: Annotated[list[Positive], Field(min_length=3, max_length=3)] = [6, 12, 18]


class LAVT(nn.Module):
    """Swin whose stages read the sentence between their blocks and the patch merging."""

    def __init__(self, backbone: Backbone, text: Bert, decoder: Decoder, fusion_dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.text = text
        width = text.config.hidden_size
        self.fusions = nn.ModuleList(PWAM(channels, width, fusion_dropout) for channels in backbone.widths)
        self.gates = nn.ModuleList(map(LanguageGate, backbone.widths))  # the last one's result is never used
        self.norms = nn.ModuleList(map(nn.LayerNorm, backbone.widths))
        self.decoder = decoder

    def encode_image(self, image: Tensor) -> Tensor:
        """(I, 3, H, W) to what the words have not touched yet, the first stage's map (I, H/4, W/4, C1)."""
        return self.backbone.stage(0, self.backbone.embed(image))

    def forward(self, first: Tensor, words: Words) -> Tensor:
        """The first stage's map (B, H/4, W/4, C1) to logits of background and object (B, 2, h, w), as the decoder's."""
        return cast(Tensor, self.decoder(self.maps(first, self.text.hidden(words), words.mask)))

    def maps(self, first: Tensor, states: Tensor, mask: Tensor) -> list[Tensor]:
        """The first stage's map and the words' hidden states (B, T, D) to the four fused maps (B, h, w, C)."""
        stages = self._stages(first, states, mask)
        return [norm(answer) for norm, (_, answer) in zip(self.norms, stages, strict=True)]

    def attention(self, first: Tensor, words: Words) -> list[Tensor]:
        """Of the four stages, the attention of each pixel to the words (B, h, w, T)."""
        states = self.text.hidden(words)
        stages = self._stages(first, states, words.mask)
        return [
            cast(PWAM, fusion).attention(x, states, words.mask)
            for fusion, (x, _) in zip(self.fusions, stages, strict=True)
        ]

    def _stages(self, x: Tensor, states: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """V_i and F_i of one stage after the other, both (B, h, w, C)."""
        for number, (fusion, gate) in enumerate(zip(self.fusions, self.gates, strict=True)):
            if number:
                x = self.backbone.stage(number, self.backbone.merge(number - 1, x))
            answer = fusion(x, states, mask)
            yield x, answer
            if number + 1 < len(self.fusions):
                x = gate(x, answer)


class Model(EncoderMethod):
    """LAVT behind the harness's contract."""

    schema = Settings

    def __init__(self, network: LAVT, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.objective = settings.loss
        self.register_buffer("class_weights", torch.tensor(settings.class_weights), persistent=False)
        self.frozen = {"network.gates.3.": "the decoder reads the last stage's map before its gate"}
        if settings.pretrained and settings.text_weights:
            network.text.train_only(settings.text_layers_trained)
            self.frozen |= _frozen_text(settings)
        for parameter in network.gates[-1].parameters():
            parameter.requires_grad_(False)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: WordPieceTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        model = section(Settings, recipe.model, "model")
        backbone, text = model.build(len(tokenizer))
        decoder = Decoder(backbone.widths, model.decoder_channels, model.prior, _segmentation(model))
        network = LAVT(backbone, text, decoder, model.fusion_dropout)
        built = cls(network.to(memory_format=torch.channels_last), model)
        if model.compile:
            built.compile_parts()
        return built

    @classmethod
    def convert(cls, content: dict[str, Any]) -> Converted:
        """Find the weights in a file that the authors released, `lavt` or `lavt_one`."""
        return convert(content)

    def compile_parts(self) -> None:
        """Compile what is called over and over with few shapes: blocks, fusions, decoder."""
        network = self.network
        parts = (*network.backbone.blocks(), *network.fusions, *network.gates, network.decoder)
        for part in parts:
            part.compile()
        # Blocks share their code but hardly ever a graph, for width, shift and drop path differ; beyond torch's limit,
        # which is 8, they would silently stay uncompiled. Four: training, evaluation, and either for one image.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 4 * len(parts))

    def logits(self, features: tuple[Tensor, ...], words: Words) -> Tensor:
        """Logits of background and object on the network input (B, 2, H, W), as the authors' network returns them."""
        return self._upsampled(self.network(features[0], words), features[0])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy with class weights, or Dice, on the network input."""
        assert batch.mask is not None
        logits = self.logits(
            repeat_for_expressions(self.encode_image(batch), batch.image_index), batch.words
        )  # (B, 2, H, W)
        if self.objective == "dice":
            total = dice(logits.softmax(dim=1), batch.mask)
        else:
            weights = cast(Tensor, self.class_weights).to(logits.dtype)
            total = functional.cross_entropy(logits, batch.mask.long(), weights)
        return {"total": total, self.objective: total}

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Probability of the object on the network input; above 0.5 is where argmax says object."""
        logits = self.network(features[0], words)  # (B, 2, h, w)
        margin = self._upsampled(logits[:, 1:] - logits[:, :1], features[0])[:, 0]  # (B, H, W); up-sampling is linear
        return Prediction(margin.float().sigmoid())

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        """The share of each pixel's attention that a word has in the PWAM of each stage, scaled to its maximum."""
        if not tokens:
            raise InputError("LAVT shows which pixels attend to a word: choose one of the expression with --word.")
        (first,) = repeat_for_expressions(self.encode_image(batch), batch.image_index)
        panels = []
        for number, attention in enumerate(self.network.attention(first, batch.words), start=1):
            share = attention[0][..., list(tokens)].float().sum(dim=-1)  # (h, w), over the pieces of the word
            most = share.max()
            title = f"PWAM of stage {number}: {100 * share.min():.0f} to {100 * most:.0f} % of a pixel's attention"
            panels.append(Panel(title, share / most.clamp(min=torch.finfo(share.dtype).tiny)))
        return panels

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay for the normalisations and bias tables of Swin, as released."""
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[_is_undecayed(name)].append(parameter)
        return [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}]

    def _upsampled(self, logits: Tensor, first: Tensor) -> Tensor:
        """(B, n, h, w) to (B, n, H, W), corner on corner; the first stage's map (B, H/4, W/4, C1) says H and W."""
        size = [length * self.network.backbone.stride for length in first.shape[1:3]]
        return upsampled(logits, size, align_corners=True)


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss, averaged over classes and expressions (our reading): (B, 2, H, W) and (B, H, W) of 0 or 1.

    1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1) with the sums over positions; the 1 keeps it defined where both are 0.
    """
    truth = torch.stack((1 - mask, mask), dim=1)  # (B, 2, H, W)
    common, both = (probability * truth).sum(dim=(2, 3)), (probability + truth).sum(dim=(2, 3))  # (B, 2)
    return (1 - (2 * common + 1) / (both + 1)).mean()


def _segmentation(model: Settings) -> ASPPDeconvolution | None:
    """LTS's segmentation module in place of the decoder's last convolution, if it is wanted."""
    if not model.segmentation:
        return None
    channels, rates = model.aspp_channels, model.aspp_rates
    return ASPPDeconvolution(model.decoder_channels, channels, rates, dropout=0.0, slope=0.1, prior=model.prior)


def _is_undecayed(name: str) -> bool:
    """Whether the released recipe leaves a parameter without weight decay: names in the authors' `backbone`."""
    in_backbone = name.startswith(("network.backbone.", "network.norms."))
    return in_backbone and ("norm" in name or "relative_position_bias_table" in name)


def _frozen_text(model: Settings) -> dict[str, str]:
    reason = "the authors leave it out of the optimiser"
    behind = range(model.text_layers_trained, model.text_layers)
    return {"network.text.embeddings.": reason} | {f"network.text.encoder.layer.{n}.": reason for n in behind}
