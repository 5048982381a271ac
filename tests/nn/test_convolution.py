from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from risbench.nn.convolution import ConvNormReLU


def test_normalisation_folded_into_the_convolution_changes_nothing() -> None:
    """Also after further training, when the statistics are new."""
    torch.manual_seed(0)
    layer = ConvNormReLU(3, 4).double()
    x = torch.randn(2, 3, 6, 5).double()

    def folded_and_plain() -> tuple[Tensor, Tensor]:
        layer.eval()
        norm = layer.norm
        plain = functional.conv2d(x, layer.conv.weight, padding=1)
        plain = functional.batch_norm(plain, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        with torch.inference_mode():
            return layer(x), functional.relu(plain)

    outputs = []
    for _ in range(2):
        layer.train()
        layer(5 * torch.randn(2, 3, 6, 5).double() + 1).sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folded, plain = folded_and_plain()
        assert torch.allclose(folded, plain, rtol=0, atol=1e-10)
        outputs.append(folded)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2
