from __future__ import annotations

from torch import nn

from risbench.nn.parameters import weight_decay_groups


def test_trained_parameters_are_grouped_by_name_and_shape() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    decayed, undecayed = weight_decay_groups(model, lambda name, p: p.ndim < 2 and name != "1.weight")
    assert "weight_decay" not in decayed and undecayed["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[1].weight)]
    assert [id(p) for p in undecayed["params"]] == [id(model[0].bias), id(model[1].bias)]
