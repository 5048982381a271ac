"""Predictions of an unfinished run: one small file for each batch, so that the run can be resumed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np

from risbench.scoring import predictions_file
from risbench.scoring.predictions import Header, Predictions


class PredictionParts:
    """A folder with one predictions file for each batch.

    Several processes may add to one folder as long as no two add the same batch.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        """Open the folder, and remove parts that were made under another header."""
        self.folder = folder
        self.header = header
        self.key = hashlib.sha256(header.model_dump_json().encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*-*.parquet"):
            if not stale.name.startswith(self.key):
                stale.unlink(missing_ok=True)

    def stored_batches(self) -> set[int]:
        """Return the numbers of the batches whose predictions are stored."""
        return {int(part.stem.partition("-")[2]) for part in self.folder.glob(f"{self.key}-*.parquet")}

    def add(self, number: int, predictions: Predictions) -> None:
        """Store the predictions of one batch, whole or not at all."""
        predictions_file.write(self._path(number), predictions)

    def merge(self, path: Path) -> Predictions:
        """Join the parts in the order of the batches, write the result to `path`, and remove the folder."""
        merged = _join(
            self.header, [predictions_file.read(self._path(number)) for number in sorted(self.stored_batches())]
        )
        predictions_file.write(path, merged)
        shutil.rmtree(self.folder)
        return merged

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:08d}.parquet"


def _join(header: Header, parts: list[Predictions]) -> Predictions:
    no_target = [np.full(len(part), -1, np.int8) if part.no_target is None else part.no_target for part in parts]
    return Predictions(
        header,
        np.concatenate([part.sent_id for part in parts]),
        np.concatenate([part.height for part in parts]),
        np.concatenate([part.width for part in parts]),
        [counts for part in parts for counts in part.counts],
        np.concatenate([part.peak_row for part in parts]),
        np.concatenate([part.peak_col for part in parts]),
        None if all(part.no_target is None for part in parts) else np.concatenate(no_target),
    )
