"""Predict a split: probabilities become masks at the scored size, and masks become a predictions file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

import risbench
from risbench import files, progress
from risbench.api import Method, Prediction, Tokenizer, peak_of
from risbench.data import images, loader, rle
from risbench.data.images import Frame
from risbench.data.index import Index
from risbench.data.loader import EvaluationSamples, Item
from risbench.data.split import Split
from risbench.engine import distributed, sanity
from risbench.errors import InputError
from risbench.recipe import Image, Recipe
from risbench.scoring import prediction_parts, predictions_file
from risbench.scoring.prediction_parts import PredictionParts
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import InputHalf, Protocol, ScoreHalf

_PACKAGE = Path(risbench.__file__).parent
# hashed on import, since files may change while a run trains; the version does not tell a change between releases
_CODE_HASH = files.sha256_of_files(_PACKAGE, _PACKAGE.rglob("*.py"))


@dataclass(frozen=True)
class Predictor:
    """A method in evaluation mode, with the halves of a protocol."""

    model: Method
    tokenizer: Tokenizer  # cuts at the protocol's max_tokens
    recipe: Recipe
    input_half: InputHalf  # resolved: nothing is left to the recipe
    score_half: ScoreHalf  # sets the size of the masks
    fabric: Fabric

    @classmethod
    def build(
        cls, model: Method, tokenizer: Tokenizer, recipe: Recipe, protocol: Protocol, fabric: Fabric
    ) -> Predictor:
        """Build the predictor of a model under a protocol."""
        resolved = resolve_input(recipe, protocol)
        return cls(model, tokenizer.limited(int(resolved.max_tokens)), recipe, resolved, protocol.score, fabric)

    def image_settings(self) -> Image:
        """Return the recipe's image section with the values of the protocol."""
        half = self.input_half
        changes = {"size": half.image_size, "geometry": half.geometry, "border": half.border}
        return self.recipe.image.model_copy(update={**changes, "resampling": half.resampling})

    def samples(self, index: Index, split: Split) -> EvaluationSamples:
        """Return the expressions of a split that the protocol evaluates, in its text and image size."""
        evaluated = self.input_half.select_expressions(split)
        return EvaluationSamples(index, evaluated, str(self.input_half.text), self.tokenizer, self.image_settings())


def resolve_input(recipe: Recipe, protocol: Protocol) -> InputHalf:
    """Return the input half of the protocol, with the recipe's values in place of `recipe`."""
    values: dict[str, Any] = {
        "image_size": recipe.image.size,
        "geometry": recipe.image.geometry,
        "border": recipe.image.border,
        "resampling": recipe.image.resampling,
        "text": recipe.text.field,
        "max_tokens": recipe.text.max_tokens,
        "threshold": recipe.predict.threshold,
    }
    return protocol.input.resolve(values)


def predict_split(
    predictor: Predictor,
    index: Index,
    split: Split,
    header: Header,
    path: Path,
    label: str,
    origin: str = "",
    seconds: float = prediction_parts.SECONDS,
) -> Predictions:
    """Predict a split to the file `path`; batches that a killed run has stored are not computed again.

    They are computed again if header, images, device or code differ, or `origin`, which names what else the masks
    depend on. Each process predicts its share of the batches, which it stores every `seconds` or more seldom, and the
    main process joins them. Every process returns all predictions.
    """
    fabric = predictor.fabric
    split = predictor.input_half.select_expressions(split)
    batches = loader.evaluation_batches(split, predictor.recipe.predict.images_per_batch)
    origin = distributed.from_main(fabric, "\n".join([origin, *_origin(predictor, index, split)]))
    folder = path.with_name(f"{path.stem}.parts")
    parts = PredictionParts(folder, header, [split.sent_id[batch] for batch in batches], origin, seconds)
    if fabric.is_global_zero:
        parts.prepare()
    distributed.barrier(fabric)
    stored = parts.stored_batches()
    numbers = [number for number in range(fabric.global_rank, len(batches), fabric.world_size) if number not in stored]
    samples = predictor.samples(index, split)
    items = loader.load(samples, [batches[number] for number in numbers], predictor.recipe.train.workers)
    predictor.model.eval()
    with torch.inference_mode(), progress.bar(label, len(numbers), shown=fabric.is_global_zero) as step:
        try:
            for number, item in zip(numbers, items, strict=True):
                parts.add(number, _predict_batch(predictor, item, split, header))
                step()
        finally:  # a run that is stopped loses no batch
            parts.store()
    distributed.barrier(fabric)
    if fabric.is_global_zero:
        parts.merge(path)
    distributed.barrier(fabric)
    return predictions_file.read(path)


def _origin(predictor: Predictor, index: Index, split: Split) -> Iterator[str]:
    """Name what masks depend on besides the header: the device, the code of risbench, and the images as files."""
    yield distributed.device_name(predictor.fabric)
    yield _CODE_HASH
    yield str(index.images_folder.resolve())
    for image_id in np.unique(split.image_id).tolist():
        path = index.image_path(image_id)
        try:
            status = path.stat()
        except OSError:  # the loader says which image is missing
            continue
        yield f"{path.name} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def measure_speed(predictor: Predictor, index: Index, split: Split, seconds: float = 3.0) -> float:
    """Measure expressions per second over the first batches of a split: reading, network and mask encoding."""
    split = predictor.input_half.select_expressions(split)
    batches = loader.evaluation_batches(split, predictor.recipe.predict.images_per_batch)
    header = Header(dataset="", split="", input={}, method="")
    predictor.model.eval()
    count, start = 0, time.perf_counter()
    with torch.inference_mode():
        for item in loader.load(predictor.samples(index, split), batches, predictor.recipe.train.workers):
            _predict_batch(predictor, item, split, header)
            count += len(item.positions)
            if time.perf_counter() - start > seconds:
                break
    return count / (time.perf_counter() - start)


