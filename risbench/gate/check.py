"""The check of a baseline: whether today's code still reaches its numbers, in three tiers.

golden: the stored predictions, scored again, give the same rows under every protocol; needs no torch.
network: the pinned weights, run again, give the same masks except for a stated number of pixels.
training: the short training, repeated, lies where another seed would lie among the recorded seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from risbench import methods
from risbench.analysis import compare
from risbench.analysis.compare_tables import flips_table
from risbench.analysis.run_rows import RunRows, read_rows
from risbench.analysis.sides import Side
from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError, unknown
from risbench.gate import baseline as baselines
from risbench.gate.baseline import Baseline, DataLocation, Number, Training
from risbench.gate.outcome import NUM_FLIPS, REGRESSION, CheckedNumber, Outcome
from risbench.scoring import metrics, predictions_file, record, statistics
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Predictions, refuse_expressions
from risbench.scoring.score import score_predictions

TIERS = GOLDEN, NETWORK, TRAINING = ("golden", "network", "training")
LEVEL = 0.99  # of the interval in which a training must lie

_CHANGE_NOTE = "changed: the interval is the 95 % interval of the change, over images. Metrics in percent."
_TRAINING_NOTE = (
    f"training: was is the mean of the recorded seeds, interval where one more of them lies with {100 * LEVEL:.0f} %."
    " Metrics in percent."
)


@dataclass(frozen=True)
class _Inputs:
    """A baseline, the folder of its files, and the data set on which it is checked."""

    baseline: Baseline
    folder: Path
    index: Index
    location: DataLocation

    def stored_run(self, protocol_name: str) -> RunRows:
        """Return the stored rows under a protocol."""
        return self._run(protocol_name, baselines.stored_rows(self.baseline, self.folder, protocol_name))

    def new_run(self, before: RunRows, rows: pd.DataFrame) -> RunRows:
        """Return today's rows; raises InputError when the stored ones are of other expressions."""
        run = self._run(before.protocol, rows)
        if not before.rows["sent_id"].equals(run.rows["sent_id"]):
            file = baselines.rows_path(self.baseline, self.folder, before.protocol)
            raise InputError(f"{file} has other expressions than the split: restore it, or make the baseline again.")
        return run

    def _run(self, protocol_name: str, rows: pd.DataFrame) -> RunRows:
        ordered: pd.DataFrame = baselines.kept_columns(rows).sort_values("sent_id", ignore_index=True)
        return RunRows(Path(), ordered, self.baseline.dataset, self.baseline.split, protocol_name)

    def failure(
        self, check: str, numbers: Sequence[CheckedNumber], note: str, before: RunRows, after: RunRows
    ) -> Outcome:
        """Return an outcome with the expressions that flipped most."""
        split = self.index.split(before.split)
        texts = dict(zip(split.sent_id.tolist(), split.raw, strict=True))
        flips = flips_table(_sides(before, after), NUM_FLIPS, texts)
        title = f"{check}: expressions that flipped most; A was, the other is"
        return Outcome(tuple(numbers), (replace(flips, title=title),), (note,))


def check_baseline(path: Path, tiers: Sequence[str], location: DataLocation) -> list[Outcome]:
    """Check a baseline in those of these tiers that it has.

    Raises InputError when a tier is unknown, when the baseline has none of the tiers, or when this copy of
    the data set has other annotations than the baseline.
    """
    for tier in tiers:
        if tier not in TIERS:
            raise unknown("tier", tier, TIERS)
    inputs = _open(path, location)
    baseline = inputs.baseline
    outcomes = []
    if GOLDEN in tiers:
        outcomes += [_check_golden(inputs, protocol_name) for protocol_name in baseline.scores]
    if NETWORK in tiers and baseline.training:
        outcomes.append(_check_network(inputs, baseline.training))
    if TRAINING in tiers and baseline.training:
        outcomes.append(_check_training(inputs, baseline.training))
    if not outcomes:
        available = TIERS if baseline.training else (GOLDEN,)
        wanted = " and ".join(tiers) or "''"
        raise InputError(f"{path} has nothing for the tier {wanted}: give --tier {','.join(available)}.")
    return outcomes


