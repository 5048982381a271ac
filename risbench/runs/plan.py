"""Plans: the commands that fill the empty cells of a paper's table, and how long they may take.

A plan is text: one `risbench run` command on each line, comments behind #. `risbench run --plan FILE` works it off
(see `worklist`), and a shell would, too.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean

from risbench import datasets, methods, recipe
from risbench.errors import InputError, unknown
from risbench.runs import existing
from risbench.runs.job import Job
from risbench.scoring import protocol
from risbench.scoring.record import Record
from risbench.tables import paper_table, papers, published
from risbench.tables.measured import altered, overridden
from risbench.tables.papers import Grid, Ours
from risbench.tables.published import HEADLINES

_HOUR = 3600


@dataclass(frozen=True)
class Estimate:
    """Seconds of training and evaluation, and where they are known from."""

    seconds: float
    basis: str


@dataclass(frozen=True)
class Step:
    """One run that fills cells, with the seconds it may take, or None where nothing like it is recorded."""

    method: str
    variants: tuple[str, ...]
    dataset: str
    splits: tuple[str, ...]
    protocol: str
    seed: int
    extras: tuple[str, ...] = ()  # further options and overrides, as typed
    trained: bool = False  # already, so that only evaluation is missing
    estimate: Estimate | None = None

    @property
    def command(self) -> str:
        """What to type."""
        options = {
            "--method": self.method,
            "--dataset": self.dataset,
            "--variant": ",".join(self.variants),
            "--split": ",".join(self.splits),
            "--protocol": self.protocol,
            "--seed": str(self.seed),
        }
        words = [word for option, value in options.items() if value for word in (option, value)]
        return shlex.join(["risbench", "run", *words, *self.extras])

    def job(self, data_root: str, images: str, partial: bool, overrides: Sequence[str]) -> Job:
        """The job that the command means."""
        what = {"method": self.method, "dataset": self.dataset, "variants": self.variants, "seed": self.seed}
        how = {"splits": self.splits, "protocols": [self.protocol], "overrides": overrides, "partial": partial}
        return Job.model_validate({**what, **how, "data_root": data_root, "images": images})


@dataclass(frozen=True)
class Plan:
    """The runs that fill a table, in its order, and what stands there already."""

    title: str
    steps: tuple[Step, ...]
    recorded: int  # runs that the table has
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan as text."""
        known = [step.estimate.seconds for step in self.steps if step.estimate]
        unknowns = len(self.steps) - len(known)
        took = [f"about {_duration(sum(known))}"] * bool(known) + [f"{unknowns} of unknown duration"] * bool(unknowns)
        todo = ", ".join([f"runs to do: {len(self.steps)}", *took]) if self.steps else "nothing to do"
        comments = [f"{self.title}: {todo}; recorded already: {self.recorded}."]
        lines = [f"# {comment}" for comment in (*comments, *self.notes)]
        for step in self.steps:
            found = step.estimate
            text = f"{_duration(found.seconds)}, {found.basis}" if found else "nothing like it is recorded"
            lines += [f"# {'trained already: ' * step.trained}{text}", step.command]
        return lines


def make(
    name: str,
    records: Iterable[Record],
    dataset: str | None = None,
    seeds: Sequence[int] = (0,),
    under: str = "",
    data_root: str = "",
    images: str = "",
    partial: bool = False,
    overrides: Sequence[str] = (),
    runs: Path | None = None,
) -> Plan:
    """Plan the runs that fill the empty cells of a paper's table, or of its part about a data set, for each seed.

    `under` is the protocol; by default the source's, and `original` where it is not known or the data set another.
    `partial`: of an incomplete copy, whose records count as done though they stand in no cell. Overrides may say where
    weights lie and how to compute, nothing that would make another row of it. `runs` is where trained runs may lie.
    """
    if name not in papers.titles():
        raise unknown("paper's table", name, papers.titles())
    if under and not protocol.load(under).comparable:
        raise InputError(f"The protocol {under} is for following a training and fills no cell: give another.")
    if dataset is not None and dataset not in datasets.names():
        raise unknown("data set", dataset, datasets.names())
    paper, found = papers.load(name), list(records)
    grid = papers.grid(paper) if dataset is None else papers.only(paper, dataset, datasets.load(dataset).splits)
    wanted = _cells(grid)
    there = {ours: paper_table.is_there(ours) for ours, _ in wanted}
    for ours, where in wanted:
        if there[ours]:
            _refuse_another_row(ours, where, overrides)
    places = {"--data-root": data_root, "--images": images}
    given = [word for option, value in places.items() if value for word in (option, value)]
    extras = (*given, *["--partial"] * partial, *overrides)
    steps: list[Step] = []
    recorded = 0
    for seed in seeds:
        counted = [run for run in found if (run.seed, run.partial) == (seed, partial)]
        filled = _filled(grid, counted, under)
        for (ours, where), splits in wanted.items():
            missing = tuple(split for split in splits if (ours, (where, split)) not in filled)
            recorded += not missing
            if missing and there[ours]:
                chosen = _protocols(ours.method, where, under)[0]
                step = Step(ours.method, ours.variants, where, missing, chosen, seed, extras)
                trained = runs is not None and existing.is_trained(
                    step.job(data_root, images, partial, overrides), runs
                )
                steps.append(replace(step, trained=trained, estimate=_estimate(step, found, trained)))
    absent = [" ".join((ours.method, *ours.variants)) for ours in there if not there[ours]]
    notes = [f"Not in risbench yet, so not planned: {', '.join(absent)}."] * bool(absent)
    notes += ["Of an incomplete copy: its numbers fill no cell of the table; `risbench table` shows them."] * partial
    return Plan(f"{name}{f' on {dataset}' if dataset else ''}", tuple(steps), recorded, tuple(notes))


