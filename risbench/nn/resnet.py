"""ResNet (He et al., CVPR 2016) from timm, stage by stage, behind the interface of `risbench.nn.swin.Swin`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from risbench.errors import InputError
from risbench.nn import weights


class ResNet(nn.Module):
    """Four stages that are called one by one; maps are (B, h, w, C), channels last in memory."""

    stride = 4  # of the first map

    def __init__(self, name: str) -> None:
        super().__init__()
        known = name in timm.list_models("resnet*")
        self.net: Any = timm.create_model(name, pretrained=False, num_classes=0) if known else None  # timm has no types
        if not isinstance(self.net, timm.models.resnet.ResNet):  # some that are called so are built otherwise
            raise InputError(f"model.backbone={name!r} is no ResNet of timm. Take resnet101, for example.")
        info: Any = self.net.feature_info
        self.widths = [stage["num_chs"] for stage in info[1:]]
        self.checkpointing = False

    def embed(self, image: Tensor) -> Tensor:
        """Stem: (B, 3, H, W) to (B, H/4, W/4, 64)."""
        net = self.net
        return cast(Tensor, net.maxpool(net.act1(net.bn1(net.conv1(image))))).permute(0, 2, 3, 1)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """A stage, from 0; it changes size and width itself: (B, h, w, C) to (B, h', w', C')."""
        layer, x = getattr(self.net, f"layer{number + 1}"), x.permute(0, 3, 1, 2)  # (B, C, h, w)
        if self.checkpointing and self.training:
            for block in layer:
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=partial(twice, block)))
        else:
            x = layer(x)
        return x.permute(0, 2, 3, 1)

    def merge(self, number: int, x: Tensor) -> Tensor:
        """Nothing: the next stage begins with a stride of its own."""
        return x

    def blocks(self) -> list[nn.Module]:
        """All residual blocks, for what acts on each alone."""
        return [block for number in range(1, 5) for block in getattr(self.net, f"layer{number}")]

    def load_pretrained(self, source: str) -> str:
        """Load ImageNet weights: a model name of timm, or a weights file with its keys.

        Raises InputError where the weights cannot be had or do not fit.
        """
        path = Path(source)
        if path.suffix in weights.SUFFIXES:
            tensors, said = weights.read(path), path.name
        else:
            with weights.from_hub(source):
                tensors, said = timm.create_model(source, pretrained=True).state_dict(), f"timm {source}"
        try:
            self.net.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("fc.")})
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"The weights {source} do not fit this ResNet: {reason} Give those of its size.") from None
        return f"ResNet {said}"


def twice(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds a block's first and second computation."""
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics alone, which have seen this batch in the first computation."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