def _open(path: Path, location: DataLocation) -> _Inputs:
    baseline = baselines.read(path)
    dataset = location.dataset or baseline.dataset
    root = location.data_root if source.used_root([dataset], location.data_root) else ""  # for other baselines
    location = location._replace(dataset=dataset, data_root=root)
    index = source.open_index(*location)
    if index.hash != baseline.index:
        raise InputError(
            f"{path} was made with other annotations ({baseline.index[:8]}) than this copy of {index.card.name} holds"
            f" ({index.hash[:8]}): give their --data-root, or make it again with --update."
        )
    return _Inputs(baseline, baselines.folder_of(path), index, location)


def _check_golden(inputs: _Inputs, protocol_name: str) -> Outcome:
    """Score the stored predictions again under a protocol: every row and every number must be the same."""
    baseline, check = inputs.baseline, f"{inputs.folder.name}, {GOLDEN}, {protocol_name}"
    stored = baselines.stored_predictions(baseline, inputs.folder)
    before = inputs.stored_run(protocol_name)
    protocol, boundaries = protocols.load(protocol_name), protocol_name == baseline.protocol
    try:
        score = score_predictions(stored, inputs.index, baseline.split, protocol, boundaries=boundaries)
    except InputError as error:
        return _refusal(check, error)
    was, now = baseline.scores[protocol_name], baselines.kept_numbers(score.summary)
    after = inputs.new_run(before, score.rows)
    changed = [name for name in was if was[name] != now.get(name)]
    if not before.rows.equals(after.rows):
        numbers = _changed_numbers(check, changed, was, now, before, after)
        only_rows = CheckedNumber(check, "rows", None, None, None, "changed, though not in their sums", True)
        return inputs.failure(check, numbers or [only_rows], _CHANGE_NOTE, before, after)
    if not changed:
        return Outcome((CheckedNumber(check, f"{len(after.rows):,} rows", None, None, None, "the same"),))
    verdict = "changed, of the same rows"
    return Outcome(tuple(CheckedNumber(check, x, was[x], now.get(x), None, verdict, True) for x in changed))


def _check_network(inputs: _Inputs, training: Training) -> Outcome:
    """Run the pinned weights again: the predictions must be the same, except for some pixels and peaks."""
    from risbench.engine.checkpoint import Checkpoint
    from risbench.gate import rerun

    baseline, check = inputs.baseline, f"{inputs.folder.name}, {NETWORK}"
    stored, checkpoint = baselines.stored_predictions(baseline, inputs.folder), inputs.folder / baselines.CHECKPOINT
    protocol, before = protocols.load(baseline.protocol), inputs.stored_run(baseline.protocol)
    Checkpoint(checkpoint, training.method).method()  # refuses a damaged one, and an unknown method
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "masks.parquet"
        try:
            rerun.predict(baseline, training, inputs.location, checkpoint, output)
            predictions = predictions_file.read(output)
            flipped, moved = _count_differences(baseline, inputs.index, stored, predictions)
            score = score_predictions(predictions, inputs.index, baseline.split, protocol, boundaries=True)
        except InputError as error:
            return _refusal(check, error)
    numbers = [
        _difference_count(check, f"flipped pixels, {len(predictions):,} masks", flipped, baseline.flipped or 0),
        _difference_count(check, "other peaks", moved, baseline.moved),
    ]
    if not any(number.failed for number in numbers):
        return Outcome(tuple(numbers))
    was, now, after = baseline.scores[protocol.name], score.summary, inputs.new_run(before, score.rows)
    changed = [name for name in (*baselines.guarded_metrics(protocol.name), "pointing") if was[name] != now[name]]
    numbers += _changed_numbers(check, changed, was, now, before, after)
    return inputs.failure(check, numbers, _CHANGE_NOTE, before, after)


