"""Measure what the mask proposals of a trained CoupAlign are worth, and what they cover.

    python tools/coupalign_interventions.py runs/ID/checkpoints/best --dataset mini --split val

oIoU is measured as the network is, and after changes of the trained network: uniform weights of the masks; the weights
that the sentence of another referent of the image gives, or the next expression's; without what the masks gather at
the pixels (Y_N), without the logit of the weighted masks, without both, and with both averaged over the image. Then the
proposals, cut at 0.5: how far they overlap each other, and which objects of the image they cover (IoU above 0.5).
Nothing is trained; the results are printed as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from risbench.data import images, loader, rle, source
from risbench.data.index import Index
from risbench.data.loader import Item
from risbench.data.split import Ints, Split
from risbench.engine import distributed
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.predict import Predictor, predict_masks
from risbench.errors import InputError
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Predictions
from risbench.scoring.score import score_predictions

COVERED = 0.5  # IoU above which a proposal covers an object
_AS_IT_IS = "as it is"
Change = Callable[[Any], Any]  # of the proposals, or of what the alignment returns


class Coverage(NamedTuple):
    """What the proposals of one expression cover."""

    proposals: int  # that are not empty at 0.5
    overlap: float  # mean IoU of two of them; nan: there are no two
    referent: bool
    another: bool  # another object of the image
    objects: float  # share of the image's objects


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the measurements and return 0, or 2 for wrong input."""
    options = parser().parse_args(arguments)
    try:
        print(json.dumps(measure(options.checkpoint, options.dataset, options.split, options.data_root), indent=2))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("checkpoint", type=Path, help="folder, such as runs/ID/checkpoints/best")
    options.add_argument("--dataset", required=True, help="name or card")
    options.add_argument("--split", required=True)
    options.add_argument("--data-root", default="", help="folder of the data sets; default: RISBENCH_DATA")
    return options


def measure(checkpoint: Path, dataset: str, split_name: str, data_root: str = "") -> dict[str, Any]:
    """Measure a checkpoint on a split, under the protocol `original`."""
    protocol, index = protocols.load("original"), source.open_index(dataset, data_root)
    opened = Checkpoint(checkpoint)
    model, tokenizer = opened.model()
    head: Any = getattr(model, "head", None)
    if getattr(head, "align", None) is None:
        raise InputError(f"{checkpoint} has no sentence-mask alignment. Give a checkpoint of CoupAlign with masks.")
    fabric = distributed.start(opened.recipe.train.precision)
    predictor = Predictor.build(model.to(fabric.device).eval(), tokenizer, opened.recipe, protocol, fabric)
    split = predictor.input_half.select_expressions(index.split(split_name))
    counts, coverage = _walk(predictor, head.align, index, split)
    scores = {name: _score(rows, index, split, predictor)["oIoU"] for name, rows in counts.items()}
    return {"expressions": len(split), "oIoU": scores, **_summary(coverage)}


def _walk(
    predictor: Predictor, align: Any, index: Index, split: Split
) -> tuple[dict[str, list[bytes]], list[Coverage]]:
    """Predict every expression under every change, and examine its proposals."""
    batches = loader.evaluation_batches(split, predictor.recipe.predict.images_per_batch)
    items = loader.load(predictor.samples(index, split), batches, 0)
    counts: dict[str, list[bytes]] = {}
    coverage: list[Coverage] = []
    with torch.inference_mode():
        for item in items:
            plain = _predict_as_it_is(predictor, align, counts, item)
            for name, weights in other_weights(plain.weights, split, item).items():
                with changed_proposals(align, _weighted_by(weights)):
                    _add(counts, name, predictor, item)
            for name, change in _WITHOUT.items():
                with changed_output(align, change):
                    _add(counts, name, predictor, item)
            coverage += _examine(predictor, plain.masks.float().sigmoid(), index, split, item)
    return counts, coverage


def _predict_as_it_is(predictor: Predictor, align: Any, counts: dict[str, list[bytes]], item: Item) -> Any:
    """Predict without a change; return the proposals (weights and logits of the masks)."""
    proposals: list[Any] = []

    def keep(made: Any) -> Any:
        proposals.append(made)
        return made

    with changed_proposals(align, keep):
        _add(counts, _AS_IT_IS, predictor, item)
    return proposals[0]


def _weighted_by(weights: Tensor) -> Change:
    def change(made: Any) -> Any:
        return made._replace(weights=weights)

    return change


