"""Swin Transformer (Liu et al., ICCV 2021) from timm, open between the blocks of a stage and the patch merging behind.

timm's blocks shift a map first and pad it to whole windows after; the networks of LAVT and MagNet pad first and shift
the padded map, and CoupAlign here does as they do. The two differ wherever a map is no multiple of the window (stages 3
and 4 at 480 px and window 12), so the blocks here pad first. Everything else is timm's, down to the names of the
weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from risbench.errors import InputError
from risbench.nn import weights

_OUTSIDE = -100.0  # added to the attention between positions that only the cyclic shift brought together


class Block(nn.Module):
    """A block of timm's, its parts as they are, its attention on the padded map."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.window: int = block.window_size[0]
        self.shift: int = block.shift_size[0]
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self._kept: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, h, w, C) to the same shape; `bias` is that of the map's size."""
        x = x + self.drop_path1(self._attention(self.norm1(x), bias))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x

    def bias(self, height: int, width: int) -> Tensor:
        """What is added to the attention of each window: (1 or windows, heads, N, N) for N positions of a window.

        Relative position bias, and the mask of shifted windows. Where no gradient is wanted it is computed once for
        the weights and the size.
        """
        table: Tensor = self.attn.relative_position_bias_table
        if torch.is_grad_enabled() or table.is_inference():  # an inference tensor does not count its changes
            return self._bias(table, height, width)
        state = (height, width, table.data_ptr(), table._version, table.dtype, table.device)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self._bias(table, height, width))
        return self._kept[1]

    def _bias(self, table: Tensor, height: int, width: int) -> Tensor:
        area = self.window**2
        index = cast(Tensor, self.attn.relative_position_index)
        bias = table[index.flatten()].view(area, area, -1)  # (N, N, heads)
        bias = bias.permute(2, 0, 1)[None].contiguous()  # (1, heads, N, N)
        if not self.shift:
            return bias
        size = (_whole(height, self.window), _whole(width, self.window))
        return bias + shift_mask(*size, self.window, self.shift, table.device).to(table.dtype)[:, None]

    def _attention(self, x: Tensor, bias: Tensor) -> Tensor:
        images, height, width, channels = x.shape
        window, area = (self.window, self.window), self.window**2
        x = functional.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))  # (B, h', w', C)
        padded = (x.shape[1], x.shape[2])
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        x = window_partition(x, window).view(-1, area, channels)  # (B windows, N, C)
        qkv = self.attn.qkv(x).view(len(x), area, 3, self.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B windows, heads, N, C / heads)
        if len(bias) > 1 and images > 1:
            bias = bias.expand(images, *bias.shape).flatten(0, 1)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = self.attn.proj(x.transpose(1, 2).reshape(-1, area, channels))
        x = window_reverse(x.view(-1, *window, channels), window, *padded)  # (B, h', w', C)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class Swin(SwinTransformer):
    """Four stages that are called one by one; maps are (B, h, w, C)."""

    def __init__(
        self, width: int, depths: Sequence[int], heads: Sequence[int], window: int, patch: int, drop_path: float
    ) -> None:
        super().__init__(
            img_size=4 * patch * window,  # any size is taken; this one gives every stage its own window and shift
            patch_size=patch,
            embed_dim=width,
            depths=tuple(depths),
            num_heads=tuple(heads),
            window_size=window,
            drop_path_rate=drop_path,
            always_partition=True,
            strict_img_size=False,
            num_classes=0,
        )
        del self.norm, self.head
        for stage in self.layers:
            stage.blocks = nn.Sequential(*map(Block, cast(Any, stage.blocks)))
        self.widths = [width * 2**stage for stage in range(len(depths))]
        self.stride = patch  # of the first map
        self.checkpointing = False

    def embed(self, image: Tensor) -> Tensor:
        """Patch embedding: (B, 3, H, W) to (B, H/4, W/4, C1)."""
        return cast(Tensor, self.patch_embed(image))

    def stage(self, number: int, x: Tensor) -> Tensor:
        """The blocks of a stage, from 0: (B, h, w, C) to the same shape."""
        height, width = x.shape[1], x.shape[2]
        for block in cast(nn.Sequential, self.layers[number].blocks):
            bias = cast(Block, block).bias(height, width)
            if self.checkpointing and self.training:
                x = cast(Tensor, checkpoint(block, x, bias, use_reentrant=False))
            else:
                x = block(x, bias)
        return x

    def merge(self, number: int, x: Tensor) -> Tensor:
        """Patch merging between a stage and the next: (B, h, w, C) to (B, ceil(h/2), ceil(w/2), 2C)."""
        return cast(Tensor, cast(nn.Module, self.layers[number + 1].downsample)(x))

    def blocks(self) -> list[nn.Module]:
        """All blocks, for what acts on each alone."""
        return [block for stage in self.layers for block in cast(nn.Sequential, stage.blocks)]

    def load_pretrained(self, source: str) -> str:
        """Load ImageNet weights: a model name of timm, or a file as timm or the authors of Swin publish it.

        Bias tables of another window are resized. Raises InputError where the weights cannot be had or do not fit.
        """
        path = Path(source)
        if path.suffix in weights.SUFFIXES:
            tensors, said = weights.read(path), path.name
        else:
            tensors, said = _from_timm(source), f"timm {source}"
        try:
            answer = self.load_state_dict(_fitted(tensors, self.state_dict()), strict=False)
        except (RuntimeError, AttributeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"The weights {source} do not fit this Swin: {reason} Give those of its size.") from None
        left = [key for key in answer.unexpected_keys if not key.startswith(("norm.", "head."))]
        if answer.missing_keys or left:
            raise InputError(
                f"The weights {source} do not fit this Swin: {len(answer.missing_keys)} keys are missing and "
                f"{len(left)} left over, first {', '.join((answer.missing_keys + left)[:3])}. Give those of its size."
            )
        return f"Swin {said}"


