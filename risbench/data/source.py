"""Open a data set by its name: its card, its files below the data root, its index."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from risbench import datasets
from risbench.data import index, index_store
from risbench.data.index import Index
from risbench.datasets import Card


def open_index(dataset: str, data_root: str = "", images: str = "", partial: bool = False) -> Index:
    """Open the index of a data set; a generated data set is made in the cache on first use.

    `data_root` is a folder in the layout of the refer API (default: RISBENCH_DATA, then ./data); `images` is another
    folder of the images.
    """
    card = datasets.load(dataset)
    root = _root(data_root)
    if card.generator and not (root / card.folder).is_dir():
        root = index_store.cache_folder() / "data"
        make(card, root)
    return index.load(card, root, partial, Path(images) if images else None)


def is_available(dataset: str, data_root: str = "") -> bool:
    """Whether both annotation files of a data set lie below the data root."""
    card = datasets.load(dataset)
    return all((_root(data_root) / card.folder / name).is_file() for name in (card.refs, card.instances))


def make(card: Card, root: Path) -> bool:
    """Generate a data set below a data root unless it is there; return whether it was made now."""
    if (root / card.folder).is_dir():
        return False
    importlib.import_module(f"risbench.data.{card.generator}.make").make(root)
    return True


def _root(data_root: str) -> Path:
    return Path(data_root or os.environ.get("RISBENCH_DATA") or "data")