def _nothing_gathered(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(output[0]), output[1]


def _no_signal(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return output[0], torch.zeros_like(output[1])


def _neither(output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return _nothing_gathered(_no_signal(output))


def _averaged(output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(part.mean(dim=(-2, -1), keepdim=True).expand_as(part) for part in output)


_WITHOUT: dict[str, Change] = {
    "nothing gathered": _nothing_gathered,
    "no logit of the masks": _no_signal,
    "neither": _neither,
    "both averaged over the image": _averaged,
}


def other_weights(weights: Tensor, split: Split, item: Item) -> dict[str, Tensor]:
    """Return the weights of each intervention: (B, N) each."""
    rows = torch.tensor(other_referents(split.image_id[item.positions], split.ann_id[item.positions]))
    return {
        "uniform weights": torch.full_like(weights, 1 / weights.shape[1]),
        "weights of another referent of the image": weights[rows.to(weights.device)],
        "weights of the next expression": weights.roll(-1, dims=0),
    }


def other_referents(image_ids: Ints, ann_ids: Ints) -> list[int]:
    """Return for each expression the next one, in a circle, of the same image and another referent, or itself."""
    rows = []
    for row, (image_id, ann_id) in enumerate(zip(image_ids, ann_ids, strict=True)):
        others = np.flatnonzero((image_ids == image_id) & (ann_ids != ann_id))
        later = others[others > row]
        rows.append(int(later[0] if len(later) else others[0] if len(others) else row))
    return rows


@contextmanager
def changed_proposals(align: Any, change: Change) -> Iterator[None]:
    """Change the proposals that the alignment makes."""
    make = align.align
    align.align = lambda *inputs: change(make(*inputs))
    try:
        yield
    finally:
        del align.align  # what hides the method


@contextmanager
def changed_output(align: Any, change: Change) -> Iterator[None]:
    """Change what the alignment gives to the pixels: the map Y_N and the logit of the weighted masks."""
    hook = align.register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        hook.remove()


def _add(counts: dict[str, list[bytes]], name: str, predictor: Predictor, item: Item) -> None:
    masks, *_ = predict_masks(predictor, item)
    counts.setdefault(name, []).extend(rle.encode(mask.cpu().numpy()) for mask in masks)


def _score(counts: list[bytes], index: Index, split: Split, predictor: Predictor) -> dict[str, Any]:
    sizes = list(zip(split.height.tolist(), split.width.tolist(), strict=True))
    predictions = Predictions.build(None, split.sent_id.tolist(), sizes, counts, [None] * len(counts))
    return score_predictions(predictions, index, split.name, protocols.load("original")).summary


def _examine(predictor: Predictor, shares: Tensor, index: Index, split: Split, item: Item) -> Iterator[Coverage]:
    """Compare the proposals of each expression, (B, N, h, w), with each other and with the objects of its image."""
    for row, (position, image) in enumerate(zip(item.positions, item.batch.image_index.tolist(), strict=True)):
        frame = item.frames[image]
        masks = images.to_masks(shares[row], frame, 0.5, predictor.input_half.cut_at)  # (N, H, W)
        candidates = index.candidates(int(split.image_id[position]))
        objects = torch.stack([torch.from_numpy(rle.decode(c.counts, frame.size)) for c in candidates])  # (K, H, W)
        members = index.members(int(split.ann_id[position]))
        yield examine(masks.cpu(), objects, torch.tensor([c.ann_id in members for c in candidates]))


def examine(masks: Tensor, objects: Tensor, is_referent: Tensor) -> Coverage:
    """Compare masks (N, H, W) with each other and with objects (K, H, W), some of which are the referent (K,)."""
    masks = masks[masks.flatten(1).any(dim=1)]
    pairs = torch.ones(len(masks), len(masks)).triu(diagonal=1) > 0
    overlap = pairwise_iou(masks, masks)[pairs].mean()  # nan without pairs
    covered = (pairwise_iou(masks, objects) > COVERED).any(dim=0)  # (K,)
    return Coverage(
        proposals=len(masks),
        overlap=float(overlap),
        referent=bool(covered[is_referent].any()),
        another=bool(covered[~is_referent].any()),
        objects=float(covered.float().mean()),
    )


def pairwise_iou(masks: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of all pairs, none of them empty: (N, H, W) and (K, H, W) to (N, K)."""
    a, b = masks.flatten(1).float(), others.flatten(1).float()
    intersection = a @ b.T
    return intersection / (a.sum(dim=1)[:, None] + b.sum(dim=1)[None] - intersection)


def _summary(coverage: Sequence[Coverage]) -> dict[str, float | None]:
    pairs = [expression.overlap for expression in coverage if expression.proposals > 1]
    proposals, _, referent, another, objects = np.array(coverage, dtype=np.float64).T
    return {
        "proposals that are not empty": proposals.mean(),
        "IoU of two proposals": sum(pairs) / len(pairs) if pairs else None,
        "expressions whose referent is proposed, %": 100 * referent.mean(),
        "expressions with another object proposed, %": 100 * another.mean(),
        "objects of the image proposed, %": 100 * objects.mean(),
    }


if __name__ == "__main__":
    sys.exit(main())
