"""Parameters in groups for the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def weight_decay_groups(model: nn.Module, without_decay: Callable[[str, nn.Parameter], bool]) -> list[dict[str, Any]]:
    """Return two groups of the trained parameters: with the recipe's weight decay, and with none.

    `without_decay` takes a parameter's name and the parameter.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if without_decay(name, parameter) else decayed).append(parameter)
    return [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]


def initialise_without_biases(module: nn.Module) -> None:
    """Draw the weights of all linear layers by Xavier's uniform rule, and set their biases to 0.

    Biases drawn at random, as by default, are larger than what a word changes in the output of a fusion.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
