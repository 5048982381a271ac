"""A term that makes mask proposals regions of an image, without a mask to compare them with. Our reading.

I images, B expressions, N masks, F features, h w the grid of the masks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def incoherence(image: Tensor, image_index: Tensor, shares: Tensor) -> Tensor:
    """Return the share of the variance of colour and place that is left within the masks, a scalar in [0, 1].

    The network input (I, 3, H, W), the image of each expression (B,), and each mask's share of each pixel
    (B, N, h, w), which over the masks sum to 1. It is 1 when all masks share every pixel evenly, and falls as each mask
    covers pixels of one colour in one place; places run from -1 to 1.
    """
    features = _colour_and_place(image, (shares.shape[2], shares.shape[3]))  # (I, F, hw)
    total = features.square().sum(dim=(1, 2))[image_index]  # (B,)
    shares = shares.float().flatten(2)  # (B, N, hw)
    with torch.autocast(image.device.type, enabled=False):
        sums = shares @ features.transpose(1, 2)[image_index]  # (B, N, F)
    between = sums.square().sum(dim=2) / shares.sum(dim=2).clamp_min(torch.finfo(torch.float32).tiny)  # (B, N)
    return (1 - between.sum(dim=1) / total).mean()


def _colour_and_place(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return mean colour and place of each cell of a grid, minus their means over the image: (I, 5, hw)."""
    colour = functional.adaptive_avg_pool2d(image.float(), size)  # (I, 3, h, w)
    rows, columns = (torch.linspace(-1, 1, length, device=image.device) for length in size)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, h, w)
    features = torch.cat((colour, place.expand(len(image), -1, -1, -1)), dim=1).flatten(2)  # (I, 5, hw)
    return features - features.mean(dim=2, keepdim=True)
