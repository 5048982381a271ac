"""The command line: one function for each command. Heavy imports stand inside the functions, so that --help is fast."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from risbench import __version__, failures, progress
from risbench.cli import commands, data, descriptions, method, options, processes, results, signals, streams
from risbench.cli.arguments import (
    Checkpoint,
    CheckpointMethod,
    Dataset,
    DryRun,
    Images,
    Init,
    Json,
    Limit,
    Method,
    Overrides,
    Partial,
    Protocols,
    Resume,
    Root,
    Runs,
    Seeds,
    Splits,
    TrainedMethod,
    Variant,
)
from risbench.cli.commands import QUIET, VERBOSE, Commands
from risbench.errors import InputError
from risbench.runs.job import USAGE_ERROR, job_from_options, parse_seeds, refuse_options

if TYPE_CHECKING:
    from risbench.runs.run import Run
    from risbench.scoring.record import Record

app = Commands(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},  # every command inherits it
)
app.add_typer(data.app, name="data")
app.add_typer(method.app, name="method")
app.add_typer(results.app)


def _print_version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise typer.Exit


@app.callback()
def risbench(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option(*QUIET, help="Print results and errors only; every command takes it.")] = False,
    verbose: Annotated[
        bool, typer.Option(*VERBOSE, help="Print what is done meanwhile; every command takes it.")
    ] = False,
) -> None:
    """Train, score and compare referring image segmentation methods on RefCOCO, RefCOCO+ and RefCOCOg."""
    commands.set_detail(quiet, verbose)


@app.command()
def run(
    context: typer.Context,
    overrides: Overrides = None,
    method: Method = "",
    dataset: Dataset = "mini",
    variant: Variant = "",
    split: Splits = "",
    protocol: Protocols = "original",
    seed: Seeds = "0",
    checkpoint: Checkpoint = "",
    init: Init = "",
    resume: Resume = None,
    plan: Annotated[Path | None, typer.Option(help="File of commands to run: see risbench plan.")] = None,
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    limit: Limit = None,
    runs: Runs = Path("runs"),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train, predict, score and record; with --checkpoint, without training."""
    options_by_name = locals()
    if plan is not None:
        refuse_options(context, "--plan", set(context.params) - {"plan", "as_json", "dry_run"})
        (_describe_plan if dry_run else _run_plan)(plan, context.command, as_json)
    elif method.split("/")[0] == "reference":
        from risbench.runs.reference_runs import describe_references, run_references

        refuse_options(context, "--method reference", ["overrides", "variant", "checkpoint", "init", "resume"])
        job, seeds = job_from_options({**options_by_name, "method": ""}), parse_seeds(seed)
        names = options.reference_names(method, job.protocols)
        if dry_run:
            _print_descriptions(describe_references(names, job, seeds, runs), as_json)
        else:
            _print_records(run_references(names, job, seeds, runs), as_json)
    elif dry_run:
        _print_descriptions(options.describe_runs(options_by_name, resume), as_json)
    else:
        _print_records(_run_and_report(options.open_runs(options_by_name, resume)), as_json)


@app.command()
def train(
    context: typer.Context,
    overrides: Overrides = None,
    method: TrainedMethod = "",
    dataset: Dataset = "mini",
    variant: Variant = "",
    protocol: Protocols = "original",
    seed: Seeds = "0",
    init: Init = "",
    resume: Resume = None,
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    limit: Limit = None,
    runs: Runs = Path("runs"),
    dry_run: DryRun = False,
) -> None:
    """Train without evaluation; write checkpoints/best and checkpoints/last in the folder of the run."""
    options_by_name = locals()
    from risbench.runs import training

    if dry_run:
        _print_descriptions(options.describe_runs(options_by_name, resume), as_json=False)
        return
    for opened in options.open_runs(options_by_name, resume):
        best = training.train(opened)
        if processes.is_main():
            print(best.folder)


