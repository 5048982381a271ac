"""The gate: whether today's code still comes to the numbers of a baseline, or to no less than chance explains.

golden: the stored predictions, scored again, give the same rows under every protocol; needs no torch.
network: the pinned weights, run again, give the same masks, but for a stated number of pixels.
training: the short training, done again, lies where a further seed of those recorded would lie.
runs: of any two runs, the second has not fallen behind the first, beyond chance and by more than a margin.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from risbench.analysis import compare, sides
from risbench.analysis.sides import Asked, Run, Side, expressions, open_sides
from risbench.data import source
from risbench.data.index import Index
from risbench.errors import InputError, unknown
from risbench.gate import baseline as baselines
from risbench.gate.baseline import Baseline, Number, Training, Where
from risbench.render import Cell, Column, Table
from risbench.scoring import metrics, predictions, protocol, record, statistics
from risbench.scoring.predictions import Predictions
from risbench.scoring.statistics import Ends

TIERS = GOLDEN, NETWORK, TRAINING = ("golden", "network", "training")
LEVEL = 0.99  # of the interval in which a training must lie
_SHOWN = 5  # expressions that flipped, each way
_REGRESSION = "regression"

_CHANGE = "changed: interval is that of the change, 95 % over images. Metrics in percent."
_AMONG = (
    f"training: was is the mean of the recorded seeds, interval where one more of them lies with {100 * LEVEL:.0f} %."
    " Metrics in percent."
)


@dataclass(frozen=True)
class Line:
    """One number that was checked."""

    check: str  # what was done
    number: str
    was: Number
    now: Number
    interval: Ends | None  # of the change; of a training, where the number must lie
    verdict: str
    failed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What was checked, and the expressions behind what failed."""

    lines: tuple[Line, ...]
    flips: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()  # what its verdicts mean

    @property
    def failed(self) -> bool:
        """Whether anything did."""
        return any(line.failed for line in self.lines)


def check(path: Path, tiers: Sequence[str], dataset: str, where: Where) -> list[Outcome]:
    """Check a baseline in those of these tiers that it has."""
    for tier in tiers:
        if tier not in TIERS:
            raise unknown("tier", tier, TIERS)
    base, folder = baselines.read(path), baselines.folder_of(path)
    dataset = dataset or base.dataset
    index = source.open_index(dataset, *where)
    if index.hash != base.index:
        raise InputError(
            f"{path} was made with other annotations ({base.index[:8]}) than those of {index.card.name} at hand"
            f" ({index.hash[:8]}): give their --data-root, or make it again with --update."
        )
    found = []
    if GOLDEN in tiers:
        found += [golden(base, folder, index, name) for name in base.scores]
    if NETWORK in tiers and base.training:
        found.append(network(base, base.training, folder, index, dataset, where))
    if TRAINING in tiers and base.training:
        found.append(training(base, base.training, folder, index, dataset, where))
    if not found:
        wanted = " and ".join(tiers) or "that is not named"
        raise InputError(f"{path} has nothing for the tier {wanted}: give --tier {','.join(_tiers_of(base))}.")
    return found


def _tiers_of(base: Baseline) -> tuple[str, ...]:
    return TIERS if base.training else (GOLDEN,)


# a baseline and today's code


def golden(base: Baseline, folder: Path, index: Index, under: str) -> Outcome:
    """Score the stored predictions again under a protocol: every row and every number must be the same."""
    label, stored = f"{folder.name}, {GOLDEN}, {under}", predictions.read(baselines.predictions_file(base, folder))
    before = _run(base, under, baselines.rows_of(base, folder, under))
    try:
        scored = baselines.score(stored, index, base.split, under, base.protocol)
    except InputError as error:
        return _refused(label, error)
    was, now, after = base.scores[under], baselines.measured(scored.summary), _after(base, folder, before, scored.rows)
    changed = [name for name in was if was[name] != now.get(name)]
    if before.rows.equals(after.rows):
        if not changed:
            return Outcome((Line(label, f"{len(after.rows):,} rows", None, None, None, "the same"),))
        verdict = "changed, of the same rows"
        return Outcome(tuple(Line(label, name, was[name], now.get(name), None, verdict, True) for name in changed))
    lines = _changed(label, before, after, was, now, changed)
    same = Line(label, "rows", None, None, None, "changed, though not in their sums", True)
    return Outcome(lines or (same,), _flips(label, before, after, index), (_CHANGE,))


