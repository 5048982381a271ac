"""Optimisers and learning-rate schedules that recipes name."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from risbench.recipe import Train

_OPTIMIZERS: dict[str, type[Adam]] = {"adam": Adam, "adamw": AdamW}


def build_optimizer(groups: list[dict[str, Any]], settings: Train) -> Optimizer:
    """Build the optimiser; a parameter group without lr or weight_decay gets the recipe's."""
    optimizer = _OPTIMIZERS[settings.optimizer](groups, lr=settings.lr, weight_decay=settings.weight_decay)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser. Raises ValueError or another error of torch if it is that of other parameters."""
    for stored, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        if any(type(stored[key]) is not type(group[key]) for key in stored.keys() & group.keys()):
            raise ValueError("a group of parameters has settings of another type")
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        shapes = {value.shape for value in values.values() if isinstance(value, Tensor) and value.dim()}
        if shapes - {parameter.shape}:
            raise ValueError("a parameter has another shape")


def rate_factor(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimiser step (counted from 0) divided by the initial rate.

    Schedule "step": multiplied by `decay` after each epoch of `milestones`. "poly": (1 - step / all steps) ** decay.
    During the first `warmup` epochs the factor is also multiplied by the finished share of the warm-up.
    """
    warmup_steps = settings.warmup * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return _decay_factor(settings, step, steps_per_epoch) * warmup


def _decay_factor(settings: Train, step: int, steps_per_epoch: int) -> float:
    if settings.schedule == "step":
        return settings.decay ** bisect_right(settings.milestones, step // steps_per_epoch)
    factor: float = (1 - step / (steps_per_epoch * settings.epochs)) ** settings.decay
    return factor


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to its initial one times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
