"""The processes that a launcher started: which of them prints."""

from __future__ import annotations

import os
import sys
from typing import Any


def is_main() -> bool:
    """Whether this is the first process."""
    return not int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def are_several() -> bool:
    """Whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1


def is_first_failure() -> bool:
    """Count a failure of this process; return whether no other process has failed before."""
    if not are_several():
        return True
    try:
        from risbench.engine import distributed

        return distributed.count_failures(1) == 1
    except Exception:  # torch itself is broken
        return is_main()


def have_failed() -> bool:
    """Whether one of several processes has failed, so that the launcher stops the others."""
    distributed: Any = sys.modules.get("risbench.engine.distributed")
    return are_several() and distributed is not None and distributed.count_failures(0) > 0