@app.command()
def predict(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="The predictions file to write (.parquet).")],
    split: Annotated[str, typer.Option(help="The split to predict.")],
    overrides: Overrides = None,
    method: CheckpointMethod = "",
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol; its input half counts.")] = "original",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    limit: Limit = None,
) -> None:
    """Predict a split with a checkpoint; a killed prediction continues where it stopped."""
    job = job_from_options(locals())
    options.check_output(output, ".parquet", "a predictions file")
    from risbench.runs.evaluation import predict_to_file

    predict_to_file(job, output)
    if processes.is_main():
        print(output)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    expression: Annotated[str, typer.Argument(help='What to segment: "the left cup".')],
    checkpoint: Checkpoint,
    method: CheckpointMethod = "",
    output: Annotated[
        Path | None, typer.Option(help="The picture to write. Default: segment.png, or none beside --mask.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="The mask to write, of the image's size, 255 on the referent and 0 elsewhere.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Draw the maps behind the mask as well.")] = False,
    word: Annotated[str, typer.Option(help="A word of the expression whose maps --explain shows.")] = "",
) -> None:
    """Draw the mask of the referent of an expression."""
    from risbench.engine.segment import draw_segmentation

    picture = output or (None if mask else Path("segment.png"))
    share, answer = draw_segmentation(Path(checkpoint), image, expression, picture, explain, word, method, mask)
    written = ", ".join(str(path) for path in (picture, mask) if path)
    print(f"{written}: {100 * share:.1f} % of the image{answer and ', ' + answer}")


@app.command()
def convert(
    method: Annotated[str, typer.Argument(help="Name of the method, or path of its folder.")],
    file: Annotated[Path, typer.Argument(help="A checkpoint file that the method's authors released.")],
    folder: Annotated[Path, typer.Argument(help="The checkpoint folder to write: a new one, or an empty one.")],
    vocabulary: Annotated[
        Path | None, typer.Option(help="The word pieces (vocab.txt). Default: from Hugging Face or its cache.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The training data set, if the file does not name it.")] = "",
) -> None:
    """Convert a checkpoint file of a method's authors to a checkpoint folder; no code in the file is run."""
    from risbench.engine.convert import convert_checkpoint

    print("\n".join(convert_checkpoint(method, file, folder, vocabulary, dataset)))


@app.command("list")
def list_names(as_json: Json = False) -> None:
    """List methods with their variants and pretrained weights, and data sets."""
    from risbench import datasets, methods, recipe
    from risbench.render import fold
    from risbench.scoring import protocol, references

    names: dict[str, Any] = {
        "methods": {name: recipe.variant_names(methods.recipe_file(name)) for name in methods.names()},
        "weights": {name: descriptions.weights_of_method(name) for name in methods.names()},
        "references": [f"reference/{name}" for name in references.names()],
        "datasets": {name: datasets.load(name).title for name in datasets.names()},
        "protocols": protocol.names(),
    }
    if as_json:
        print(json.dumps(names))
        return
    for name, variants in names["methods"].items():
        print(fold(f"method     {name}  (variants: {', '.join([recipe.FULL, *variants])})", indent=13))
        print(fold(f"{'':11}{descriptions.weights_line(names['weights'][name])}", indent=13))
    for name in names["references"]:
        print(f"method     {name}")
    print("method     reference/oracle-N  (the ceiling of a grid of N x N, any N from 1 to 9999)")
    for name, title in names["datasets"].items():
        print(f"data set   {name}  ({title})")
    for name in names["protocols"]:
        print(f"protocol   {name}")


@app.command()
def doctor() -> None:
    """Examine this environment: versions, devices, and libraries that do not fit together."""
    from risbench.cli.doctor import examine

    lines, broken = examine()
    print("\n".join(lines))
    raise typer.Exit(1 if broken else 0)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    commands.set_detail()
    streams.set_encodings()
    try:
        code = app(prog_name="risbench", standalone_mode=False)
        print(end="", flush=True)  # a full disk, or a reader that has gone, shows here and not when Python ends
    except SystemExit:  # Typer's end where nobody reads the output any more
        code = 2
    except USAGE_ERROR as error:
        code = _usage_error(error)
    except Exception as error:
        code = _failure(error)
    if streams.lost_reader():
        streams.silence()
        code = streams.READER_GONE
    sys.exit(code)


def _usage_error(error: Any) -> int:
    """Print an error in options or arguments; return its exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
        print(error.format_message(), file=sys.stderr)
        return 2
    problem = " ".join(error.format_message().split()).rstrip(".")
    end = "" if problem.endswith("?") else "."  # "Did you mean 'run'?"
    return _print_error(f"{problem}{end} See {_command()} --help.")


def _command() -> str:
    """Return the command as it stands in the command line, without its options."""
    words = ["risbench"]
    group: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:
        if word in getattr(group, "commands", {}):
            words.append(word)
            group = group.commands[word]
    return " ".join(words)


def _failure(error: Exception) -> int:
    """Print an error; return its exit code. A bug in risbench is raised again, for its traceback."""
    if isinstance(error, RuntimeError):  # perhaps of a child that the signal for this process too has reached first
        time.sleep(0.2)
    failure = failures.translate(error)
    if streams.lost_reader():
        return streams.READER_GONE
    if failure is None:
        raise error
    return _print_error(str(failure))


def _print_error(message: str) -> int:
    """Print an error, of several processes the first one; return its exit code."""
    if processes.is_first_failure():
        print(f"error: {message}", file=sys.stderr)
    if processes.are_several():  # at once: the others wait for this one
        signals.leave(2)
    return 2


def _run_plan(plan: Path, command: Any, as_json: bool) -> None:
    from risbench.runs.plan_runner import read_plan, run_plan

    records, failures = run_plan(read_plan(plan, command))
    if records or as_json:
        _print_records(records, as_json)
    if failures:
        raise InputError(f"Of the plan {len(failures)} failed: {' '.join(failures)}")


def _describe_plan(plan: Path, command: Any, as_json: bool) -> None:
    from risbench.runs.plan_runner import describe_plan, read_plan

    planned = describe_plan(read_plan(plan, command))
    if processes.is_main():
        print(json.dumps(planned) if as_json else "\n".join(descriptions.plan_lines(planned)))


def _print_descriptions(runs: list[dict[str, Any]], as_json: bool) -> None:
    """Print what runs would do."""
    if processes.is_main():
        print(json.dumps(runs) if as_json else "\n".join(descriptions.run_lines(runs)))


def _run_and_report(runs: Iterable[Run]) -> list[Record]:
    """Train and evaluate runs one after the other, and print their folders."""
    from risbench.runs import evaluation, training

    records = []
    for opened in runs:
        records += evaluation.evaluate(opened, training.train(opened))
        if processes.is_main():
            progress.print_line(f"Kept in {opened.folder}")
    return records


def _print_records(records: list[Record], as_json: bool) -> None:
    from risbench import render
    from risbench.tables import comparison

    if not processes.is_main():
        return
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    print(render.render(comparison.comparison_tables(records), "terminal", elsewhere="risbench table --format csv"))
