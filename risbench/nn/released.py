"""What the converters of LAVT and MagNet share: files of training scripts with a Swin Transformer and BERT in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from risbench.data.pretrained import bert_data
from risbench.errors import InputError
from risbench.recipe import Value

TRAINING = ("optimizer", "lr_scheduler")
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


def find_network(content: dict[str, Any], method: str, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the network's weights and the name under which they are; "" for bare weights.

    Raises InputError for a file of something else; `known` are the entries of a file of the method.
    """
    for container in ("model", "state_dict"):
        if isinstance(content.get(container), dict):
            return container, content[container]
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return "", content
    held = _first_keys(content)
    raise InputError(f"it holds {held}, but a file of {method} holds {', '.join(known)}. Give such a file.")


def read_dataset(args: Any) -> str:
    """Return the data set that the arguments of a training script name; "" if they name none."""
    return _DATASETS.get((str(getattr(args, "dataset", "")), str(getattr(args, "splitBy", ""))), "")


def read_pretraining(args: Any) -> tuple[str, ...] | None:
    """Return the training data of the Swin and BERT that training began from, by its arguments; None: not known."""
    swin = _SWIN.fullmatch(Path(str(getattr(args, "pretrained_swin_weights", ""))).name)
    bert = bert_data(str(getattr(args, "ck_bert", "")))
    return (*_SWIN_DATA[swin[2]], *bert) if swin and bert else None


def read_encoder_sizes(tensors: Mapping[str, Tensor], swin: str, text: str, method: str) -> dict[str, Value]:
    """Return the settings of both encoders that follow from the shapes; `swin` and `text` are their names."""
    width, _, patch, _ = shape(tensors, f"{swin}.patch_embed.proj.weight", 4, method)
    stages = [f"{swin}.layers.{stage}.blocks" for stage in range(4)]
    tables = [shape(tensors, f"{stage}.0.attn.relative_position_bias_table", 2, method) for stage in stages]
    text_width = shape(tensors, f"{text}.embeddings.word_embeddings.weight", 2, method)[1]
    if text_width % _HEAD_WIDTH:
        raise InputError(f"its BERT is {text_width} wide, no multiple of {_HEAD_WIDTH}. Give a file with another BERT.")
    window = (isqrt(tables[0][0]) + 1) // 2  # a table has (2 window - 1)^2 rows, one per offset
    return {
        "backbone": "swin",
        "width": width,
        "depths": [count_children(tensors, stage) for stage in stages],
        "heads": [heads for _, heads in tables],
        "window": window,
        "patch": patch,
        "text_width": text_width,
        "text_layers": count_children(tensors, f"{text}.encoder.layer"),
        "text_heads": text_width // _HEAD_WIDTH,
    }


def without_buffers(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Counter[str]]:
    """Return the weights, and how many buffers of each kind were left out that are computed from the sizes."""
    leaves = {key: key.rpartition(".")[2] for key in tensors}
    kept = {key: value for key, value in tensors.items() if leaves[key] not in _BUFFERS}
    return kept, Counter(leaf for leaf in leaves.values() if leaf in _BUFFERS)


def count_children(tensors: Mapping[str, Tensor], module: str) -> int:
    """Return the number of a module's numbered children."""
    return len({key[len(module) + 1 :].partition(".")[0] for key in tensors if key.startswith(f"{module}.")})


def shape(tensors: Mapping[str, Tensor], key: str, dimensions: int, method: str) -> tuple[int, ...]:
    """Return the shape of a weight. Raises InputError when it is missing or has other dimensions."""
    if key not in tensors:
        raise InputError(f"the weight {key} is missing. Give a whole file of {method}.")
    found = tuple(tensors[key].shape)
    if len(found) != dimensions or 0 in found:
        raise InputError(f"{key} has the shape {found}, not {dimensions} dimensions. Give a file of {method}.")
    return found


def check_dense(weights: Mapping[Any, Any], method: str) -> dict[str, Tensor]:
    """Return the weights. Raises InputError when a value is no dense tensor in memory."""
    for key, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise InputError(f"{key} is no dense tensor, so this is no file of {method}. Give another one.")
    return {str(key): value for key, value in weights.items()}


def check_heads(args: Any) -> None:
    """Raise InputError for attention of several heads, which the authors' code allows and the weights do not show."""
    heads = str(getattr(args, "mha", "") or "1")
    if set(re.findall(r"\d+", heads)) != {"1"}:
        raise InputError(f"it was trained with --mha {heads}, but attention has one head here. Give another file.")


def _first_keys(content: Mapping[str, Any]) -> str:
    keys = [str(key) for key in content]
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "") or "nothing"
