"""Predictions of an unfinished run: one small file for each batch, so that the run can be resumed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from risbench import files
from risbench.errors import InputError
from risbench.scoring import predictions_file
from risbench.scoring.predictions import Header, Predictions

_NAME = re.compile(r"[0-9a-f]{16}-[0-9]{8}\.parquet")  # of a part: nothing else in the folder is touched


class PredictionParts:
    """A folder with one predictions file for each batch.

    The name of a part holds a hash of all that its masks depend on: the header, the batches (the sent_ids of each) and
    `origin`, which names what the header does not, such as the images. Several processes may add to one folder as long
    as no two add the same batch.
    """

    def __init__(self, folder: Path, header: Header, batches: Sequence[NDArray[np.int64]], origin: str = "") -> None:
        self.folder = folder
        self.header = header
        self.batches = batches
        content = [header.model_dump_json(), origin, *(batch.astype("<i8").tobytes().hex() for batch in batches)]
        self.key = hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]

    def prepare(self) -> None:
        """Make the folder, and remove parts that are damaged, or were made of something else."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.sweep(self.folder)
            numbers = {self._path(number): number for number in range(len(self.batches))}
            for part in self._parts():
                if part not in numbers or self._read(numbers[part]) is None:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise files.unwritable(self.folder, error) from None

    def stored_batches(self) -> set[int]:
        """Return the numbers of the batches whose predictions are stored."""
        return {number for number in range(len(self.batches)) if self._path(number).is_file()}

    def add(self, number: int, predictions: Predictions) -> None:
        """Store the predictions of one batch, whole or not at all."""
        predictions_file.write(self._path(number), predictions)

    def merge(self, path: Path) -> Predictions:
        """Join the parts in the order of the batches, write the result to `path`, and remove them.

        Raises InputError unless each batch is stored with one prediction for each of its expressions.
        """
        parts = []
        for number in range(len(self.batches)):
            part = self._read(number)
            if part is None:
                raise InputError(
                    f"Batch {number + 1} of {len(self.batches)} is missing or damaged in {self.folder}: something else"
                    " has changed that folder meanwhile. Repeat the command; it computes only what is missing."
                )
            parts.append(part)
        merged = _join(self.header, parts)
        predictions_file.write(path, merged)
        with suppress(OSError):  # the folder stays if it holds files of the user
            for stored in self._parts():
                stored.unlink(missing_ok=True)
            self.folder.rmdir()
        return merged

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:08d}.parquet"

    def _parts(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]

    def _read(self, number: int) -> Predictions | None:
        """Read a part; None if it is missing, damaged or another batch's."""
        try:
            part = predictions_file.read(self._path(number))
        except InputError:
            return None
        same_header = part.header is not None and part.header.model_dump_json() == self.header.model_dump_json()
        return part if same_header and np.array_equal(part.sent_id, self.batches[number]) else None


def _join(header: Header, parts: Sequence[Predictions]) -> Predictions:
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
