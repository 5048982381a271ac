from __future__ import annotations

import torch

from risbench.nn.panels import attention_panel


def test_a_panel_is_scaled_to_its_maximum_and_names_its_range() -> None:
    title, values = attention_panel("stage 2", torch.tensor([[0.1, 0.3], [0.2, 0.4]]), "its attention", digits=1)
    assert title == "stage 2: 10.0 to 40.0 % of its attention"
    assert torch.allclose(values, torch.tensor([[0.25, 0.75], [0.5, 1.0]]))
    assert attention_panel("x", torch.tensor([[0.123]]), "a whole", digits=0).title == "x: 12 to 12 % of a whole"


def test_attention_that_is_zero_everywhere_stays_zero() -> None:
    assert not attention_panel("x", torch.zeros(2, 2), "a whole", digits=0).values.any()