def _filled(grid: Grid, records: Iterable[Record], under: str) -> set[tuple[Ours | None, tuple[str, ...]]]:
    """The cells for which there are records under a protocol that counts, partial or not."""
    counted = [
        run.model_copy(update={"partial": False})
        for run in records
        if run.protocol in _protocols(run.method, run.dataset, under) and _is_of_its_own(run)
    ]
    return {(row.ours, row.slot(at)[:2]) for row, at in paper_table.fill(grid, counted).lines}


def _is_of_its_own(run: Record) -> bool:
    """Whether a run saw no training data but those of its own data set."""
    return set(run.training_data) & set(datasets.names()) == {run.dataset}


def _refuse_another_row(ours: Ours, dataset: str, overrides: Sequence[str]) -> None:
    default = datasets.load(dataset).default_variant
    settings, variants = recipe.load(methods.recipe_file(ours.method), ours.variants, overrides, default)
    if others := altered(ours.method, variants, settings.model_dump()):
        raise InputError(
            f"{', '.join(others)} would make another row of it, which fills no cell: leave that out. Overrides of a "
            "plan say where weights lie (model.glove=FILE) and how to compute (train.workers=8)."
        )


def _cells(grid: Grid) -> dict[tuple[Ours, str], list[str]]:
    """The splits that the table shows of each network and data set."""
    found: dict[tuple[Ours, str], dict[str, None]] = {}
    for row in grid.rows:
        for slot in map(row.slot, grid.columns):
            if row.ours and slot.dataset in datasets.names() and slot.split and slot.metric:
                found.setdefault((row.ours, slot.dataset), {})[slot.split] = None
    return {key: list(splits) for key, splits in found.items()}


def _protocols(method: str, dataset: str, under: str) -> list[str]:
    """The protocols under which a cell counts as filled, the best first."""
    headline = HEADLINES.get(method) if dataset in {number.risbench_dataset for number in published.load()} else None
    known = [name for name in headline.protocols if name in protocol.names()] if headline else []
    return [under] if under else known or ["original"]


def _estimate(step: Step, records: Iterable[Record], trained: bool) -> Estimate | None:
    """How long a step may take, from the newest runs like it: of its network, else of its method at its size.

    Where it is trained already, that is the time of the evaluation.
    """
    default = datasets.load(step.dataset).default_variant
    sized = [default] if default in recipe.variants(methods.recipe_file(step.method)) else []
    settings, own = recipe.load(methods.recipe_file(step.method), step.variants, [], default)
    runs = [run for run in records if run.method == step.method and set(sized) <= set(run.variants) and _is_timed(run)]
    same = [run for run in runs if run.variants == own]
    near = same or [run for run in runs if run.dataset == step.dataset and _side(run) in (None, settings.image.size)]
    if not near:
        return None
    newest = max(near, key=lambda run: datetime.fromisoformat(run.created))
    like = [run for run in near if (run.device, run.dataset) == (newest.device, newest.dataset)]
    training = 0.0 if trained else fmean({run.checkpoint: run.cost["training_seconds"] or 0 for run in like}.values())
    speed = fmean(run.cost["expressions_per_second"] or 0 for run in like)
    here, there = (_expressions(name, "train") for name in (step.dataset, newest.dataset))
    evaluated = sum(_expressions(step.dataset, split) for split in step.splits)
    elsewhere = f" on {newest.dataset}" if newest.dataset != step.dataset else ""
    basis = f"{'as recorded' if same else 'as its other variants took'}{elsewhere}: {newest.device}"
    return Estimate(training * (here / there if here and there else 1) + evaluated / speed, basis)


def _side(run: Record) -> int | None:
    """Side of the network input in pixels."""
    side: int | None = run.recipe.get("image", {}).get("size")
    return side


def _is_timed(run: Record) -> bool:
    timed = run.cost.get("training_seconds") and run.cost.get("expressions_per_second")
    return bool(timed) and not run.control and not overridden(run)


def _expressions(dataset: str, split: str) -> int:
    splits = datasets.load(dataset).splits if dataset in datasets.names() else {}
    count = splits[split].expressions if split in splits else None
    return count.n if count else 0


def _duration(seconds: float) -> str:
    return f"{seconds / _HOUR:.1f} h" if seconds >= _HOUR else f"{max(1, round(seconds / 60))} min"
