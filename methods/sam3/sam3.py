"""SAM 3, "Segment Anything with Concepts" (Meta, 2025), from transformers, zero-shot: the best instance of a sentence.

The network looks for all instances of a noun phrase; whether there is any is a score of its own. README.md says what
is read from it for a referring expression.

B expressions, I images, T tokens, Q queries, C channels, H W the network input, h w a quarter of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import transformers
from torch import Tensor

from risbench.api import Batch, Prediction, Words
from risbench.errors import InputError
from risbench.nn.byte_pairs import BytePairTokenizer
from risbench.nn.encoders import check_heads
from risbench.nn.hub import HubMethod, HubSettings, check_patches
from risbench.recipe import NonNegativeInt, PositiveInt, Recipe, validate_section

_SCALES = 3  # maps of an image that the detector reads, the coarsest last
_ZERO_SHOT = "SAM 3 is evaluated zero-shot here, and is not trained: give train.epochs=0."


class Settings(HubSettings):
    """[model] of recipe.toml, which explains every key."""

    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    patch: PositiveInt
    window: PositiveInt
    global_layers: list[NonNegativeInt]
    position_size: PositiveInt
    text_width: PositiveInt
    text_layers: PositiveInt
    text_heads: PositiveInt
    text_hidden: PositiveInt
    text_projection: PositiveInt
    detector_width: PositiveInt
    detector_heads: PositiveInt
    detector_hidden: PositiveInt
    encoder_layers: PositiveInt
    decoder_layers: PositiveInt
    box_layers: PositiveInt
    queries: PositiveInt


class Model(HubMethod):
    """Adapter between the harness and the network of transformers."""

    schema = Settings
    sizes = {
        "vision_config.backbone_config.hidden_size": "model.width",
        "vision_config.backbone_config.num_hidden_layers": "model.layers",
        "vision_config.backbone_config.num_attention_heads": "model.heads",
        "vision_config.backbone_config.intermediate_size": "model.hidden",
        "vision_config.backbone_config.patch_size": "model.patch",
        "vision_config.backbone_config.window_size": "model.window",
        "vision_config.backbone_config.global_attn_indexes": "model.global_layers",
        "vision_config.backbone_config.pretrain_image_size": "model.position_size",
        "vision_config.backbone_config.hidden_act": "",
        "vision_config.backbone_config.layer_norm_eps": "",
        "vision_config.backbone_config.layer_scale_init_value": "",
        "vision_config.scale_factors": "",
        "vision_config.fpn_hidden_size": "model.detector_width",
        "text_config.hidden_size": "model.text_width",
        "text_config.num_hidden_layers": "model.text_layers",
        "text_config.num_attention_heads": "model.text_heads",
        "text_config.intermediate_size": "model.text_hidden",
        "text_config.max_position_embeddings": "model.text_positions",
        "text_config.hidden_act": "",
        "text_config.layer_norm_eps": "",
        "detr_encoder_config.num_layers": "model.encoder_layers",
        "detr_encoder_config.num_attention_heads": "model.detector_heads",
        "detr_encoder_config.hidden_act": "",
        "detr_decoder_config.num_layers": "model.decoder_layers",
        "detr_decoder_config.num_queries": "model.queries",
        "detr_decoder_config.num_attention_heads": "model.detector_heads",
        "detr_decoder_config.hidden_act": "",
        "mask_decoder_config.num_attention_heads": "model.detector_heads",
        "mask_decoder_config.num_upsampling_stages": "",
    }

    frozen = {"network.": "SAM 3 is evaluated with its released weights as they are"}

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        network.requires_grad_(False)

    @classmethod
    def build(cls, recipe: Recipe, tokenizer: BytePairTokenizer) -> Self:
        """Build the network with the numbers of [model] for inputs of image.size."""
        if recipe.trains:
            raise InputError(_ZERO_SHOT)
        settings = validate_section(Settings, recipe.model, "model")
        _check(settings)
        check_patches("image.size", recipe.image.size, settings.patch)
        return cls(_build_network(settings, recipe.image.size, tokenizer))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Refuse to train."""
        raise InputError(_ZERO_SHOT)

    def encode_image(self, batch: Batch) -> tuple[Tensor, ...]:
        """Compute three maps, the coarsest last, and its position encoding: each (I, C, H, W)."""
        self.check_square(batch.image)
        side, input_side = self.network.config.image_size, batch.image.shape[-1]
        if input_side != side:
            raise InputError(
                f"This SAM 3 was built for image.size={side}, and the input has {input_side} pixels a side: give "
                "image.size and a protocol that leaves it to the recipe, such as original."
            )
        encoded = self.network.get_vision_features(batch.image)
        return *encoded.fpn_hidden_states[:_SCALES], encoded.fpn_position_encoding[_SCALES - 1]

    def predict_from(self, features: tuple[Tensor, ...], words: Words) -> Prediction:
        """Predict the best instance's probability (B, h, w), and the probability that there is none (B,)."""
        positions = self.network.config.text_config.max_position_embeddings
        words = Words(words.ids[:, :positions], words.mask[:, :positions])  # behind them is padding alone
        masks, presence = _detect(self.network, features[:_SCALES], features[_SCALES], words)
        return Prediction(masks.float().sigmoid(), no_target=(-presence.float()).sigmoid())


