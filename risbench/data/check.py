"""Check a data set of one's own, step by step: its card, its files, its splits and counts, and its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from risbench import datasets
from risbench.data import index, source
from risbench.data.doctor import Finding
from risbench.data.index import Index
from risbench.datasets import Card
from risbench.errors import InputError


def check(dataset: str, data_root: str = "", images: str = "") -> Iterator[Finding]:
    """Yield a sentence for each demand: met, wrong, or only worth a note. What builds on a wrong one is left out."""
    if defects := datasets.defects(dataset):
        yield from (Finding("wrong", defect) for defect in defects)
        return
    card = datasets.load(dataset)
    yield Finding("ok", f"The card of {card.name} has every key that is needed, and none that is unknown.")
    root = source.data_root_of(card, data_root)
    try:
        opened = index.open_unchecked(card, root, Path(images) if images else None)
    except InputError as error:
        yield Finding("wrong", str(error))
        return
    yield Finding("ok", f"{root / card.folder} holds {card.refs} and {card.instances}, and both can be read.")
    for name in dict.fromkeys([*card.splits, *opened.stored_splits()]):
        yield from _check_split(opened, name)
    yield from _check_roles(card)
    yield _check_images(opened)


def _check_split(opened: Index, name: str) -> Iterator[Finding]:
    counts = opened.counts(name)
    counted = ", ".join(f"{n} {unit}" for unit, n in counts.items())
    if name not in opened.card.splits:
        yield Finding("wrong", f"{name}: the files hold {counted}, but the card has no [splits.{name}]. Add it.")
        return
    if not counts["expressions"]:
        yield Finding("wrong", f"{name}: the card has this split, but the files hold no expression of it.")
        return
    stated = opened.card.splits[name].counts()
    wrong = {unit: count for unit, count in stated.items() if counts[unit] != count.n}
    for unit, count in wrong.items():
        where = count.source or "no source is named, so that a run only warns"
        text = f"{name}: the files hold {counts[unit]} {unit}, the card says {count.n} ({where})."
        yield Finding("wrong" if count.source else "note", text)
    if not wrong:
        yield Finding("ok", f"{name}: {counted}{', as the card says' if stated else '; the card states no counts'}.")


def _check_roles(card: Card) -> Iterator[Finding]:
    training = [name for name, split in card.splits.items() if not split.evaluation]
    if "train" not in training:
        yield Finding("note", "No method can be trained on it: there is no split train with evaluation = false.")
    elif "val" not in card.splits:
        yield Finding("note", "A training needs a split val as well, which is scored after every epoch.")
    if len(training) == len(card.splits):
        yield Finding("wrong", "No result can be reported on it: every split has evaluation = false.")


def _check_images(opened: Index) -> Finding:
    folder = opened.images_folder
    if not folder.is_dir():
        cure = "Copy it there, correct `images` in the card, or give --images."
        return Finding("wrong", f"The folder of images {folder} does not exist. {cure}")
    splits = opened.split_names()
    number = len({image_id for name in splits for image_id in opened.split(name).image_id.tolist()})
    if missing := opened.missing_images(splits):
        return Finding("wrong", f"{len(missing)} of {number} images are not in {folder}, first {missing[0].name}.")
    return Finding("ok", f"{folder} holds every image ({number}); risbench data doctor reads each to its end.")
