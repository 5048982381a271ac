"""Plans: the commands that fill the empty cells of a paper's table, and how long they may take.

A plan is text: one `risbench run` command on each line, and comments after #. `risbench run --plan FILE` runs it (see
risbench.runs.plan_runner), and so does a shell.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from risbench import datasets, methods, recipe
from risbench.data import source
from risbench.errors import InputError, unknown
from risbench.runs.duration import Estimate, estimate_duration, format_duration
from risbench.runs.existing import is_trained
from risbench.runs.job import Job
from risbench.scoring import protocol
from risbench.scoring.record import Record
from risbench.tables import filling, papers, published
from risbench.tables.grid import Grid, dataset_grid, full_grid
from risbench.tables.measured import changed_settings
from risbench.tables.papers import Configuration


@dataclass(frozen=True)
class Step:
    """One run that fills cells."""

    job: Job
    trained: bool  # already, so that only the evaluation is missing
    estimate: Estimate | None  # None: no similar run is recorded

    @property
    def command(self) -> str:
        """The command that runs the job."""
        job = self.job
        options = {
            "--method": job.method,
            "--dataset": job.dataset,
            "--variant": ",".join(job.variants),
            "--split": ",".join(job.splits),
            "--protocol": ",".join(job.protocols),
            "--seed": str(job.seed),
            "--data-root": job.data_root,
            "--images": job.images,
        }
        words = [word for option, value in options.items() if value for word in (option, value)]
        return shlex.join(["risbench", "run", *words, *["--partial"] * job.partial, *job.overrides])


@dataclass(frozen=True)
class Plan:
    """The runs that fill the empty cells of a table, in its order."""

    title: str
    steps: tuple[Step, ...]
    recorded: int  # runs that the table has already
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the plan as text."""
        known = [step.estimate.seconds for step in self.steps if step.estimate]
        num_unknown = len(self.steps) - len(known)
        total = [f"about {format_duration(sum(known))}"] if known else []
        total += [f"{num_unknown} of unknown duration"] if num_unknown else []
        todo = ", ".join([f"runs to do: {len(self.steps)}", *total]) if self.steps else "nothing to do"
        comments = [f"{self.title}: {todo}; recorded already: {self.recorded}."]
        lines = [f"# {comment}" for comment in (*comments, *self.notes)]
        for step in self.steps:
            estimate = step.estimate
            text = (
                f"{format_duration(estimate.seconds)}, {estimate.basis}" if estimate else "no similar run is recorded"
            )
            lines += [f"# {'trained already: ' if step.trained else ''}{text}", step.command]
        return lines


def make_plan(
    name: str,
    records: Iterable[Record],
    *,
    dataset: str | None = None,
    seeds: Sequence[int] = (0,),
    protocol_name: str = "",
    data_root: str = "",
    images: str = "",
    partial: bool = False,
    overrides: Sequence[str] = (),
    runs: Path | None = None,
) -> Plan:
    """Plan the runs that fill the empty cells of a paper's table, or of its part about a data set, for each seed.

    The default protocol is the source's, or `original` if the source's is not known or the data set is another one.
    With `partial` the records of an incomplete copy count as done, although they fill no cell. `overrides` may set
    paths of weights and how to compute, but nothing that changes the network or its training. `runs` is the folder in
    which runs may be trained already.
    """
    _check_names(name, dataset, protocol_name)
    paper, records = papers.load(name), list(records)
    grid = full_grid(paper) if dataset is None else dataset_grid(paper, dataset, datasets.load(dataset).splits)
    cells = _cells(grid)
    available = {configuration: filling.is_available(configuration) for configuration, _ in cells}
    for configuration, cell_dataset in cells:
        if available[configuration]:
            _refuse_other_settings(configuration, cell_dataset, overrides)
    source.check_data_root([datasets.load(name) for name in dict.fromkeys(name for _, name in cells)], data_root)
    template = Job(dataset="", data_root=data_root, images=images, partial=partial, overrides=list(overrides))
    steps: list[Step] = []
    recorded = 0
    for seed in seeds:
        records_of_seed = [
            run
            for run in records
            if (run.seed, run.partial) == (seed, partial) and not (run.limit or run.training_limit)
        ]
        filled = _filled_cells(grid, records_of_seed, protocol_name)
        for (configuration, cell_dataset), splits in cells.items():
            missing = [split for split in splits if (configuration, (cell_dataset, split)) not in filled]
            recorded += not missing
            if missing and available[configuration]:
                options = {
                    "method": configuration.method,
                    "dataset": cell_dataset,
                    "variants": list(configuration.variants),
                    "splits": missing,
                    "protocols": _protocols(configuration.method, cell_dataset, protocol_name)[:1],
                    "seed": seed,
                }
                steps.append(_step(template.model_copy(update=options), records, runs))
    title = f"{name} on {dataset}" if dataset else name
    return Plan(title, tuple(steps), recorded, _notes(available, partial))


