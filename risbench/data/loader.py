"""Batches of expressions with their images, for training and for evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from risbench import failures
from risbench.data import flips, images, pictures, rle
from risbench.data.images import Frame
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.data.text import Tokenizer, Words
from risbench.errors import InputError
from risbench.recipe import Image

_NOTICE = 0.2  # seconds in which the end of a loader process becomes known


class Batch(NamedTuple):
    """Expressions with their images; expressions of one image may share it."""

    image: Tensor  # (I, 3, H, W) float32, normalised by the recipe's mean and std
    image_index: Tensor  # (B,) int64: the image of each expression
    words: Words
    mask: Tensor | None  # (B, H, W) float32, 0 or 1, all 0 for no-target: ground truth on the input; None in evaluation


class Item(NamedTuple):
    """A batch with what the harness needs to bring predictions back to the images."""

    batch: Batch
    positions: list[int]  # (B,) in the samples
    frames: list[Frame]  # (I,)


@dataclass(frozen=True)
class EvaluationSamples(Dataset[Item]):
    """Every expression of a split, in its order; `samples[positions]` is the batch of these expressions.

    A batch holds each image once and no masks.
    """

    index: Index
    split: Split
    field: str  # raw or sent
    tokenizer: Tokenizer
    image: Image

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, positions: list[int]) -> Item:
        image_ids = self.split.image_id[positions].tolist()
        distinct = list(dict.fromkeys(image_ids))
        frames = [images.fit_to_input(self.index.image_size(image_id), self.image) for image_id in distinct]
        pixels = [_pixels(self.index, *pair, self.image) for pair in zip(distinct, frames, strict=True)]
        texts = self.split.texts(self.field)
        batch = Batch(
            image=torch.stack(pixels),  # (I, 3, side, side)
            image_index=torch.tensor([distinct.index(image_id) for image_id in image_ids]),
            words=self.tokenizer([texts[position] for position in positions]),
            mask=None,
        )
        return Item(batch, positions, frames)


class _Group(NamedTuple):
    """Training expressions of one image."""

    pixels: Tensor  # (3, side, side)
    masks: Tensor  # (G, side, side)
    texts: list[str]  # (G,)
    frame: Frame


@dataclass(frozen=True, kw_only=True)
class TrainingSamples(Dataset[Item]):
    """Training expressions of one or several data sets; `samples[positions]` is the batch of these expressions.

    A batch holds one image for each `per_image` expressions, so that all batches have one shape: convolutions are
    prepared once for each shape.
    """

    sources: Sequence[tuple[Index, Split]]
    rows: Sequence[tuple[int, int]]  # (N,) number of the source, row in its split
    field: str  # raw or sent
    tokenizer: Tokenizer
    image: Image
    per_image: int = 1
    min_scale: float = 1.0  # see images.shrink_at_random
    flip: float = 0.0  # share of images that are mirrored, if left and right can be exchanged in their words
    sentences: Literal["each", "random"] = "each"  # of a ref in one epoch
    ground_truth: Literal["union", "once"] = "union"  # as in protocol.ScoreHalf
    epoch_seed: tuple[int, int] = (0, 0)  # seed of the run, epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: list[int]) -> Item:
        rows = [self.rows[position] for position in positions]
        groups = [self._group(rows[low : low + self.per_image]) for low in range(0, len(rows), self.per_image)]
        batch = Batch(
            image=torch.stack([group.pixels for group in groups]),  # (I, 3, side, side)
            image_index=torch.tensor([i // self.per_image for i in range(len(rows))]),
            words=self.tokenizer([text for group in groups for text in group.texts]),
            mask=torch.cat([group.masks for group in groups]),  # (B, side, side)
        )
        return Item(batch, positions, [group.frame for group in groups])

    def draw_epoch(self) -> NDArray[np.int64]:
        """Return the positions of one epoch, rising: all, or one drawn for each ref."""
        positions = np.arange(len(self))
        if self.sentences == "each":
            return positions
        shuffled = np.random.default_rng([*self.epoch_seed, 1]).permutation(positions)  # 1: not the batches' generator
        refs = np.array([(source, self.sources[source][1].ref_id[row]) for source, row in self.rows])
        _, first = np.unique(refs[shuffled], axis=0, return_index=True)
        return np.sort(shuffled[first])

    def group_by_image(self, positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split positions into one array for each image."""
        keys = [(source, self._image_id(source, row)) for source, row in (self.rows[p] for p in positions)]
        _, image = np.unique(np.array(keys), axis=0, return_inverse=True)
        order = np.argsort(image, kind="stable")
        return np.split(positions[order], np.flatnonzero(np.diff(image[order])) + 1)

    def _group(self, rows: Sequence[tuple[int, int]]) -> _Group:
        """Read an image with expressions of it, all of them mirrored or none."""
        source, image_id = rows[0][0], self._image_id(*rows[0])
        frame = self._frame(source, image_id)
        pixels = _pixels(self.sources[source][0], image_id, frame, self.image)
        masks = torch.stack([self._mask(*row, frame) for row in rows])
        texts = [self.sources[source][1].texts(self.field)[row] for source, row in rows]
        exchanged = flips.exchange_all(texts) if self._is_drawn_to_flip(image_id) else None
        if exchanged is None:
            return _Group(pixels, masks, texts, frame)
        return _Group(pixels.flip(-1), masks.flip(-1), exchanged, images.mirror(frame))

    def _is_drawn_to_flip(self, image_id: int) -> bool:
        generator = np.random.default_rng([*self.epoch_seed, image_id, 1])  # 1: not the one that shrinks it
        return self.flip > 0 and generator.random() < self.flip

    def _image_id(self, source: int, row: int) -> int:
        return int(self.sources[source][1].image_id[row])

    def _frame(self, source: int, image_id: int) -> Frame:
        frame = images.fit_to_input(self.sources[source][0].image_size(image_id), self.image)
        if self.min_scale == 1:
            return frame
        return images.shrink_at_random(frame, self.min_scale, np.random.default_rng([*self.epoch_seed, image_id]))

    def _mask(self, source: int, row: int, frame: Frame) -> Tensor:
        index, split = self.sources[source]
        counts = index.ground_truth(int(split.ann_id[row]), self.ground_truth)
        return images.mask_to_input(rle.decode(counts, frame.size), frame)


