"""The checkpoint files that the authors of MagNet released: their weights, and our names for them.

A file is a dictionary with the whole network in `model`. Files of other training scripts have the weights in
`state_dict`, or nothing but the weights. What was needed for training alone is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from risbench.api import Converted
from risbench.errors import InputError
from risbench.nn import released as files
from risbench.recipe import Value

_NAME = "MagNet"
_IMAGE, _TEXT = "image_model", "language_model"
_PIXELS, _QUERY = "classifier.pixel_decoder", "classifier.predictor"
_KNOWN = ("model", *files.TRAINING, "epoch", "args")
_GATES = f"{_TEXT}.res_gates"
# Weights that the released network never reads: norms on both sides, the last gate of the image side.
_NEVER_READ = re.compile(rf"{_IMAGE}\.norm[0-3]\..*|{_IMAGE}\.layers\.3\.res_gate\..*|{_TEXT}\.norms\..*")
_PWAM = {
    "visual": "vis_project.0",
    "query": "image_lang_att.f_query.0",
    "query_norm": "image_lang_att.f_query.1",
    "key": "image_lang_att.f_key.0",
    "value": "image_lang_att.f_value.0",
    "out": "image_lang_att.W.0",
    "out_norm": "image_lang_att.W.1",
    "project": "project_mm.0",
}
_LAYER = f"{_PIXELS}.transformer.encoder.layers"
# Beginnings of our names and the authors' of the same weights; the first that fits is replaced.
_RENAMED = (
    (r"network\.backbone\.", f"{_IMAGE}."),
    (r"network\.text\.", f"{_TEXT}."),
    *(
        (rf"network\.fusions\.(\d)\.full\.{ours}\.", rf"{_IMAGE}.layers.\1.fusion.{name}.")
        for ours, name in _PWAM.items()
    ),
    *(
        (rf"network\.fusions\.(\d)\.pyramid\.(\d)\.fusion\.{ours}\.", rf"{_IMAGE}.layers.\1.fusions.\2.{name}.")
        for ours, name in _PWAM.items()
    ),
    *(
        (rf"network\.fusions\.(\d)\.pyramid\.(\d)\.{ours}\.", rf"{_IMAGE}.layers.\1.pyramids.\2.{number}.")
        for ours, number in (("widen", 1), ("norm", 2), ("narrow", 3), ("reduce", 5))
    ),
    (r"network\.fusions\.(\d)\.mixer\.", rf"{_IMAGE}.layers.\1.mixer."),
    (r"network\.gates\.(\d)\.inner\.", rf"{_IMAGE}.layers.\1.res_gate.0."),
    (r"network\.gates\.(\d)\.outer\.", rf"{_IMAGE}.layers.\1.res_gate.2."),
    *((rf"network\.word_fusions\.(\d)\.{ours}\.", rf"{_TEXT}.pwams.\1.{name}.") for ours, name in _PWAM.items()),
    (r"network\.word_gates\.(\d)\.inner\.", rf"{_GATES}.\1.0."),
    (r"network\.word_gates\.(\d)\.outer\.", rf"{_GATES}.\1.2."),
    (r"network\.decoder\.pixels\.projections\.(\d)\.", rf"{_PIXELS}.input_proj.\1.0."),
    (r"network\.decoder\.pixels\.norms\.(\d)\.", rf"{_PIXELS}.input_proj.\1.1."),
    (r"network\.decoder\.pixels\.scale_embedding", f"{_PIXELS}.transformer.level_embed"),
    (r"network\.decoder\.pixels\.layers\.(\d+)\.attention\.offsets\.", rf"{_LAYER}.\1.self_attn.sampling_offsets."),
    (r"network\.decoder\.pixels\.layers\.(\d+)\.attention\.weights\.", rf"{_LAYER}.\1.self_attn.attention_weights."),
    (r"network\.decoder\.pixels\.layers\.(\d+)\.attention\.value\.", rf"{_LAYER}.\1.self_attn.value_proj."),
    (r"network\.decoder\.pixels\.layers\.(\d+)\.attention\.out\.", rf"{_LAYER}.\1.self_attn.output_proj."),
    (r"network\.decoder\.pixels\.layers\.", f"{_LAYER}."),
    (r"network\.decoder\.features\.", f"{_PIXELS}.mask_features."),
    (r"network\.decoder\.query", f"{_QUERY}.query_feat.weight"),
    (r"network\.decoder\.place", f"{_QUERY}.query_embed.weight"),
    (r"network\.decoder\.scale_embedding", f"{_QUERY}.level_embed.weight"),
    (
        r"network\.decoder\.layers\.(\d+)\.cross_attention",
        rf"{_QUERY}.transformer_cross_attention_layers.\1.multihead_attn",
    ),
    (r"network\.decoder\.layers\.(\d+)\.cross_norm", rf"{_QUERY}.transformer_cross_attention_layers.\1.norm"),
    (r"network\.decoder\.layers\.(\d+)\.self_attention", rf"{_QUERY}.transformer_self_attention_layers.\1.self_attn"),
    (r"network\.decoder\.layers\.(\d+)\.self_norm", rf"{_QUERY}.transformer_self_attention_layers.\1.norm"),
    (r"network\.decoder\.layers\.", f"{_QUERY}.transformer_ffn_layers."),
    (r"network\.decoder\.norm\.", f"{_QUERY}.decoder_norm."),
    *((rf"network\.decoder\.mask_embedding\.{2 * n}\.", f"{_QUERY}.mask_embed.layers.{n}.") for n in range(3)),
    (r"network\.decoder\.class_embedding\.", f"{_QUERY}.class_embed."),
    (r"word_projection\.", "lang_proj."),
)


def convert(content: dict[str, Any]) -> Converted:
    """Find the weights of MagNet in the content of a file. Raises InputError when it is another file."""
    container, network = files.find_network(content, _NAME, _KNOWN)
    tensors = files.check_dense(network, _NAME)
    args, epoch = content.get("args"), content.get("epoch")
    files.check_heads(args)
    weights, buffers = files.without_buffers(tensors)
    unread = [key for key in weights if _NEVER_READ.fullmatch(key)]
    return Converted(
        tensors={key: _as_linear(key, value) for key, value in weights.items() if key not in unread},
        released=_released_name,
        model=_read_sizes(tensors),
        variants=["released"],
        vocabulary="bert-base-uncased",
        pieces=files.shape(tensors, f"{_TEXT}.embeddings.word_embeddings.weight", 2, _NAME)[0],
        dataset=files.read_dataset(args),
        pretraining=files.read_pretraining(args),
        epoch=epoch if isinstance(epoch, int) else None,
        needless={
            **buffers,
            **({"weights that the released network never reads": len(unread)} if unread else {}),
            **{key: 1 for key in files.TRAINING if key in content},
        },
        left=[str(key) for key in content if key not in (container, *_KNOWN[1:])] if container else [],
        notes=[_describe_gates(tensors)],
    )


def _released_name(name: str) -> str:
    """Return the authors' name of a weight of ours; they count the patch merging to the stage before it."""
    merging = re.match(r"network\.backbone\.layers\.(\d)\.downsample\.", name)
    if merging:
        return f"{_IMAGE}.layers.{int(merging[1]) - 1}.downsample.{name[merging.end() :]}"
    for ours, theirs in _RENAMED:
        renamed, count = re.subn(rf"\A{ours}", theirs, name)
        if count:
            return renamed
    return name


