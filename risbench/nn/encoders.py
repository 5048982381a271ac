"""The two encoders of LAVT and CoupAlign, a backbone of four stages for the image and BERT for the words, and what a
method has in common that is built on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from torch import Tensor
from torch.nn import functional

from risbench.api import Batch, Method
from risbench.data.text import WordPieceTokenizer
from risbench.errors import InputError
from risbench.nn.bert import Bert
from risbench.nn.darknet import Darknet
from risbench.nn.resnet import ResNet
from risbench.nn.swin import Swin
from risbench.recipe import Field, Recipe, Section, section

Backbone = Swin | ResNet | Darknet
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Four = Annotated[list[Positive], Field(min_length=4, max_length=4)]
Two = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class Encoders(Section):
    """The part of [model] that describes them; the recipes say what each key means."""

    pretrained: bool
    backbone: str
    backbone_weights: str
    width: Positive
    depths: Four
    heads: Four
    window: Positive
    patch: Positive
    drop_path: Share
    text_weights: str
    vocabulary: Positive
    text_width: Positive
    text_layers: Positive
    text_heads: Positive
    text_dropout: Share
    activation_checkpointing: bool

    def tokenizer(self, expressions: Sequence[str], max_tokens: int) -> WordPieceTokenizer:
        """The word pieces of the pretrained text encoder, or such of the training text where it starts from scratch."""
        if self.pretrained and self.text_weights:
            return WordPieceTokenizer.pretrained(self.text_weights, max_tokens)
        return WordPieceTokenizer.train(expressions, max_tokens, self.vocabulary)

    def build(self, pieces: int) -> tuple[Backbone, Bert]:
        """Build both, untrained, for a vocabulary of so many word pieces."""
        backbone = self._backbone()
        backbone.checkpointing = self.activation_checkpointing
        check_heads("text_width", self.text_width, "text_heads", self.text_heads)
        text = Bert(pieces, self.text_width, self.text_layers, self.text_heads, self.text_dropout)
        return backbone, text

    def load(self, backbone: Backbone, text: Bert) -> str | None:
        """Load the weights that [model] names; return what was loaded, None where nothing is to be."""
        if not self.pretrained:
            return None
        parts = (("backbone", backbone, self.backbone_weights), ("text", text, self.text_weights))
        return "; ".join(
            part.load_pretrained(source) if source else f"{name} from scratch" for name, part, source in parts
        )

    def _backbone(self) -> Backbone:
        if self.backbone == "darknet53":
            return Darknet()
        if self.backbone != "swin":
            return ResNet(self.backbone)
        for number, heads in enumerate(self.heads):
            check_heads("width", self.width * 2**number, "heads", heads)
        return Swin(self.width, self.depths, self.heads, self.window, self.patch, self.drop_path)


class EncoderMethod(Method):
    """A method on both encoders; its network has them as `backbone` and `text`, and `encode_image`."""

    schema: ClassVar[type[Encoders]]  # of its [model]
    network: Any

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> WordPieceTokenizer:
        """The word pieces of the pretrained text encoder, or such of the training text where it starts from scratch."""
        return section(cls.schema, recipe.model, "model").tokenizer(expressions, recipe.text.max_tokens)

    def load_pretrained(self, recipe: Recipe, tokenizer: WordPieceTokenizer) -> None:
        """ImageNet weights for the backbone and BERT's for the text, as [model] names them."""
        model = section(self.schema, recipe.model, "model")
        self.weights = model.load(self.network.backbone, self.network.text) or self.weights

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the words have not touched yet: the first stage's map (I, H/4, W/4, C1)."""
        backbone = self.network.backbone
        height, width = batch.image.shape[2:]
        if height % backbone.stride or width % backbone.stride:
            raise InputError(
                f"image.size={width} does not fit a first map of H/{backbone.stride}: give a multiple of "
                f"{backbone.stride}."
            )
        return (self.network.encode_image(batch.image),)


def upsampled(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinearly and in full precision at least: (B, n, h, w) to (B, n, H, W)."""
    whole = logits.float() if logits.dtype.itemsize < 4 else logits
    return functional.interpolate(whole, list(size), mode="bilinear", align_corners=align_corners)


def check_heads(key: str, width: int, other: str, heads: int) -> None:
    """Attention heads share the channels evenly."""
    if width % heads:
        raise InputError(f"model.{other}: {heads} heads cannot share {width} channels (model.{key}). Give divisors.")