def network(base: Baseline, trained: Training, folder: Path, index: Index, dataset: str, where: Where) -> Outcome:
    """Run the pinned weights again: the answers must be the same, but for some pixels and peaks."""
    from risbench.engine.checkpoint import Checkpoint
    from risbench.gate import rerun

    label, pinned = f"{folder.name}, {NETWORK}", folder / baselines.CHECKPOINT
    stored = predictions.read(baselines.predictions_file(base, folder))
    before = _run(base, base.protocol, baselines.rows_of(base, folder, base.protocol))
    Checkpoint(pinned)  # refuses a damaged one
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "masks.parquet"
        try:
            rerun.masks(base, trained, dataset, where, pinned, output)
            found = predictions.read(output)
            flipped, moved = _differing(base, index, stored, found)
            scored = baselines.score(found, index, base.split, base.protocol, base.protocol)
        except InputError as error:
            return _refused(label, error)
    lines = (
        _counted(label, f"flipped pixels, {len(found):,} masks", flipped, base.flipped or 0),
        _counted(label, "other peaks", moved, base.moved),
    )
    if not any(line.failed for line in lines):
        return Outcome(lines)
    was, now, after = base.scores[base.protocol], scored.summary, _after(base, folder, before, scored.rows)
    names = [name for name in (*baselines.guarded(base.protocol), "pointing") if was[name] != now[name]]
    return Outcome(
        (*lines, *_changed(label, before, after, was, now, names)), _flips(label, before, after, index), (_CHANGE,)
    )


def _counted(label: str, what: str, differing: int, allowed: int) -> Line:
    """How many differ, of which some may."""
    return Line(label, what, 0, differing, None, f"{allowed:,} may" if differing else "the same", differing > allowed)


def _changed(
    label: str, before: Run, after: Run, was: Mapping[str, Number], now: Mapping[str, Any], names: Sequence[str]
) -> tuple[Line, ...]:
    """A line for each number that changed, with the interval of the change where it is a metric."""
    found = compare.compare([Side("A", (before,)), Side("B", (after,))])[1]
    intervals = {name: found[name].difference_interval if name in found else None for name in names}
    return tuple(Line(label, name, was[name], now.get(name), intervals[name], "changed", True) for name in names)


def training(base: Baseline, trained: Training, folder: Path, index: Index, dataset: str, where: Where) -> Outcome:
    """Train again with the first seed: no metric may lie below where one more seed would lie."""
    from risbench.gate import rerun

    label, name = f"{folder.name}, {TRAINING}", f"{base.split}-{base.protocol}"
    before = _run(base, base.protocol, baselines.rows_of(base, folder, base.protocol))
    with tempfile.TemporaryDirectory() as runs:
        try:
            run = rerun.train(base, trained, trained.seeds[0].seed, dataset, where, Path(runs))
        except InputError as error:
            return _refused(label, error)
        made = record.read(run / "records" / f"{name}.json").metrics
        after = _after(base, folder, before, sides.table(run / "rows" / f"{name}.parquet"))
    lines = [_trained(label, metric, trained, made[metric]) for metric in baselines.guarded(base.protocol)]
    fell = any(line.failed for line in lines)
    return Outcome(tuple(lines), _flips(label, before, after, index) if fell else (), (_AMONG,))


def _trained(label: str, metric: str, trained: Training, now: Number) -> Line:
    """Hold one metric of a training against those of the recorded seeds, whose mean it `was`."""
    values = baselines.of_seeds(trained, metric)
    low, high = statistics.prediction_interval(values, LEVEL)
    if now is None or now < low:
        verdict = f"{_REGRESSION}: below what chance explains"
    elif now == values[0]:
        verdict = "the same as recorded"
    else:
        verdict = "above what chance explains: --update" if now > high else "within chance"
    return Line(label, metric, fmean(values), now, (low, high), verdict, now is None or now < low)


