"""Train, score and compare referring image segmentation methods on the RefCOCO family.

`expressions` and `score` are for notebooks. What is heavy is imported when they are called, so that this import is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from risbench.scoring.predictions import Predictions

__version__ = "0.1.0"


class Expression(NamedTuple):
    """What a model is asked: the image, and what to find in it."""

    sent_id: int
    image: Path
    sent: str
    """The expression as most code reads it: lower case, without punctuation."""
    raw: str
    """The expression as it was typed."""


def expressions(
    dataset: str, split: str, data_root: str = "", images: str = "", partial: bool = False
) -> list[Expression]:
    """Every expression of a split, those of an image one after another.

    `data_root` (default: RISBENCH_DATA, then ./data) holds the layout of the refer API, `images` overrides the folder
    of the images, `partial` accepts an incomplete copy.
    """
    from risbench.data import source

    index = source.open_index(dataset, data_root, images, partial)
    asked = index.split(split)
    places = map(index.image_path, asked.image_id.tolist())
    return list(map(Expression, asked.sent_id.tolist(), places, asked.sent, asked.raw))


def score(
    predictions: str | Path | Predictions | Mapping[int, Any] | Iterable[tuple[int, Any]],
    dataset: str,
    split: str,
    protocol: str = "original",
    data_root: str = "",
    partial: bool = False,
    boundaries: bool = False,
) -> dict[str, Any]:
    """Score a predictions file, or masks by sent_id, each a bool array or tensor (height, width) of its image's size.

    Pairs of sent_id and mask are taken one by one, so that a generator keeps one mask in memory. Returns what `risbench
    score --json` prints, percentages and counts, and under `intervals` the 95 % interval of each metric.
    """
    from risbench.data import source
    from risbench.scoring import formats, statistics
    from risbench.scoring import protocol as protocols
    from risbench.scoring import score as scoring

    chosen, index = protocols.load(protocol), source.open_index(dataset, data_root, partial=partial)
    scored = scoring.score(formats.of(predictions), index, split, chosen, boundaries)
    return {**scored.summary, "intervals": statistics.intervals(scored.rows, chosen)}
