"""Runs of the references, the floors and ceilings without learning; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from risbench import files
from risbench.data import source
from risbench.data.index import Index
from risbench.runs.job import Job, new_folders
from risbench.scoring import predictions_file, protocol, record, references
from risbench.scoring.protocol import Protocol
from risbench.scoring.record import Record
from risbench.scoring.score import check_no_target_rule


def run_references(names: Sequence[str], job: Job, seeds: Sequence[int], runs: Path) -> list[Record]:
    """Predict, score and record references on every split under every protocol of a job.

    Only `random-object` depends on the seed: the other references run with the first seed alone.
    """
    index, splits, protocols = _check_references(names, job)
    records = []
    for name in names:
        folder = _make_folder(runs, f"reference-{name}-{Path(job.dataset).stem}-{datetime.now():%Y%m%d-%H%M%S}")
        for split in splits:
            for seed in seeds if name == "random-object" else seeds[:1]:
                seed_folder = folder / f"seed{seed}" if len(seeds) > 1 else folder
                records += [_run_reference(name, index, split, seed, chosen, seed_folder) for chosen in protocols]
    return records


def describe_references(names: Sequence[str], job: Job, seeds: Sequence[int], runs: Path) -> list[dict[str, Any]]:
    """Check what references would run on, and return what would be done; nothing is written."""
    index, splits, protocols = _check_references(names, job)
    files.check_writable(runs)
    return [
        {
            "method": f"reference/{name}",
            "variants": [],
            "seed": seed if name == "random-object" else None,
            "dataset": index.card.name,
            "evaluated": {split: len(index.split(split)) for split in splits},
            "protocols": [protocol.name for protocol in protocols],
            "limit": job.limit,
            "training": None,
            "folder": str(runs / f"reference-{name}-{Path(job.dataset).stem}-DATE-TIME"),
            "resumed": False,
            "seconds": None,
            "parameters": None,
            "weights": "none",
            "pretrained": [],
            "training_data": [],
        }
        for name in names
        for seed in (seeds if name == "random-object" else seeds[:1])
    ]


def _check_references(names: Sequence[str], job: Job) -> tuple[Index, list[str], list[Protocol]]:
    """Check what references would run on, and return the data set, the splits and the protocols."""
    for name in names:
        references.check_name(name)
    index = source.open_index(job.dataset, job.data_root, job.images, job.partial, job.limit)
    splits = job.splits or index.evaluation_splits()
    protocols = [protocol.load(name) for name in job.protocols]
    for split in splits:
        index.split(split)  # raises InputError for an unknown name
    check_no_target_rule(index, splits, protocols)
    return index, splits, protocols


def _make_folder(runs: Path, name: str) -> Path:
    """Make a folder that no other run has, not even one of the same second."""
    folders = new_folders(runs, name)
    while True:
        folder = next(folders)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise files.unwritable(folder, error) from None


def _run_reference(name: str, index: Index, split: str, seed: int, protocol: Protocol, folder: Path) -> Record:
    predictions = references.predict(name, index, split, seed, protocol)
    predictions_file.write(folder / "predictions" / f"{split}-{protocol.name}.parquet", predictions)
    return record.score_and_write(folder, predictions, index, split, protocol, seed=seed)
