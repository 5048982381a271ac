"""Deformable attention against a computation that takes one position, head, scale and point at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from risbench.nn.deformable import DeformableAttention, DeformableEncoder, Grid, sine_positions

SIZES = [(2, 3), (4, 5)]  # the coarsest first


def read(values: Tensor, x: float, y: float) -> Tensor:
    """Sample a map (d, h, w) at a place in cells, bilinearly, with 0 outside."""
    total = torch.zeros(values.shape[0], dtype=values.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < values.shape[1] and 0 <= column < values.shape[2]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * values[:, row, column]
    return total


def test_each_position_reads_weighted_points_of_every_scale() -> None:
    torch.manual_seed(0)
    module = DeformableAttention(8, heads=2, scales=2, points=3).double()
    torch.nn.init.normal_(module.offsets.weight, std=0.3)
    torch.nn.init.normal_(module.weights.weight)
    length = sum(height * width for height, width in SIZES)
    queries, values = torch.randn(2, 1, length, 8).double()
    output = module(queries, values, Grid.build(SIZES, queries))[0]
    offsets = module.offsets(queries)[0].view(length, 2, 2, 3, 2)
    weights = module.weights(queries)[0].view(length, 2, 6).softmax(dim=2).view(length, 2, 2, 3)
    projected = module.value(values)[0]  # (N, 8)
    places = [((c + 0.5) / w, (r + 0.5) / h) for h, w in SIZES for r in range(h) for c in range(w)]
    for position, (x, y) in enumerate(places):
        heads = []
        for head in range(2):
            total, begin = torch.zeros(4).double(), 0
            for scale, (height, width) in enumerate(SIZES):
                part = projected[begin : begin + height * width, 4 * head : 4 * head + 4]
                cells, begin = part.T.reshape(4, height, width), begin + height * width
                for point in range(3):
                    dx, dy = offsets[position, head, scale, point].tolist()
                    sampled = read(cells, x * width + dx - 0.5, y * height + dy - 0.5)
                    total += weights[position, head, scale, point] * sampled
            heads.append(total)
        assert torch.allclose(output[position], module.out(torch.cat(heads)), rtol=0, atol=1e-9)


def test_points_start_in_as_many_directions_as_there_are_heads_further_and_further_away() -> None:
    module = DeformableAttention(8, heads=4, scales=2, points=3)
    offsets = module.offsets(torch.randn(1, 8)).view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        assert torch.allclose(offsets[:, 0, point], (point + 1) * expected, atol=1e-5)
    assert torch.equal(offsets[:, 0], offsets[:, 1])


def test_positions_are_sines_of_the_row_then_of_the_column() -> None:
    encoded = sine_positions(2, 3, 8, torch.device("cpu")).view(2, 3, 8)
    for row in range(2):
        for column in range(3):
            angles = [2 * math.pi * (row + 1) / (2 + 1e-6), 2 * math.pi * (column + 1) / (3 + 1e-6)]
            expected = [f(angle / base) for angle in angles for base in (1.0, 100.0) for f in (math.sin, math.cos)]
            assert encoded[row, column].tolist() == pytest.approx(expected, abs=1e-12)


def test_maps_of_any_size_keep_it_and_read_each_other() -> None:
    torch.manual_seed(0)
    encoder = DeformableEncoder([6, 5], 8, layers=2, heads=2, points=2, hidden=16).double().eval()
    maps = [torch.randn(2, *size, width).double() for size, width in zip(SIZES, (6, 5), strict=True)]
    encoded = encoder(maps)
    assert [tuple(x.shape) for x in encoded] == [(2, 8, 2, 3), (2, 8, 4, 5)]
    changed = encoder([maps[0], maps[1] + torch.randn_like(maps[1])])
    assert not torch.allclose(changed[0], encoded[0])
    assert torch.allclose(encoder([x[:1] for x in maps])[1], encoded[1][:1])


def test_a_single_cell_of_a_single_image_is_normalised() -> None:
    """A group of the normalisation holds several channels, or there would be one value in it."""
    encoder = DeformableEncoder([6, 5], 8, layers=1, heads=2, points=1, hidden=16)
    assert all(x.isfinite().all() for x in encoder([torch.randn(1, 1, 1, 6), torch.randn(1, 1, 1, 5)]))


def test_half_precision_is_read_in_full() -> None:
    torch.manual_seed(0)
    encoder = DeformableEncoder([6, 5], 8, layers=1, heads=2, points=2, hidden=16)
    maps = [torch.randn(2, *size, width) for size, width in zip(SIZES, (6, 5), strict=True)]
    precise = encoder(maps)[1]
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(maps)[1]
    assert 0 < (half - precise).std() < 0.05 * precise.std()