def _check_names(name: str, dataset: str | None, protocol_name: str) -> None:
    if name not in papers.titles():
        raise unknown("paper's table", name, papers.titles())
    if protocol_name and not protocol.load(protocol_name).comparable:
        raise InputError(f"The protocol {protocol_name} is for following a training and fills no cell: give another.")
    if dataset is not None and dataset.endswith(".toml"):
        name, folder = datasets.load(dataset).name, Path(dataset).absolute().parent
        raise InputError(
            f"The commands of a plan name their data set: set RISBENCH_DATASETS={folder}, and give --dataset {name}."
        )
    if dataset is not None and dataset not in datasets.names():
        raise unknown("data set", dataset, datasets.names())


def _cells(grid: Grid) -> dict[tuple[Configuration, str], list[str]]:
    """Return the splits that the table shows of each configuration and data set."""
    cells: dict[tuple[Configuration, str], dict[str, None]] = {}
    for row in grid.rows:
        for quantity in map(row.quantity, grid.columns):
            if row.configuration and quantity.dataset in datasets.names() and quantity.split and quantity.metric:
                cells.setdefault((row.configuration, quantity.dataset), {})[quantity.split] = None
    return {key: list(splits) for key, splits in cells.items()}


def _refuse_other_settings(configuration: Configuration, dataset: str, overrides: Sequence[str]) -> None:
    """Refuse overrides that change the network or its training."""
    method, default = configuration.method, datasets.load(dataset).default_variant
    settings, variants = recipe.load(methods.recipe_file(method), configuration.variants, overrides, default)
    if changed := changed_settings(method, variants, settings.model_dump()):
        raise InputError(
            f"{', '.join(changed)} would change the network or its training, and the runs would fill no cell: leave "
            "that out. A plan may override paths of weights (model.glove=FILE) and how to compute (train.workers=8)."
        )


def _filled_cells(
    grid: Grid, records: Iterable[Record], protocol_name: str
) -> set[tuple[Configuration | None, tuple[str, ...]]]:
    """Return the cells with records under a protocol that counts, partial or not."""
    counted = [
        run.model_copy(update={"partial": False})
        for run in records
        if run.protocol in _protocols(run.method, run.dataset, protocol_name) and _is_trained_on_own_data(run)
    ]
    return {(row.configuration, row.quantity(column)[:2]) for row, column in filling.fill(grid, counted).groups}


def _protocols(method: str, dataset: str, protocol_name: str) -> list[str]:
    """Return the protocols under which a cell counts as filled, the best first."""
    is_published = dataset in {number.risbench_dataset for number in published.load()}
    known = [name for name in published.headline_protocols(method) if is_published and name in protocol.names()]
    return [protocol_name] if protocol_name else known or ["original"]


def _is_trained_on_own_data(run: Record) -> bool:
    """Whether the evaluated data set is the only data set of risbench in the training data of a run, if it trained."""
    return set(run.training_data) & set(datasets.names()) == ({run.dataset} if run.is_trained else set())


def _step(job: Job, records: Iterable[Record], runs: Path | None) -> Step:
    trained = runs is not None and is_trained(job, runs)
    return Step(job, trained, estimate_duration(job, records, trained))


def _notes(available: Mapping[Configuration, bool], partial: bool) -> tuple[str, ...]:
    notes = []
    if absent := [str(configuration) for configuration in available if not available[configuration]]:
        notes.append(f"Not in risbench yet, so not planned: {', '.join(absent)}.")
    if partial:
        notes.append("Of an incomplete copy: its numbers fill no cell of the table; `risbench table` shows them.")
    return tuple(notes)
