"""Opening a run: check the job, start its processes, make or reopen its folder, and lock it."""

from __future__ import annotations

import itertools
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from risbench import recipe
from risbench.engine import distributed
from risbench.errors import InputError
from risbench.runs.checks import check
from risbench.runs.cost import reset_peak_memory
from risbench.runs.job import Job, resolve_settings
from risbench.runs.run import Run


class BusyError(InputError):
    """Another process works in the folder of a run."""


def prepare_run(job: Job, runs: Path, resume: Path | None = None) -> Run:
    """Check a job and start its processes, but make no folder.

    The folder of the run is `resume`, or for the time being `runs`.
    """
    settings, variants = resolve_settings(job, resume)
    run = Run(
        job=job,
        folder=resume or runs,
        fabric=distributed.start(settings.train.precision),
        settings=settings,
        variants=variants,
        resumed=resume is not None,
    )
    check(run)
    return run


def open_run(job: Job, runs: Path, resume: Path | None = None) -> Run:
    """Check a job and lock the folder of its run: a new one in `runs`, or the existing folder `resume`."""
    run = prepare_run(job, runs, resume)
    reset_peak_memory(run.fabric)
    if resume is None:
        folder = _make_folder(runs, _folder_name(run)) if run.fabric.is_global_zero else runs
        run.folder = distributed.from_main(run.fabric, folder)
        if run.fabric.is_global_zero:
            job.write(run.folder)
            (run.folder / "recipe.toml").write_text(recipe.dumps(run.settings), encoding="utf-8")
        distributed.barrier(run.fabric)
    _lock_folder(run)
    return run


def _folder_name(run: Run) -> str:
    """Method, variants, data set, seed and time."""
    method = Path(run.job.method or run.job.checkpoint).resolve().name
    time = datetime.now().strftime("%Y%m%d-%H%M%S")
    return "-".join([method, *run.variants, Path(run.job.dataset).stem, f"seed{run.job.seed}", time])


def _make_folder(runs: Path, name: str) -> Path:
    """Make a folder of this name, or of name-2, name-3, ... if runs of the same second have taken it."""
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / name
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = runs / f"{name}-{number}"
    return folder


def _lock_folder(run: Run) -> None:
    """Lock the folder of a run, so that no two processes write into it."""
    lock = FileLock(run.folder / ".lock", is_singleton=True)
    free = True
    if run.fabric.is_global_zero:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            free = False
        except NotImplementedError:  # a file system without locks, such as Lustre mounted without flock: run unlocked
            pass
    if not distributed.from_main(run.fabric, free):
        raise BusyError(f"Another process is at work in {run.folder}: wait for its end, or stop it.")
    run.lock = lock