def _count_differences(baseline: Baseline, index: Index, before: Predictions, after: Predictions) -> tuple[int, int]:
    """Count the pixels of all masks that differ, and the expressions with another peak or no-target answer."""
    split = index.split(baseline.split)
    selected = protocols.load(baseline.protocol).input.select_expressions(split)
    old, new = (predictions.in_order_of(split, selected) for predictions in (before, after))
    resized = (old.height != new.height) | (old.width != new.width)
    refuse_expressions("Stored in another size", old.sent_id[resized], "Make the baseline again with --update.")
    sizes = zip(new.height.tolist(), new.width.tolist(), strict=True)
    counts = (metrics.count_pixels(a, b, size, None) for a, b, size in zip(old.counts, new.counts, sizes, strict=True))
    moved = (old.peak_row != new.peak_row) | (old.peak_col != new.peak_col) | (old.no_target != new.no_target)
    return sum(count.union - count.intersection for count in counts), int(moved.sum())


def _difference_count(check: str, what: str, differing: int, allowed: int) -> CheckedNumber:
    verdict = f"{allowed:,} may" if differing else "the same"
    return CheckedNumber(check, what, 0, differing, None, verdict, differing > allowed)


def _check_training(inputs: _Inputs, training: Training) -> Outcome:
    """Train again with the first seed: no metric may lie below the interval of one more seed."""
    from risbench.gate import rerun

    baseline, check = inputs.baseline, f"{inputs.folder.name}, {TRAINING}"
    name, before = f"{baseline.split}-{baseline.protocol}", inputs.stored_run(baseline.protocol)
    methods.load(training.method)  # refuses an unknown one
    with tempfile.TemporaryDirectory() as runs:
        try:
            folder = rerun.train_and_evaluate(baseline, training, training.seeds[0].seed, inputs.location, Path(runs))
        except InputError as error:
            return _refusal(check, error)
        now = record.read(folder / "records" / f"{name}.json").metrics
        after = inputs.new_run(before, read_rows(folder / "rows" / f"{name}.parquet"))
    guarded = baselines.guarded_metrics(baseline.protocol)
    numbers = [trained_number(check, metric, training, now[metric]) for metric in guarded]
    if any(number.failed for number in numbers):
        return inputs.failure(check, numbers, _TRAINING_NOTE, before, after)
    return Outcome(tuple(numbers), notes=(_TRAINING_NOTE,))


def trained_number(check: str, metric: str, training: Training, now: Number) -> CheckedNumber:
    """Compare one metric of a training with the recorded seeds; `was` is their mean."""
    values = baselines.seed_values(training, metric)
    low, high = statistics.prediction_interval(values, LEVEL)
    if now is None or now < low:
        verdict = f"{REGRESSION}: below what chance explains"
    elif now == values[0]:
        verdict = "the same as recorded"
    else:
        verdict = "above what chance explains: --update" if now > high else "within chance"
    return CheckedNumber(check, metric, fmean(values), now, (low, high), verdict, now is None or now < low)


def _refusal(check: str, error: InputError) -> Outcome:
    """Return a failure because input that was accepted when the baseline was made is refused today."""
    return Outcome((CheckedNumber(check, "", None, None, None, "refused", failed=True),), notes=(f"{check}: {error}",))


def _changed_numbers(
    check: str, names: Sequence[str], was: Mapping[str, Number], now: Mapping[str, Any], before: RunRows, after: RunRows
) -> list[CheckedNumber]:
    """Return the numbers that changed; those that are metrics have the interval of the change."""
    change = compare.compare(_sides(before, after))[1]
    intervals = {name: change[name].difference_interval if name in change else None for name in names}
    return [CheckedNumber(check, name, was[name], now.get(name), intervals[name], "changed", True) for name in names]


def _sides(before: RunRows, after: RunRows) -> list[Side]:
    return [Side("A", (before,)), Side("B", (after,))]