def _detect(sam3: Any, maps: Sequence[Tensor], place: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Return logits of the best instance (B, h, w) and of its presence (B,).

    `maps` are three of the image (B, C, H, W), the coarsest last, and `place` its position encoding. transformers' own
    forward computes the masks of all queries, and waits for the device at each mask of words.
    """
    read = words.mask[:, None, None]  # (B, 1, 1, T)
    text = sam3.text_projection(sam3.text_encoder(words.ids).last_hidden_state)  # causal: (B, T, C)
    encoded = sam3.detr_encoder([maps[-1]], text, [place], text_mask=read).last_hidden_state  # (B, HW, C)

    decoded = sam3.detr_decoder(
        vision_features=encoded,
        text_features=text,
        vision_pos_encoding=place.flatten(2).transpose(1, 2),
        text_mask=read,
        spatial_shapes=torch.tensor([maps[-1].shape[-2:]], device="cpu"),  # its values are read there
    )
    queries = decoded.intermediate_hidden_states[-1]  # (B, Q, C)
    scores = sam3.dot_product_scoring(queries[None], text, words.mask)[0, ..., 0]  # (B, Q)

    best = queries.take_along_dim(scores.argmax(dim=1)[:, None, None], dim=1)  # (B, 1, C)
    masks = sam3.mask_decoder(best, list(maps), encoded, text, read).pred_masks  # (B, 1, h, w)
    return masks[:, 0], decoded.presence_logits[-1, :, 0]


def _build_network(settings: Settings, side: int, tokenizer: BytePairTokenizer) -> Any:
    """Build the network for inputs of a side. Raises InputError where transformers has no SAM 3."""
    if not hasattr(transformers, "Sam3Model"):
        raise InputError(
            f"SAM 3 needs transformers 5, and {transformers.__version__} is installed: pip install -U transformers."
        )
    scale = {"initializer_range": settings.detector_width**-0.5}  # so that random weights pass on what they read
    trunk = {
        **scale,
        "model_type": "sam3_vit_model",
        "hidden_size": settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": settings.hidden,
        "patch_size": settings.patch,
        "image_size": side,
        "window_size": settings.window,
        "global_attn_indexes": settings.global_layers,
        "pretrain_image_size": settings.position_size,
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_heads,
        "intermediate_size": settings.text_hidden,
        "projection_dim": settings.text_projection,
        "max_position_embeddings": settings.text_positions,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
    }
    width = {**scale, "hidden_size": settings.detector_width, "num_attention_heads": settings.detector_heads}
    wide = {**width, "intermediate_size": settings.detector_hidden}
    grid = side // settings.patch
    config = transformers.Sam3Config(
        **scale,
        vision_config={
            **scale,
            "backbone_config": trunk,
            "fpn_hidden_size": settings.detector_width,
            "backbone_feature_sizes": [[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        },
        text_config=text,
        geometry_encoder_config={**wide, "num_layers": settings.box_layers},
        detr_encoder_config={**wide, "num_layers": settings.encoder_layers},
        detr_decoder_config={**wide, "num_layers": settings.decoder_layers, "num_queries": settings.queries},
        mask_decoder_config=width,
    )
    return transformers.Sam3Model(config)


def _check(settings: Settings) -> None:
    """Raise InputError for settings that do not fit together."""
    for part in ("", "text_", "detector_"):
        check_heads(
            f"{part}width", getattr(settings, f"{part}width"), f"{part}heads", getattr(settings, f"{part}heads")
        )
    if settings.detector_width % 4 or settings.width // settings.heads % 4:
        raise InputError(
            f"model.detector_width={settings.detector_width} and each of model.heads={settings.heads} of "
            f"model.width={settings.width} must be multiples of 4 for their position encodings: give other widths."
        )
    if any(layer >= settings.layers for layer in settings.global_layers):
        raise InputError(
            f"model.global_layers={settings.global_layers} must name layers from 0 to {settings.layers - 1} "
            "(model.layers)."
        )
    check_patches("model.position_size", settings.position_size, settings.patch)