@lru_cache(maxsize=64)
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """0 between positions that are neighbours on the padded map, -100 elsewhere: (windows, N, N).

    `height` and `width` are of the padded map, before which the shift has moved its first rows and columns to its end.
    """
    rows, columns = (
        torch.bucketize(torch.arange(length), torch.tensor([length - window, length - shift]), right=True)
        for length in (height, width)
    )
    region = (3 * rows[:, None] + columns).view(1, height, width, 1)
    own = window_partition(region, (window, window)).view(-1, window**2)  # (windows, N)
    apart = own[:, None, :] != own[:, :, None]
    return torch.zeros(apart.shape).masked_fill_(apart, _OUTSIDE).to(device)


def _whole(length: int, window: int) -> int:
    """The length of whole windows that hold a length."""
    return length + -length % window


def _fitted(tensors: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """Weights under timm's names, bias tables of this window.

    The authors of Swin wrap them in "model", count the merging to the stage before, and keep buffers beside them.
    """
    tensors = tensors.get("model", tensors)
    late = int("layers.0.downsample.reduction.weight" in tensors)
    fitted = {}
    for key, tensor in tensors.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        key = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + late}.downsample", key)
        if key.endswith("relative_position_bias_table") and key in own:
            tensor = _resized(tensor, len(own[key]))
        fitted[key] = tensor
    return fitted


def _resized(table: Tensor, distances: int) -> Tensor:
    """A bias table (distances, heads) of another window, bicubically, as the authors of Swin and LAVT resize it."""
    if len(table) == distances:
        return table
    given, wanted = math.isqrt(len(table)), math.isqrt(distances)
    grid = table.float().T.reshape(1, -1, given, given)
    grid = functional.interpolate(grid, (wanted, wanted), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T


def _from_timm(name: str) -> dict[str, Tensor]:
    if not timm.is_model(name):
        known = ", ".join(timm.list_models("swin_*", pretrained=True)[:40])
        raise InputError(f"{name!r} is neither a weights file ({', '.join(weights.SUFFIXES)}) nor one of {known}.")
    with weights.from_hub(name):
        return cast(dict[str, Tensor], timm.create_model(name, pretrained=True).state_dict())
