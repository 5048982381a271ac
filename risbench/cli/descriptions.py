"""What a dry run prints: the descriptions of runs and plans as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from risbench.runs.duration import format_duration

Description = Mapping[str, Any]


def run_lines(runs: Sequence[Description]) -> list[str]:
    """Format the descriptions of runs for the terminal."""
    lines = [f"{label:12}{text}".rstrip() for run in runs for label, text in [*_parts(run), ("", "")]]
    return [*lines, "Nothing was run or written."]


def _parts(run: Description) -> Iterator[tuple[str, str]]:
    """Yield label and text of each line about a run."""
    variants = f" ({', '.join(run['variants'])})" if run["variants"] else ""
    seed = "" if run["seed"] is None else f", seed {run['seed']}"
    yield "method", f"{run['method']}{variants}{seed}"
    if run["parameters"]:
        yield "network", f"{run['parameters']:,} parameters; weights: {run['weights']}"
    if training := run["training"]:
        epochs, finished = training["epochs"], training["finished_epochs"]
        yield "training", f"{training['expressions']:,} expressions of {', '.join(training['datasets'])}"
        yield "epochs", f"{epochs}, of which {finished} are finished" if finished else f"{epochs}"
        yield "steps", f"{training['steps']:,} of {training['batch_size']} expressions"
        yield "validation", f"val of {run['dataset']} under {run['protocols'][0]}"
    if run["evaluated"]:
        splits = ", ".join(f"{split} ({n:,} expressions)" for split, n in run["evaluated"].items())
        yield "evaluation", f"{splits} of {run['dataset']} under {', '.join(run['protocols'])}"
    if run["limit"]:
        yield "limit", f"the first {run['limit']} images of every split; results are marked as partial"
    yield "folder", f"{run['folder']} ({'continued' if run['resumed'] else 'new'})"
    if training or run["seconds"] is not None:
        yield "time", _time(run)


def plan_lines(runs: Sequence[Description]) -> list[str]:
    """Format the descriptions of a plan's runs for the terminal, and the time of all."""
    lines = [
        f"[{number}/{len(runs)}] {run['place']}: {run['status']}{f' (time: {_time(run)})' if run['evaluated'] else ''}"
        for number, run in enumerate(runs, start=1)
    ]
    todo = [run["seconds"] for run in runs if run["evaluated"]]
    known = [seconds for seconds in todo if seconds is not None]
    total = [f"about {format_duration(sum(known))}"] if known else []
    total += [f"{len(todo) - len(known)} of unknown duration"] if len(known) < len(todo) else []
    return [*lines, f"Runs to do: {', '.join([str(len(todo)), *total])}.", "Nothing was run or written."]


def _time(run: Description) -> str:
    if run["seconds"] is None:
        return "unknown: no similar run is recorded"
    return f"about {format_duration(run['seconds'])}, {run['estimated_from']}"
