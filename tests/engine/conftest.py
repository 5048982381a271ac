"""A checkpoint file as the authors of LAVT wrote it, of a network of a few channels."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "red", "box", "the", *"abcdefghi"]
WIDTH, HEADS, WINDOW, CHANNELS, TEXT = 8, (1, 2, 2, 4), 3, 6, 64

File = dict[str, Any]
Save = Callable[[File], Path]


@pytest.fixture
def content() -> File:
    """The content of a `lavt` file, with all that training leaves in it."""
    model = _filled(_manifest())
    for stage in range(4):
        model[f"backbone.layers.{stage}.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.int64)
    for level in (2, 3, 4):
        model[f"classifier.bn1_{level}.num_batches_tracked"] = torch.tensor(53_000)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=5e-5, amsgrad=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
    torch.autograd.backward(layer(torch.ones(1, 2)).sum())
    optimizer.step()
    scheduler.step()
    return {
        "model": model,
        "bert_model": _filled(_bert_manifest()),
        "optimizer": optimizer.state_dict(),
        "epoch": 37,
        "args": Namespace(
            dataset="refcocog",
            splitBy="umd",
            model="lavt",
            mha="",
            lr=5e-5,
            device="cuda:0",
            ck_bert="bert-base-uncased",
            pretrained_swin_weights="./pretrained_weights/swin_base_patch4_window12_384_22k.pth",
        ),
        "lr_scheduler": scheduler.state_dict(),
    }


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save the content as a file."""

    def write(content: File) -> Path:
        torch.save(content, tmp_path / "lavt.pth")
        return tmp_path / "lavt.pth"

    return write


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """The word pieces of the file."""
    path = tmp_path / "pieces" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path


def _manifest() -> dict[str, list[int]]:
    """Names and shapes of `model`, written down without risbench."""
    shapes: dict[str, list[int]] = {}

    def module(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = list(weight)
        if bias:
            shapes[f"{name}.bias"] = [weight[0]]

    module("backbone.patch_embed.proj", WIDTH, 3, 4, 4)
    module("backbone.patch_embed.norm", WIDTH)
    for stage, heads in enumerate(HEADS):
        width, layer = WIDTH * 2**stage, f"backbone.layers.{stage}"
        block = f"{layer}.blocks.0"
        shapes[f"{block}.attn.relative_position_bias_table"] = [(2 * WINDOW - 1) ** 2, heads]
        for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            module(f"{block}.{name}", rows * width, columns * width)
        for name in (f"{block}.norm1", f"{block}.norm2", f"backbone.norm{stage}"):
            module(name, width)
        attention = f"{layer}.fusion.image_lang_att"
        for name in (
            f"{layer}.fusion.vis_project",
            f"{layer}.fusion.project_mm",
            f"{attention}.f_query",
            f"{attention}.W",
        ):
            module(f"{name}.0", width, width, 1)
        for name in ("f_key", "f_value"):
            module(f"{attention}.{name}.0", width, TEXT, 1)
        for number in (0, 2):
            module(f"{layer}.res_gate.{number}", width, width, bias=False)
        if stage < 3:
            module(f"{layer}.downsample.reduction", 2 * width, 4 * width, bias=False)
            module(f"{layer}.downsample.norm", 4 * width)
    for level, below in ((4, 8 * WIDTH + 4 * WIDTH), (3, CHANNELS + 2 * WIDTH), (2, CHANNELS + WIDTH)):
        for number, channels in ((1, below), (2, CHANNELS)):
            module(f"classifier.conv{number}_{level}", CHANNELS, channels, 3, 3, bias=False)
            module(f"classifier.bn{number}_{level}", CHANNELS)
            shapes[f"classifier.bn{number}_{level}.running_mean"] = [CHANNELS]
            shapes[f"classifier.bn{number}_{level}.running_var"] = [CHANNELS]
    module("classifier.conv1_1", 2, CHANNELS, 1, 1)
    return shapes


def _bert_manifest() -> dict[str, list[int]]:
    """Names and shapes of `bert_model`."""
    size: dict[str, Any] = {"vocab_size": len(PIECES), "hidden_size": TEXT, "intermediate_size": 4 * TEXT}
    config = BertConfig(**size, num_hidden_layers=1, num_attention_heads=1)
    bert = BertModel(config, add_pooling_layer=False)
    return {name: list(tensor.shape) for name, tensor in bert.state_dict().items()}


def _filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    torch.manual_seed(len(shapes))
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {name: tensor.abs() + 1 if "running_var" in name else tensor for name, tensor in tensors.items()}
