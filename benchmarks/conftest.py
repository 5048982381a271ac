"""LAVT's network as released, without our optimisations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from risbench.nn import swin
from risbench.nn.convolution import ConvNormReLU


@pytest.fixture
def as_released() -> Iterator[None]:
    """Replace our optimisations by the plain computations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", _attention)
        patch.setattr(
            swin.Block, "bias", lambda self, h, w: self._compute_bias(self.attn.relative_position_bias_table, h, w)
        )
        patch.setattr(ConvNormReLU, "forward", lambda self, x: functional.relu(self.norm(self.conv(x))))
        yield


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: object) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -1e4) if attn_mask.dtype == torch.bool else scores + attn_mask
    output: Tensor = scores.softmax(dim=-1) @ v
    return output
