"""Swin Transformer (Liu et al., ICCV 2021) from timm, with the blocks of a stage apart from the patch merging.

timm's blocks shift a map and then pad it to whole windows; the networks of LAVT and MagNet pad first and shift the
padded map, and CoupAlign here does the same. The results differ where a map is no multiple of the window (stages 3 and
4 at 480 px and window 12), so the blocks here pad first. All else, names of weights included, is timm's.

B images, H W the network input, C channels, h w the grid of a map, N positions of a window.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn
from torch.nn import functional

from risbench.data.pretrained import Pretrained
from risbench.nn import weights
from risbench.nn.checkpointing import run_block

_MASKED = -100.0  # added to the attention between positions that only the cyclic shift brought together


class Block(nn.Module):
    """The parts of a timm block, with attention on the padded map.

    The rate of its drop path is a tensor. With timm's number torch.compile would make code for each block, since the
    rates differ; like this the blocks of one width and shift share it.
    """

    keep_rate: Tensor  # (): share of the images whose paths are kept in training

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.window: int = block.window_size[0]
        self.shift: int = block.shift_size[0]
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        drop_rate = getattr(block.drop_path1, "drop_prob", 0.0)  # of both paths; without one they are identities
        self.drops = drop_rate > 0
        self.register_buffer("keep_rate", torch.tensor(1 - drop_rate), persistent=False)
        self._cached_bias: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, h, w, C) to the same shape; `bias` comes from `bias(h, w)`."""
        x = x + self._drop_path(self._attention(self.norm1(x), bias))
        return x + self._drop_path(self.mlp(self.norm2(x)))

    def _drop_path(self, x: Tensor) -> Tensor:
        """Drop the path of random images in training, and scale that of the others (stochastic depth)."""
        if not (self.training and self.drops):
            return x
        kept = torch.bernoulli(self.keep_rate.expand(len(x), 1, 1, 1))
        return x * (kept / self.keep_rate).to(x.dtype)

    def bias(self, height: int, width: int) -> Tensor:
        """Return the relative position bias plus the mask of shifted windows: (1 or windows, heads, N, N).

        It is added to the attention of each window. Without gradients it is computed once per weights and size.
        """
        table: Tensor = self.attn.relative_position_bias_table
        if torch.is_grad_enabled() or table.is_inference():  # an inference tensor does not count its changes
            return self._compute_bias(table, height, width)
        state = (height, width, table.data_ptr(), table._version, table.dtype, table.device)
        if self._cached_bias is None or self._cached_bias[0] != state:
            self._cached_bias = (state, self._compute_bias(table, height, width))
        return self._cached_bias[1]

    def _compute_bias(self, table: Tensor, height: int, width: int) -> Tensor:
        area = self.window**2
        index = cast(Tensor, self.attn.relative_position_index)
        bias = table[index.flatten()].view(area, area, -1)  # (N, N, heads)
        bias = bias.permute(2, 0, 1)[None].contiguous()  # (1, heads, N, N)
        if not self.shift:
            return bias
        size = (_padded_length(height, self.window), _padded_length(width, self.window))
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
            img_size=4 * patch * window,  # nominal; at this size every stage keeps the full window and its shift
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
        """Run the blocks of a stage, counted from 0: (B, h, w, C) to the same shape."""
        height, width = x.shape[1], x.shape[2]
        for block in cast(nn.Sequential, self.layers[number].blocks):
            bias = cast(Block, block).bias(height, width)
            x = run_block(block, x, bias, checkpointing=self.checkpointing and self.training)
        return x

    def merge(self, number: int, x: Tensor) -> Tensor:
        """Patch merging after a stage, counted from 0: (B, h, w, C) to (B, ceil(h/2), ceil(w/2), 2C)."""
        return cast(Tensor, cast(nn.Module, self.layers[number + 1].downsample)(x))

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of all stages."""
        return [block for stage in self.layers for block in cast(nn.Sequential, stage.blocks)]

    def load_pretrained(self, source: str) -> Pretrained:
        """Load weights of a classifier: a model name of timm, or a file of timm or Swin's authors; return what it was.

        Bias tables of another window are resized. Raises InputError when the weights cannot be had or do not fit.
        """
        tensors, loaded = weights.read_pretrained("Swin", source, "swin_*")
        weights.load_whole(self, _adapt(tensors, self.state_dict()), source, "Swin", heads=("norm.", "head."))
        return loaded


@lru_cache(maxsize=64)
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return 0 for positions of a window that are neighbours on the padded map, else -100: (windows, N, N).

    `height` and `width` are those of the padded map, whose first rows and columns the shift has moved to its end.
    """
    rows, columns = (
        torch.bucketize(torch.arange(length), torch.tensor([length - window, length - shift]), right=True)
        for length in (height, width)
    )
    region = (3 * rows[:, None] + columns).view(1, height, width, 1)
    regions = window_partition(region, (window, window)).view(-1, window**2)  # (windows, N)
    separated = regions[:, None, :] != regions[:, :, None]
    return torch.zeros(separated.shape).masked_fill_(separated, _MASKED).to(device)


def _padded_length(length: int, window: int) -> int:
    """Return the smallest multiple of the window that is at least `length`."""
    return length + -length % window


def _adapt(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under timm's names, with bias tables of the window of `state`.

    The authors of Swin name the merging by the stage before it, and store buffers too.
    """
    offset = int("layers.0.downsample.reduction.weight" in tensors)
    adapted = {}
    for key, tensor in tensors.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        key = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + offset}.downsample", key)
        if key.endswith("relative_position_bias_table") and key in state and _is_bias_table(tensor):
            tensor = _resize_bias_table(tensor, len(state[key]))
        adapted[key] = tensor
    return adapted


def _is_bias_table(tensor: Tensor) -> bool:
    """Whether a tensor has a row for each offset of a square window."""
    return tensor.ndim == 2 and math.isqrt(len(tensor)) ** 2 == len(tensor)


def _resize_bias_table(table: Tensor, offsets: int) -> Tensor:
    """Resize a bias table (offsets, heads) to another window, bicubically, as the authors of Swin and LAVT do."""
    if len(table) == offsets:
        return table
    old_side, side = math.isqrt(len(table)), math.isqrt(offsets)
    grid = table.float().T.reshape(1, -1, old_side, old_side)  # (1, heads, side, side)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return grid.flatten(2)[0].T
