"""Predictions: one mask for each expression, stored as columns, and a header that says what made the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from risbench.data import rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError

FORMAT = 1


class Header(BaseModel):
    """What made the masks. It is stored in the metadata of a predictions file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    dataset: str
    index: str = ""  # sha256 of the annotation files
    split: str
    limit: int = Field(default=0, ge=0)  # images of the split that are predicted, the first ones; 0: all
    training_limit: int = Field(default=0, ge=0)  # images of each split in training; 0: all
    input: dict[str, Any]  # the resolved input half of the protocol
    scored_at: Literal["original"] | tuple[int, int] = "original"  # size of the masks, as in protocol.ScoreHalf
    method: str
    variants: list[str] = []
    checkpoint: str = ""  # sha256 of the weights
    code: str = ""  # sha256 of the method's code that predicted; files from before 0.3 do not have it
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}

    def limit_index(self, index: Index) -> Index:
        """Return a data set that is limited to the images that are predicted. Raises InputError for a larger limit."""
        if self.limit and index.limit > self.limit:
            raise InputError(
                f"Only the first {self.limit} images of {self.dataset} {self.split} are predicted, not {index.limit}: "
                "leave the limit out, or predict again."
            )
        return index.limited(index.limit or self.limit)


@dataclass(frozen=True)
class Predictions:
    """Columns of equal length with one entry for each expression. Files of other programs have no header."""

    header: Header | None
    sent_id: NDArray[np.int64]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    counts: list[bytes]  # COCO compressed RLE
    peak_row: NDArray[np.int32]  # -1: no peak
    peak_col: NDArray[np.int32]
    no_target: NDArray[np.int8] | None = None  # 1 no target, 0 a target, -1 an empty mask means no target; None: all -1
    largest_probability: NDArray[np.float32] | None = None  # of the method's map; NaN or None: not known

    @classmethod
    def build(
        cls,
        header: Header | None,
        sent_ids: Sequence[int],
        sizes: Sequence[rle.Size],
        counts: Sequence[bytes],
        peaks: Sequence[tuple[int, int] | None],
        no_target: Sequence[bool | None] | None = None,
        largest_probability: Sequence[float] | None = None,
    ) -> Predictions:
        """Build the columns from one entry for each expression."""
        height, width = np.array(sizes, np.int32).reshape(-1, 2).T
        row, column = np.array([(-1, -1) if peak is None else peak for peak in peaks], np.int32).reshape(-1, 2).T
        flags = None if no_target is None else np.array([-1 if flag is None else flag for flag in no_target], np.int8)
        largest = None if largest_probability is None else np.array(largest_probability, np.float32)
        return cls(header, np.array(sent_ids, np.int64), height, width, list(counts), row, column, flags, largest)

    def __len__(self) -> int:
        return len(self.sent_id)

    def take(self, rows: NDArray[np.intp]) -> Predictions:
        """Select rows, in the order of the argument."""
        return Predictions(
            self.header,
            self.sent_id[rows],
            self.height[rows],
            self.width[rows],
            [self.counts[row] for row in rows],
            self.peak_row[rows],
            self.peak_col[rows],
            None if self.no_target is None else self.no_target[rows],
            None if self.largest_probability is None else self.largest_probability[rows],
        )

    def in_order_of(self, split: Split, selected: Split | None = None) -> Predictions:
        """Sort by the order of a split. Raises InputError unless there is one prediction for each of its expressions.

        If only the expressions of `selected` are needed, only these must be there, and others of the split are dropped.
        """
        selected = selected or split
        ids, times = np.unique(self.sent_id, return_counts=True)
        refuse_expressions("Predicted more than once", ids[times > 1], "Keep one row for each.")
        unknown = np.setdiff1d(ids, split.sent_id)
        cure = "Give the data set and the split that were predicted (--dataset and --split)."
        where = f" of {split.dataset}" if split.dataset else ""
        refuse_expressions(f"Not in split {split.name!r}{where}", unknown, cure)
        missing = selected.sent_id[~np.isin(selected.sent_id, ids)]
        drawn = " that are evaluated" if len(selected) < len(split) else ""
        cure = f"Predict all {len(selected)} expressions of split {split.name!r}{drawn}."
        refuse_expressions("Without a prediction", missing, cure)
        order = np.argsort(self.sent_id)
        return self.take(order[np.searchsorted(self.sent_id, selected.sent_id, sorter=order)])

    def predicts_no_target(self) -> NDArray[np.bool_]:
        """Whether each prediction is that the expression has no target."""
        sizes = zip(self.height.tolist(), self.width.tolist(), strict=True)
        empty = np.array([rle.area(counts, size) == 0 for counts, size in zip(self.counts, sizes, strict=True)], bool)
        return empty if self.no_target is None else np.where(self.no_target < 0, empty, self.no_target == 1)


def refuse_expressions(problem: str, sent_ids: NDArray[np.int64], cure: str) -> None:
    """Raise an InputError that names the first of these expressions, if there are any."""
    if len(sent_ids):
        first = ", ".join(str(sent_id) for sent_id in sent_ids[:5]) + (", ..." if len(sent_ids) > 5 else "")
        raise InputError(f"{problem}: sent_id {first} ({len(sent_ids)} in all). {cure}")
