"""Predictions: the order of a split, what is refused, and no-target predictions."""

from __future__ import annotations

import numpy as np
import pytest

from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring.predictions import Predictions

SIZE = (4, 6)
MASK = rle.encode(np.tri(*SIZE, dtype=np.bool_))


def some(*sent_ids: int) -> Predictions:
    """Predictions with a peak for each even sent_id."""
    peaks = [None if sent_id % 2 else (sent_id % 4, 5) for sent_id in sent_ids]
    return Predictions.build(None, sent_ids, [SIZE] * len(sent_ids), [MASK] * len(sent_ids), peaks)


def test_predictions_are_sorted_by_the_order_of_the_split(small_index: Index) -> None:
    split = small_index.split("val")
    ordered = some(*split.sent_id[[2, 0, 3, 1]].tolist()).in_order_of(split)
    assert ordered.sent_id.tolist() == split.sent_id.tolist()
    assert ordered.peak_row.tolist() == [-1 if i % 2 else i % 4 for i in split.sent_id.tolist()]


def test_incomplete_duplicate_and_foreign_predictions_are_refused_by_id(small_index: Index) -> None:
    split = small_index.split("val")
    ids = split.sent_id.tolist()
    with pytest.raises(InputError, match=rf"Predicted more than once: sent_id {ids[1]} \(1 in all\)"):
        some(*ids, ids[1]).in_order_of(split)
    with pytest.raises(InputError, match=r"Not in split 'val' of small: sent_id 1, 2, 3, 4, 5, ... \(6 in all\)"):
        some(*ids, 6, 5, 4, 3, 2, 1).in_order_of(split)
    with pytest.raises(InputError, match=rf"Without a prediction: sent_id {ids[0]}, {ids[3]} \(2 in all\)"):
        some(ids[2], ids[1]).in_order_of(split)


def test_selected_rows_keep_their_no_target_flags() -> None:
    flags = [True, None, False]
    predictions = Predictions.build(None, [1, 2, 3], [SIZE] * 3, [MASK] * 3, [None] * 3, flags)
    taken = predictions.take(np.array([2, 0]))
    assert taken.no_target is not None and taken.no_target.tolist() == [0, 1]


def test_an_empty_mask_means_no_target_unless_a_flag_says_otherwise() -> None:
    empty = rle.encode(np.zeros(SIZE, bool))
    unflagged = Predictions.build(None, [1, 2, 3], [SIZE] * 3, [empty, MASK, empty], [None] * 3)
    assert unflagged.predicts_no_target().tolist() == [True, False, True]
    flagged = Predictions.build(None, [1, 2, 3], [SIZE] * 3, [empty, MASK, empty], [None] * 3, [False, True, None])
    assert flagged.predicts_no_target().tolist() == [False, True, True]
