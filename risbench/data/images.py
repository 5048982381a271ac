"""Resize images to the network input, and probabilities back to the scored size: one implementation for all."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor
from torch.nn import functional

from risbench.data.rle import Mask, Size
from risbench.recipe import Image

_FILTERS = {"bilinear": PIL.Resampling.BILINEAR, "bicubic": PIL.Resampling.BICUBIC}


class Frame(NamedTuple):
    """Where an image of some size lies in the square network input, in pixels of that input."""

    size: Size  # height, width of the image
    side: int  # of the network input
    top: int
    left: int
    height: int
    width: int


def fit_to_input(size: Size, settings: Image) -> Frame:
    """Place an image: stretched over the whole input, or letterboxed (aspect kept, centred)."""
    side = settings.size
    if settings.geometry == "stretch":
        return Frame(size, side, 0, 0, side, side)
    if settings.geometry == "letterbox-cut":
        height, width = _cut_sides(size, side)
    else:
        scale = side / max(size)
        height, width = (max(1, round(scale * length)) for length in size)
    return Frame(size, side, (side - height) // 2, (side - width) // 2, height, width)


def _cut_sides(size: Size, side: int) -> Size:
    """Return the sides of an image in a letterbox, cut to whole pixels after the arithmetic of SimREC's dataset.py."""
    height, width = size
    aspect = width / height
    return (side, max(1, int(side * aspect))) if aspect < 1 else (max(1, int(side / aspect)), side)


def shrink_at_random(frame: Frame, min_scale: float, generator: np.random.Generator) -> Frame:
    """Shrink a frame at random to between `min_scale` and 1 of its size, and place it at random in the input."""
    scale = generator.uniform(min_scale, 1)
    height, width = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
    top, left = (int(generator.integers(frame.side - length + 1)) for length in (height, width))
    return frame._replace(top=top, left=left, height=height, width=width)


def mirror(frame: Frame) -> Frame:
    """Place an image where it lies when its network input is mirrored."""
    return frame._replace(left=frame.side - frame.left - frame.width)


def to_input(image: PIL.Image, frame: Frame, settings: Image) -> Tensor:
    """Resize, pad and normalise: float32 (3, side, side)."""
    resized = image.resize((frame.width, frame.height), _FILTERS[settings.resampling])
    canvas = np.full((frame.side, frame.side, 3), settings.border, dtype=np.uint8)
    canvas[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = np.asarray(resized)
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).float().div_(255)  # (3, side, side)
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    return pixels.sub_(mean).div_(std)


def mask_to_input(mask: Mask, frame: Frame) -> Tensor:
    """Resize a ground-truth mask by nearest neighbour and pad it with background: float32 (side, side)."""
    resized = PIL.fromarray(mask).resize((frame.width, frame.height), PIL.Resampling.NEAREST)
    canvas = torch.zeros(frame.side, frame.side)
    canvas[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = torch.from_numpy(
        np.array(resized, dtype=np.float32)
    )
    return canvas


def sample_to_size(probability: Tensor, frame: Frame) -> Tensor:
    """Sample probabilities from their grid over the network input to the size of the image: (B, h, w) to (B, H, W).

    Bilinear, with pixel centres as in align_corners=False; equal sizes are not sampled.
    """
    grid_size = (probability.shape[1], probability.shape[2])
    if grid_size == frame.size and (frame.height, frame.width) == (frame.side, frame.side):
        return probability
    rows = _positions(frame.size[0], frame.top, frame.height, frame.side, probability.device)  # (H,)
    columns = _positions(frame.size[1], frame.left, frame.width, frame.side, probability.device)  # (W,)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H, W, 2): x, y
    sampled = functional.grid_sample(
        probability[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0]


def to_masks(probability: Tensor, frame: Frame, threshold: float, cut_at: Literal["scored", "network"]) -> Tensor:
    """Cut probabilities at the threshold (>) to masks of the size of the image: (B, h, w) to (B, H, W) of bool.

    A mask that is cut at the size of the network input loses its border and is enlarged bilinearly; every pixel above 0
    is foreground.
    """
    if cut_at == "scored":
        return sample_to_size(probability, frame) > threshold
    side = (frame.side, frame.side)
    whole = functional.interpolate(probability[None].float(), side, mode="bilinear", align_corners=False)
    inside = (whole > threshold)[..., frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    return functional.interpolate(inside.float(), frame.size, mode="bilinear", align_corners=False)[0] > 0


def peak_to_size(peak: tuple[int, int], grid_size: Size, frame: Frame) -> tuple[int, int]:
    """Return the pixel (row, column) of the image under the centre of a grid cell (row, column)."""
    row = _pixel(peak[0], grid_size[0], frame.side, frame.top, frame.height, frame.size[0])
    column = _pixel(peak[1], grid_size[1], frame.side, frame.left, frame.width, frame.size[1])
    return row, column


def _positions(length: int, start: int, extent: int, side: int, device: torch.device) -> Tensor:
    """Return the centres of `length` pixels over [start, start + extent] of the input, scaled to [-1, 1]."""
    centres = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * (extent / length) + start
    return centres * (2 / side) - 1


def _pixel(cell: int, cells: int, side: int, start: int, extent: int, length: int) -> int:
    position = ((cell + 0.5) * side / cells - start) * length / extent
    return min(max(int(position), 0), length - 1)
