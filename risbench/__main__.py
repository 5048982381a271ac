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


WAITING = {  # how threads of OpenMP wait: the first for each OpenMP, the second for GCC's, which torch has on Linux
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2000",
}


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
    """Let OpenMP's threads that wait sleep soon, here and in processes started from here, before torch is loaded.

    They would spin for milliseconds: where the machine has other work, each parallel loop then waits for a thread
    without a core. Threads that sleep at once are woken too late where it has none: they spin 2,000 rounds first.
    What a user has set stays as a whole. Results do not depend on it.
    """
    if not {*WAITING, "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.update(WAITING)


if __name__ == "__main__":
    main()
