"""Images to network input, and probabilities back to the scored size: one implementation for all methods."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image as PIL
from PIL import ImageOps
from torch import Tensor
from torch.nn import functional

from risbench.data.rle import Mask, Size
from risbench.errors import InputError
from risbench.recipe import Image

_FILTERS = {"bilinear": PIL.Resampling.BILINEAR, "bicubic": PIL.Resampling.BICUBIC}


class Frame(NamedTuple):
    """Where an image of some size lies in the square network input, in pixels of that input."""

    size: Size  # height, width of the image itself
    side: int  # of the network input
    top: int
    left: int
    height: int
    width: int


def frame(size: Size, recipe: Image) -> Frame:
    """Place an image: stretched over the whole input, or letterboxed (aspect kept, centred)."""
    side = recipe.size
    if recipe.geometry == "stretch":
        return Frame(size, side, 0, 0, side, side)
    scale = side / max(size)
    height, width = (max(1, round(scale * length)) for length in size)
    return Frame(size, side, (side - height) // 2, (side - width) // 2, height, width)


def shrunk(place: Frame, min_scale: float, draw: np.random.Generator) -> Frame:
    """Shrink an image at random to between `min_scale` and 1 of its place, and put it anywhere in the input."""
    scale = draw.uniform(min_scale, 1)
    height, width = max(1, round(place.height * scale)), max(1, round(place.width * scale))
    top, left = (int(draw.integers(place.side - length + 1)) for length in (height, width))
    return place._replace(top=top, left=left, height=height, width=width)


def read(path: Path, size: Size | None = None, upright: bool = False) -> PIL.Image:
    """Decode an image to RGB; `size` (height, width) is what the annotations say it has.

    `upright` turns a photograph as its EXIF orientation says; COCO's annotations were drawn on the pixels as stored.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.DecompressionBombWarning)
            with PIL.open(path) as image:
                mode = image.mode
                rgb = (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except FileNotFoundError:
        raise InputError(
            f"There is no image {path}. Copy it there, or give the folder of the images with --images."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"The image {path} cannot be read ({error}). Copy the file again.") from None
    except (PIL.DecompressionBombError, PIL.DecompressionBombWarning):
        raise InputError(
            f"The image {path} has more than {PIL.MAX_IMAGE_PIXELS} pixels, which no data set here has. Shrink it."
        ) from None
    if mode.startswith(("I", "F")):  # whose values above 255 convert() would cut off
        raise InputError(f"The image {path} is of mode {mode}, more than 8 bits a channel. Save it with 8 bits.")
    if size is not None and (rgb.height, rgb.width) != size:
        raise InputError(
            f"The image {path} is {rgb.height} x {rgb.width} (height x width), but instances.json says "
            f"{size[0]} x {size[1]}. Take the image and the annotations from the same source."
        )
    return rgb


def to_input(image: PIL.Image, place: Frame, recipe: Image) -> Tensor:
    """Resize, pad and normalise: float32 (3, side, side)."""
    resized = image.resize((place.width, place.height), _FILTERS[recipe.resampling])
    canvas = np.full((place.side, place.side, 3), recipe.border, dtype=np.uint8)
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = np.asarray(resized)
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).float().div_(255)  # (3, side, side)
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    return pixels.sub_(mean).div_(std)


def mask_to_input(mask: Mask, place: Frame) -> Tensor:
    """Resize a ground-truth mask by nearest neighbour and pad it with background: float32 (side, side)."""
    resized = PIL.fromarray(mask).resize((place.width, place.height), PIL.Resampling.NEAREST)
    canvas = torch.zeros(place.side, place.side)
    canvas[place.top : place.top + place.height, place.left : place.left + place.width] = torch.from_numpy(
        np.array(resized, dtype=np.float32)
    )
    return canvas


def to_size(probability: Tensor, place: Frame) -> Tensor:
    """Sample probabilities from their grid over the network input to the image's own size: (B, h, w) to (B, H, W).

    Bilinear, pixel centres aligned as align_corners=False; no sampling where the sizes are equal.
    """
    grid_size = (probability.shape[1], probability.shape[2])
    if grid_size == place.size and (place.height, place.width) == (place.side, place.side):
        return probability
    rows = _positions(place.size[0], place.top, place.height, place.side, probability.device)  # (H,)
    columns = _positions(place.size[1], place.left, place.width, place.side, probability.device)  # (W,)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H, W, 2): x, y
    sampled = functional.grid_sample(
        probability[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0]


def cut(probability: Tensor, place: Frame, threshold: float, at: Literal["scored", "network"]) -> Tensor:
    """Foreground at the image's own size, where the probability is above the threshold: (B, h, w) to (B, H, W), bool.

    Cut at the network's size, the mask without the border is enlarged bilinearly: all above 0 is foreground.
    """
    if at == "scored":
        return to_size(probability, place) > threshold
    side = (place.side, place.side)
    whole = functional.interpolate(probability[None].float(), side, mode="bilinear", align_corners=False)
    inside = (whole > threshold)[..., place.top : place.top + place.height, place.left : place.left + place.width]
    return functional.interpolate(inside.float(), place.size, mode="bilinear", align_corners=False)[0] > 0


def peak_to_size(peak: tuple[int, int], grid_size: Size, place: Frame) -> tuple[int, int]:
    """The pixel of the image under the centre of a grid cell (row, column)."""
    rows = _pixel(peak[0], grid_size[0], place.side, place.top, place.height, place.size[0])
    columns = _pixel(peak[1], grid_size[1], place.side, place.left, place.width, place.size[1])
    return rows, columns


def _positions(length: int, start: int, extent: int, side: int, device: torch.device) -> Tensor:
    """Centres of `length` pixels spread over [start, start + extent] of the input, in [-1, 1] of its side."""
    centres = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) * (extent / length) + start
    return centres * (2 / side) - 1


def _pixel(cell: int, cells: int, side: int, start: int, extent: int, length: int) -> int:
    position = ((cell + 0.5) * side / cells - start) * length / extent
    return min(max(int(position), 0), length - 1)
