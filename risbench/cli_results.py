"""The commands about results: what needs predictions, records and published numbers, and no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from risbench import options
from risbench.arguments import Dataset, Json, Overrides, Partial, RecordFolders, Root, Seeds

app = typer.Typer()


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Predictions: Parquet or JSON Lines, of any program.")],
    split: Annotated[str, typer.Option(help="The split that was predicted.")],
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol, or all.")] = "original",
    data_root: Root = "",
    partial: Partial = False,
    as_json: Json = False,
) -> None:
    """Score a predictions file."""
    from risbench import predictions
    from risbench import protocol as protocols
    from risbench import score as scoring
    from risbench.data import source

    chosen = None if protocol == "all" else protocols.load(protocol)
    found, index = predictions.read(file), source.open_index(dataset, data_root, partial=partial)
    if chosen is None:
        _print_all(*scoring.under_all(found, index, split), as_json)
        return
    summary = scoring.score(found, index, split, chosen).summary
    if as_json:
        print(json.dumps(summary))
        return
    print("\n".join(_lines(summary)))


@app.command("table")
def print_table(
    name: Annotated[str, typer.Argument(help="The comparison, or a paper's table: --list names them.")] = "comparison",
    names: Annotated[bool, typer.Option("--list", help="Name the tables.")] = False,
    dataset: Annotated[str, typer.Option(help="Only this data set; one that a paper's table lacks: measured.")] = "",
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")] = "terminal",
    records: RecordFolders = None,
) -> None:
    """Print measured records, published numbers beside them."""
    from risbench import record, render, table

    if names:
        print("\n".join(f"{name:24}{title}" for name, title in table.titles().items()))
        return
    found = record.find(options.record_folders(records))
    print(render.render(table.named(name, found, dataset or None), form))


@app.command("plan")
def print_plan(
    name: Annotated[str, typer.Argument(help="A paper's table: risbench table --list names them.")],
    overrides: Overrides = None,
    dataset: Annotated[str, typer.Option(help="Only this data set; one that the table lacks: in its shape.")] = "",
    seed: Seeds = "0",
    protocol: Annotated[str, typer.Option(help="Default: the source's, original where none is known.")] = "",
    data_root: Root = "",
    records: RecordFolders = None,
) -> None:
    """Print the commands that fill the empty cells of a paper's table; run --plan FILE works them off."""
    from risbench import plan, record

    found = record.find(options.record_folders(records))
    made = plan.make(name, found, dataset or None, options.seeds_of(seed), protocol, data_root, overrides or [])
    print("\n".join(made.lines()))


@app.command()
def protocols(as_json: Json = False) -> None:
    """Show what each protocol compares, what differs from the default, and the sources."""
    from risbench import protocol, protocol_table, render

    if as_json:
        print("\n".join(protocol.load(name).model_dump_json() for name in protocol.names()))
        return
    print(render.render([protocol_table.overview()], "terminal"))


@app.command("explain")
def print_explanation(
    a: Annotated[Path, typer.Argument(help="A record of a run (.json), or a predictions file.")],
    b: Annotated[Path | None, typer.Argument(help="The other one. Left out: the same file, two protocols.")] = None,
    protocol: Annotated[str, typer.Option(help="Of predictions files, one for each: original,lavt.")] = "",
    dataset: Annotated[str, typer.Option(help="Name or card of the data set. Default: as the files say.")] = "",
    split: Annotated[str, typer.Option(help="The split. Default: as the files say.")] = "",
    data_root: Root = "",
    partial: Partial = False,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")] = "terminal",
) -> None:
    """Split the difference between two numbers into steps, one for each knob of the protocol."""
    from risbench import explain, render

    found = explain.between(*explain.sides(a, b, protocol), dataset, split, data_root, partial)
    print(render.render([explain.table(found, exact=form in ("csv", "json"))], form))


def _print_all(scores: list[dict[str, Any]], refused: dict[str, str], as_json: bool) -> None:
    """One file under every protocol."""
    from risbench import protocol_table, render

    if as_json:
        print(json.dumps({"scores": scores, "refused": refused}))
        return
    print(render.render([protocol_table.scores(scores, refused)], "terminal"))


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """A score as people read it."""
    from risbench.render import Cell

    for key, value in summary.items():
        if key != "slices":
            yield f"{key:12} {Cell(value).text if isinstance(value, float) else value}"
    for name, parts in summary["slices"].items():
        yield f"oIoU by {name}"
        for value, part in parts.items():
            yield f"  {value:12} {part['n']:5} expressions  {Cell(part['oIoU'], part['intervals'].get('oIoU')).text}"
