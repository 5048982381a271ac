"""A split: its expressions as columns, and the ways in which a protocol asks them."""

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
    ann_id: Ints  # its target: an annotation, or below zero a set of them (see `targets`)
    image_id: Ints
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    raw: list[str]
    sent: list[str]
    kind: list[str]

    def __len__(self) -> int:
        return len(self.sent_id)

    def take(self, rows: NDArray[np.intp]) -> Split:
        """Some of its expressions, in this order."""
        ids: dict[str, Any] = {key: getattr(self, key)[rows] for key in IDS}
        texts: dict[str, Any] = {key: [getattr(self, key)[row] for row in rows] for key in TEXTS}
        return Split(self.name, **ids, **texts)

    def one_of_each_ref(self, seed: int) -> Split:
        """One expression of each ref at random: which one depends on the seed and the ref alone, not on the order."""
        drawn = [own[np.random.default_rng((seed, ref)).integers(len(own))] for ref, own in self._refs()]
        return self.take(np.sort(drawn))

    def joined(self) -> Split:
        """The sentences of each ref as one expression: joined by spaces in the order of their ids, under the first."""
        rows = sorted((own for _, own in self._refs()), key=lambda own: int(own[0]))
        raw, sent = ([" ".join(texts[row] for row in own) for own in rows] for texts in (self.raw, self.sent))
        first = self.take(np.array([own[0] for own in rows]))
        return replace(first, raw=raw, sent=sent, kind=[""] * len(rows))  # a kind is that of one sentence

    def _refs(self) -> list[tuple[int, NDArray[np.intp]]]:
        """Every ref, rising, and its rows by sent_id."""
        order = np.lexsort((self.sent_id, self.ref_id))
        refs, starts = np.unique(self.ref_id[order], return_index=True)
        return list(zip(refs.tolist(), np.split(order, starts[1:]), strict=True))
