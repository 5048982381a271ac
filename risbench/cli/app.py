"""The command line: one function for each command; what is heavy is imported inside, so that --help answers at once."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from risbench import __version__
from risbench.cli import data as cli_data
from risbench.cli import options
from risbench.cli import results as cli_results
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
from risbench.runs import job as jobs

if TYPE_CHECKING:
    from risbench.scoring.record import Record

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_results.app)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def about(
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
    plan: Annotated[Path | None, typer.Option(help="File of such commands, to be worked off (risbench plan).")] = None,
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Train, predict, score and record; with --checkpoint, without training."""
    if plan is not None:
        jobs.refuse_beside(context, "--plan", set(context.params) - {"plan", "as_json"})
        made, failures = options.work_off(plan, context.command)
        if made or as_json:
            _show(made, as_json)
        if failures:
            raise InputError(f"Of the plan {len(failures)} failed: {' '.join(failures)}")
        return
    if method.split("/")[0] == "reference":
        jobs.refuse_beside(context, "--method reference", ["overrides", "variant", "checkpoint", "init", "resume"])
        chosen, where = options.chosen_references(method), (data_root, images, partial)
        _show(options.score_references(chosen, dataset, split, protocol, seed, where, runs), as_json)
        return
    records = []
    for opened in options.open_runs(locals(), resume):
        records += opened.evaluate(opened.train(resume is not None))
        if _is_main():
            print(f"Kept in {opened.folder}", file=sys.stderr)
    _show(records, as_json)


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
    """Train alone; leaves checkpoints/best and checkpoints/last in the folder of the run."""
    for opened in options.open_runs(locals(), resume):
        best = opened.train(resume is not None).folder
        if _is_main():
            print(best)


@app.command()
def predict(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="The predictions file to write (.parquet).")],
    split: Annotated[str, typer.Option(help="The split to predict.")],
    overrides: Overrides = None,
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol whose input half counts.")] = "original",
    data_root: Root = "",
    images: Images = "",
    partial: Partial = False,
) -> None:
    """Predict a split with a checkpoint; a killed prediction goes on where it was."""
    options.check_output(output, ".parquet", "a predictions file")
    from risbench.runs import run as running

    running.predict_to(jobs.job_of(locals()), output)
    if _is_main():
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
    """Draw the mask of what an expression refers to."""
    from risbench.engine.segment import draw

    covered = draw(Path(checkpoint), image, expression, output, explain, word)
    print(f"{output}: {100 * covered:.1f} % of the image")


@app.command()
def convert(
    method: Annotated[str, typer.Argument(help="Name of the method, or path of its folder.")],
    file: Annotated[Path, typer.Argument(help="A checkpoint file that the method's authors released.")],
    folder: Annotated[Path, typer.Argument(help="The checkpoint folder to write: a new one, or an empty one.")],
    vocabulary: Annotated[
        Path | None, typer.Option(help="The word pieces (vocab.txt). Default: from Hugging Face or its cache.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="What it was trained on, where the file does not say.")] = "",
) -> None:
    """Turn a checkpoint file of a method's authors into a checkpoint folder; nothing in the file is run."""
    from risbench.engine import convert as converting

    print("\n".join(converting.convert(method, file, folder, vocabulary, dataset)))


@app.command("list")
def list_names(as_json: Json = False) -> None:
    """List methods with their variants, and data sets."""
    from risbench import datasets, methods, recipe
    from risbench.scoring import protocol, references

    found: dict[str, Any] = {
        "methods": {name: recipe.variants(methods.recipe_file(name)) for name in methods.names()},
        "references": [f"reference/{name}" for name in references.names()],
        "datasets": {name: datasets.load(name).title for name in datasets.names()},
        "protocols": protocol.names(),
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, variants in found["methods"].items():
        print(f"method     {name}  (variants: {', '.join([recipe.FULL, *variants])})")
    for name in found["references"]:
        print(f"method     {name}")
    for name, title in found["datasets"].items():
        print(f"data set   {name}  ({title})")
    for name in found["protocols"]:
        print(f"protocol   {name}")


@app.command()
def doctor() -> None:
    """Examine this environment: versions, devices, and what does not fit together."""
    from risbench.cli.doctor import examine

    findings, broken = examine()
    print("\n".join(findings))
    raise typer.Exit(1 if broken else 0)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):  # a terminal of few characters shows ? for the others
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except InputError as error:
        sys.exit(_fail(str(error)))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _TRAIN:
            raise
        sys.exit(_fail(f"This command needs {error.name}: pip install 'risbench[train]'."))
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        sys.exit(_fail("torch and torchvision do not fit together. Run risbench doctor: it says how to mend it."))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_fail(f"{where}{error.strerror or error}. Give a path that can be read and written, or free space."))
    except KeyboardInterrupt:
        sys.exit(130)


_TRAIN = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "lightning_fabric",
    "safetensors",
    "huggingface_hub",
    "filelock",
)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _show(records: list[Record], as_json: bool) -> None:
    """Print what was measured."""
    from risbench import render
    from risbench.tables import comparison as table

    if not _is_main():
        return
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    print(render.render(table.tables(records), "terminal"))


def _is_main() -> bool:
    """Whether this is the first process of those that a launcher started."""
    return not int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