def _differing(base: Baseline, index: Index, before: Predictions, after: Predictions) -> tuple[int, int]:
    """How many pixels of all masks differ, and of how many expressions what else is said."""
    split = index.split(base.split)
    asked = protocol.load(base.protocol).input.asked(split)
    old, new = (predictions.in_order(answers, split, asked) for answers in (before, after))
    sizes = zip(new.height.tolist(), new.width.tolist(), strict=True)
    counts = (metrics.count(a, b, size, None) for a, b, size in zip(old.counts, new.counts, sizes, strict=True))
    moved = (old.peak_row != new.peak_row) | (old.peak_col != new.peak_col) | (old.no_target != new.no_target)
    return sum(one.union - one.intersection for one in counts), int(moved.sum())


# any two runs


def two(arguments: Sequence[str], asked: Asked, metric: str = "", margin: float = 0.5) -> Outcome:
    """Open two runs, as `risbench compare` does, and check the second against the first."""
    if len(arguments) != 2:
        cure = "give the old one and the new one, or --baseline NAME.json"
        raise InputError(f"A check compares two runs, not {len(arguments)}: {cure}.")
    pair = open_sides(arguments, asked)
    return runs(pair, metric, margin, expressions(pair[0].runs[0], asked))


def runs(pair: Sequence[Side], metric: str, margin: float, texts: Mapping[int, str]) -> Outcome:
    """Whether the second side has fallen behind the first one, beyond chance and by more than a margin."""
    rule = protocol.load(pair[0].runs[0].protocol)
    metric = metric or rule.score.headline
    if metric not in metrics.names(rule.score):
        raise unknown("metric", metric, metrics.names(rule.score))
    was, now = (found[metric] for found in compare.compare(pair))
    if now.difference_interval is None:
        raise InputError(f"{metric} has no interval of a difference here: give another --metric, or more images.")
    verdict = _of_difference(*now.difference_interval, margin)
    fell = verdict == _REGRESSION
    line = Line(f"B against A, {rule.name}", metric, was.value, now.value, now.difference_interval, verdict, fell)
    single = [side.name for side in pair if len(side.runs) == 1]
    notes = (
        *(side.about() for side in pair),
        *[f"{' and '.join(single)}: one seed, so chance is that of the images; another seed may come out otherwise."]
        * bool(single),
        f"By the 95 % interval of the change and a margin of {margin:g} points. {_REGRESSION}: it lies below 0 and"
        " reaches beyond the margin; equivalent: it lies within the margin either way; better, not worse: above the"
        " margin, above the margin downwards; open: none of these, so neither a fall is shown nor that there is none.",
    )
    return Outcome((line,), (compare.flipped(pair, _SHOWN, texts),) if fell else (), notes)


def _of_difference(low: float, high: float, margin: float) -> str:
    """What a 95 % interval of a difference shows."""
    if high < 0 and low < -margin:
        return _REGRESSION
    if low > margin:
        return "better"
    if low < -margin:
        return "open"
    return "equivalent" if high <= margin else "not worse"


# the report


def report(outcomes: Sequence[Outcome]) -> list[Table]:
    """What was checked, and the expressions behind what failed."""
    rows = []
    for line in (line for outcome in outcomes for line in outcome.lines):
        verdict = f"FAILED: {line.verdict}" if line.failed else line.verdict
        values = (Cell(line.was), Cell(line.now), Cell(None, line.interval))
        rows.append((Cell(line.check), Cell(line.number), *values, Cell(verdict)))
    fell = sum(outcome.failed for outcome in outcomes)
    title = f"checks {'failed' if fell else 'passed'}: {fell or len(outcomes)} of {len(outcomes)}"
    columns = (Column("check"), Column("number"), *(Column(name, numeric=True) for name in ("was", "is", "interval")))
    told = tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
    first = Table("check", title, (*columns, Column("verdict")), tuple(rows), told)
    return [first, *(table for outcome in outcomes for table in outcome.flips)]


