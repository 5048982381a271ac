"""The command line: one function for each command; what is heavy is imported inside, so that --help answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from risbench import __version__, options
from risbench.errors import InputError

if TYPE_CHECKING:
    from risbench.record import Record

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data = typer.Typer(no_args_is_help=True, help="Data sets: list, make, index, doctor.")
app.add_typer(data, name="data")

Method = Annotated[str, typer.Option(help="Name of a method, path of its folder, or reference[/A,B] (no learning).")]
Dataset = Annotated[str, typer.Option(help="Name of a data set, or path of a card.")]
Variant = Annotated[str, typer.Option(help="Variants of the recipe, composed left to right: a,b.")]
Splits = Annotated[str, typer.Option("--split", help="Splits: val,testA. Default: all evaluation splits.")]
Protocols = Annotated[str, typer.Option("--protocol", help="Protocols: original,lts.")]
Root = Annotated[
    str, typer.Option(help="Folder with the layout of the refer API. Default: RISBENCH_DATA, then ./data.")
]
Images = Annotated[str, typer.Option(help="Folder of the images, where it is another than the card's.")]
Partial = Annotated[bool, typer.Option("--partial", help="Accept an incomplete copy; every result will say so.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON on stdout.")]
Runs = Annotated[Path, typer.Option(help="Folder for new runs.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides of the recipe: train.lr=3e-5", show_default=False)
]
Checkpoint = Annotated[str, typer.Option(help="Folder of a trained checkpoint.")]
Seeds = Annotated[str, typer.Option("--seed", help="One seed or several: 0,1,2.")]
Resume = Annotated[Path | None, typer.Option(help="Folder of a killed run to go on with; takes no other option.")]
RecordFolders = Annotated[
    list[Path] | None, typer.Option("--records", help="Folders of records. Default: results/records and runs.")
]
Init = Annotated[str, typer.Option(help="Checkpoint whose weights and words training starts from.")]


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
        options.refuse_beside(context, "--plan", set(context.params) - {"plan", "as_json"})
        _show(options.work_off(plan, context.command), as_json)
        return
    if method.split("/")[0] == "reference":
        options.refuse_beside(context, "--method reference", ["overrides", "variant", "checkpoint", "init", "resume"])
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
    from risbench import run as running

    running.predict_to(options.job_of(locals()), output)
    if _is_main():
        print(output)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Predictions: Parquet or JSON Lines, of any program.")],
    split: Annotated[str, typer.Option(help="The split that was predicted.")],
    dataset: Dataset = "mini",
    protocol: Annotated[str, typer.Option(help="The protocol.")] = "original",
    data_root: Root = "",
    partial: Partial = False,
    as_json: Json = False,
) -> None:
    """Score a predictions file."""
    from risbench import predictions
    from risbench import protocol as protocols
    from risbench import score as scoring
    from risbench.data import source

    chosen, found = protocols.load(protocol), predictions.read(file)
    summary = scoring.score(found, source.open_index(dataset, data_root, partial=partial), split, chosen).summary
    if as_json:
        print(json.dumps(summary))
        return
    print("\n".join(_lines(summary)))


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
    from risbench.segment import draw

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
    from risbench import convert as converting

    print("\n".join(converting.convert(method, file, folder, vocabulary, dataset)))


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


@app.command("list")
def list_names(as_json: Json = False) -> None:
    """List methods with their variants, and data sets."""
    from risbench import datasets, methods, protocol, recipe, references

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
def protocols(as_json: Json = False) -> None:
    """Show what each protocol compares."""
    from risbench import protocol

    for chosen in map(protocol.load, protocol.names()):
        if as_json:
            print(chosen.model_dump_json())
            continue
        halves = {**dict(chosen.input), **dict(chosen.score), "comparable": chosen.comparable}
        print(f"{chosen.name}\n  source: {chosen.source}")
        print("\n".join(f"  {key}: {value}" for key, value in halves.items()))


@app.command()
def doctor() -> None:
    """Examine this environment: versions, devices, and what does not fit together."""
    from risbench.doctor import examine

    findings, broken = examine()
    print("\n".join(findings))
    raise typer.Exit(1 if broken else 0)


@data.command("list")
def data_list() -> None:
    """List data sets, their splits and how to get them."""
    from risbench import datasets

    for card in map(datasets.load, datasets.names()):
        counts = ", ".join(
            f"{name} {count.expressions.n if count.expressions else '?'}" for name, count in card.splits.items()
        )
        print(f"{card.name}: {card.title}\n  expressions: {counts}\n  licence: {card.licence}\n  get it: {card.where}")


@data.command("make")
def data_make(
    dataset: Annotated[str, typer.Argument(help="A data set that is generated: mini.")], data_root: Root = ""
) -> None:
    """Generate a data set (default: into the cache)."""
    from risbench import datasets
    from risbench.data import index, source

    card = datasets.load(dataset)
    if not card.generator:
        raise InputError(f"{dataset} is not generated. {card.where}")
    root = Path(data_root) if data_root else index.cache_folder() / "data"
    made = source.make(card, root)
    print(f"{root / card.folder} {'is made' if made else 'was there already: nothing was done'}")


@data.command("index")
def data_index(dataset: str, data_root: Root = "", partial: Partial = False) -> None:
    """Build the index of a data set, and show what it holds."""
    from risbench.data import source

    opened = source.open_index(dataset, data_root, partial=partial)
    for name in opened.split_names():
        print(f"{name}: " + ", ".join(f"{count} {what}" for what, count in opened.found(name).items()))
    print(f"index {opened.hash}{' (partial)' if opened.partial else ''}")


@data.command("doctor")
def data_doctor(dataset: str, data_root: Root = "", images: Images = "", partial: Partial = False) -> None:
    """Examine a data set: counts, images, masks, overlaps between splits."""
    from risbench.data import doctor, source

    print("\n".join(doctor.examine(source.open_index(dataset, data_root, images, partial))))


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
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
    from risbench import render, table

    if not _is_main():
        return
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    print(render.render(table.tables(records), "terminal"))


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


def _is_main() -> bool:
    """Whether this is the first process of those that a launcher started."""
    return not int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
