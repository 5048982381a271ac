"""ResNet (He et al., CVPR 2016) from timm, stage by stage, behind the interface of `risbench.nn.swin.Swin`.

B images, H W the network input, C channels, h w the grid of a map.
"""

from __future__ import annotations

from typing import Any, cast

import timm
from torch import Tensor, nn

from risbench.data.pretrained import Pretrained
from risbench.errors import InputError
from risbench.nn import weights
from risbench.nn.checkpointing import run_block


class ResNet(nn.Module):
    """Four stages that are called one by one; maps are (B, h, w, C), channels last in memory."""

    stride = 4  # of the first map

    def __init__(self, name: str) -> None:
        super().__init__()
        known = name in timm.list_models("resnet*")
        self.net: Any = timm.create_model(name, pretrained=False, num_classes=0) if known else None  # timm has no types
        if not isinstance(self.net, timm.models.resnet.ResNet):  # some names, as resnetv2_50, are of other classes
            raise InputError(f"model.backbone={name!r} is no ResNet of timm. Take resnet101, for example.")
        info: Any = self.net.feature_info
        self.widths = [stage["num_chs"] for stage in info[1:]]
        self.checkpointing = False

    def embed(self, image: Tensor) -> Tensor:
        """Stem: (B, 3, H, W) to (B, H/4, W/4, 64)."""
        net = self.net
        return cast(Tensor, net.maxpool(net.act1(net.bn1(net.conv1(image))))).permute(0, 2, 3, 1)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run a stage, counted from 0, which changes size and width itself: (B, h, w, C) to (B, h', w', C')."""
        x = x.permute(0, 3, 1, 2)  # (B, C, h, w)
        for block in getattr(self.net, f"layer{number + 1}"):
            x = run_block(block, x, checkpointing=self.checkpointing and self.training)
        return x.permute(0, 2, 3, 1)

    def merge(self, number: int, x: Tensor) -> Tensor:
        """Return the map as it is: the next stage begins with its own stride."""
        return x

    def blocks(self) -> list[nn.Module]:
        """Return all residual blocks."""
        return [block for number in range(1, 5) for block in getattr(self.net, f"layer{number}")]

    def load_pretrained(self, source: str) -> Pretrained:
        """Load weights of a classifier: a model name of timm, or a weights file with its keys; return what was loaded.

        Raises InputError when the weights cannot be had or do not fit.
        """
        tensors, loaded = weights.read_pretrained("ResNet", source, "resnet*")
        weights.load_whole(self.net, tensors, source, "ResNet", heads=("fc.",))
        return loaded
