"""The checkpoint files that the authors of LAVT released: their weights, and our names for them.

A file is a dictionary. A file of `lavt` has the network in `model` and BERT in `bert_model`; a file of `lavt_one` has
both in `model`, BERT as `text_encoder.*`. `args`, `epoch`, `optimizer` and `lr_scheduler` come from training. Files of
other training scripts have the weights in `state_dict`, or nothing but the weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from risbench.api import Converted
from risbench.data.pretrained import bert_data
from risbench.errors import InputError
from risbench.recipe import Value

_NETWORK, _BERT, _BERT_IN_NETWORK = "model", "bert_model", "text_encoder"
_TRAINING = ("optimizer", "lr_scheduler")
_BUFFERS = ("relative_position_index", "position_ids")  # computed from the sizes
_DATASETS = {  # by the arguments dataset and splitBy
    ("refcoco", "unc"): "refcoco",
    ("refcoco+", "unc"): "refcoco+",
    ("refcocog", "umd"): "refcocog",
    ("refcocog", "google"): "refcocog-google",
}
_SWIN = re.compile(r"swin_(tiny|small|base|large)_patch4_window\d+_\d+(_22k|_22kto1k)?\.pth")  # of Swin's authors
_SWIN_DATA = {None: ("ImageNet-1k",), "_22k": ("ImageNet-22k",), "_22kto1k": ("ImageNet-22k", "ImageNet-1k")}
_HEAD_WIDTH = 64  # of every published BERT


def convert(content: dict[str, Any]) -> Converted:
    """Find the weights of LAVT in the content of a file. Raises InputError when it is another file."""
    container, network = _find_network(content)
    bert_in_network = _BERT not in content
    bert = {} if bert_in_network else content[_BERT]
    if not isinstance(bert, dict):
        raise InputError(f"its {_BERT} is a {type(bert).__name__}, not a dictionary of weights. Give another file.")
    text = _BERT_IN_NETWORK if bert_in_network else _BERT
    tensors = _check_dense({**network, **{f"{_BERT}.{key}": value for key, value in bert.items()}})
    args, epoch = content.get("args"), content.get("epoch")
    _check_heads(args)
    buffers = Counter(_leaf(key) for key in tensors if _leaf(key) in _BUFFERS)
    return Converted(
        tensors={key: _as_linear(key, value) for key, value in tensors.items() if _leaf(key) not in _BUFFERS},
        released=_released_names(text),
        model=_read_sizes(tensors, text),
        variants=["one"] if bert_in_network else [],
        vocabulary="bert-base-uncased",
        pieces=_shape(tensors, f"{text}.embeddings.word_embeddings.weight", 2)[0],
        dataset=_DATASETS.get((str(getattr(args, "dataset", "")), str(getattr(args, "splitBy", ""))), ""),
        pretraining=_read_pretraining(args),
        epoch=epoch if isinstance(epoch, int) else None,
        needless={**buffers, **{key: 1 for key in _TRAINING if key in content}},
        left=[str(key) for key in content if key not in (container, _BERT, *_TRAINING, "args", "epoch")]
        if container
        else [],
    )


def _read_pretraining(args: Any) -> tuple[str, ...] | None:
    """Return the training data of the Swin and BERT that training began from, by its arguments; None: not known."""
    swin = _SWIN.fullmatch(Path(str(getattr(args, "pretrained_swin_weights", ""))).name)
    bert = bert_data(str(getattr(args, "ck_bert", "")))
    return (*_SWIN_DATA[swin[2]], *bert) if swin and bert else None


def _find_network(content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the network's weights and the name under which they are; "" for bare weights."""
    for container in (_NETWORK, "state_dict"):
        if isinstance(content.get(container), dict):
            return container, content[container]
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return "", content
    known = ", ".join([_NETWORK, _BERT, *_TRAINING, "epoch", "args"])
    raise InputError(f"it holds {_first_keys(content)}, but a file of LAVT holds {known}. Give such a file.")


