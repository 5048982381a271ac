"""The commands about results: what needs predictions, records and published numbers, and no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from risbench.cli import options
from risbench.cli.arguments import Dataset, Images, Json, Overrides, Partial, RecordFolders, Root, Seeds
from risbench.errors import InputError
from risbench.runs import job as jobs

app = typer.Typer()


@app.command()
def score(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Predictions: Parquet or JSON Lines, of any program.")],
    split: Annotated[str, typer.Option(help="The split that was predicted.")],
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol, or all.")] = "original",
    data_root: Root = "",
    partial: Partial = False,
    boundaries: Annotated[bool, typer.Option("--boundaries", help="Boundary IoU, too: nine times as slow.")] = False,
    as_json: Json = False,
) -> None:
    """Score a predictions file; risbench import makes one of other formats."""
    from risbench.data import source
    from risbench.scoring import predictions
    from risbench.scoring import protocol as protocols
    from risbench.scoring import score as scoring

    chosen = None if protocol == "all" else protocols.load(protocol)
    found, index = predictions.read(file), source.open_index(dataset, data_root, partial=partial)
    if chosen is None:
        jobs.refuse_beside(context, "--protocol all", ["boundaries"])
        _print_all(*scoring.under_all(found, index, split), as_json)
        return
    summary = scoring.score(found, index, split, chosen, boundaries).summary
    if as_json:
        print(json.dumps(summary))
        return
    print("\n".join(_lines(summary)))


@app.command("import")
def import_masks(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="COCO results, a folder of PNG masks, .npz, .pth or JSON Lines.")],
    output: Annotated[Path, typer.Option(help="The predictions file to write (.parquet).")],
    form: Annotated[str, typer.Option("--format", help="coco, png, npz, pth, jsonl; auto goes by the name.")] = "auto",
    pattern: Annotated[
        str, typer.Option(help="Names of PNG masks: {sent_id}.png (default), {ref_id}_{sentence}.png.")
    ] = "",
    threshold: Annotated[
        float | None, typer.Option(help="Foreground is above it, in the unit of the stored values: 0.5, or 127 of 255.")
    ] = None,
    dataset: Dataset = "mini",
    split: Annotated[str, typer.Option(help="Refuse masks that do not answer each expression of this split.")] = "",
    data_root: Root = "",
    partial: Partial = False,
) -> None:
    """Make a predictions file of the masks of any program."""
    from risbench.data import rle
    from risbench.data import source as sources
    from risbench.scoring import formats, predictions

    options.check_output(output, ".parquet", "a predictions file")
    if not split:
        jobs.refuse_beside(context, "An import without --split", ["dataset", "data_root", "partial"])
    asked = sources.open_index(dataset, data_root, partial=partial).split(split) if split else None
    found = formats.read(source, form, pattern, threshold, asked)
    predictions.write(output, found)
    sizes = zip(found.height.tolist(), found.width.tolist(), strict=True)
    empty = sum(rle.area(counts, size) == 0 for counts, size in zip(found.counts, sizes, strict=True))
    print(f"{output}: {len(found)} masks, {empty} of them empty")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Predictions: Parquet or JSON Lines, of any program.")],
    output: Annotated[Path, typer.Option(help="The COCO results to write (.json).")],
    split: Annotated[str, typer.Option(help="The split that was predicted.")],
    dataset: Dataset = "mini",
    data_root: Root = "",
    partial: Partial = False,
) -> None:
    """Write predictions as COCO results, with the sent_id of each."""
    from risbench.data import source
    from risbench.scoring import formats, predictions

    options.check_output(output, ".json", "COCO results")
    formats.write_coco(output, predictions.read(file), source.open_index(dataset, data_root, partial=partial), split)
    print(output)


@app.command("table")
def print_table(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The comparison, or a paper's table: --list names them.")] = "comparison",
    names: Annotated[bool, typer.Option("--list", help="Name the tables.")] = False,
    dataset: Annotated[str, typer.Option(help="Only this data set; one that a paper's table lacks: measured.")] = "",
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")] = "terminal",
    slices: Annotated[
        str, typer.Option(help="Divide by these slices, or all. Default: kind-of-expression,same-class-distractors.")
    ] = "",
    records: RecordFolders = None,
) -> None:
    """Print measured records, published numbers beside them."""
    from risbench import render
    from risbench.scoring import record
    from risbench.scoring import slices as divisions
    from risbench.tables import comparison as table

    if names:
        jobs.refuse_beside(context, "--list", set(context.params) - {"names"})
        print("\n".join(f"{known:24}{title}" for known, title in table.titles().items()))
        return
    if slices and name != table.COMPARISON:
        raise InputError(f"--slices divides the comparison, not the table {name}: leave it out.")
    shown = divisions.choose(jobs.parts(slices))
    found = record.find(options.record_folders(records))
    print(render.render(table.named(name, found, dataset or None, shown), form))


@app.command()
def compare(
    sides: Annotated[
        list[str], typer.Argument(help="Run folders, files of rows or predictions; seeds of one method: A1,A2 B1,B2.")
    ],
    metric: Annotated[str, typer.Option(help="Of the first table. Default: the headline metric of the protocol.")] = "",
    split: Annotated[str, typer.Option(help="Default: what the files say; of run folders, val if all have it.")] = "",
    protocol: Annotated[str, typer.Option(help="Default: what the files say; of run folders, original.")] = "",
    flips: Annotated[int, typer.Option(min=0, help="How many expressions that flipped to list each way.")] = 10,
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")] = "terminal",
    dataset: Annotated[str, typer.Option(help="Name or card: to score predictions, to show expressions.")] = "",
    data_root: Root = "",
    partial: Partial = False,
) -> None:
    """Compare answers to the same expressions, image by image: differences, intervals, p-values, flips."""
    from risbench import render
    from risbench.analysis import compare as comparing
    from risbench.analysis.sides import Asked, expressions, open_sides

    asked = Asked(dataset, split, protocol, data_root, partial)
    opened = open_sides(sides, asked)
    texts = expressions(opened[0].runs[0], asked)
    print(render.render(comparing.tables(opened, metric, flips, texts), form))


@app.command("plan")
def print_plan(
    name: Annotated[str, typer.Argument(help="A paper's table: risbench table --list names them.")],
    overrides: Overrides = None,
    dataset: Annotated[str, typer.Option(help="Only this data set; one that the table lacks: in its shape.")] = "",
    seed: Seeds = "0",
    protocol: Annotated[str, typer.Option(help="Default: the source's, original where none is known.")] = "",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    records: RecordFolders = None,
) -> None:
    """Print the commands that fill the empty cells of a paper's table; run --plan FILE works them off."""
    from risbench.runs import plan
    from risbench.scoring import record

    found = record.find(options.record_folders(records))
    where, runs = (data_root, images, partial), Path("runs")  # where `risbench run` looks for it
    made = plan.make(name, found, dataset or None, jobs.seeds_of(seed), protocol, *where, overrides or [], runs)
    print("\n".join(made.lines()))


