from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from risbench.nn.logits import PRIOR, Logit, prior_bias, target_probability, two_logits, upsample


@pytest.mark.parametrize("prior", [0.05, 0.3, 0.5])
def test_an_untrained_layer_predicts_the_prior(prior: float) -> None:
    features = torch.zeros(2, 4, 3, 5)
    assert prior_bias(prior) == pytest.approx(math.log(prior) - math.log(1 - prior))
    assert torch.allclose(Logit(4, prior)(features).sigmoid(), torch.full((2, 3, 5), prior))
    torch.manual_seed(0)
    shifted = two_logits(4, prior)(features)
    torch.manual_seed(0)
    unshifted = two_logits(4, 0.5)(features)  # the layer's random start
    assert torch.allclose(shifted - unshifted, torch.tensor([0.0, prior_bias(prior)])[:, None, None], atol=1e-6)


def test_the_default_prior_is_that_of_the_segmentation_module() -> None:
    assert torch.allclose(Logit(4)(torch.zeros(2, 4, 3, 5)).sigmoid(), torch.full((2, 3, 5), PRIOR))


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_probability_is_the_softmax_of_up_sampled_logits(align_corners: bool) -> None:
    logits = torch.randn(2, 2, 3, 5).double()
    expected = functional.interpolate(logits, [12, 20], mode="bilinear", align_corners=align_corners).softmax(dim=1)
    probability = target_probability(logits, [12, 20], align_corners)
    assert probability.dtype == torch.float32
    assert torch.allclose(probability.double(), expected[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_up_sampled_in_float32_or_better(dtype: torch.dtype) -> None:
    large = upsample(torch.randn(1, 2, 3, 3).to(dtype), [6, 6], align_corners=False)
    assert large.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