def update(path: Path, sources: Sequence[Path], dataset: str, split: str, under: str, where: Where) -> Table:
    """Write a baseline anew, and show what changes: of these runs or predictions, else of what it was made of.

    Without sources, predictions alone are scored again, and trainings are done again, seed by seed.
    """
    if path.suffix != ".json":
        raise InputError(f"--baseline {path} does not name a baseline: give a file that ends in .json.")
    if sources:
        return _differences(path, _old(path), baselines.make(path, sources, dataset, split, under, where))
    old, folder = baselines.read(path), baselines.folder_of(path)
    for what, given, own in (("split", split, old.split), ("protocol", under, old.protocol)):
        if given and given != own:
            raise InputError(f"{path} is of {what} {own!r}: leave --{what} out, or give runs or predictions.")
    dataset = dataset or old.dataset
    if not old.training:
        file = baselines.predictions_file(old, folder)
        return _differences(path, old, baselines.make(path, [file], dataset, old.split, old.protocol, where))
    from risbench.gate import rerun

    with tempfile.TemporaryDirectory() as scratch:
        seeds = [one.seed for one in old.training.seeds]
        made = [rerun.train(old, old.training, seed, dataset, where, Path(scratch)) for seed in seeds]
        return _differences(path, old, baselines.make(path, made, dataset, old.split, "", where))


def _old(path: Path) -> Baseline | None:
    """The baseline that is replaced; None where there is none, or a damaged one."""
    try:
        return baselines.read(path)
    except InputError:
        return None


def _differences(path: Path, old: Baseline | None, new: Baseline) -> Table:
    was, now = _numbers(old) if old else {}, _numbers(new)
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    rows = tuple((Cell(name), Cell(was.get(name)), Cell(now.get(name))) for name in names)
    columns = (Column("number"), Column("was", numeric=True), Column("is", numeric=True))
    notes = () if new.training is None else (_bar(new, new.training),)
    title = f"{path}: {len(names)} of {len(now)} numbers changed" if old else f"{path}: {len(now)} numbers"
    return Table("update", title, columns, rows, notes)


def _bar(base: Baseline, trained: Training) -> str:
    """Below what a training fails."""
    lows = {
        name: statistics.prediction_interval(baselines.of_seeds(trained, name), LEVEL)[0]
        for name in baselines.guarded(base.protocol)
    }
    said = ", ".join(f"{name} {low:.2f}" for name, low in lows.items())
    return f"A training fails below {said}: by these seeds. What does not listen to the words must lie below, too."


def _numbers(base: Baseline) -> Mapping[str, Number]:
    found: dict[str, Number] = {
        f"{name}, {under}": value for under, one in base.scores.items() for name, value in one.items()
    }
    seeds = base.training.seeds if base.training else []
    return found | {
        f"{name}, seed {one.seed}": one.metrics[name] for one in seeds for name in baselines.guarded(base.protocol)
    }


def _refused(label: str, error: InputError) -> Outcome:
    """What could be done when the baseline was made is refused today."""
    return Outcome((Line(label, "", None, None, None, "refused", failed=True),), notes=(f"{label}: {error}",))


def _after(base: Baseline, folder: Path, before: Run, rows: pd.DataFrame) -> Run:
    """Today's rows, beside those of a baseline, which must be of the same expressions."""
    run = _run(base, before.protocol, rows)
    if not before.rows["sent_id"].equals(run.rows["sent_id"]):
        file = baselines.rows_file(base, folder, before.protocol)
        raise InputError(f"{file} holds other expressions than the split: restore it, or make the baseline again.")
    return run


def _run(base: Baseline, under: str, rows: pd.DataFrame) -> Run:
    """Rows as a side of a comparison."""
    ordered: pd.DataFrame = baselines.kept_rows(rows).sort_values("sent_id", ignore_index=True)
    return Run(Path(), ordered, base.dataset, base.split, under)


def _flips(label: str, before: Run, after: Run, index: Index) -> tuple[Table, ...]:
    """The expressions that flipped most."""
    split = index.split(before.split)
    texts = dict(zip(split.sent_id.tolist(), split.raw, strict=True))
    table = compare.flipped([Side("A", (before,)), Side("B", (after,))], _SHOWN, texts)
    return (replace(table, title=f"{label}: expressions that flipped most; A was, the other is"),)
