"""Darknet53 (Redmon and Farhadi, YOLOv3, 2018) from timm, whole or stage by stage.

Its weights are timm's from ImageNet, those of a darknet .weights file, or none. B images, H W the network input, C
channels, h w the grid of a map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.models.cspnet import CspStagesCfg, CspStemCfg
from torch import Tensor, nn

from risbench import files
from risbench.data.pretrained import Pretrained, from_scratch
from risbench.errors import InputError
from risbench.nn import weights
from risbench.nn.checkpointing import run_block

_HEADER_BYTES = 20  # before the parameters: version (3 x int32), images seen (int64)
_VERSIONS = [(0, minor) for minor in range(2, 6)]  # an older version counts the images in 4 bytes
_DARKNET_SLOPE = 0.1  # of the LeakyReLU in darknet
_PART = "Darknet53"
_TIMM = "darknet53.c2ns_in1k"
_TIMM_SLOPE = 0.01  # with which timm trained its weights


class Darknet(nn.Module):
    """Darknet53 at full size behind the interface of `risbench.nn.swin.Swin`: maps are (B, h, w, C)."""

    stride = 4  # of the first map

    def __init__(self) -> None:
        super().__init__()
        channels = [64, 128, 256, 512, 1024]
        self.net: Any = darknet53(32, channels, [1, 2, 8, 8, 4], _TIMM_SLOPE)
        self.widths = channels[1:]
        self.checkpointing = False

    def embed(self, image: Tensor) -> Tensor:
        """The stem and the stage before the first map: (B, 3, H, W) to (B, H/2, W/2, 64)."""
        return cast(Tensor, self.net.stages_0(self.net.stem_conv1(image))).permute(0, 2, 3, 1)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run a stage, counted from 0, which changes size and width itself: (B, h, w, C) to (B, h/2, w/2, 2C)."""
        layer = self.net[f"stages_{number + 1}"]
        x = layer.conv_down(x.permute(0, 3, 1, 2))  # (B, 2C, h/2, w/2)
        for block in layer.blocks:
            x = run_block(block, x, checkpointing=self.checkpointing and self.training)
        return x.permute(0, 2, 3, 1)

    def merge(self, number: int, x: Tensor) -> Tensor:
        """Return the map as it is: the next stage begins with its own stride."""
        return x

    def blocks(self) -> list[nn.Module]:
        """Return all residual blocks."""
        return [block for number in range(1, 5) for block in self.net[f"stages_{number}"].blocks]

    def load_pretrained(self, source: str) -> Pretrained:
        """Load timm's weights and return what was loaded; darknet's weights were trained with another slope.

        Raises InputError when `source` names other weights, or when they cannot be had.
        """
        if source != _TIMM:
            raise InputError(f"model.backbone_weights={source!r} does not fit darknet53. Give {_TIMM} or ''.")
        return _load_timm(self.net)


def darknet53(stem: int, channels: Sequence[int], depths: Sequence[int], slope: float) -> nn.Module:
    """Build the network: (B, 3, H, W) to maps at H/8, H/16, H/32 of channels[2], channels[3], channels[4]."""
    stages = CspStagesCfg(
        tuple(depths), tuple(channels), stride=2, bottle_ratio=0.5, stage_type="dark", block_type="dark"
    )
    network: nn.Module = timm.create_model(
        "darknet53",
        features_only=True,
        out_indices=(3, 4, 5),
        stem=CspStemCfg(out_chs=stem, stride=1),
        stages=stages,
    )
    for module in network.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = slope
    return network


def load_weights(network: nn.Module, source: str, slope: float) -> Pretrained:
    """Load "timm", the darknet file at a path, or nothing for ""; return what was loaded.

    Raises InputError when the weights cannot be had or do not fit, or were trained with another slope.
    """
    if not source:
        return from_scratch(_PART)
    if source == "timm":
        return _load_timm(network)
    if slope != _DARKNET_SLOPE:
        raise InputError(f"darknet weights were trained with slope {_DARKNET_SLOPE}: set model.backbone_slope=0.1 too.")
    return _load_darknet(network, Path(source))


def _load_timm(network: nn.Module) -> Pretrained:
    """Load timm's classifier without its head, whose names `features_only` changes."""
    tensors, loaded = weights.from_timm(_PART, _TIMM, "darknet53*", local="model.backbone_weights=''")
    renamed = {re.sub(r"^(stem|stages)\.", r"\1_", name): tensor for name, tensor in tensors.items()}
    cure = "They are of the full size: set the sizes so, or give model.backbone_weights=''."
    weights.load_whole(network, renamed, f"timm {_TIMM}", _PART, heads=("head.",), cure=cure)
    return loaded


def _load_darknet(network: nn.Module, path: Path) -> Pretrained:
    """Read a darknet .weights file (darknet53.conv.74, yolov3.weights) into the network's 52 convolutions.

    After the header come float32 numbers: for each convolution in order the bias, weight, mean and variance of its
    batch normalisation, then its kernel. Numbers after the last convolution belong to YOLO's head.
    """
    numbers = _read_numbers(path)
    targets = _in_file_order(network)
    needed = sum(tensor.numel() for tensor in targets)
    if len(numbers) < needed:
        raise InputError(
            f"{path} holds {len(numbers)} numbers, but this Darknet53 needs {needed}. Give a complete "
            "darknet53.conv.74 or yolov3.weights, and the full-size model."
        )
    if not np.isfinite(numbers[:needed]).all():
        raise InputError(f"{path} holds numbers that are not finite: it is damaged or no darknet file. Take another.")
    parts = torch.split(torch.from_numpy(numbers[:needed]), [tensor.numel() for tensor in targets])
    _check_variances(parts, path)
    with torch.no_grad():
        for tensor, part in zip(targets, parts, strict=True):
            tensor.copy_(part.reshape(tensor.shape))
    return weights.of_file(_PART, path, files.DATA_LIMIT)


def _check_variances(parts: Sequence[Tensor], path: Path) -> None:
    """Refuse a file of another network: its numbers have no names, but they would stand in other places."""
    variances = parts[3::5]  # see _in_file_order
    negative = sum(bool((part < 0).any()) for part in variances)
    if negative:
        raise InputError(
            f"{path} is of another network than this Darknet53: {negative} of {len(variances)} normalisations would "
            "have a negative variance. Give darknet53.conv.74 or yolov3.weights, and the full-size model."
        )


def _read_numbers(path: Path) -> NDArray[np.float32]:
    """Read the numbers behind the header. Raises InputError for another file."""
    try:
        files.check_regular(path)
    except FileNotFoundError:
        raise InputError(f"There is no darknet file at {path}. Give another model.backbone_weights.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, no darknet file. Give the .weights file in it.") from None
    files.refuse_foreign(path)
    version = tuple(np.fromfile(path, dtype="<i4", count=2).tolist())
    if version not in _VERSIONS:
        raise InputError(
            f"{path} does not begin as a darknet file of version 0.2 to 0.5. Give darknet53.conv.74 or yolov3.weights."
        )
    return np.fromfile(path, dtype="<f4", offset=_HEADER_BYTES)


def _in_file_order(network: nn.Module) -> list[Tensor]:
    """Return parameters and statistics of all convolutions and normalisations in the order of a darknet file."""
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return [
        tensor
        for kernel, norm in zip(kernels, norms, strict=True)
        for tensor in (norm.bias, norm.weight, norm.running_mean, norm.running_var, kernel)
        if tensor is not None
    ]