def _read_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Value]:
    """Return the settings of [model] that follow from the shapes."""
    sizes = files.read_encoder_sizes(tensors, _IMAGE, _TEXT, _NAME)
    layers = files.count_children(tensors, f"{_TEXT}.encoder.layer")
    if layers % 4 or not layers:
        raise InputError(
            f"its BERT has {layers} layers, which four stages cannot share. Give a file with another BERT."
        )
    return {
        **sizes,
        "text_taps": [layers // 4 * number for number in range(1, 5)],
        "decoder_channels": files.shape(tensors, f"{_PIXELS}.mask_features.weight", 4, _NAME)[0],
        "pixel_layers": files.count_children(tensors, _LAYER),
        "pixel_hidden": files.shape(tensors, f"{_LAYER}.0.linear1.weight", 2, _NAME)[0],
        "decoder_layers": files.count_children(tensors, f"{_QUERY}.transformer_ffn_layers"),
        "decoder_hidden": files.shape(tensors, f"{_QUERY}.transformer_ffn_layers.0.linear1.weight", 2, _NAME)[0],
    }


def _as_linear(key: str, value: Tensor) -> Tensor:
    """Return the weight of a linear layer for the authors' 1x1 convolutions, but the one of the pixels' features."""
    is_convolution = value.ndim > 2 and set(value.shape[2:]) == {1} and not key.startswith(f"{_PIXELS}.mask_features")
    return value.flatten(1) if is_convolution else value


def _describe_gates(tensors: Mapping[str, Tensor]) -> str:
    """Say how far the gates of the language side are open."""
    gates = [f"{_GATES}.{stage}.{layer}.weight" for stage in range(4) for layer in (0, 2)]
    for key in gates:
        files.shape(tensors, key, 2, _NAME)
    largest = max(float(tensors[key].abs().max()) for key in gates)
    meaning = (
        "Zero means that they are shut: no word reads a pixel, and the mask of the released code has no influence."
        if largest == 0
        else "Zero would mean that they are shut; these are not: words read pixels, under the released code's mask "
        "(model.released_mask=true)."
    )
    return f"Largest absolute value of the language side's gates ({_GATES}): {largest:.4g}. {meaning}"