def _pixels(index: Index, image_id: int, frame: Frame, settings: Image) -> Tensor:
    return images.to_input(pictures.read(index.image_path(image_id), frame.size), frame, settings)


def training_rows(indices: Sequence[Index], evaluated: Index) -> list[tuple[int, int]]:
    """Return the rows of the train splits, as (number of the data set, row).

    Data sets that are trained on together share images: their train splits lose every image of any evaluation split of
    any of them, `evaluated` included. A data set that is trained on alone keeps its official train split.
    """
    together = {index.card.name: index for index in (*indices, evaluated)}
    held_out = set().union(*map(_evaluation_images, together.values())) if len(together) > 1 else set()
    rows = [
        (source, row)
        for source, index in enumerate(indices)
        for row, image_id in enumerate(index.split("train").image_id)
        if (index.card.images, int(image_id)) not in held_out
    ]
    if not rows:
        raise InputError("No training expression is left: every image of the train splits is in an evaluation split.")
    return rows


def _evaluation_images(index: Index) -> set[tuple[str, int]]:
    """Return the folder and id of every image of an evaluation split, whatever the limit."""
    index = index.limited(0)
    return {
        (index.card.images, int(i)) for name in index.evaluation_splits() for i in np.unique(index.split(name).image_id)
    }


def evaluation_batches(split: Split, images_per_batch: int) -> list[list[int]]:
    """Cut a split into batches of whole images with all their expressions, whatever the number of processes."""
    starts = np.flatnonzero(np.diff(split.image_id, prepend=-1))  # first expression of each image
    edges = [*starts[::images_per_batch].tolist(), len(split)]
    return [list(range(low, high)) for low, high in zip(edges[:-1], edges[1:], strict=True)]


def training_batches(samples: TrainingSamples, batch_size: int) -> list[list[int]]:
    """Draw the batches of one epoch, in random order, without the incomplete last one.

    Every expression of the epoch (`TrainingSamples.draw_epoch`) comes once, in groups of `per_image` expressions of one
    image. The last group of an image is filled up with others of its expressions.
    """
    positions = samples.draw_epoch()
    check_epoch(len(positions), batch_size)
    generator = np.random.default_rng(samples.epoch_seed)
    groups = [
        group
        for image_positions in samples.group_by_image(positions)
        for group in _groups(generator.permutation(image_positions), samples.per_image)
    ]
    order = generator.permutation(len(groups))
    size = batch_size // samples.per_image  # groups
    starts = range(0, len(groups) - size + 1, size)
    return [[position for group in order[low : low + size] for position in groups[group]] for low in starts]


def _groups(positions: NDArray[np.int64], size: int) -> list[list[int]]:
    """Cut into groups of one size; the last is filled up from the beginning."""
    count = -(-len(positions) // size)
    return np.resize(positions, (count, size)).tolist()


def check_epoch(expressions: int, batch_size: int) -> None:
    """Refuse a batch size above the number of training expressions in an epoch."""
    if expressions < batch_size:
        raise InputError(
            f"There are {expressions} training expressions in an epoch, fewer than train.batch_size={batch_size}. "
            "Lower it."
        )


def load(samples: Dataset[Item], batches: Sequence[list[int]], workers: int) -> Iterator[Item]:
    """Read batches in order, in loader processes if `workers` is not 0. Raises InputError as reading does."""
    loader: DataLoader[Item | InputError] = DataLoader(
        _Loaded(samples), sampler=batches, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
    return _received(iter(loader))


def _received(items: Iterator[Item | InputError]) -> Iterator[Item]:
    """Yield items, and raise those that are errors."""
    try:
        for item in items:
            if isinstance(item, InputError):
                raise item
            yield item
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # what was to send the rest of an item has ended
        error.__traceback__ = None  # it holds the loader
        with suppress(RuntimeError):  # torch's signal handler raises it, which nobody could catch in a destructor
            time.sleep(_NOTICE)
        raise InputError(failures.lost_loader("its connection is lost")) from None
    finally:
        del items  # ends the loader processes now, not when the error is forgotten


@dataclass(frozen=True)
class _Loaded(Dataset[Item | InputError]):
    """Samples as they come from loader processes: an error is an item, since torch would send its traceback as text."""

    samples: Dataset[Item]

    def __getitem__(self, positions: list[int]) -> Item | InputError:
        try:
            item = self.samples[positions]
            if get_worker_info() is not None:
                _share(item.batch)
        except Exception as error:
            failure = failures.translate(error)
            if failure is None:
                raise
            return failure
        return item


def _share(values: tuple[Any, ...]) -> None:
    """Move tensors to shared memory, as torch would on sending them, when an error would leave the receiver waiting."""
    for value in values:
        if isinstance(value, Tensor):
            value.share_memory_()  # type: ignore[no-untyped-call]
        elif isinstance(value, tuple):
            _share(value)
