"""Predictions of an unfinished run: one file for each process, so that the run can be resumed."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from risbench import files
from risbench.errors import InputError
from risbench.scoring import predictions_file
from risbench.scoring.predictions import Header, Predictions

SECONDS = 1.0  # between two writings at least
_SHARE = 0.05  # of the time so far, between two writings: what a kill costs at most, and few writings of a long run
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{8})\.parquet")  # of a part: nothing else in the folder is touched


class PredictionParts:
    """A folder with one predictions file for each process, the part: whole batches, in the order they were added.

    The name of a part holds a hash of all that its masks depend on: the header, the batches (the sent_ids of each) and
    `origin`, which names what the header does not, such as the images; and the number of its first batch. Several
    processes may add to one folder as long as no two add the same batch. What a process has added is written again
    every now and then, but not within `seconds`.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        batches: Sequence[NDArray[np.int64]],
        origin: str = "",
        seconds: float = SECONDS,
    ) -> None:
        self.folder = folder
        self.header = header
        self.batches = batches
        content = [header.model_dump_json(), origin, *(batch.astype("<i8").tobytes().hex() for batch in batches)]
        self.key = hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
        self._numbers = {int(batch[0]): number for number, batch in enumerate(batches)}  # by the first sent_id
        self._added: dict[int, Predictions] = {}
        self._is_stored = True
        self._seconds = seconds
        self._start = time.monotonic()
        self._due = self._start + seconds

    def prepare(self) -> None:
        """Make the folder, and remove parts that are damaged, or were made of something else."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.sweep(self.folder)
            for part in self._parts():
                if not self._read(part):
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise files.unwritable(self.folder, error) from None

    def stored_batches(self) -> set[int]:
        """Return the numbers of the batches whose predictions are stored."""
        return set(self._read_all())

    def add(self, number: int, predictions: Predictions) -> None:
        """Add the predictions of one batch; `store` is called when it is time."""
        self._added[number] = predictions
        self._is_stored = False
        if time.monotonic() >= self._due:
            self.store()

    def store(self) -> None:
        """Write all that this process has added, whole or not at all."""
        if self._is_stored:
            return
        path = self.folder / f"{self.key}-{next(iter(self._added)):08d}.parquet"
        predictions_file.write(path, _join(self.header, list(self._added.values())))
        self._is_stored = True
        now = time.monotonic()
        self._due = now + max(self._seconds, _SHARE * (now - self._start))

    def merge(self, path: Path) -> Predictions:
        """Join the parts in the order of the batches, write the result to `path`, and remove them.

        Raises InputError unless each batch is stored with one prediction for each of its expressions.
        """
        stored = self._read_all()
        missing = next((number for number in range(len(self.batches)) if number not in stored), None)
        if missing is not None:
            raise InputError(
                f"Batch {missing + 1} of {len(self.batches)} is missing or damaged in {self.folder}: something else"
                " has changed that folder meanwhile. Repeat the command; it computes only what is missing."
            )
        merged = _join(self.header, [stored[number] for number in range(len(self.batches))])
        predictions_file.write(path, merged)
        with suppress(OSError):  # the folder stays if it holds files of the user
            for part in self._parts():
                part.unlink(missing_ok=True)
            self.folder.rmdir()
        return merged

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _read_all(self) -> dict[int, Predictions]:
        """Read the stored batches by their numbers; none if there is no folder."""
        parts = self._parts() if self.folder.is_dir() else []
        return {number: batch for part in parts for number, batch in self._read(part).items()}

    def _read(self, path: Path) -> dict[int, Predictions]:
        """Read the batches of a part by their numbers; none if it is damaged, or was made of something else."""
        name = _NAME.fullmatch(path.name)
        try:
            part = predictions_file.read(path) if name and name[1] == self.key else None
        except InputError:
            return {}
        if part is None or part.header is None or part.header.model_dump_json() != self.header.model_dump_json():
            return {}
        batches = self._cut(part)
        return batches if name and next(iter(batches), None) == int(name[2]) else {}

    def _cut(self, part: Predictions) -> dict[int, Predictions]:
        """Cut a part into its batches, by their numbers; none unless it holds whole batches."""
        batches: dict[int, Predictions] = {}
        start = 0
        while start < len(part):
            number = self._numbers.get(int(part.sent_id[start]))
            stop = start + (0 if number is None else len(self.batches[number]))
            if number is None or not np.array_equal(part.sent_id[start:stop], self.batches[number]):
                return {}
            batches[number] = part.take(np.arange(start, stop))
            start = stop
        return batches


def _join(header: Header, parts: Sequence[Predictions]) -> Predictions:
    no_target = _joined([part.no_target for part in parts], parts, np.int8(-1))
    return Predictions(
        header,
        np.concatenate([part.sent_id for part in parts]),
        np.concatenate([part.height for part in parts]),
        np.concatenate([part.width for part in parts]),
        [counts for part in parts for counts in part.counts],
        np.concatenate([part.peak_row for part in parts]),
        np.concatenate([part.peak_col for part in parts]),
        no_target,
        _joined([part.largest_probability for part in parts], parts, np.float32(np.nan)),
    )


def _joined(columns: Sequence[Any], parts: Sequence[Predictions], unknown: np.generic) -> Any:
    """Join an optional column, with `unknown` where a part lacks it; None if every part does."""
    if all(column is None for column in columns):
        return None
    filled = [np.full(len(p), unknown) if column is None else column for column, p in zip(columns, parts, strict=True)]
    return np.concatenate(filled)