@app.command()
def check(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Two runs as `compare` takes them; with --update, what the new baseline is made of."),
    ] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="NAME.json, once or more. Default: all in results/baselines.")
    ] = None,
    tier: Annotated[str, typer.Option(help="What to check of a baseline.")] = "golden,network,training",
    update: Annotated[bool, typer.Option("--update", help="Write the baseline anew, and show what changes.")] = False,
    margin: Annotated[float, typer.Option(min=0, help="Of two runs: a fall of so many points is none.")] = 0.5,
    metric: Annotated[str, typer.Option(help="Of two runs. Default: the headline metric of the protocol.")] = "",
    split: Annotated[
        str, typer.Option(help="Of two runs or a new baseline. Default: what files say, of runs val.")
    ] = "",
    protocol: Annotated[str, typer.Option(help="Of two runs, or of predictions for a baseline.")] = "",
    form: Annotated[str, typer.Option("--format", help="terminal, markdown, latex, csv, html or json.")] = "terminal",
    dataset: Annotated[str, typer.Option(help="Name or card of the data set. Default: what the files say.")] = "",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
) -> None:
    """Guard numbers: exit 1 where one has changed, or has fallen beyond what chance explains."""
    from risbench import render
    from risbench.analysis.sides import Asked
    from risbench.gate import check as checking
    from risbench.gate.baseline import Where

    where = Where(data_root, images, partial)
    if update:
        jobs.refuse_beside(context, "--update", ["tier", "margin", "metric"])
        sources = [Path(run) for run in runs or []]
        if sources and len(baseline or []) != 1:
            raise InputError("Which baseline do the runs make? Give one --baseline NAME.json.")
        files, given = options.baselines(baseline), (dataset, split, protocol, where)
        print(render.render([checking.update(file, sources, *given) for file in files], form))
        return
    if runs:
        jobs.refuse_beside(context, "A check of two runs", ["baseline", "tier", "images"])
        outcomes = [checking.two(runs, Asked(dataset, split, protocol, data_root, partial), metric, margin)]
    else:
        jobs.refuse_beside(context, "A check of baselines", ["margin", "metric", "split", "protocol"])
        tiers = jobs.parts(tier)
        outcomes = [one for file in options.baselines(baseline) for one in checking.check(file, tiers, dataset, where)]
    print(render.render(checking.report(outcomes), form))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def protocols(as_json: Json = False) -> None:
    """Show what each protocol compares, what differs from the default, and the sources."""
    from risbench import render
    from risbench.scoring import protocol
    from risbench.tables import protocols

    if as_json:
        print("\n".join(protocol.load(name).model_dump_json() for name in protocol.names()))
        return
    print(render.render([protocols.overview()], "terminal"))


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
    from risbench import render
    from risbench.analysis import explain

    found = explain.between(*explain.sides(a, b, protocol), dataset, split, data_root, partial)
    print(render.render([explain.table(found, exact=form in ("csv", "json"))], form))


def _print_all(scores: list[dict[str, Any]], refused: dict[str, str], as_json: bool) -> None:
    """One file under every protocol."""
    from risbench import render
    from risbench.tables import protocols

    if as_json:
        print(json.dumps({"scores": scores, "refused": refused}))
        return
    print(render.render([protocols.scores(scores, refused)], "terminal"))


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    """A score as people read it."""
    from risbench.render import Cell
    from risbench.scoring.slices import SHOWN

    for key, value in summary.items():
        if key != "slices" and value is not None:
            yield f"{key:12} {Cell(value).text if isinstance(value, float) else value}"
    for name in (one.name for one in SHOWN if one.name in summary["slices"]):
        parts = summary["slices"][name]
        of = "gIoU" if "gIoU" in summary else "oIoU"
        yield f"{of} by {name}"
        for value, part in parts.items():
            yield f"  {value:12} {part['n']:5} expressions  {Cell(part[of], part['intervals'].get(of)).text}"
