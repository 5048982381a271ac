"""A method over a split: probabilities become masks at the scored size, masks a predictions file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from risbench import progress
from risbench.api import Method, Prediction, Tokenizer, peak_of
from risbench.data import images, loader, rle
from risbench.data.images import Frame
from risbench.data.index import Index, Split
from risbench.data.loader import Item, Samples
from risbench.engine import distributed
from risbench.recipe import Image, Recipe
from risbench.scoring import predictions
from risbench.scoring.predictions import Header, Parts, Predictions
from risbench.scoring.protocol import InputHalf, Protocol, ScoreHalf


@dataclass(frozen=True)
class Predictor:
    """A method in evaluation mode with the input half of a protocol."""

    model: Method
    tokenizer: Tokenizer  # cuts where the protocol says
    recipe: Recipe
    inputs: InputHalf
    rule: ScoreHalf  # says at which size masks are wanted
    fabric: Fabric

    @classmethod
    def of(cls, model: Method, tokenizer: Tokenizer, recipe: Recipe, protocol: Protocol, fabric: Fabric) -> Predictor:
        """The model and its tokenizer under a protocol."""
        given = inputs(recipe, protocol)
        return cls(model, tokenizer.limited(int(given.max_tokens)), recipe, given, protocol.score, fabric)

    def image(self) -> Image:
        """The recipe's image section under the protocol."""
        given = self.inputs
        changes = {"size": given.image_size, "geometry": given.geometry, "border": given.border}
        return self.recipe.image.model_copy(update={**changes, "resampling": given.resampling})

    def samples(self, index: Index, split: Split) -> Samples:
        """The split as this protocol reads it: what it asks, in its text and size."""
        asked = self.inputs.asked(split)
        return loader.evaluation(index, asked, str(self.inputs.text), self.tokenizer, self.image())


def inputs(recipe: Recipe, protocol: Protocol) -> InputHalf:
    """The input half of the protocol with the recipe's values where it says `recipe`."""
    values: dict[str, Any] = {
        "image_size": recipe.image.size,
        "geometry": recipe.image.geometry,
        "border": recipe.image.border,
        "resampling": recipe.image.resampling,
        "text": recipe.text.field,
        "max_tokens": recipe.text.max_tokens,
        "threshold": recipe.predict.threshold,
    }
    return protocol.input.resolved(values)


def predict(predictor: Predictor, index: Index, split: Split, header: Header, path: Path, label: str) -> Predictions:
    """Predict a split to the file `path`; batches that a killed run has stored are not computed again.

    Every process takes its share of the batches; the main one joins them. Each returns all predictions.
    """
    fabric = predictor.fabric
    parts_folder = path.with_name(f"{path.stem}.parts")
    if fabric.global_rank == 0:
        Parts(parts_folder, header)  # removes what another header left
    distributed.barrier(fabric)
    parts = Parts(parts_folder, header)
    split = predictor.inputs.asked(split)
    batches = loader.whole_images(split, predictor.recipe.predict.images_per_batch)
    done = parts.done()
    mine = [n for n in range(fabric.global_rank, len(batches), fabric.world_size) if n not in done]
    samples = predictor.samples(index, split)
    items = loader.load(samples, [batches[n] for n in mine], predictor.recipe.train.workers)
    predictor.model.eval()
    with torch.inference_mode(), progress.bar(label, len(mine), shown=fabric.global_rank == 0) as step:
        for number, item in zip(mine, items, strict=True):
            parts.add(number, _batch(predictor, item, split, header))
            step()
    distributed.barrier(fabric)
    if fabric.global_rank == 0:
        parts.merge(path)
    distributed.barrier(fabric)
    return predictions.read(path)


def speed(predictor: Predictor, index: Index, split: Split, seconds: float = 3.0) -> float:
    """Expressions per second, reading, network and encoding together, over the first batches of a split."""
    split = predictor.inputs.asked(split)
    batches = loader.whole_images(split, predictor.recipe.predict.images_per_batch)
    header = Header(dataset="", split="", input={}, method="")
    predictor.model.eval()
    count, begin = 0, time.perf_counter()
    with torch.inference_mode():
        for item in loader.load(predictor.samples(index, split), batches, predictor.recipe.train.workers):
            _batch(predictor, item, split, header)
            count += len(item.numbers)
            if time.perf_counter() - begin > seconds:
                break
    return count / (time.perf_counter() - begin)


def masks(predictor: Predictor, item: Item) -> tuple[list[Tensor], list[tuple[int, int] | None]]:
    """Masks (H, W) of bool at the size at which each image is scored, and peaks in pixels of that size.

    Both are in the order of the expressions.
    """
    batch = predictor.fabric.to_device(item.batch)
    with predictor.fabric.autocast():
        prediction = predictor.model.predict(batch)
    found: list[Tensor] = [torch.empty(0)] * len(item.numbers)
    owners = item.batch.image_index
    frames = [frame._replace(size=predictor.rule.size(frame.size)) for frame in item.frames]
    for image, frame in enumerate(frames):
        rows = (owners == image).nonzero()[:, 0]  # the expressions of this image
        own = prediction.probability[rows.to(prediction.probability.device)]  # (b, h, w)
        cut = images.cut(own, frame, float(predictor.inputs.threshold), predictor.inputs.cut_at)  # (b, H, W)
        for row, mask in zip(rows.tolist(), cut, strict=True):
            found[row] = mask
    return found, peaks(prediction, [frames[owner] for owner in owners.tolist()])


def peaks(prediction: Prediction, frames: Sequence[Frame]) -> list[tuple[int, int] | None]:
    """The peaks of a prediction in pixels of the frames' sizes; without any, the maxima of the probabilities."""
    cells = peak_of(prediction.probability) if prediction.peak is None else prediction.peak  # (B, 2)
    grid = (prediction.probability.shape[1], prediction.probability.shape[2])
    return [images.peak_to_size((r, c), grid, frame) for (r, c), frame in zip(cells.tolist(), frames, strict=True)]


def _batch(predictor: Predictor, item: Item, split: Split, header: Header) -> Predictions:
    found, places = masks(predictor, item)
    return predictions.build(
        header,
        [int(split.sent_id[number]) for number in item.numbers],
        [(mask.shape[0], mask.shape[1]) for mask in found],
        [rle.encode(mask.cpu().numpy()) for mask in found],
        places,
    )
