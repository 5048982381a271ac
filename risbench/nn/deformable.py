"""Deformable attention over maps of several scales (Deformable DETR, ICLR 2021), as in Mask2Former's pixel decoder.

The one in transformers has three scales, fixed in its code, and asks in every layer of a training step whether all
numbers are finite, for which it waits for the device. So this one is written here, on grid_sample.

B expressions, C channels of a map, D channels of the encoder, L scales, P points, d channels of a head, h w the grid of
a map, N positions of all maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.parameters import initialise_without_biases

_GROUPS = 32  # of the group normalisation, if the channels are four times as many


class Grid(NamedTuple):
    """The cells of maps of several scales, in a row."""

    sizes: list[tuple[int, int]]  # height and width of each map
    areas: list[int]
    steps: Tensor  # width and height of a cell of each map, (L, 2), where each map reaches from -1 to 1
    centres: Tensor  # x and y of each cell's centre, in [-1, 1], (N, 2)

    @classmethod
    def build(cls, sizes: list[tuple[int, int]], like: Tensor) -> Grid:
        """Return the grid for tensors of one device and precision, float32 at least."""
        precise = torch.promote_types(like.dtype, torch.float32)
        extents = torch.tensor([size[::-1] for size in sizes]).to(like.device, precise, non_blocking=True)
        centres = torch.cat([_centres(*size, like.device) for size in sizes])
        return cls(sizes, [height * width for height, width in sizes], 2 / extents, (2 * centres - 1).to(precise))


class DeformableAttention(nn.Module):
    """Each position reads a few points of each scale, around itself; it says where they are and what they weigh."""

    def __init__(self, width: int, heads: int, scales: int, points: int) -> None:
        super().__init__()
        self.heads, self.scales, self.points = heads, scales, points
        self.offsets = nn.Linear(width, heads * scales * points * 2)
        self.weights = nn.Linear(width, heads * scales * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self._initialise()

    def forward(self, queries: Tensor, values: Tensor, grid: Grid) -> Tensor:
        """Queries and values (B, N, D) of the cells of a grid to (B, N, D)."""
        count, length, _ = queries.shape
        precise = torch.promote_types(queries.dtype, torch.float32)
        shape = (count, self.heads, self.scales, self.points, length)
        points = self._points(self.offsets(queries).to(precise), grid).view(*shape, 2)
        logits = self.weights(queries).to(precise).mT.reshape(count, self.heads, -1, length)  # (B, heads, L P, N)
        shares = logits.softmax(dim=2).view(shape)
        maps = self.value(values).to(precise).mT.reshape(count, self.heads, -1, length)  # (B, heads, d, N)
        scales = zip(maps.split(grid.areas, dim=3), points.unbind(dim=2), shares.unbind(dim=2), grid.sizes, strict=True)
        read = torch.stack([_read_points(part.unflatten(3, size), *where) for part, *where, size in scales]).sum(dim=0)
        output: Tensor = self.out(read.mT.to(values.dtype))  # of (B, D, N)
        return output

    def _points(self, offsets: Tensor, grid: Grid) -> Tensor:
        """Return x and y, in [-1, 1], of offsets in cells: (B, N, heads L P 2) to (B, heads, L, P, N, 2)."""
        shape = (len(grid.centres), self.heads, self.scales, self.points, 2)
        centres = grid.centres[:, None, None, None].expand(shape).flatten(1)  # (N, heads L P 2)
        steps = grid.steps[:, None].expand(shape[1:]).flatten()
        points = torch.addcmul(centres, offsets, steps)
        return points.view(len(offsets), *shape).permute(0, 2, 3, 4, 1, 5).contiguous()

    def _initialise(self) -> None:
        """Look in as many directions as there are heads, point by point further away, with equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=1)  # (heads, 2)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None]  # (P, 1)
        offsets = (directions[:, None, None] * steps).expand(-1, self.scales, -1, -1)  # (heads, L, P, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def _read_points(values: Tensor, points: Tensor, shares: Tensor) -> Tensor:
    """Sample a map (B, heads, d, h, w) at points (B, heads, P, N, 2) that weigh (B, heads, P, N), to (B, heads d, N).

    Bilinear; outside of the map there is 0.
    """
    at = points.flatten(0, 1)  # (B heads, P, N, 2)
    sampled = functional.grid_sample(values.flatten(0, 1), at, "bilinear", "zeros", align_corners=False)
    weighted = sampled * shares.flatten(0, 1)[:, None]  # (B heads, d, P, N)
    return weighted.sum(dim=2).view(len(values), -1, points.shape[3])


class DeformableLayer(nn.Module):
    """Deformable attention and a feed-forward network, each with a normalisation behind it."""

    def __init__(self, width: int, heads: int, scales: int, points: int, hidden: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, scales, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, grid: Grid) -> Tensor:
        """(B, N, D) with encodings of the positions (N, D) to the same shape."""
        x = self.norm1(x + self.attention(x + positions, x, grid))
        x = self.norm2(x + self.linear2(functional.relu(self.linear1(x))))
        return x


class DeformableEncoder(nn.Module):
    """Maps of several scales, projected to one width, read each other in every layer."""

    def __init__(self, widths: Sequence[int], channels: int, layers: int, heads: int, points: int, hidden: int) -> None:
        """`widths` are the channels of the maps, the coarsest first."""
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, channels) for width in widths)  # 1x1 convolutions
        initialise_without_biases(self.projections)
        groups = math.gcd(_GROUPS, channels // 4)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in widths)
        self.scale_embedding = nn.Parameter(torch.randn(len(widths), channels))
        self.layers = nn.ModuleList(
            DeformableLayer(channels, heads, len(widths), points, hidden) for _ in range(layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, h, w, C), the coarsest first, to maps (B, D, h, w) in the same order."""
        sizes = [(x.shape[1], x.shape[2]) for x in maps]
        tokens, positions = [], []
        for x, project, norm, scale in zip(maps, self.projections, self.norms, self.scale_embedding, strict=True):
            projected = norm(project(x.flatten(1, 2)).transpose(1, 2))  # (B, D, hw)
            tokens.append(projected.transpose(1, 2))
            encoded = sine_positions(x.shape[1], x.shape[2], projected.shape[1], x.device)
            positions.append(encoded.to(projected.dtype) + scale)
        states, encodings = torch.cat(tokens, dim=1), torch.cat(positions)  # (B, N, D), (N, D)
        grid = Grid.build(sizes, states)
        for layer in self.layers:
            states = layer(states, encodings, grid)
        parts = torch.split(states, grid.areas, dim=1)
        return [part.mT.reshape(len(part), -1, *size) for part, size in zip(parts, sizes, strict=True)]


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return x and y of the centres of the cells of a grid, in [0, 1]: (hw, 2) float64."""
    rows, columns = (
        (torch.arange(length, device=device, dtype=torch.float64) + 0.5) / length for length in (height, width)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1)


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return fixed encodings of the cells of a grid, (hw, channels) float64: half for the row, half for the column.

    A place, counted from 1, is scaled so that the last one is 2 pi; entry j of a half is the sine, or for an odd j the
    cosine, of place / 10000^(2 floor(j / 2) / half).
    """
    half = channels // 2
    exponents = 2 * (torch.arange(half, device=device) // 2).double() / half
    encodings = []
    for length in (height, width):
        place = torch.arange(1, length + 1, device=device, dtype=torch.float64) * (2 * math.pi / (length + 1e-6))
        angles = place[:, None] / 10000**exponents  # (length, half)
        encodings.append(torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1))
    rows, columns = encodings
    grid = (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1))
    return torch.cat(grid, dim=2).flatten(0, 1)
