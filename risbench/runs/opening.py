"""Opening a run: check the job, start its processes, make or reopen its folder, and lock it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from risbench import datasets, failures, files, recipe
from risbench.data import source
from risbench.engine import checkpoint, distributed
from risbench.errors import InputError
from risbench.runs import inputs, locks
from risbench.runs.checks import check
from risbench.runs.cost import reset_peak_memory
from risbench.runs.inputs import Inputs
from risbench.runs.job import PLACES, RECIPE_FILE, Job, new_folders, resolve_settings
from risbench.runs.locks import BusyError
from risbench.runs.run import Run


def prepare_run(job: Job, runs: Path, resume: Path | None = None) -> Run:
    """Check a job and start its processes, but make no folder.

    The folder of the run is `resume`, or for the time being `runs`.
    """
    settings, variants = resolve_settings(job, resume)
    if resume is None or job.data_root != Job.read(resume).data_root:
        source.check_data_root([datasets.load(name) for name in inputs.data_sets(job, settings)], job.data_root)
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
        folder = _make_folder(run) if run.fabric.is_global_zero else runs
        run.folder = distributed.from_main(run.fabric, folder)
    _lock_folder(run)
    if resume is not None:
        _reopen_folder(run)
    return run


@contextmanager
def discarding_failure(run: Run) -> Iterator[None]:
    """Remove the folder of a new run that fails before it holds weights or predictions to go on from."""
    try:
        yield
    except Exception as error:
        kept = run.folder / ("predictions" if run.job.checkpoint else "checkpoints")
        if run.resumed or not run.fabric.is_global_zero or _holds_files(kept):
            raise
        if run.lock:
            run.lock.release(force=True)
        shutil.rmtree(run.folder, ignore_errors=True)
        if explained := failures.translate(error):
            raise InputError(f"{explained} Nothing of the run is kept.") from None
        raise


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def _make_folder(run: Run) -> Path:
    """Make the folder of a new run, whole, under its name, or name-2, name-3, ... if other runs have taken it."""
    runs, begun = run.folder, run.inputs()
    name = folder_name(run, datetime.now().strftime("%Y%m%d-%H%M%S"))
    files.sweep(runs)
    folders = new_folders(runs, name)
    while True:
        folder = next(folder for folder in folders if not folder.exists())
        try:
            with files.replacing(folder) as new:
                new.mkdir()
                files.write_text(new / RECIPE_FILE, recipe.dumps(run.settings))
                run.stored_job.write(new, begun.model_dump())
            return folder
        except InputError:
            if not folder.exists():  # else another process has taken the name
                raise


def folder_name(run: Run, time: str) -> str:
    """Return the name of a new run: method, variants, data set, seed and time."""
    method = Path(run.job.method or run.job.checkpoint).resolve().name
    return "-".join([method, *run.variants, Path(run.job.dataset).stem, f"seed{run.job.seed}", time])


def _lock_folder(run: Run) -> None:
    """Lock the folder of a run, so that no two processes write into it."""
    if run.fabric.is_global_zero:
        run.lock = locks.hold(run.folder / ".lock")
    if not distributed.from_main(run.fabric, run.lock is not None):
        raise BusyError(f"Another process is at work in {run.folder}: wait for its end, or stop it.")


def _reopen_folder(run: Run) -> None:
    """Refuse changed inputs, keep the places of today, and remove what killed processes left."""
    refusal = ""
    if run.fabric.is_global_zero:
        try:
            _keep_places(run, check_inputs(run))
            _sweep(run)
        except InputError as error:
            refusal = str(error)
    if refusal := distributed.from_main(run.fabric, refusal):
        raise InputError(refusal)


def check_inputs(run: Run) -> Inputs:
    """Return the inputs of a resumed run as they are today. Raises InputError if they have changed."""
    today = run.inputs()
    inputs.check_unchanged(run.folder, today, [run.index, *(index for index, _ in run.training_splits())])
    return today


def _keep_places(run: Run, today: Inputs) -> None:
    """Write the places of today, and the inputs of a run that kept none, to run.toml."""
    stored = Job.read(run.folder)
    moved = stored.model_copy(update={name: getattr(run.stored_job, name) for name in PLACES})
    if moved != stored or Inputs.read(run.folder) is None:
        moved.write(run.folder, (Inputs.read(run.folder) or today).model_dump())


def _sweep(run: Run) -> None:
    """Finish or remove what killed processes left; in the locked folder all temporary files are theirs."""
    for name in ("best", "last"):
        checkpoint.repair(run.folder / "checkpoints" / name)
    files.sweep(run.folder.parent)
    is_locked = run.lock is not None and run.lock.is_locked
    for path in [run.folder, *(path for path in run.folder.rglob("*") if path.is_dir())]:
        files.sweep(path, exclusive=is_locked)
