"""The moving average of the weights (train.ema), which is validated and kept while training goes on from the raw ones.

Floating-point buffers, such as running statistics, are averaged like weights; others are copied. In step n, counted
from 1, the decay is min(train.ema, (n - 1) / (n + 9)), so that the first weights leave the average within a few steps.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

_RAW = "raw"  # table of the training state: the weights that training goes on from


def start(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Begin the average of a model's weights; None if the recipe asks for none."""
    return ModelEmaV3(model, decay, use_warmup=True, warmup_gamma=10.0, warmup_power=1.0) if decay else None


def state(average: ModelEmaV3 | None, model: nn.Module) -> dict[str, Any]:
    """Return what a resumed run needs besides the checkpoint's weights, which are the average."""
    return {_RAW: model.state_dict()} if average else {}


def restore(average: ModelEmaV3 | None, model: nn.Module, state: dict[str, Any]) -> None:
    """Restore the average from the model, which holds the checkpoint's weights, and the raw weights from the state.

    Raises ValueError or another error if the state does not hold them.
    """
    if (average is not None) != (_RAW in state):
        raise ValueError("it lacks the raw weights" if average else "it holds raw weights without train.ema")
    if average is None:
        return
    raw: dict[str, Tensor] = state[_RAW]
    if _layout(raw) != _layout(model.state_dict()):
        raise ValueError("its raw weights are those of another network")
    average.module.load_state_dict(model.state_dict())
    model.load_state_dict(raw)


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
