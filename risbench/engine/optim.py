"""Optimisers and learning-rate schedules that recipes name."""

from __future__ import annotations

import difflib
import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from risbench.api import Method
from risbench.errors import InputError
from risbench.recipe import Train

_OPTIMIZERS: dict[str, type[Adam]] = {"adam": Adam, "adamw": AdamW}


def parameter_groups(model: Method, settings: Train) -> list[dict[str, Any]]:
    """Return the method's groups, each of them cut by the factors of train.rates, which multiply its rate.

    Raises InputError for a prefix that is not one of a trained parameter's name.
    """
    groups = [{**group, "params": list(group["params"])} for group in model.parameter_groups()]
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = [names.get(id(parameter), "") for group in groups for parameter in group["params"]]
    for prefix in settings.rates:
        if not any(name.startswith(prefix) for name in trained):
            raise _unknown_prefix(prefix, trained)
    return [part for group in groups for part in _cut_by_factor(group, names, settings)]


def _cut_by_factor(group: dict[str, Any], names: dict[int, str], settings: Train) -> list[dict[str, Any]]:
    """Cut a group by the factor of the longest prefix; the parameters without one come first."""
    parts: dict[float, list[Tensor]] = {1.0: []}
    for parameter in group["params"]:
        prefixes = [prefix for prefix in settings.rates if names.get(id(parameter), "").startswith(prefix)]
        factor = settings.rates[max(prefixes, key=len)] if prefixes else 1.0
        parts.setdefault(factor, []).append(parameter)
    rate = group.get("lr", settings.lr)
    cut = [{**group, "params": part, "lr": rate * factor} for factor, part in parts.items() if part]
    return cut if settings.rates else [group]


def _unknown_prefix(prefix: str, names: Iterable[str]) -> InputError:
    """Return the error for a prefix of no trained parameter; it names the nearest prefixes."""
    parts = [name.split(".") for name in names]
    known = dict.fromkeys(".".join(part[:end]) + "." for part in parts for end in range(1, len(part)))
    nearest = difflib.get_close_matches(prefix, known, n=3, cutoff=0.0)
    return InputError(
        f"train.rates: no trained parameter has a name that begins with {prefix!r}. The nearest beginnings are "
        f"{', '.join(map(repr, nearest)) or 'none'}: write one of them, or leave it out."
    )


def build_optimizer(groups: list[dict[str, Any]], settings: Train) -> Optimizer:
    """Build the optimiser; a parameter group without lr or weight_decay gets the recipe's.

    One kernel updates each parameter, or on CUDA all of them, except under 16-mixed: Fabric cannot clip gradients that
    such a kernel unscales.
    """
    fused = settings.precision != "16-mixed"
    build = _OPTIMIZERS[settings.optimizer]
    optimizer = build(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser. Raises ValueError or another error of torch if it is that of other parameters.

    How a step is computed is not part of it: the run may go on with another device.
    """
    groups = [
        {**stored, "fused": group["fused"]}
        for stored, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    for stored, group in zip(groups, optimizer.param_groups, strict=True):
        if any(type(stored[key]) is not type(group[key]) for key in stored.keys() & group.keys()):
            raise ValueError("a group of parameters has settings of another type")
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        shapes = {value.shape for value in values.values() if isinstance(value, Tensor) and value.dim()}
        if shapes - {parameter.shape}:
            raise ValueError("a parameter has another shape")


def rate_factor(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimiser step (counted from 0) divided by the initial rate.

    Schedule "step": multiplied by `decay` after each epoch of `milestones`. "poly": (1 - step / all steps) ** decay.
    "cosine": half a cosine, from 1 to 0 over all steps. During the first `warmup` epochs the factor is also multiplied
    by the finished share of the warm-up.
    """
    warmup_steps = settings.warmup * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return _decay_factor(settings, step, steps_per_epoch) * warmup


def _decay_factor(settings: Train, step: int, steps_per_epoch: int) -> float:
    if settings.schedule == "step":
        return settings.decay ** bisect_right(settings.milestones, step // steps_per_epoch)
    left = 1 - step / (steps_per_epoch * settings.epochs)
    if settings.schedule == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * left)
    factor: float = left**settings.decay
    return factor


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to its initial one times a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
