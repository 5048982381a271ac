"""Batches of expressions with their images, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from risbench.data import images, rle
from risbench.data.images import Frame
from risbench.data.index import Index, Split
from risbench.data.text import Tokenizer, Words
from risbench.errors import InputError
from risbench.recipe import Image


class Batch(NamedTuple):
    """Expressions with their images; several expressions may speak of one image, which is then there once."""

    image: Tensor  # (I, 3, H, W) float32, normalised by the recipe's mean and std
    image_index: Tensor  # (B,) int64: which image each expression speaks of
    words: Words
    mask: Tensor | None  # (B, H, W) float32, 0 or 1, perhaps all 0: ground truth on the input; None in evaluation


class Item(NamedTuple):
    """A batch with what the harness alone needs to bring predictions back to the images."""

    batch: Batch
    numbers: list[int]  # (B,) positions in the samples
    frames: list[Frame]  # (I,)


@dataclass(frozen=True)
class Samples(Dataset[Item]):
    """Expressions of one split or of several data sets; `samples[numbers]` is the batch of these expressions.

    In training (per_image > 0) there are masks, and each run of `per_image` expressions brings its image, so that all
    batches have one shape: convolutions are prepared once for each shape. In evaluation each image is there once.
    """

    sources: Sequence[tuple[Index, Split]]
    places: Sequence[tuple[int, int]]  # (N,) source and row in its split
    field: str  # raw or sent
    tokenizer: Tokenizer
    image: Image
    per_image: int = 0
    min_scale: float = 1.0  # of training images, see images.shrunk
    sentences: Literal["each", "random"] = "each"  # of a ref in one epoch of training
    ground_truth: Literal["union", "once"] = "union"  # as in protocol.ScoreHalf
    draw: tuple[int, int] = (0, 0)  # seed and epoch of what is drawn at random

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, numbers: list[int]) -> Item:
        places = [self.places[number] for number in numbers]
        keys = [(source, int(self.sources[source][1].image_id[row])) for source, row in places]
        wanted = keys[:: self.per_image] if self.per_image else list(dict.fromkeys(keys))
        frames = [self._frame(*key) for key in wanted]
        pixels = [self._pixels(*key, place) for key, place in zip(wanted, frames, strict=True)]
        image_index = [i // self.per_image if self.per_image else wanted.index(key) for i, key in enumerate(keys)]
        masks = [self._mask(*place, frames[i]) for place, i in zip(places, image_index, strict=True)]
        batch = Batch(
            image=torch.stack(pixels),  # (I, 3, side, side)
            image_index=torch.tensor(image_index),
            words=self.tokenizer([self.expression(number) for number in numbers]),
            mask=torch.stack(masks) if self.per_image else None,  # (B, side, side)
        )
        return Item(batch, numbers, frames)

    def of_epoch(self) -> NDArray[np.int64]:
        """The numbers of the samples of one epoch, rising: all, or one that is drawn for each ref."""
        numbers = np.arange(len(self))
        if self.sentences == "each":
            return numbers
        shuffled = np.random.default_rng([*self.draw, 1]).permutation(numbers)  # 1: not the draw of the batches
        refs = np.array([(source, self.sources[source][1].ref_id[row]) for source, row in self.places])
        _, first = np.unique(refs[shuffled], axis=0, return_index=True)
        return np.sort(shuffled[first])

    def by_image(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Some numbers of samples, those of each image together."""
        places = [self.places[number] for number in numbers]
        keys = [(source, self.sources[source][1].image_id[row]) for source, row in places]
        _, owner = np.unique(np.array(keys), axis=0, return_inverse=True)
        order = np.argsort(owner, kind="stable")
        return np.split(numbers[order], np.flatnonzero(np.diff(owner[order])) + 1)

    def expression(self, number: int) -> str:
        """The text of a sample."""
        source, row = self.places[number]
        split = self.sources[source][1]
        return (split.raw if self.field == "raw" else split.sent)[row]

    def _frame(self, source: int, image_id: int) -> Frame:
        place = images.frame(self.sources[source][0].size(image_id), self.image)
        if not self.per_image or self.min_scale == 1:
            return place
        return images.shrunk(place, self.min_scale, np.random.default_rng([*self.draw, image_id]))

    def _pixels(self, source: int, image_id: int, place: Frame) -> torch.Tensor:
        index = self.sources[source][0]
        return images.to_input(images.read(index.image_path(image_id), place.size), place, self.image)

    def _mask(self, source: int, row: int, place: Frame) -> torch.Tensor:
        if not self.per_image:
            return torch.empty(0)
        index, split = self.sources[source]
        return images.mask_to_input(
            rle.decode(index.truth(int(split.ann_id[row]), self.ground_truth), place.size), place
        )


