from __future__ import annotations

import pytest
import torch

from risbench import methods, recipe
from risbench.engine import optim
from risbench.recipe import Train

LTS = recipe.load(methods.recipe_file("lts"))[0].train
POLY = LTS.model_copy(update={"schedule": "poly", "decay": 0.9, "epochs": 40})
COSINE = LTS.model_copy(update={"schedule": "cosine", "epochs": 40})


def test_the_rate_of_lts_is_divided_by_ten_after_epoch_30() -> None:
    shares = [optim.rate_factor(LTS, step, 100) for step in (0, 2999, 3000, 4499)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1])


def test_a_poly_schedule_falls_to_zero_over_all_steps() -> None:
    assert optim.rate_factor(POLY, 0, 1325) == 1
    assert optim.rate_factor(POLY, 26_500, 1325) == pytest.approx(0.5**0.9)
    assert 0 < optim.rate_factor(POLY, 52_999, 1325) < 1e-4


def test_a_cosine_schedule_falls_from_one_to_zero_over_all_steps() -> None:
    shares = [optim.rate_factor(COSINE, step, 100) for step in (0, 1000, 2000, 3000, 3999)]
    assert shares[0] == 1 and shares[1:4] == pytest.approx([0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert 0 < shares[4] < 1e-6


@pytest.mark.parametrize("settings", [LTS, POLY, COSINE])
def test_the_rate_rises_over_the_first_epochs_and_falls_as_ever_after(settings: Train) -> None:
    """Half an epoch of 10 steps, from the first step on above 0."""
    warm = settings.model_copy(update={"warmup": 0.5})
    shares = [optim.rate_factor(warm, step, 10) / optim.rate_factor(settings, step, 10) for step in range(12)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1] * 8])


def test_a_warm_up_shorter_than_a_step_changes_nothing() -> None:
    warm = POLY.model_copy(update={"warmup": 0.05})
    assert [optim.rate_factor(warm, step, 10) for step in range(3)] == [
        optim.rate_factor(POLY, step, 10) for step in range(3)
    ]


def test_the_poly_schedule_of_lavt_is_that_of_its_authors() -> None:
    """(1 - step / steps)^0.9 of 5e-5 over 40 epochs of 1325 steps on RefCOCO, without warm-up."""
    settings = recipe.load(methods.recipe_file("lavt"))[0].train
    shares = [optim.rate_factor(settings, step, 1325) for step in (0, 1, 52_999)]
    assert settings.lr == 5e-5 and shares == pytest.approx([1, (52_999 / 53_000) ** 0.9, (1 / 53_000) ** 0.9])


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_groups_keep_their_own_settings(name: str) -> None:
    settings: Train = LTS.model_copy(update={"optimizer": name, "weight_decay": 0.01})
    tensors = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    made = optim.build_optimizer(
        [{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.5, "weight_decay": 0.0}], settings
    )
    optim.set_rate(made, 0.1)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([1e-4, 0.05])
    assert [group["weight_decay"] for group in made.param_groups] == [0.01, 0.0]


@pytest.mark.parametrize("fused", [None, False, True])  # None: before 0.3
def test_a_state_goes_on_however_its_steps_were_computed(fused: bool | None) -> None:
    tensors = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    made = [optim.build_optimizer([{"params": [tensor]}], LTS) for tensor in tensors]
    made[0].param_groups[0]["fused"] = fused
    tensors[0].grad = torch.ones(2)
    made[0].step()
    optim.load_state(made[1], made[0].state_dict())
    assert made[1].param_groups[0]["fused"] is True
    assert torch.equal(made[1].state[tensors[1]]["exp_avg"], made[0].state[tensors[0]]["exp_avg"])