def _released_names(text: str) -> Callable[[str], str]:
    """Return a function from our names to the authors', who have BERT under the name `text`."""
    modules = {"decoder.logits": "classifier.conv1_1"}
    for stage in range(4):
        layer, fusion = f"backbone.layers.{stage}", f"backbone.layers.{stage}.fusion"
        modules |= {
            f"fusions.{stage}.visual": f"{fusion}.vis_project.0",
            f"fusions.{stage}.query": f"{fusion}.image_lang_att.f_query.0",
            f"fusions.{stage}.key": f"{fusion}.image_lang_att.f_key.0",
            f"fusions.{stage}.value": f"{fusion}.image_lang_att.f_value.0",
            f"fusions.{stage}.out": f"{fusion}.image_lang_att.W.0",
            f"fusions.{stage}.project": f"{fusion}.project_mm.0",
            f"gates.{stage}.inner": f"{layer}.res_gate.0",
            f"gates.{stage}.outer": f"{layer}.res_gate.2",
            f"norms.{stage}": f"backbone.norm{stage}",
            f"backbone.layers.{stage + 1}.downsample.norm": f"{layer}.downsample.norm",
            f"backbone.layers.{stage + 1}.downsample.reduction": f"{layer}.downsample.reduction",
        }
    for level, map_number in enumerate((4, 3, 2)):
        for layer_number in (0, 1):
            ours, theirs = f"decoder.levels.{level}.{layer_number}", f"{layer_number + 1}_{map_number}"
            modules |= {f"{ours}.conv": f"classifier.conv{theirs}", f"{ours}.norm": f"classifier.bn{theirs}"}

    def released(name: str) -> str:
        module, _, leaf = name.removeprefix("network.").rpartition(".")
        return f"{modules.get(module) or re.sub('^text', text, module)}.{leaf}"

    return released


def _read_sizes(tensors: dict[str, Tensor], text: str) -> dict[str, Value]:
    """Return the settings of [model] that follow from the shapes."""
    width, _, patch, _ = _shape(tensors, "backbone.patch_embed.proj.weight", 4)
    stages = [f"backbone.layers.{stage}.blocks" for stage in range(4)]
    tables = [_shape(tensors, f"{stage}.0.attn.relative_position_bias_table", 2) for stage in stages]
    text_width = _shape(tensors, f"{text}.embeddings.word_embeddings.weight", 2)[1]
    if text_width % _HEAD_WIDTH:
        raise InputError(f"its BERT is {text_width} wide, no multiple of {_HEAD_WIDTH}. Give a file with another BERT.")
    window = (isqrt(tables[0][0]) + 1) // 2  # a table has (2 window - 1)^2 rows, one per offset
    return {
        "backbone": "swin",
        "width": width,
        "depths": [_count_children(tensors, stage) for stage in stages],
        "heads": [heads for _, heads in tables],
        "window": window,
        "patch": patch,
        "text_width": text_width,
        "text_layers": _count_children(tensors, f"{text}.encoder.layer"),
        "text_heads": text_width // _HEAD_WIDTH,
        "decoder_channels": _shape(tensors, "classifier.conv1_4.weight", 4)[0],
    }


def _leaf(key: str) -> str:
    """Return the part of a weight's name after its module."""
    return key.rpartition(".")[2]


def _count_children(tensors: dict[str, Tensor], module: str) -> int:
    """Return the number of a module's numbered children."""
    return len({key[len(module) + 1 :].partition(".")[0] for key in tensors if key.startswith(f"{module}.")})


def _shape(tensors: dict[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of a weight. Raises InputError when it is missing or has other dimensions."""
    if key not in tensors:
        raise InputError(f"the weight {key} is missing. Give a whole file of LAVT.")
    shape = tuple(tensors[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise InputError(f"{key} has the shape {shape}, not {dimensions} dimensions. Give a file of LAVT.")
    return shape


def _check_dense(weights: dict[Any, Any]) -> dict[str, Tensor]:
    """Return the weights. Raises InputError when a value is no dense tensor in memory."""
    for key, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise InputError(f"{key} is no dense tensor, so this is no file of LAVT. Give another one.")
    return {str(key): value for key, value in weights.items()}


def _as_linear(key: str, value: Tensor) -> Tensor:
    """Return the weight of a linear layer for the authors' 1x1 convolution over positions: (C, D, 1) to (C, D)."""
    return value.squeeze(2) if ".fusion." in key and value.ndim == 3 else value


def _check_heads(args: Any) -> None:
    """Raise InputError for attention of several heads, which the authors' code allows and the weights do not show."""
    heads = str(getattr(args, "mha", "") or "1")
    if set(re.findall(r"\d+", heads)) != {"1"}:
        raise InputError(f"it was trained with --mha {heads}, but attention has one head here. Give another file.")


def _first_keys(content: dict[str, Any]) -> str:
    keys = [str(key) for key in content]
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "") or "nothing"
