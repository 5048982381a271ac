"""Open a data set by its name: its card, its files below the data root, its index."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from risbench import datasets
from risbench.data import index, index_store
from risbench.data.index import Index
from risbench.datasets import Card
from risbench.errors import DATA_ROOT, InputError, unknown


def open_index(dataset: str, data_root: str = "", images: str = "", partial: bool = False, limit: int = 0) -> Index:
    """Open the index of a data set; a generated data set is made in the cache on first use.

    `data_root` is a folder in the layout of the refer API (default: RISBENCH_DATA, then ./data); `images` is another
    folder of the images; `limit` keeps the first images of each split.
    """
    card = datasets.load(dataset)
    folder = Path(images) if images else None
    return index.load(card, data_root_of(card, data_root), partial, folder, limit)


def data_root_of(card: Card, data_root: str = "") -> Path:
    """Return the folder in which the files of a data set lie; a generated one is made in the cache on first use.

    Raises InputError for a data root without effect.
    """
    check_data_root([card], data_root)
    root = _root(data_root)
    if card.generator and not (root / card.folder).is_dir():
        root = index_store.cache_folder() / "data"
        with index_store.explaining_the_cache():
            make(card, root, repair=True)
    return root


def check_data_root(cards: Sequence[Card], data_root: str) -> None:
    """Refuse a data root without effect, since all of these data sets are generated and it holds none of them."""
    if data_root and cards and all(card.generator and not (_root(data_root) / card.folder).is_dir() for card in cards):
        raise InputError(
            f"The data root {data_root} has no effect: it holds no files of "
            f"{' or '.join(dict.fromkeys(card.name for card in cards))}, which is generated. Leave {DATA_ROOT} out."
        )


def used_root(names: Iterable[str], data_root: str = "") -> Path | None:
    """Return the data root that holds files of one of these data sets; None if all of them are generated elsewhere."""
    root = _root(data_root)
    needs_root = (not card.generator or (root / card.folder).is_dir() for card in map(datasets.load, names))
    return root if any(needs_root) else None


def is_available(dataset: str, data_root: str = "") -> bool:
    """Whether both annotation files of a data set lie below the data root."""
    card = datasets.load(dataset)
    return all((_root(data_root) / card.folder / name).is_file() for name in (card.refs, card.instances))


def make(card: Card, root: Path, repair: bool = False) -> bool:
    """Generate a data set below a data root unless it is there; return whether it was made now.

    `repair` writes files again that are damaged or missing, and otherwise refused.
    """
    generators = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    if card.generator not in generators:  # a card may come from elsewhere: it names no other module
        raise unknown(f"generator in the card of {card.name}:", card.generator, generators, "Leave the key out.")
    return bool(importlib.import_module(f"risbench.data.{card.generator}.make").make(root, repair=repair))


def _root(data_root: str) -> Path:
    return Path(data_root or os.environ.get("RISBENCH_DATA") or "data")
