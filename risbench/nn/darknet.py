"""Darknet53 from timm, with ImageNet weights, those of a darknet .weights file, or none; whole, or stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from timm.models.cspnet import CspStagesCfg, CspStemCfg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from risbench.errors import InputError
from risbench.nn.resnet import twice

_HEADER = 20  # bytes before the parameters: version (3 x int32), images seen (int64)
_DARKNET_SLOPE = 0.1  # of the LeakyReLU in darknet; timm's own weights were trained with 0.01
_TIMM = "darknet53.c2ns_in1k"
_TIMM_SLOPE = 0.01


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
        """A stage, from 0; it changes size and width itself: (B, h, w, C) to (B, h/2, w/2, 2C)."""
        layer, x = self.net[f"stages_{number + 1}"], x.permute(0, 3, 1, 2)  # (B, C, h, w)
        if self.checkpointing and self.training:
            x = layer.conv_down(x)
            for block in layer.blocks:
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=partial(twice, block)))
        else:
            x = layer(x)
        return x.permute(0, 2, 3, 1)

    def merge(self, number: int, x: Tensor) -> Tensor:
        """Nothing: the next stage begins with a stride of its own."""
        return x

    def blocks(self) -> list[nn.Module]:
        """All residual blocks, for what acts on each alone."""
        return [block for number in range(1, 5) for block in self.net[f"stages_{number}"].blocks]

    def load_pretrained(self, source: str) -> str:
        """Load timm's ImageNet weights; those of darknet itself were trained with another slope.

        Raises InputError where the weights cannot be had.
        """
        if source != _TIMM:
            raise InputError(f"model.backbone_weights={source!r} does not fit darknet53 here. Give {_TIMM} or ''.")
        return f"Darknet53 {_load_timm(self.net)}"


def darknet53(stem: int, channels: Sequence[int], depths: Sequence[int], slope: float) -> nn.Module:
    """Build the network: (I, 3, H, W) to maps at H/8, H/16, H/32 of channels[2], channels[3], channels[4]."""
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


def load_weights(network: nn.Module, weights: str, slope: float) -> str:
    """Load "timm", the darknet file at a path, or nothing for ""; say what was loaded."""
    if not weights:
        return "from scratch"
    if weights == "timm":
        return _load_timm(network)
    if slope != _DARKNET_SLOPE:
        raise InputError(f"darknet weights were trained with slope {_DARKNET_SLOPE}: set model.backbone_slope=0.1 too.")
    return _load_darknet(network, Path(weights))


def _load_timm(network: nn.Module) -> str:
    try:
        source = timm.create_model(_TIMM, features_only=True, out_indices=(3, 4, 5), pretrained=True)
    except Exception as error:  # the hub's clients raise many kinds, all of which mean that there are no weights
        raise InputError(
            f"The pretrained weights {_TIMM} cannot be had ({type(error).__name__}). Connect to the Hugging Face hub "
            "or a mirror (HF_ENDPOINT) once, or give model.pretrained=false to train from scratch."
        ) from None
    try:
        network.load_state_dict(source.state_dict())
    except RuntimeError:
        raise InputError(
            f"The pretrained weights {_TIMM} fit the full-size Darknet53 only. Give model.backbone_weights=''."
        ) from None
    return f"timm {_TIMM} (ImageNet-1k)"


def _load_darknet(network: nn.Module, path: Path) -> str:
    """Read a darknet .weights file (darknet53.conv.74, yolov3.weights) into the network's 52 convolutions.

    Behind its header the file holds float32 numbers: for each convolution in order the batch normalisation's bias,
    weight, mean and variance, then the kernel. Numbers behind the last convolution belong to YOLO's head.
    """
    try:
        numbers = np.fromfile(path, dtype="<f4", offset=_HEADER)
    except FileNotFoundError:
        raise InputError(f"There is no darknet file at {path}. Give another model.backbone_weights.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, no darknet file. Give the .weights file in it.") from None
    targets = _tensors(network)
    needed = sum(tensor.numel() for tensor in targets)
    if len(numbers) < needed:
        raise InputError(
            f"{path} holds {len(numbers)} numbers, but this Darknet53 needs {needed}. Give a complete "
            "darknet53.conv.74 or yolov3.weights, and the full-size model."
        )
    if not np.isfinite(numbers[:needed]).all():
        raise InputError(f"{path} holds numbers that are not finite: it is damaged, or no darknet file. Get it again.")
    parts = torch.split(torch.from_numpy(numbers[:needed]), [tensor.numel() for tensor in targets])
    with torch.no_grad():
        for tensor, part in zip(targets, parts, strict=True):
            tensor.copy_(part.reshape(tensor.shape))
    return f"{path.name} (darknet)"


def _tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and statistics of each convolution and its normalisation, in darknet's order."""
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return [
        tensor
        for kernel, norm in zip(kernels, norms, strict=True)
        for tensor in (norm.bias, norm.weight, norm.running_mean, norm.running_var, kernel)
        if tensor is not None
    ]
