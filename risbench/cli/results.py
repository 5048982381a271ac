"""The commands about results, which need predictions, records and published numbers, but no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from risbench.cli import options
from risbench.cli.arguments import Dataset, Format, Images, Json, Limit, Overrides, Partial, RecordFolders, Root, Seeds
from risbench.cli.commands import Commands
from risbench.errors import InputError
from risbench.files import write_text
from risbench.runs.job import comma_separated, parse_seeds, refuse_options

app = Commands()


@app.command()
def score(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Predictions of any program: Parquet or JSON Lines.")],
    split: Annotated[str, typer.Option(help="The split that was predicted.")],
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol, or all.")] = "original",
    data_root: Root = "",
    partial: Partial = False,
    limit: Limit = None,
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="Add boundary IoU; takes nine times as long.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score a predictions file; risbench import converts other formats to one."""
    from risbench.data.source import open_index
    from risbench.scoring import predictions_file
    from risbench.scoring.protocol import load as load_protocol
    from risbench.scoring.score import score_predictions, score_under_all_protocols, summary_with_intervals

    chosen = None if protocol == "all" else load_protocol(protocol)
    predictions, index = predictions_file.read(file), open_index(dataset, data_root, "", partial, limit or 0)
    if chosen is None:
        refuse_options(context, "--protocol all", ["boundaries"])
        _print_scores(*score_under_all_protocols(predictions, index, split), as_json)
        return
    summary = summary_with_intervals(score_predictions(predictions, index, split, chosen, boundaries), chosen)
    print(json.dumps(summary) if as_json else "\n".join(_summary_lines(summary)))


@app.command("import")
def import_masks(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="COCO results, a folder of PNG masks, .npz, .pth or JSON Lines.")],
    output: Annotated[Path, typer.Option(help="The predictions file to write (.parquet).")],
    format_: Annotated[
        str, typer.Option("--format", help="coco, png, npz, pth, jsonl, or auto: by the file name.")
    ] = "auto",
    pattern: Annotated[
        str, typer.Option(help="Names of PNG masks: {sent_id}.png (default), {ref_id}_{sentence}.png.")
    ] = "",
    threshold: Annotated[
        float | None, typer.Option(help="Values above it are foreground, in the unit of the file: 0.5, or 127 of 255.")
    ] = None,
    dataset: Dataset = "mini",
    split: Annotated[str, typer.Option(help="Require one mask for each expression of this split.")] = "",
    data_root: Root = "",
    partial: Partial = False,
) -> None:
    """Convert the masks of any program to a predictions file."""
    from risbench.data import rle
    from risbench.data.source import open_index
    from risbench.scoring import formats, predictions_file

    options.check_output(output, ".parquet", "a predictions file")
    if not split:
        refuse_options(context, "An import without --split", ["dataset", "data_root", "partial"])
    expressions = open_index(dataset, data_root, partial=partial).split(split) if split else None
    predictions = formats.read(source, format_, pattern, threshold, expressions, _load_torch)
    predictions_file.write(output, predictions)
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    num_empty = sum(rle.area(counts, size) == 0 for counts, size in zip(predictions.counts, sizes, strict=True))
    print(f"{output}: {len(predictions)} masks, {num_empty} of them empty")


def _load_torch(path: Path) -> dict[Any, Any]:
    from risbench.nn import weights

    return weights.read(path, contents="masks")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Predictions of any program: Parquet or JSON Lines.")],
    output: Annotated[Path, typer.Option(help="The COCO results to write (.json).")],
    split: Annotated[str, typer.Option(help="The split that was predicted.")],
    dataset: Dataset = "mini",
    data_root: Root = "",
    partial: Partial = False,
) -> None:
    """Write predictions as COCO results, with the sent_id of each."""
    from risbench.data.source import open_index
    from risbench.scoring import formats, predictions_file

    options.check_output(output, ".json", "COCO results")
    predictions = predictions_file.read(file)
    formats.write_coco(output, predictions, open_index(dataset, data_root, partial=partial), split)
    print(output)


@app.command("no-target")
def choose_no_target(
    file: Annotated[Path, typer.Argument(help="Predictions of val: runs/ID/predictions/val-PROTOCOL.parquet.")],
    dataset: Dataset = "mini-gres",
    protocol: Annotated[str, typer.Option(help="The protocol of the predictions.")] = "grefcoco",
    data_root: Root = "",
    partial: Partial = False,
    as_json: Json = False,
) -> None:
    """Choose predict.no_target_below on val: the largest probability below which an answer is no-target."""
    from risbench.data.source import open_index
    from risbench.render import Cell
    from risbench.scoring import no_target, predictions_file
    from risbench.scoring.protocol import load as load_protocol

    chosen, predictions = load_protocol(protocol), predictions_file.read(file)
    choice = no_target.choose_threshold(predictions, open_index(dataset, data_root, "", partial), chosen)
    if as_json:
        print(json.dumps(choice._asdict()))
        return
    for label, values in (("without a threshold", choice.without), ("with it", choice.with_threshold)):
        print(f"{label:20} " + "  ".join(f"{name} {Cell(value).text}" for name, value in values.items()))
    better = f"predict.{no_target.KEY}={choice.below:g}"
    print(
        better
        if choice.below
        else f"No threshold has a higher gIoU on {no_target.SPLIT}: leave predict.{no_target.KEY} 0."
    )


