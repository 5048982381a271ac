"""The command line: one function for each command. Heavy imports stand inside the functions, so that --help is fast."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from risbench import __version__
from risbench.cli import data, options, results
from risbench.cli.arguments import (
    Checkpoint,
    Dataset,
    Images,
    Init,
    Json,
    Method,
    Overrides,
    Partial,
    Protocols,
    Resume,
    Root,
    Runs,
    Seeds,
    Splits,
    Variant,
)
from risbench.errors import InputError
from risbench.runs.job import job_from_options, parse_seeds, refuse_options

if TYPE_CHECKING:
    from risbench.runs.run import Run
    from risbench.scoring.record import Record

_TRAINING_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "lightning_fabric",
    "safetensors",
    "huggingface_hub",
    "filelock",
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},  # every command inherits it
)
app.add_typer(data.app, name="data")
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
) -> None:
    """Train, score and compare referring image segmentation methods on RefCOCO, RefCOCO+ and RefCOCOg."""


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
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Train, predict, score and record; with --checkpoint, without training."""
    options_by_name = locals()
    if plan is not None:
        refuse_options(context, "--plan", set(context.params) - {"plan", "as_json"})
        _run_plan(plan, context.command, as_json)
    elif method.split("/")[0] == "reference":
        from risbench.runs.reference_runs import run_references

        refuse_options(context, "--method reference", ["overrides", "variant", "checkpoint", "init", "resume"])
        job, seeds = job_from_options(options_by_name), parse_seeds(seed)
        _print_records(run_references(options.reference_names(method), job, seeds, runs), as_json)
    else:
        _print_records(_run_and_report(options.open_runs(options_by_name, resume)), as_json)


@app.command()
def train(
    context: typer.Context,
    overrides: Overrides = None,
    method: Method = "",
    dataset: Dataset = "mini",
    variant: Variant = "",
    protocol: Protocols = "original",
    seed: Seeds = "0",
    init: Init = "",
    resume: Resume = None,
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    runs: Runs = Path("runs"),
) -> None:
    """Train without evaluation; write checkpoints/best and checkpoints/last in the folder of the run."""
    options_by_name = locals()
    from risbench.runs import training

    for opened in options.open_runs(options_by_name, resume):
        best = training.train(opened)
        if _is_main_process():
            print(best.folder)


@app.command()
def predict(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="The predictions file to write (.parquet).")],
    split: Annotated[str, typer.Option(help="The split to predict.")],
    overrides: Overrides = None,
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol; its input half counts.")] = "original",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
) -> None:
    """Predict a split with a checkpoint; a killed prediction continues where it stopped."""
    job = job_from_options(locals())
    options.check_output(output, ".parquet", "a predictions file")
    from risbench.runs.evaluation import predict_to_file

    predict_to_file(job, output)
    if _is_main_process():
        print(output)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    expression: Annotated[str, typer.Argument(help='What to segment: "the left cup".')],
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("segment.png"),
    explain: Annotated[bool, typer.Option("--explain", help="Draw the maps behind the mask as well.")] = False,
    word: Annotated[str, typer.Option(help="A word of the expression whose maps --explain shows.")] = "",
) -> None:
    """Draw the mask of the referent of an expression."""
    from risbench.engine.segment import draw_segmentation

    share = draw_segmentation(Path(checkpoint), image, expression, output, explain=explain, word=word)
    print(f"{output}: {100 * share:.1f} % of the image")


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
    """List methods with their variants, and data sets."""
    from risbench import datasets, methods, recipe
    from risbench.scoring import protocol, references

    names: dict[str, Any] = {
        "methods": {name: recipe.variant_names(methods.recipe_file(name)) for name in methods.names()},
        "references": [f"reference/{name}" for name in references.names()],
        "datasets": {name: datasets.load(name).title for name in datasets.names()},
        "protocols": protocol.names(),
    }
    if as_json:
        print(json.dumps(names))
        return
    for name, variants in names["methods"].items():
        print(f"method     {name}  (variants: {', '.join([recipe.FULL, *variants])})")
    for name in names["references"]:
        print(f"method     {name}")
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
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows ?
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except InputError as error:
        sys.exit(_print_error(str(error)))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _TRAINING_LIBRARIES:
            raise
        sys.exit(_print_error(f"This command needs {error.name}: run pip install '.[train]' in the clone of risbench."))
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        message = "torch and torchvision do not fit together. Run risbench doctor: it says how to mend it."
        sys.exit(_print_error(message))
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        problem = error.strerror or error
        sys.exit(_print_error(f"{path}{problem}. Give a path that can be read and written, or free space."))
    except KeyboardInterrupt:
        sys.exit(130)


def _print_error(message: str) -> int:
    """Print a user's mistake; return its exit code."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def _run_plan(plan: Path, command: Any, as_json: bool) -> None:
    from risbench.runs.plan_runner import read_plan, run_plan

    records, failures = run_plan(read_plan(plan, command))
    if records or as_json:
        _print_records(records, as_json)
    if failures:
        raise InputError(f"Of the plan {len(failures)} failed: {' '.join(failures)}")


def _run_and_report(runs: Iterable[Run]) -> list[Record]:
    """Train and evaluate runs one after the other, and print their folders."""
    from risbench.runs import evaluation, training

    records = []
    for opened in runs:
        records += evaluation.evaluate(opened, training.train(opened))
        if _is_main_process():
            print(f"Kept in {opened.folder}", file=sys.stderr)
    return records


def _print_records(records: list[Record], as_json: bool) -> None:
    from risbench import render
    from risbench.tables import comparison

    if not _is_main_process():
        return
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    print(render.render(comparison.comparison_tables(records), "terminal"))


def _is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started."""
    return not int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
