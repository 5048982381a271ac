"""The checkpoint files that the authors of LAVT released: their weights, and our names for them.

A file is a dictionary. A file of `lavt` has the network in `model` and BERT in `bert_model`; a file of `lavt_one` has
both in `model`, BERT as `text_encoder.*`. `args`, `epoch`, `optimizer` and `lr_scheduler` come from training. Files of
other training scripts have the weights in `state_dict`, or nothing but the weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from risbench.api import Converted
from risbench.errors import InputError
from risbench.nn import released as files
from risbench.recipe import Value

_NAME = "LAVT"
_NETWORK, _BERT, _BERT_IN_NETWORK = "model", "bert_model", "text_encoder"
_KNOWN = (_NETWORK, _BERT, *files.TRAINING, "epoch", "args")


def convert(content: dict[str, Any]) -> Converted:
    """Find the weights of LAVT in the content of a file. Raises InputError when it is another file."""
    container, network = files.find_network(content, _NAME, _KNOWN)
    bert_in_network = _BERT not in content
    bert = {} if bert_in_network else content[_BERT]
    if not isinstance(bert, dict):
        raise InputError(f"its {_BERT} is a {type(bert).__name__}, not a dictionary of weights. Give another file.")
    text = _BERT_IN_NETWORK if bert_in_network else _BERT
    tensors = files.check_dense({**network, **{f"{_BERT}.{key}": value for key, value in bert.items()}}, _NAME)
    args, epoch = content.get("args"), content.get("epoch")
    files.check_heads(args)
    weights, buffers = files.without_buffers(tensors)
    return Converted(
        tensors={key: _as_linear(key, value) for key, value in weights.items()},
        released=_released_names(text),
        model=_read_sizes(tensors, text),
        variants=["one"] if bert_in_network else [],
        vocabulary="bert-base-uncased",
        pieces=files.shape(tensors, f"{text}.embeddings.word_embeddings.weight", 2, _NAME)[0],
        dataset=files.read_dataset(args),
        pretraining=files.read_pretraining(args),
        epoch=epoch if isinstance(epoch, int) else None,
        needless={**buffers, **{key: 1 for key in files.TRAINING if key in content}},
        left=[str(key) for key in content if key not in (container, *_KNOWN[1:])] if container else [],
    )


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
    channels = files.shape(tensors, "classifier.conv1_4.weight", 4, _NAME)[0]
    return {**files.read_encoder_sizes(tensors, "backbone", text, _NAME), "decoder_channels": channels}


def _as_linear(key: str, value: Tensor) -> Tensor:
    """Return the weight of a linear layer for the authors' 1x1 convolution over positions: (C, D, 1) to (C, D)."""
    return value.squeeze(2) if ".fusion." in key and value.ndim == 3 else value
