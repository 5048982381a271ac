"""A split: its expressions as columns, and the selections of them that protocols evaluate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
IDS = ("sent_id", "ref_id", "ann_id", "image_id", "height", "width")
TEXTS = ("raw", "sent", "kind")


@dataclass(frozen=True, eq=False)
class Split:
    """The expressions of a split, by image_id, then sent_id: columns of equal length."""

    name: str
    sent_id: Ints
    ref_id: Ints
    ann_id: Ints  # the target: an annotation, or below zero a set of annotations or no-target (data/targets.py)
    image_id: Ints
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    raw: list[str]
    sent: list[str]
    kind: list[str]
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.sent_id)

    def texts(self, field: str) -> list[str]:
        """Return the text of each expression: the field raw or sent of the annotation file."""
        return self.raw if field == "raw" else self.sent

    def take(self, rows: NDArray[np.intp]) -> Split:
        """Return the expressions of these rows, in this order."""
        ids: dict[str, Any] = {key: getattr(self, key)[rows] for key in IDS}
        texts: dict[str, Any] = {key: [getattr(self, key)[row] for row in rows] for key in TEXTS}
        return Split(self.name, **ids, **texts, dataset=self.dataset)

    def draw_one_per_ref(self, seed: int) -> Split:
        """Draw one expression of each ref; the draw depends on the seed and the ref_id alone, not on the order."""
        drawn = [rows[np.random.default_rng((seed, ref_id)).integers(len(rows))] for ref_id, rows in self._refs()]
        return self.take(np.sort(drawn))

    def join_by_ref(self) -> Split:
        """Join the sentences of each ref by spaces, in the order of their ids; the first sent_id is kept."""
        refs = sorted((rows for _, rows in self._refs()), key=lambda rows: int(rows[0]))
        raw, sent = ([" ".join(texts[row] for row in rows) for rows in refs] for texts in (self.raw, self.sent))
        first = self.take(np.array([rows[0] for rows in refs]))
        return replace(first, raw=raw, sent=sent, kind=[""] * len(refs))  # the sentences may differ in kind

    def _refs(self) -> list[tuple[int, NDArray[np.intp]]]:
        """Return every ref_id, rising, with its rows by sent_id."""
        order = np.lexsort((self.sent_id, self.ref_id))
        ref_ids, starts = np.unique(self.ref_id[order], return_index=True)
        return list(zip(ref_ids.tolist(), np.split(order, starts[1:]), strict=True))
