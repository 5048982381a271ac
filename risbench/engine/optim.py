"""Optimisers and learning-rate schedules that recipes name."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch.optim import Adam, AdamW, Optimizer

from risbench.recipe import Train

_OPTIMIZERS: dict[str, type[Adam]] = {"adam": Adam, "adamw": AdamW}


def optimizer(groups: list[dict[str, Any]], recipe: Train) -> Optimizer:
    """Make the optimiser; a group without lr or weight_decay of its own gets the recipe's."""
    made = _OPTIMIZERS[recipe.optimizer](groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


def factor(recipe: Train, step: int, steps_per_epoch: int) -> float:
    """The learning rate of an optimiser step (from 0) as a share of the initial one.

    step: times `decay` after each epoch of `milestones`. poly: (1 - step / all steps) ** decay. During the first
    `warmup` epochs either is also multiplied by the share of them that is done.
    """
    rising = recipe.warmup * steps_per_epoch  # steps
    return _falling(recipe, step, steps_per_epoch) * (min(1.0, (step + 1) / rising) if rising else 1.0)


def _falling(recipe: Train, step: int, steps_per_epoch: int) -> float:
    if recipe.schedule == "step":
        return recipe.decay ** bisect_right(recipe.milestones, step // steps_per_epoch)
    share: float = (1 - step / (steps_per_epoch * recipe.epochs)) ** recipe.decay
    return share


def set_rate(made: Optimizer, share: float) -> None:
    """Set every group's learning rate to a share of its initial one."""
    for group in made.param_groups:
        group["lr"] = group["initial_lr"] * share
