"""CLIPSeg, "Image Segmentation Using Text and Image Prompts" (Lüddecke and Ecker, CVPR 2022), from transformers.

CLIP is frozen and reads image and expression apart; a small decoder joins them. README.md says what differs.

B expressions, I images, T tokens, N patches of the image and one class token, C channels, H W the network input.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from risbench.api import Batch, Prediction, Words
from risbench.errors import InputError
from risbench.nn.byte_pairs import BytePairTokenizer
from risbench.nn.encoders import check_heads
from risbench.nn.hub import HubMethod, HubSettings, check_patches
from risbench.recipe import Field, NonNegativeInt, PositiveInt, Recipe, validate_section


class Settings(HubSettings):
    """[model] of recipe.toml, which explains every key."""

    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    patch: PositiveInt
    position_size: PositiveInt
    text_width: PositiveInt
    text_layers: PositiveInt
    text_heads: PositiveInt
    text_hidden: PositiveInt
    projection: PositiveInt
    taps: Annotated[list[NonNegativeInt], Field(min_length=1)]
    decoder_width: PositiveInt
    decoder_heads: PositiveInt
    decoder_hidden: PositiveInt
    refined: bool


class Model(HubMethod):
    """Adapter between the harness and the network of transformers."""

    schema = Settings
    sizes = {
        "vision_config.hidden_size": "model.width",
        "vision_config.num_hidden_layers": "model.layers",
        "vision_config.num_attention_heads": "model.heads",
        "vision_config.intermediate_size": "model.hidden",
        "vision_config.patch_size": "model.patch",
        "vision_config.image_size": "model.position_size",
        "vision_config.hidden_act": "",
        "vision_config.layer_norm_eps": "",
        "text_config.hidden_size": "model.text_width",
        "text_config.num_hidden_layers": "model.text_layers",
        "text_config.num_attention_heads": "model.text_heads",
        "text_config.intermediate_size": "model.text_hidden",
        "text_config.max_position_embeddings": "model.text_positions",
        "text_config.hidden_act": "",
        "text_config.layer_norm_eps": "",
        "projection_dim": "model.projection",
        "extract_layers": "model.taps",
        "conditional_layer": "",
        "reduce_dim": "model.decoder_width",
        "decoder_num_attention_heads": "model.decoder_heads",
        "decoder_intermediate_size": "model.decoder_hidden",
        "use_complex_transposed_convolution": "model.refined",
    }
    frozen = {
        "network.clip.": "CLIP is frozen in CLIPSeg: it runs without gradients, and only the decoder learns",
    }

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        network.clip.requires_grad_(False)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: BytePairTokenizer) -> Self:
        """Build the network with the numbers of [model]."""
        settings = validate_section(Settings, recipe.model, "model")
        _check(settings)
        make_config: Any = CLIPSegConfig  # whose signature lacks what every configuration takes
        config = make_config(
            vision_config={
                "hidden_size": settings.width,
                "num_hidden_layers": settings.layers,
                "num_attention_heads": settings.heads,
                "intermediate_size": settings.hidden,
                "patch_size": settings.patch,
                "image_size": settings.position_size,
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": settings.text_width,
                "num_hidden_layers": settings.text_layers,
                "num_attention_heads": settings.text_heads,
                "intermediate_size": settings.text_hidden,
                "max_position_embeddings": settings.text_positions,
                "bos_token_id": tokenizer.start,
                "eos_token_id": tokenizer.end,
            },
            projection_dim=settings.projection,
            extract_layers=settings.taps,
            reduce_dim=settings.decoder_width,
            decoder_num_attention_heads=settings.decoder_heads,
            decoder_intermediate_size=settings.decoder_hidden,
            use_complex_transposed_convolution=settings.refined,
            initializer_range=settings.decoder_width**-0.5,  # so that random weights pass on what they read
        )
        return cls(CLIPSegForImageSegmentation(config))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy over the pixels of the network input, as in transformers."""
        assert batch.mask is not None
        features = tuple(feature[batch.image_index] for feature in self.encode_image(batch))
        cross_entropy = functional.binary_cross_entropy_with_logits(self._logits(features, batch.words), batch.mask)
        return {"total": cross_entropy, "cross-entropy": cross_entropy}

    @torch.no_grad()
    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute the states behind the tapped layers of CLIP's image encoder: each (I, 1 + N, C)."""
        vision, taps = self.network.clip.vision_model, list(self.network.extract_layers)
        self.check_square(batch.image)
        check_patches("image.size", batch.image.shape[-1], vision.embeddings.patch_size)
        states = vision.pre_layrnorm(vision.embeddings(batch.image))  # (I, 1 + N, C)
        tapped = []
        for number, layer in enumerate(vision.encoder.layers[: taps[-1] + 1]):  # nobody reads the later ones
            states = layer(states, None)
            tapped += [states] if number in taps else []
        return tuple(tapped)

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the probability on the network input: (B, H, W)."""
        return Prediction(self._logits(features, words).float().sigmoid())

    def _logits(self, features: tuple[Tensor, ...], words: Words) -> Tensor:
        """Decode features (B, 1 + N, C) under the sentences to logits (B, H, W)."""
        positions = self.network.config.text_config.max_position_embeddings
        with torch.no_grad():  # causal, so that no word reads the padding behind it
            text = self.network.clip.get_text_features(words.ids[:, :positions]).pooler_output  # (B, projection)
        logits: Tensor = self.network.decoder(features, text).logits
        return logits


def _check(settings: Settings) -> None:
    """Raise InputError for settings that do not fit together."""
    for width, heads in (("width", "heads"), ("text_width", "text_heads"), ("decoder_width", "decoder_heads")):
        check_heads(width, getattr(settings, width), heads, getattr(settings, heads))
    if settings.taps != sorted(set(settings.taps)) or settings.taps[-1] >= settings.layers:
        raise InputError(
            f"model.taps={settings.taps} must rise, and name layers from 0 to {settings.layers - 1} (model.layers)."
        )
    check_patches("model.position_size", settings.position_size, settings.patch)
    if settings.refined and (settings.patch != 16 or settings.decoder_width % 2):
        raise InputError(
            "model.refined=true is a decoder for patches of 16 pixels and an even width, and these are "
            f"model.patch={settings.patch} and model.decoder_width={settings.decoder_width}: give model.refined=false."
        )
