"""The commands of `risbench data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from risbench.cli.arguments import Format, Images, Partial, Root
from risbench.errors import InputError

app = typer.Typer(no_args_is_help=True, help="Data sets: list, make, index, doctor, leaks.")


@app.command("list")
def data_list() -> None:
    """List data sets, their splits and how to get them."""
    from risbench import datasets

    for card in map(datasets.load, datasets.names()):
        counts = ", ".join(
            f"{name} {count.expressions.n if count.expressions else '?'}" for name, count in card.splits.items()
        )
        print(f"{card.name}: {card.title}\n  expressions: {counts}\n  licence: {card.licence}\n  get it: {card.where}")


@app.command("make")
def data_make(
    dataset: Annotated[str, typer.Argument(help="A generated data set: mini.")], data_root: Root = ""
) -> None:
    """Generate a data set (default: into the cache)."""
    from risbench import datasets
    from risbench.data import index_store, source

    card = datasets.load(dataset)
    if not card.generator:
        raise InputError(f"{dataset} is not generated. {card.where}")
    root = Path(data_root) if data_root else index_store.cache_folder() / "data"
    is_new = source.make(card, root)
    print(f"{root / card.folder} {'is made' if is_new else 'exists already: nothing was done'}")


@app.command("index")
def data_index(dataset: str, data_root: Root = "", partial: Partial = False) -> None:
    """Build the index of a data set, and print its counts."""
    from risbench.data import source

    opened = source.open_index(dataset, data_root, partial=partial)
    for name in opened.split_names():
        print(f"{name}: " + ", ".join(f"{count} {noun}" for noun, count in opened.counts(name).items()))
    print(f"index {opened.hash}{' (partial)' if opened.partial else ''}")


@app.command("doctor")
def data_doctor(dataset: str, data_root: Root = "", images: Images = "", partial: Partial = False) -> None:
    """Examine a data set: counts, images, masks, overlaps between splits."""
    from risbench.data import doctor, source

    print("\n".join(doctor.examine(source.open_index(dataset, data_root, images, partial))))


@app.command("leaks")
def data_leaks(
    dataset: Annotated[
        str, typer.Argument(help="Data set of the evaluation splits. Default: all that are present.")
    ] = "",
    train: Annotated[
        list[Path] | None,
        typer.Option(help="A training set: COCO's instances_*.json, a JSON list of image ids, or one id on each line."),
    ] = None,
    data_root: Root = "",
    partial: Partial = False,
    format_: Format = "terminal",
) -> None:
    """Count the images of evaluation splits that are also in training sets."""
    from risbench import render
    from risbench.data import leaks

    print(render.render([leaks.table(dataset, train or [], data_root, partial)], format_))
