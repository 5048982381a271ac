"""Batches of expressions with their images, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from risbench import rle
from risbench.api import Batch, Tokenizer
from risbench.data import images
from risbench.data.images import Frame
from risbench.data.index import Index, Split
from risbench.errors import InputError
from risbench.recipe import Image


class Item(NamedTuple):
    """A batch with what the harness alone needs to bring predictions back to the images."""

    batch: Batch
    numbers: list[int]  # (B,) positions in the samples
    frames: list[Frame]  # (I,)


@dataclass(frozen=True)
class Samples(Dataset[Item]):
    """Expressions of one split or of several data sets; `samples[numbers]` is the batch of these expressions."""

    sources: Sequence[tuple[Index, Split]]
    places: Sequence[tuple[int, int]]  # (N,) source and row in its split
    field: str  # raw or sent
    tokenizer: Tokenizer
    image: Image
    with_masks: bool

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, numbers: list[int]) -> Item:
        places = [self.places[number] for number in numbers]
        keys = [(source, int(self.sources[source][1].image_id[row])) for source, row in places]
        order = {key: position for position, key in enumerate(dict.fromkeys(keys))}
        frames = [images.frame(self.sources[source][0].size(image_id), self.image) for source, image_id in order]
        pixels = [self._pixels(*key, place) for key, place in zip(order, frames, strict=True)]
        image_index = [order[key] for key in keys]
        masks = [self._mask(*place, frames[i]) for place, i in zip(places, image_index, strict=True)]
        batch = Batch(
            image=torch.stack(pixels),  # (I, 3, side, side)
            image_index=torch.tensor(image_index),
            words=self.tokenizer([self.expression(number) for number in numbers]),
            mask=torch.stack(masks) if self.with_masks else None,  # (B, side, side)
        )
        return Item(batch, numbers, frames)

    def expression(self, number: int) -> str:
        """The text of a sample."""
        source, row = self.places[number]
        split = self.sources[source][1]
        return (split.raw if self.field == "raw" else split.sent)[row]

    def _pixels(self, source: int, image_id: int, place: Frame) -> torch.Tensor:
        index = self.sources[source][0]
        return images.to_input(images.read(index.image_path(image_id), place.size), place, self.image)

    def _mask(self, source: int, row: int, place: Frame) -> torch.Tensor:
        if not self.with_masks:
            return torch.empty(0)
        index, split = self.sources[source]
        return images.mask_to_input(rle.decode(index.truth(int(split.ann_id[row]), "union"), place.size), place)


def evaluation(index: Index, split: Split, field: str, tokenizer: Tokenizer, image: Image) -> Samples:
    """Every expression of a split, in its order."""
    places = [(0, row) for row in range(len(split))]
    return Samples([(index, split)], places, field, tokenizer, image, with_masks=False)


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


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Training batches of an epoch: every sample once in a random order, the incomplete last batch left out."""
    if count < batch_size:
        raise InputError(
            f"There are {count} training expressions, fewer than train.batch_size={batch_size}. Make the batch smaller."
        )
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [order[low : low + batch_size].tolist() for low in range(0, count - batch_size + 1, batch_size)]


def shares(batches: Sequence[list[int]], accumulate: int, rank: int, processes: int) -> list[list[int]]:
    """Cut each batch into micro-batches and keep those of one process: `accumulate` of them for each batch."""
    pieces = accumulate * processes
    return [
        batch[len(batch) * piece // pieces : len(batch) * (piece + 1) // pieces]
        for batch in batches
        for piece in range(rank, pieces, processes)
    ]


def load(samples: Samples, batches: Sequence[list[int]], workers: int) -> Iterator[Item]:
    """Read batches in the given order, in loader processes if `workers` is not 0."""
    loader: DataLoader[Item] = DataLoader(
        samples, sampler=batches, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
    return iter(loader)
