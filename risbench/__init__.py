"""Train, score and compare referring image segmentation methods on the RefCOCO family.

`expressions` and `score` are for notebooks. They import heavy libraries when they are called, so that importing this
package is fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from risbench.scoring.predictions import Predictions

__version__ = "0.2.0"


class Expression(NamedTuple):
    """An expression of a split and the path of its image."""

    sent_id: int
    image: Path
    sent: str
    """The expression as most code reads it: lower case, without punctuation."""
    raw: str
    """The expression as it was typed."""


def expressions(
    dataset: str, split: str, data_root: str = "", images: str = "", partial: bool = False
) -> list[Expression]:
    """Return every expression of a split, image by image.

    `data_root` is a folder in the layout of the refer API (default: RISBENCH_DATA, then ./data), `images` overrides the
    folder of the images, `partial` accepts an incomplete copy. Raises InputError for an unknown data set or split.
    """
    from risbench.data import source

    index = source.open_index(dataset, data_root, images, partial)
    columns = index.split(split)
    images_of_expressions = map(index.image_path, columns.image_id.tolist())
    return list(map(Expression, columns.sent_id.tolist(), images_of_expressions, columns.sent, columns.raw))


def score(
    predictions: str | Path | Predictions | Mapping[int, Any] | Iterable[tuple[int, Any]],
    dataset: str,
    split: str,
    protocol: str = "original",
    data_root: str = "",
    partial: bool = False,
    boundaries: bool = False,
) -> dict[str, Any]:
    """Score a predictions file, or masks by sent_id: bool arrays or tensors (height, width) of the image's size.

    Pairs of sent_id and mask are encoded one by one, so that a generator keeps one mask in memory. Returns the output
    of `risbench score --json`: percentages, counts, and under `intervals` the 95 % interval of each metric, None where
    too few images have a value. Raises InputError unless there is one prediction for each expression.
    """
    from risbench.data import source
    from risbench.scoring import formats
    from risbench.scoring import protocol as protocols
    from risbench.scoring.score import score_predictions, summary_with_intervals

    chosen, index = protocols.load(protocol), source.open_index(dataset, data_root, partial=partial)
    scored = score_predictions(formats.to_predictions(predictions), index, split, chosen, boundaries)
    return summary_with_intervals(scored, chosen)
