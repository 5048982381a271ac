from __future__ import annotations

import numpy as np
import pytest
import torch

from risbench.nn.segmentation import area_average, summed_bce


def test_losses_are_summed_over_positions_and_averaged_over_the_batch() -> None:
    logits, truth = torch.tensor([[[0.0, 2.0]], [[-1.0, 0.5]]]), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    by_hand = (np.log(2) + np.log(1 + np.exp(2)) + np.log(1 + np.exp(-1)) + np.log(1 + np.exp(-0.5))) / 2
    assert summed_bce(logits, truth).item() == pytest.approx(by_hand, rel=1e-6)


def test_ground_truth_is_averaged_over_each_cell() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, :2, :3] = 1
    assert area_average(mask, (2, 2)).tolist() == [[[1.0, 0.5], [0.0, 0.0]]]