@app.command("table")
def print_table(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The comparison, or a paper's table: --list names them.")] = "comparison",
    names: Annotated[bool, typer.Option("--list", help="List the tables.")] = False,
    dataset: Annotated[
        str, typer.Option(help="Name or card: show only this data set, also one that a paper's table does not have.")
    ] = "",
    format_: Format = "terminal",
    output: Annotated[
        Path | None, typer.Option(help="Write it to a file that ends in .md, .tex, .csv, .html or .json, or --format.")
    ] = None,
    slices: Annotated[
        str | None, typer.Option(help="Slices, or all. Default: kind-of-expression,same-class-distractors.")
    ] = None,
    records: RecordFolders = None,
) -> None:
    """Print measured records beside published numbers."""
    from risbench import render
    from risbench.scoring import record
    from risbench.scoring.slices import choose
    from risbench.tables import comparison

    if names:
        refuse_options(context, "--list", set(context.params) - {"names"})
        print("\n".join(f"{table:24}{title}" for table, title in comparison.titles().items()))
        return
    if slices is not None and name != comparison.COMPARISON:
        raise InputError(f"--slices divides the comparison, not the table {name}: leave it out.")
    if slices is not None and not comma_separated(slices):
        raise InputError(f"--slices {slices!r} names no slice: name some, give all, or leave it out.")
    written = options.table_format(output, format_) if output else format_
    chosen = choose(comma_separated(slices or ""))
    measured = record.find(options.record_folders(records))
    tables = comparison.build(name, measured, options.recorded_name(dataset, measured), chosen)
    text = render.render(tables, written)
    if output:
        write_text(output, text + "\n" * (not text.endswith("\n")))
    print(output or text)


@app.command()
def compare(
    sides: Annotated[
        list[str], typer.Argument(help="Run folders, files of rows or predictions; seeds of one method: A1,A2 B1,B2.")
    ],
    metric: Annotated[
        str, typer.Option(help="Metric of the first table. Default: the protocol's headline metric.")
    ] = "",
    split: Annotated[
        str, typer.Option(help="The split. Default: the files'; for run folders val, if all have it.")
    ] = "",
    protocol: Annotated[str, typer.Option(help="The protocol. Default: the files'; for run folders original.")] = "",
    flips: Annotated[int, typer.Option(min=0, help="Number of flipped expressions to list in each direction.")] = 10,
    format_: Format = "terminal",
    dataset: Annotated[str, typer.Option(help="Name or card, to score predictions and to show expressions.")] = "",
    data_root: Root = "",
    partial: Partial = False,
) -> None:
    """Compare predictions of the same expressions, image by image: differences, intervals, p-values, flips."""
    from risbench import render
    from risbench.analysis.compare_tables import compare_tables
    from risbench.analysis.run_rows import RunOptions
    from risbench.analysis.sides import expression_texts, open_sides

    run_options = RunOptions(dataset, split, protocol, data_root, partial)
    opened = open_sides(sides, run_options)
    texts = expression_texts(opened[0].runs[0], run_options)
    print(render.render(compare_tables(opened, metric, flips, texts), format_))


@app.command("plan")
def print_plan(
    name: Annotated[str, typer.Argument(help="A paper's table: risbench table --list names them.")],
    overrides: Overrides = None,
    dataset: Annotated[str, typer.Option(help="Plan only this data set, also one that the table does not have.")] = "",
    seed: Seeds = "0",
    protocol: Annotated[str, typer.Option(help="The protocol. Default: the source's, or original.")] = "",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    records: RecordFolders = None,
) -> None:
    """Print the commands that fill the empty cells of a paper's table; run --plan FILE runs them."""
    from risbench.runs.plan import make_plan
    from risbench.scoring import record

    plan = make_plan(
        name,
        record.find(options.record_folders(records)),
        dataset=dataset or None,
        seeds=parse_seeds(seed),
        protocol_name=protocol,
        data_root=data_root,
        images=images,
        partial=partial,
        overrides=overrides or [],
        runs=Path("runs"),  # the default of `risbench run`
    )
    print("\n".join(plan.lines()))


