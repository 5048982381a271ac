"""The two encoders of LAVT and CoupAlign: a backbone of four stages for the image, BERT for the words.

The settings of both, how they are built and loaded, and the base class of the methods that use them. B expressions,
I images, C1 channels of the first map, H W the network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from torch import Tensor

from risbench.api import Batch, Method, Pretrained
from risbench.data.pretrained import from_scratch
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn import bert
from risbench.nn.bert import Bert
from risbench.nn.darknet import Darknet
from risbench.nn.resnet import ResNet
from risbench.nn.swin import Swin
from risbench.recipe import Field, Fraction, PositiveInt, Recipe, Section, validate_section

Backbone = Swin | ResNet | Darknet
PerStage = Annotated[list[PositiveInt], Field(min_length=4, max_length=4)]


class EncoderSettings(Section):
    """The encoders' part of [model]; the recipes explain every key."""

    pretrained: bool
    backbone: str
    backbone_weights: str
    width: PositiveInt
    depths: PerStage
    heads: PerStage
    window: PositiveInt
    patch: PositiveInt
    drop_path: Fraction
    text_weights: str
    vocabulary: PositiveInt
    text_width: PositiveInt
    text_layers: PositiveInt
    text_heads: PositiveInt
    text_dropout: Fraction
    activation_checkpointing: bool


def build_backbone(settings: EncoderSettings) -> Backbone:
    """Build the image encoder without pretrained weights. Raises InputError when the settings fit no network."""
    backbone: Backbone
    if settings.backbone == "swin":
        for number, heads in enumerate(settings.heads):
            check_heads("width", settings.width * 2**number, "heads", heads)
        sizes = (settings.width, settings.depths, settings.heads, settings.window, settings.patch)
        backbone = Swin(*sizes, settings.drop_path)
    else:
        backbone = Darknet() if settings.backbone == "darknet53" else ResNet(settings.backbone)
    backbone.checkpointing = settings.activation_checkpointing
    return backbone


def build_text_encoder(settings: EncoderSettings, pieces: int) -> Bert:
    """Build BERT without pretrained weights for a vocabulary of `pieces` word pieces."""
    check_heads("text_width", settings.text_width, "text_heads", settings.text_heads)
    return Bert(pieces, settings.text_width, settings.text_layers, settings.text_heads, settings.text_dropout)


def load_encoders(settings: EncoderSettings, backbone: Backbone, text: Bert) -> list[Pretrained]:
    """Load the weights that the settings name; return what was loaded."""
    parts = (("backbone", backbone, settings.backbone_weights), ("text", text, settings.text_weights))
    return [part.load_pretrained(source) if source else from_scratch(name) for name, part, source in parts]


class EncoderMethod(Method):
    """A method with both encoders; its network has them as `backbone` and `text`, and has `encode_image`."""

    schema: ClassVar[type[EncoderSettings]]  # of the method's [model]
    network: Any

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> WordPieceTokenizer:
        """Return the word pieces of the pretrained text encoder, or make them from the training text."""
        settings = validate_section(cls.schema, recipe.model, "model")
        if settings.pretrained and settings.text_weights:
            folder = bert.local_folder(settings.text_weights)
            return WordPieceTokenizer.pretrained(str(folder), recipe.text.max_tokens)
        return WordPieceTokenizer.train(expressions, recipe.text.max_tokens, settings.vocabulary)

    def load_pretrained(self, recipe: Recipe, tokenizer: WordPieceTokenizer) -> list[Pretrained]:
        """Load the backbone's weights and BERT's, as [model] names them."""
        settings = validate_section(self.schema, recipe.model, "model")
        return load_encoders(settings, self.network.backbone, self.network.text) if settings.pretrained else []

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the first stage's map (I, H/4, W/4, C1), before the words take part."""
        stride = self.network.backbone.stride
        height, width = batch.image.shape[2:]
        if height % stride or width % stride:
            raise InputError(f"image.size={width} does not fit a first map of H/{stride}: give a multiple of {stride}.")
        return (self.network.encode_image(batch.image),)

    def input_size(self, first: Tensor) -> list[int]:
        """Return H and W of the network input from the first stage's map (B, H/4, W/4, C1)."""
        return [length * self.network.backbone.stride for length in first.shape[1:3]]


def check_heads(width_key: str, width: int, heads_key: str, heads: int) -> None:
    """Raise InputError when attention heads cannot share the channels evenly."""
    if width % heads:
        raise InputError(
            f"model.{heads_key}: {heads} heads cannot share {width} channels (model.{width_key}). Give divisors."
        )


def check_taps(taps: Sequence[int], layers: int) -> None:
    """Raise InputError when the layers of BERT that stages are joined behind do not rise to the last one."""
    if list(taps) != sorted(set(taps)) or taps[-1] != layers:
        raise InputError(
            f"model.text_taps={list(taps)} must rise and end with the last of {layers} layers (model.text_layers)."
        )
