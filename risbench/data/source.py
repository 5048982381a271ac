"""Open a data set by name: its card, its files below the data root, its index."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from risbench import datasets
from risbench.data import index
from risbench.data.index import Index
from risbench.datasets import Card


def open_index(dataset: str, data_root: str = "", images: str = "", partial: bool = False) -> Index:
    """Open the index of a data set; one that is generated is made in the cache on first use.

    `data_root` holds the layout of the refer API (default: RISBENCH_DATA, then ./data); `images` overrides the folder
    of the images.
    """
    card = datasets.load(dataset)
    root = _root(data_root)
    if card.generator and not (root / card.folder).is_dir():
        root = index.cache_folder() / "data"
        make(card, root)
    return index.load(card, root, partial, Path(images) if images else None)


def is_at_hand(dataset: str, data_root: str = "") -> bool:
    """Whether both annotation files of a data set lie below the data root."""
    card = datasets.load(dataset)
    return all((_root(data_root) / card.folder / name).is_file() for name in (card.refs, card.instances))


def make(card: Card, root: Path) -> bool:
    """Generate a data set below a data root unless it is there; tell whether it was made now."""
    if (root / card.folder).is_dir():
        return False
    importlib.import_module(f"risbench.data.{card.generator}.make").make(root)
    return True


def _root(data_root: str) -> Path:
    return Path(data_root or os.environ.get("RISBENCH_DATA") or "data")