@app.command()
def check(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Two runs, as for `compare`; with --update, the runs or file of the new baseline."),
    ] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="NAME.json, once or more. Default: all in results/baselines.")
    ] = None,
    tier: Annotated[str, typer.Option(help="Tiers of a baseline to check.")] = "golden,network,training",
    update: Annotated[bool, typer.Option("--update", help="Rewrite the baseline, and show the changes.")] = False,
    margin: Annotated[float, typer.Option(min=0, help="For two runs: points that a number may fall.")] = 0.5,
    metric: Annotated[str, typer.Option(help="For two runs. Default: the protocol's headline metric.")] = "",
    split: Annotated[
        str, typer.Option(help="For two runs or a new baseline. Default: the files'; for run folders val.")
    ] = "",
    protocol: Annotated[str, typer.Option(help="For two runs, or for the predictions of a new baseline.")] = "",
    format_: Format = "terminal",
    dataset: Annotated[str, typer.Option(help="Name or card of the data set. Default: the files'.")] = "",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
) -> None:
    """Guard numbers: exit with 1 if one has changed, or has fallen beyond chance."""
    from risbench import datasets, render
    from risbench.analysis.run_rows import RunOptions
    from risbench.data import source
    from risbench.gate import baseline as baselines
    from risbench.gate.baseline import DataLocation
    from risbench.gate.check import check_baseline
    from risbench.gate.check_runs import check_runs
    from risbench.gate.outcome import report
    from risbench.gate.update import update_baseline

    location = DataLocation(dataset, data_root, images, partial)
    if update:
        refuse_options(context, "--update", ["tier", "margin", "metric"])
        sources = [Path(run) for run in runs or []]
        if sources and len(baseline or []) != 1:
            raise InputError("Which baseline do the runs make? Give one --baseline NAME.json.")
        files = options.baseline_files(baseline)
        print(render.render([update_baseline(file, sources, location, split, protocol) for file in files], format_))
        return
    if runs:
        refuse_options(context, "A check of two runs", ["baseline", "tier", "images"])
        outcomes = [check_runs(runs, RunOptions(dataset, split, protocol, data_root, partial), metric, margin)]
    else:
        refuse_options(context, "A check of baselines", ["margin", "metric", "split", "protocol"])
        tiers, files = comma_separated(tier), options.baseline_files(baseline)
        names = [dataset] if dataset else [baselines.read(file).dataset for file in files]
        source.check_data_root([datasets.load(name) for name in names], data_root)
        outcomes = [outcome for file in files for outcome in check_baseline(file, tiers, location)]
    print(render.render(report(outcomes), format_))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def protocols(context: typer.Context, format_: Format = "terminal", as_json: Json = False) -> None:
    """Show the settings of each protocol, the differences from the default, and the sources."""
    from risbench import render
    from risbench.scoring import protocol
    from risbench.tables import protocols

    if as_json:
        refuse_options(context, "--json", ["format_"])
        print("\n".join(protocol.load(name).model_dump_json() for name in protocol.names()))
        return
    print(render.render(protocols.overview(), format_))


@app.command("explain")
def print_explanation(
    a: Annotated[Path, typer.Argument(help="A record of a run (.json), or a predictions file.")],
    b: Annotated[
        Path | None, typer.Argument(help="The other file. Default: the same file under two protocols.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="One protocol for each predictions file: original,lavt.")] = "",
    dataset: Annotated[str, typer.Option(help="Name or card of the data set. Default: the files'.")] = "",
    split: Annotated[str, typer.Option(help="The split. Default: the files'.")] = "",
    data_root: Root = "",
    partial: Partial = False,
    format_: Format = "terminal",
) -> None:
    """Split the difference between two numbers into steps, one for each knob of the protocol."""
    from risbench import render
    from risbench.analysis.endpoints import read_endpoints
    from risbench.analysis.explain import explain, explanation_table

    explanation = explain(*read_endpoints(a, b, protocol), dataset, split, data_root, partial)
    print(render.render([explanation_table(explanation, exact=format_ in ("csv", "json"))], format_))


def _print_scores(scores: list[dict[str, Any]], refused: dict[str, str], as_json: bool) -> None:
    """Print the scores of one file under every protocol, and the protocols that cannot score it."""
    from risbench import render
    from risbench.tables import protocols

    if as_json:
        print(json.dumps({"scores": scores, "refused": refused}))
        return
    print(render.render([protocols.scores(scores, refused)], "terminal", elsewhere="--json"))


def _summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    """Format the summary of a score for the terminal."""
    from risbench.render import Cell
    from risbench.scoring.protocol import load as load_protocol
    from risbench.scoring.slices import DEFAULT_SLICES
    from risbench.scoring.statistics import NO_INTERVAL

    headline = load_protocol(summary["protocol"]).score.headline
    interval = summary["intervals"].get(headline)
    for key, value in summary.items():
        if key not in ("slices", "intervals") and value is not None:
            shown = Cell(value, interval if key == headline else None).text if isinstance(value, float) else value
            yield f"{key:12} {shown}"
    yield "[low, high]: 95 % interval over images." if interval else NO_INTERVAL
    metric = "gIoU" if "gIoU" in summary else "oIoU"
    for slice_ in DEFAULT_SLICES:
        if slice_.name in summary["slices"]:
            yield f"{metric} by {slice_.name}"
            for value, part in summary["slices"][slice_.name].items():
                cell = Cell(part[metric], part["intervals"].get(metric))
                yield f"  {value:12} {part['n']:5} expressions  {cell.text}"
