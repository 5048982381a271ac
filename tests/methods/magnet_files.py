"""Names and shapes in a checkpoint file of MagNet's authors, written down without risbench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Shapes = dict[str, list[int]]


class Sizes(NamedTuple):
    """What determines the shapes."""

    width: int
    depths: Sequence[int]
    heads: Sequence[int]
    window: int
    text: int
    text_layers: int
    pieces: int
    channels: int
    pixel_layers: int
    pixel_hidden: int
    decoder_layers: int
    decoder_hidden: int


TINY = Sizes(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 768, 12, 30522, 256, 4, 1024, 9, 2048)
BASE = TINY._replace(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12)


def manifest(sizes: Sizes) -> Shapes:
    """Return the names and shapes of `model`."""
    return {
        **_image_model(sizes),
        **_language_model(sizes),
        **_classifier(sizes),
        **_linear("lang_proj", sizes.channels, sizes.text),
    }


def _linear(name: str, *weight: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": list(weight), **({f"{name}.bias": [weight[0]]} if bias else {})}


def _pwam(name: str, width: int, text: int) -> Shapes:
    """A PWAM of the image side: its queries and output are linear layers with normalisations."""
    attention = f"{name}.image_lang_att"
    return {
        **_linear(f"{name}.vis_project.0", width, width, 1),
        **_linear(f"{attention}.f_key.0", width, text, 1),
        **_linear(f"{attention}.f_query.0", width, width),
        **_linear(f"{attention}.f_query.1", width),
        **_linear(f"{attention}.f_value.0", width, text, 1),
        **_linear(f"{attention}.W.0", width, width),
        **_linear(f"{attention}.W.1", width),
        **_linear(f"{name}.project_mm.0", width, width, 1),
    }


def _image_model(sizes: Sizes) -> Shapes:
    shapes = {
        **_linear("image_model.patch_embed.proj", sizes.width, 3, 4, 4),
        **_linear("image_model.patch_embed.norm", sizes.width),
    }
    for stage, (depth, heads) in enumerate(zip(sizes.depths, sizes.heads, strict=True)):
        c, layer = sizes.width * 2**stage, f"image_model.layers.{stage}"
        for number in range(depth):
            block = f"{layer}.blocks.{number}"
            shapes |= _linear(f"{block}.norm1", c)
            shapes[f"{block}.attn.relative_position_bias_table"] = [(2 * sizes.window - 1) ** 2, heads]
            shapes |= {**_linear(f"{block}.attn.qkv", 3 * c, c), **_linear(f"{block}.attn.proj", c, c)}
            shapes |= _linear(f"{block}.norm2", c)
            shapes |= {**_linear(f"{block}.mlp.fc1", 4 * c, c), **_linear(f"{block}.mlp.fc2", c, 4 * c)}
        shapes |= _pwam(f"{layer}.fusion", c, sizes.text)
        shapes |= {
            **_linear(f"{layer}.res_gate.0", c, c, bias=False),
            **_linear(f"{layer}.res_gate.2", c, c, bias=False),
        }
        for branch in range(4):
            pyramid = f"{layer}.pyramids.{branch}"
            shapes |= {**_linear(f"{pyramid}.1", 4 * c, c, 1, 1, bias=False), **_linear(f"{pyramid}.2", 4 * c)}
            shapes |= _linear(f"{pyramid}.3", c, 4 * c, 1, 1, bias=False)
            shapes |= _linear(f"{pyramid}.5", c // 4, c, 1, 1, bias=False)
            shapes |= _pwam(f"{layer}.fusions.{branch}", c // 4, sizes.text)
        shapes |= {
            **_linear(f"{layer}.mixer.0", c, 2 * c),
            **_linear(f"{layer}.mixer.1", c),
            **_linear(f"{layer}.mixer.2", c, c),
        }
        if stage < 3:
            shapes |= _linear(f"{layer}.downsample.reduction", 2 * c, 4 * c, bias=False)
            shapes |= _linear(f"{layer}.downsample.norm", 4 * c)
        shapes |= _linear(f"image_model.norm{stage}", c)
    return shapes


def _language_model(sizes: Sizes) -> Shapes:
    d, name = sizes.text, "language_model"
    shapes = {
        f"{name}.embeddings.{part}_embeddings.weight": [rows, d]
        for part, rows in (("word", sizes.pieces), ("position", 512), ("token_type", 2))
    }
    shapes |= _linear(f"{name}.embeddings.LayerNorm", d)
    for number in range(sizes.text_layers):
        layer = f"{name}.encoder.layer.{number}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{layer}.{part}", d, d)
        shapes |= {**_linear(f"{layer}.intermediate.dense", 4 * d, d), **_linear(f"{layer}.output.dense", d, 4 * d)}
        shapes |= {**_linear(f"{layer}.attention.output.LayerNorm", d), **_linear(f"{layer}.output.LayerNorm", d)}
    for stage in range(4):
        pwam, c = f"{name}.pwams.{stage}", sizes.width * 2**stage
        shapes |= {**_linear(f"{pwam}.vis_project.0", d, d), **_linear(f"{pwam}.project_mm.0", d, d, 1)}
        for part, columns in (("f_query", d), ("f_key", c), ("f_value", c), ("W", d)):
            shapes |= _linear(f"{pwam}.image_lang_att.{part}.0", d, columns, 1)
        for number in (0, 2):
            shapes |= _linear(f"{name}.res_gates.{stage}.{number}", d, d, bias=False)
        shapes |= _linear(f"{name}.norms.{stage}", d)
    return shapes


def _classifier(sizes: Sizes) -> Shapes:
    d, pixels, predictor = sizes.channels, "classifier.pixel_decoder", "classifier.predictor"
    shapes: Shapes = {}
    for number in range(4):
        shapes |= _linear(f"{pixels}.input_proj.{number}.0", d, sizes.width * 2 ** (3 - number), 1, 1)
        shapes |= _linear(f"{pixels}.input_proj.{number}.1", d)
    shapes[f"{pixels}.transformer.level_embed"] = [4, d]
    for number in range(sizes.pixel_layers):
        layer = f"{pixels}.transformer.encoder.layers.{number}"
        shapes |= _linear(f"{layer}.self_attn.sampling_offsets", 8 * 4 * 4 * 2, d)
        shapes |= _linear(f"{layer}.self_attn.attention_weights", 8 * 4 * 4, d)
        shapes |= {**_linear(f"{layer}.self_attn.value_proj", d, d), **_linear(f"{layer}.self_attn.output_proj", d, d)}
        shapes |= {
            **_linear(f"{layer}.linear1", sizes.pixel_hidden, d),
            **_linear(f"{layer}.linear2", d, sizes.pixel_hidden),
        }
        shapes |= {**_linear(f"{layer}.norm1", d), **_linear(f"{layer}.norm2", d)}
    shapes |= _linear(f"{pixels}.mask_features", d, d, 1, 1)
    for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
        for number in range(sizes.decoder_layers):
            layer = f"{predictor}.transformer_{kind}_attention_layers.{number}"
            shapes |= {f"{layer}.{attention}.in_proj_weight": [3 * d, d], f"{layer}.{attention}.in_proj_bias": [3 * d]}
            shapes |= {**_linear(f"{layer}.{attention}.out_proj", d, d), **_linear(f"{layer}.norm", d)}
    for number in range(sizes.decoder_layers):
        layer = f"{predictor}.transformer_ffn_layers.{number}"
        shapes |= {
            **_linear(f"{layer}.linear1", sizes.decoder_hidden, d),
            **_linear(f"{layer}.linear2", d, sizes.decoder_hidden),
        }
        shapes |= _linear(f"{layer}.norm", d)
    shapes |= _linear(f"{predictor}.decoder_norm", d)
    for name, rows in (("query_feat", 1), ("query_embed", 1), ("level_embed", 3)):
        shapes |= _linear(f"{predictor}.{name}", rows, d, bias=False)
    shapes |= _linear(f"{predictor}.class_embed", 2, d)
    for number in range(3):
        shapes |= _linear(f"{predictor}.mask_embed.layers.{number}", d, d)
    return shapes
