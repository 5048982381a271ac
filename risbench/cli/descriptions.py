"""What a dry run and a list print: the descriptions of runs, plans and weights as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from risbench import methods, recipe
from risbench.runs.duration import format_duration

Description = Mapping[str, Any]

_WEIGHTS = ("weights", "backbone_weights", "text_weights")  # keys of [model] that name pretrained weights


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


def weights_of_method(name: str) -> dict[str, Any]:
    """Return what pretrained weights a method's recipe names, by key of [model], and what they ask of their user."""
    settings, _ = recipe.load(methods.recipe_file(name))
    named = {key: value for key in _WEIGHTS if (value := settings.model.get(key))}
    train = settings.train
    remarks = {"trained_on": train.pretraining, "gated": train.gated, "licence": train.licence}
    return {"weights": named, "zero_shot": not settings.trains, **remarks}


def weights_line(needs: Description) -> str:
    """Format the weights of a method for the terminal, in one line."""
    names = ", ".join(map(str, needs["weights"].values())) or "none"
    parts = [
        f"weights: {names}{', gated (accept their licence on the hub first)' if needs['gated'] else ''}",
        "evaluated as they are" if needs["zero_shot"] else "",
        f"trained on {', '.join(needs['trained_on'])}" if needs["trained_on"] else "",
        f"licence: {needs['licence']}" if needs["licence"] else "",
    ]
    return "; ".join(filter(None, parts))


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
