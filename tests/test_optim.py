from __future__ import annotations

import pytest
import torch

from risbench import methods, optim, recipe
from risbench.recipe import Train

LTS = recipe.load(methods.recipe_file("lts"))[0].train
POLY = LTS.model_copy(update={"schedule": "poly", "decay": 0.9, "epochs": 40})


def test_the_rate_of_lts_is_divided_by_ten_after_epoch_30() -> None:
    shares = [optim.factor(LTS, step, 100) for step in (0, 2999, 3000, 4499)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1])


def test_a_poly_schedule_falls_to_zero_over_all_steps() -> None:
    assert optim.factor(POLY, 0, 1325) == 1
    assert optim.factor(POLY, 26_500, 1325) == pytest.approx(0.5**0.9)
    assert 0 < optim.factor(POLY, 52_999, 1325) < 1e-4


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_groups_keep_their_own_settings(name: str) -> None:
    settings: Train = LTS.model_copy(update={"optimizer": name, "weight_decay": 0.01})
    tensors = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    made = optim.optimizer([{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.5, "weight_decay": 0.0}], settings)
    optim.set_rate(made, 0.1)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([1e-4, 0.05])
    assert [group["weight_decay"] for group in made.param_groups] == [0.01, 0.0]
