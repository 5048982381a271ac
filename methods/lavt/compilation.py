"""torch.compile for a network's modules, with a recompilation limit that applies to their calls only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

_GRAPHS_PER_MODULE = 4  # training and evaluation, each of one image or of several


def compile_modules(modules: Sequence[nn.Module]) -> None:
    """Compile each module in place when it is first called.

    Modules of one class share their code, but a graph only where width, shift and map size are the same. By default
    torch makes at most 8 graphs of one code and then runs it uncompiled, without an error. Here all modules have room.
    """
    limit = _GRAPHS_PER_MODULE * len(modules)
    for module in modules:
        module.compile()
        compiled = module._compiled_call_impl  # where nn.Module.compile puts the compiled call; it is not pickled
        assert compiled is not None
        module._compiled_call_impl = _with_recompile_limit(compiled, limit)


def _with_recompile_limit(call: Callable[..., Any], limit: int) -> Callable[..., Any]:
    """Return a function that raises torch's limit while it calls another, also in the threads of a backward pass."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        config = torch._dynamo.config
        with config.patch(recompile_limit=max(config.recompile_limit, limit)):
            return call(*args, **kwargs)

    return limited