def evaluation(index: Index, split: Split, field: str, tokenizer: Tokenizer, image: Image) -> Samples:
    """Every expression of a split, in its order."""
    places = [(0, row) for row in range(len(split))]
    return Samples([(index, split)], places, field, tokenizer, image)


def training_places(indices: Sequence[Index], evaluated: Index) -> list[tuple[int, int]]:
    """Rows of the train splits, as (data set, row).

    Several data sets share images: their train splits lose every image of any evaluation split of any of them. One
    data set trained for itself keeps its official train split.
    """
    together = {index.card.name: index for index in (*indices, evaluated)}
    held_out = (
        set()
        if len(together) == 1
        else {
            (index.card.images, int(image_id))
            for index in together.values()
            for name in index.split_names()
            if index.card.splits[name].evaluation
            for image_id in np.unique(index.split(name).image_id)
        }
    )
    places = [
        (source, row)
        for source, index in enumerate(indices)
        for row, image_id in enumerate(index.split("train").image_id)
        if (index.card.images, int(image_id)) not in held_out
    ]
    if not places:
        raise InputError("No training expression is left: every image of the train splits is in an evaluation split.")
    return places


def whole_images(split: Split, images_per_batch: int) -> list[list[int]]:
    """Evaluation batches: whole images with all their expressions, the same for any number of processes."""
    starts = np.flatnonzero(np.diff(split.image_id, prepend=-1))  # first expression of each image
    edges = [*starts[::images_per_batch].tolist(), len(split)]
    return [list(range(low, high)) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def epoch_batches(samples: Samples, batch_size: int) -> list[list[int]]:
    """Training batches of the epoch that `samples.draw` names, in random order, the incomplete last one left out.

    Every expression of the epoch (`Samples.of_epoch`) comes once, in groups of `per_image` expressions of one image;
    an image's last group is filled up with others of its expressions.
    """
    numbers = samples.of_epoch()
    if len(numbers) < batch_size:
        raise InputError(
            f"There are {len(numbers)} training expressions in an epoch, fewer than train.batch_size={batch_size}. "
            "Lower it."
        )
    draw = np.random.default_rng(samples.draw)
    groups = [group for own in samples.by_image(numbers) for group in _groups(draw.permutation(own), samples.per_image)]
    order = draw.permutation(len(groups))
    size = batch_size // samples.per_image  # groups
    starts = range(0, len(groups) - size + 1, size)
    return [[number for place in order[low : low + size] for number in groups[place]] for low in starts]


def _groups(numbers: NDArray[np.int64], size: int) -> list[list[int]]:
    """Cut into groups of one size; the last is filled up from the beginning."""
    count = -(-len(numbers) // size)
    return np.resize(numbers, (count, size)).tolist()


def check_batch_size(batch_size: int, accumulate: int, processes: int, per_image: int) -> None:
    """Refuse a batch size that cannot be cut into equal micro-batches of whole groups for every process."""
    unit = accumulate * processes * per_image
    if batch_size % unit:
        raise InputError(
            f"train.batch_size={batch_size} cannot be cut into {accumulate} micro-batches (train.accumulate) for "
            f"{processes} processes with {per_image} expressions of an image (train.per_image): take a multiple of "
            f"{unit}."
        )


def shares(batches: Sequence[list[int]], accumulate: int, rank: int, processes: int, per_image: int) -> list[list[int]]:
    """Cut each batch into micro-batches and keep those of one process: `accumulate` of them for each batch."""
    pieces = accumulate * processes
    size = len(batches[0]) // pieces if batches else 0
    return [batch[piece * size : (piece + 1) * size] for batch in batches for piece in range(rank, pieces, processes)]


def load(samples: Samples, batches: Sequence[list[int]], workers: int) -> Iterator[Item]:
    """Read batches in the given order, in loader processes if `workers` is not 0."""
    loader: DataLoader[Item] = DataLoader(
        samples, sampler=batches, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
    return iter(loader)