class Masks(NamedTuple):
    """The predictions of a batch on the CPU, one entry for each expression."""

    masks: list[Tensor]  # (H, W, bool) at the scored size
    peaks: list[tuple[int, int] | None]  # row and column in that size
    largest: list[float]  # largest probability of the method's map
    no_target: list[float] | None  # the method's probability that nothing in the image is meant; None: it gives none


def predict_masks(predictor: Predictor, item: Item, expressions: Sequence[str] = ()) -> Masks:
    """Predict a batch, and cut the probabilities to masks.

    Raises InputError, which names the expression of `expressions`, for a prediction that is none.
    """
    batch = predictor.fabric.to_device(item.batch)
    with predictor.fabric.autocast(), distributed.arithmetic(predictor.recipe.train.matmul):
        prediction = predictor.model.predict(batch)
    method = type(predictor.model).__module__.rpartition(".")[2]
    sanity.check_shapes(prediction, len(item.positions), method)
    _refuse_two_answers(predictor, prediction, method)
    probability = prediction.probability
    frames = [frame._replace(size=predictor.score_half.size(frame.size)) for frame in item.frames]
    order = item.batch.image_index.argsort(stable=True)  # (B,) the expressions image by image
    cut_masks = _cut_masks(predictor, probability[order.to(probability.device)], item.batch.image_index, frames)
    cells = (peak_of(probability) if prediction.peak is None else prediction.peak).to(probability.device)  # (B, 2)
    ranges, no_target = sanity.ranges(probability).double(), _double(prediction.no_target, probability)
    cells, ranges, no_target, *cut_masks = _on_cpu([cells.long(), ranges, no_target, *cut_masks])
    sanity.check_values(ranges, cells, tuple(probability.shape[1:]), method, expressions)
    sanity.check_no_target(no_target, method, expressions)
    masks: list[Tensor] = [torch.empty(0)] * len(item.positions)
    for row, mask in zip(order.tolist(), (mask for image_masks in cut_masks for mask in image_masks), strict=True):
        masks[row] = mask
    peaks = scaled_peaks(prediction._replace(peak=cells), [frames[image] for image in item.batch.image_index.tolist()])
    largest = ranges[:, 1].clamp(0, 1).float().tolist()  # in float32, as it is stored
    return Masks(masks, peaks, largest, None if prediction.no_target is None else no_target.clamp(0, 1).tolist())


def _double(no_target: Tensor | None, probability: Tensor) -> Tensor:
    """Return no-target answers (B,) in float64 on the device of the probabilities; (0,) if there are none."""
    if no_target is None:
        return probability.new_zeros(0, dtype=torch.float64)
    return no_target.to(probability.device).double()


def _refuse_two_answers(predictor: Predictor, prediction: Prediction, method: str) -> None:
    below = predictor.recipe.predict.no_target_below
    if below and prediction.no_target is not None:
        raise InputError(
            f"{method} answers itself whether there is a target, so predict.no_target_below={below:g} has no effect: "
            "leave it out, or set it to 0."
        )


def no_target_answers(predictor: Predictor, predicted: Masks) -> list[bool] | None:
    """Answer for each expression whether it has no target: by the method, or by predict.no_target_below.

    None if neither answers: then an empty mask means no target.
    """
    if predicted.no_target is not None:
        return [probability > 0.5 for probability in predicted.no_target]
    below = predictor.recipe.predict.no_target_below
    return [largest < below for largest in predicted.largest] if below else None


def _cut_masks(predictor: Predictor, probability: Tensor, image_index: Tensor, frames: Sequence[Frame]) -> list[Tensor]:
    """Cut the probabilities (B, h, w), image by image, to the masks of each image: (b, H, W) of bool."""
    half = predictor.input_half
    by_image = probability.split_with_sizes(image_index.bincount(minlength=len(frames)).tolist())
    return [
        images.to_masks(maps, frame, float(half.threshold), half.cut_at)
        for maps, frame in zip(by_image, frames, strict=True)
    ]


def _on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors of one device to the CPU, in one transfer; those of larger elements come first."""
    pieces = [tensor.contiguous().view(torch.uint8).flatten() for tensor in tensors]
    copied = torch.cat(pieces).cpu().split_with_sizes([len(piece) for piece in pieces])
    return [piece.view(tensor.dtype).view(tensor.shape) for piece, tensor in zip(copied, tensors, strict=True)]


def scaled_peaks(prediction: Prediction, frames: Sequence[Frame]) -> list[tuple[int, int] | None]:
    """Return the peaks in pixels of the frames' sizes; a prediction without peaks has them at its maxima."""
    cells = peak_of(prediction.probability) if prediction.peak is None else prediction.peak  # (B, 2)
    grid = (prediction.probability.shape[1], prediction.probability.shape[2])
    return [images.peak_to_size((r, c), grid, frame) for (r, c), frame in zip(cells.tolist(), frames, strict=True)]


def _predict_batch(predictor: Predictor, item: Item, split: Split, header: Header) -> Predictions:
    texts = split.texts(str(predictor.input_half.text))
    predicted = predict_masks(predictor, item, [texts[position] for position in item.positions])
    return Predictions.build(
        header,
        split.sent_id[item.positions].tolist(),
        [(mask.shape[0], mask.shape[1]) for mask in predicted.masks],
        [rle.encode(mask.numpy()) for mask in predicted.masks],
        predicted.peaks,
        no_target_answers(predictor, predicted),
        predicted.largest,
    )
