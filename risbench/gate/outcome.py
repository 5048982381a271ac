"""The outcome of a check: the numbers that were compared with their verdicts, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from risbench.gate.baseline import Number
from risbench.render import Cell, Column, Table
from risbench.scoring.statistics import Interval

REGRESSION = "regression"
NUM_FLIPS = 5  # flipped expressions that are listed, each way


@dataclass(frozen=True)
class CheckedNumber:
    """One number that was checked."""

    check: str  # baseline, tier and protocol, or the two sides
    number: str
    was: Number
    now: Number
    interval: Interval | None  # of the change; for a training, in which the number must lie
    verdict: str
    failed: bool = False


@dataclass(frozen=True)
class Outcome:
    """The numbers of one check, and the expressions that flipped most if it failed."""

    numbers: tuple[CheckedNumber, ...]
    flips: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()  # explain the verdicts

    @property
    def failed(self) -> bool:
        """Whether any number failed."""
        return any(number.failed for number in self.numbers)


def report(outcomes: Sequence[Outcome]) -> list[Table]:
    """Build the table of everything that was checked, and the tables of flipped expressions."""
    rows = []
    for checked in (number for outcome in outcomes for number in outcome.numbers):
        verdict = f"FAILED: {checked.verdict}" if checked.failed else checked.verdict
        values = (Cell(checked.was), Cell(checked.now), Cell(None, checked.interval))
        rows.append((Cell(checked.check), Cell(checked.number), *values, Cell(verdict)))
    num_failed = sum(outcome.failed for outcome in outcomes)
    title = f"checks {'failed' if num_failed else 'passed'}: {num_failed or len(outcomes)} of {len(outcomes)}"
    values_columns = (Column(name, numeric=True) for name in ("was", "is", "interval"))
    columns = (Column("check"), Column("number"), *values_columns, Column("verdict"))
    notes = tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
    flips = [table for outcome in outcomes for table in outcome.flips]
    return [Table("check", title, columns, tuple(rows), notes), *flips]
