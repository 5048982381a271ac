"""An index that is limited to the first images of each split."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from risbench import datasets
from risbench.data import index, leaks, loader
from risbench.data.index import Index
from risbench.errors import InputError


@pytest.mark.parametrize(("limit", "images"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3]), (0, [1, 2, 3])])
def test_a_limit_keeps_every_expression_of_the_first_images(small_index: Index, limit: int, images: list[int]) -> None:
    split, whole = small_index.limited(limit).split("train"), small_index.split("train")
    kept = np.isin(whole.image_id, images)
    assert split.sent_id.tolist() == whole.sent_id[kept].tolist()
    assert split.sent == [text for text, is_kept in zip(whole.sent, kept, strict=True) if is_kept]


def test_a_limited_index_is_partial_whatever_it_leaves_out(small_index: Index) -> None:
    assert small_index.limited(9).partial and not small_index.limited(9).limited(0).partial
    assert small_index.limited(9).completely_annotated_images().tolist() == small_index.image_ids().tolist()


def test_a_limit_travels_to_other_processes(small_index: Index) -> None:
    copy = pickle.loads(pickle.dumps(small_index.limited(1)))
    assert (copy.limit, len(copy.split("train"))) == (1, 3)


def test_counts_of_the_card_are_checked_on_the_whole_files(small_root: Path, small_card: Path) -> None:
    opened = index.load(datasets.load(str(small_card)), small_root, limit=1)
    assert opened.counts("train") == {"images": 3, "refs": 6, "expressions": 10}
    text = small_card.read_text().replace("images = 3, refs = 6", "images = 1, refs = 6")
    other = small_root / "other.toml"
    other.write_text(text)
    with pytest.raises(InputError, match="holds 3 images in the split 'train' of small, but there are 1"):
        index.load(datasets.load(str(other)), small_root, limit=1)
    other.unlink()


def test_leaks_and_held_out_images_are_those_of_the_whole_data(small_index: Index) -> None:
    limited = small_index.limited(1)
    assert leaks.training_images(limited).tolist() == [1, 2, 3]
    assert loader._evaluation_images(limited) == loader._evaluation_images(small_index)
    assert loader.training_rows([limited], limited) == [(0, 0), (0, 1), (0, 2)]
