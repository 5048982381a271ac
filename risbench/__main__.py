"""The command risbench, also as `python -m risbench`, which torchrun starts."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import risbench

with suppress(OSError):  # -m looks for modules in the working directory first: downloaded files there would be code
    if os.path.samefile(sys.path[0], ".") and not os.path.samefile(Path(risbench.__file__).parents[1], "."):
        del sys.path[0]

try:
    from risbench.cli import signals
except KeyboardInterrupt:  # before signals are handled
    raise SystemExit(130) from None


def main() -> None:
    """Run the command line; signals are handled before anything else is imported."""
    _let_threads_sleep()
    signals.install()
    try:
        from risbench.cli import app

        app.main()
    finally:
        if signals.received():
            signals.end()


def _let_threads_sleep() -> None:
    """Let OpenMP's threads, and those of processes started from here, sleep while they wait, before torch is loaded.

    They would spin: where the machine has other work, each parallel loop then waits for a thread without a core. A
    user's OMP_WAIT_POLICY stays, and GOMP_SPINCOUNT and KMP_BLOCKTIME count before it. Results do not depend on it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


if __name__ == "__main__":
    main()
