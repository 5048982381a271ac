"""The commands of `risbench data`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from risbench.cli.arguments import Format, Images, Json, Partial, Root
from risbench.cli.commands import Commands
from risbench.errors import InputError

if TYPE_CHECKING:
    from risbench.data.doctor import Finding

app = Commands(no_args_is_help=True, help="Data sets: list, check, make, index, doctor, leaks.")


@app.command("list")
def data_list() -> None:
    """List data sets, their splits and how to get them."""
    from risbench import datasets
    from risbench.render import fold

    for card in map(datasets.load, datasets.names()):
        counts = ", ".join(
            f"{name} {count.expressions.n if count.expressions else '?'}" for name, count in card.splits.items()
        )
        facts = (f"  expressions: {counts}", f"  licence: {card.licence}", f"  get it: {card.where}")
        print("\n".join([f"{card.name}: {card.title}", *(fold(fact, indent=4) for fact in facts)]))


@app.command("make")
def data_make(
    dataset: Annotated[str, typer.Argument(help="A generated data set: mini, mini-gres.")], data_root: Root = ""
) -> None:
    """Generate a data set (default: into the cache)."""
    from risbench import datasets
    from risbench.data import index_store, source

    card = datasets.load(dataset)
    if not card.generator:
        raise InputError(f"{dataset} is not generated. {card.where}")
    root = Path(data_root) if data_root else index_store.cache_folder() / "data"
    is_new = source.make(card, root, repair=not data_root)
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
def data_doctor(
    dataset: str, data_root: Root = "", images: Images = "", partial: Partial = False, as_json: Json = False
) -> None:
    """Examine a data set: counts, every image to its end, masks, overlaps of splits; exit with 1 if one is wrong."""
    from risbench.data import doctor, source

    opened = source.open_index(dataset, data_root, images, partial)
    findings = doctor.examine(opened)
    if not findings and not as_json:
        print(f"Nothing is wrong or odd in {opened.card.name}.")
    _report(findings, as_json)


@app.command("check")
def data_check(
    card: Annotated[str, typer.Argument(help="Path of a card, or name of a data set.")],
    data_root: Root = "",
    images: Images = "",
    as_json: Json = False,
) -> None:
    """Check a data set of your own: card, files, splits, counts, images; exit with 1 if one is wrong."""
    from risbench.data.check import check

    _report(check(card, data_root, images), as_json)


def _report(findings: Iterable[Finding], as_json: bool) -> None:
    """Print findings as they come; exit with 1 if something is wrong."""
    printed = []
    for finding in findings:
        printed.append(finding)
        if not as_json:
            print(f"{finding.kind + ':':7}{finding.text}")
    if as_json:
        print(json.dumps([finding._asdict() for finding in printed]))
    if any(finding.kind == "wrong" for finding in printed):
        raise typer.Exit(1)


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
