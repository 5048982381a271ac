"""Pixel-word attention and the language gate against plain computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from risbench.nn.fusion import PWAM, LanguageGate, instance_norm

MASK = torch.arange(6) < torch.tensor([[6], [2], [4]])


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()


def test_pixel_word_attention_equals_the_released_network_s() -> None:
    """Step by step: scale C^-0.5 on all channels, 1e4 (mask - 1) added to the scores, keys and values of padding 0."""
    torch.manual_seed(0)
    module = PWAM(12, 7, dropout=0.0).double()
    pixels, states = torch.randn(3, 4, 5, 12).double(), torch.randn(3, 6, 7).double()
    shown = MASK.double()[:, None]  # (B, 1, T)

    def convolution(layer: Any, x: Tensor) -> Tensor:
        return functional.conv1d(x, layer.weight[:, :, None], layer.bias)

    x, words = pixels.flatten(1, 2).transpose(1, 2), states.transpose(1, 2)  # (B, C, hw), (B, D, T)
    visual = functional.gelu(convolution(module.visual, x))
    query = functional.instance_norm(convolution(module.query, x))
    key, value = convolution(module.key, words) * shown, convolution(module.value, words) * shown
    scores = query.transpose(1, 2) @ key * 12**-0.5 + (1e4 * shown - 1e4)  # (B, hw, T)
    gathered = value @ scores.softmax(dim=2).transpose(1, 2)  # (B, C, hw)
    language = functional.instance_norm(convolution(module.out, gathered))
    expected = functional.gelu(convolution(module.project, visual * language)).transpose(1, 2).view(3, 4, 5, 12)
    assert torch.allclose(module(pixels, states, MASK), expected, rtol=0, atol=1e-12)


def test_the_attention_that_is_shown_is_the_one_that_gathers_words() -> None:
    torch.manual_seed(0)
    module = PWAM(12, 7, dropout=0.0).double()
    pixels, states = torch.randn(3, 4, 5, 12).double(), torch.randn(3, 6, 7).double()
    gathered: list[Tensor] = []
    module.out.register_forward_pre_hook(lambda _, inputs: gathered.append(inputs[0]))  # (B, hw, C)
    module(pixels, states, MASK)
    attention = module.attention(pixels, states, MASK)
    assert attention.shape == (3, 4, 5, 6) and attention.var(dim=(1, 2)).max() > 1e-4
    assert torch.allclose(attention.flatten(1, 2) @ module.value(states), gathered[0], rtol=0, atol=1e-12)
    assert not attention[(~MASK)[:, None, None].expand(attention.shape)].any()


def test_instance_norm_equals_torch_s_over_positions() -> None:
    x = 3 * torch.randn(2, 20, 6).double() + 1
    expected = functional.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(instance_norm(x), expected, rtol=0, atol=1e-12)
    half = instance_norm(x.bfloat16())  # computed in full precision, rounded once
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, instance_norm(x.bfloat16().float()).bfloat16())


def test_the_gate_adds_a_part_of_the_fused_features() -> None:
    gate = LanguageGate(5).double()
    pixels, fused = torch.randn(2, 2, 3, 3, 5).double()
    inner, outer = _array(gate.inner.weight), _array(gate.outer.weight)
    share = np.tanh(np.maximum(_array(fused) @ inner.T, 0) @ outer.T)
    assert np.allclose(_array(gate(pixels, fused)), _array(pixels) + share * _array(fused), rtol=0, atol=1e-12)


def test_instance_norm_with_a_mask_counts_the_masked_positions_alone() -> None:
    x = 3 * torch.randn(3, 6, 4).double() + 1
    normed = instance_norm(x, MASK)
    for row, length in enumerate((6, 2, 4)):
        assert torch.allclose(normed[row, :length], instance_norm(x[row : row + 1, :length])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.LayerNorm, None])
def test_the_norm_of_the_attention_is_the_one_that_is_given(norm: Any) -> None:
    """MagNet normalises over the channels, with weights; LAVT over the positions, without."""
    torch.manual_seed(0)
    module = PWAM(4, 5, dropout=0.0, norm=norm) if norm else PWAM(4, 5, dropout=0.0)
    names = {name.partition(".")[0] for name in module.state_dict() if "norm" in name}
    assert names == ({"query_norm", "out_norm"} if norm else set())
    pixels, words = (
        torch.randn(3, 1, 1, 4),
        torch.randn(3, 6, 5),
    )  # one position, of which nothing is left over positions
    alike = torch.allclose(module(pixels, words, MASK), module(pixels, 2 * words, MASK), atol=1e-6)
    assert alike == (norm is None)
