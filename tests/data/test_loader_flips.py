"""Training images that are mirrored, with left and right exchanged in their words."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from risbench import methods, recipe
from risbench.data import flips
from risbench.data.index import Index
from risbench.data.loader import TrainingSamples
from risbench.data.text import WordTokenizer
from risbench.runs import training

ALWAYS = 1 - 1e-12  # the key's values end below 1


def samples(index: Index, per_image: int = 1, *overrides: str) -> TrainingSamples:
    """Training samples with these overrides, and with a vocabulary that knows exchanged words, too."""
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["image.size=96", "train.flip=0", *overrides])
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"per_image": per_image})})
    split = index.split("train")
    tokenizer = WordTokenizer.build([*split.sent, *filter(None, map(flips.exchange, split.sent))], 8)
    rows = [(0, row) for row in range(len(split))]
    return training.training_samples(cast(Any, SimpleNamespace(settings=settings)), [(index, split)], rows, tokenizer)


def with_text(samples: TrainingSamples, row: int, text: str) -> TrainingSamples:
    [(index, split)] = samples.sources
    return replace(samples, sources=[(index, replace(split, sent=[*split.sent[:row], text, *split.sent[row + 1 :]]))])


def mask(samples: TrainingSamples, rows: list[int]) -> torch.Tensor:
    truth = samples[rows].batch.mask
    assert truth is not None
    return truth


@pytest.mark.parametrize("overrides", [(), ("image.geometry=stretch",), ("train.min_scale=0.5",)], ids=str)
def test_image_masks_words_and_frame_are_mirrored_together(small_index: Index, overrides: tuple[str, ...]) -> None:
    plain = samples(small_index, 1, "train.min_scale=1.0", *overrides)
    rows = list(range(len(plain)))
    texts = plain.sources[0][1].sent
    item, other = replace(plain, flip=ALWAYS)[rows], plain[rows]
    assert torch.equal(item.batch.image, other.batch.image.flip(-1))
    assert item.batch.mask is not None and other.batch.mask is not None and item.batch.mask.any()
    assert torch.equal(item.batch.mask, other.batch.mask.flip(-1))
    exchanged = [str(flips.exchange(text)) for text in texts]
    assert exchanged != texts and torch.equal(item.batch.words.ids, plain.tokenizer(exchanged).ids)
    for frame, before in zip(item.frames, other.frames, strict=True):
        assert frame.left + frame.width == before.side - before.left
        assert frame._replace(left=before.left) == before


def test_the_mask_lies_where_the_mirrored_object_is(small_index: Index) -> None:
    mirrored = samples(small_index, 1, "train.min_scale=1.0", f"train.flip={ALWAYS}")
    row = mirrored.sources[0][1].sent.index("the red thing")
    std, mean = (torch.tensor(values)[:, None, None] for values in (mirrored.image.std, mirrored.image.mean))
    red = (mirrored[[row]].batch.image[0] * std + mean)[0] > 0.8
    truth = mask(mirrored, [row])[0] > 0
    assert (red & truth).sum() / (red | truth).sum() > 0.85
    assert truth.nonzero()[:, 1].double().mean() > 48  # it was drawn on the left


def test_of_an_image_with_words_that_cannot_be_exchanged_nothing_is_mirrored(small_index: Index) -> None:
    mirrored = samples(small_index, 2, f"train.flip={ALWAYS}")
    plain = replace(mirrored, flip=0.0)
    rows = [0, 1, 3, 4]  # two of each of two images
    unsafe = with_text(mirrored, 1, "second cup")
    assert torch.equal(mirrored[rows].batch.image, plain[rows].batch.image.flip(-1))
    assert torch.equal(unsafe[rows].batch.image[0], plain[rows].batch.image[0])
    assert torch.equal(unsafe[rows].batch.image[1], mirrored[rows].batch.image[1])
    assert torch.equal(mask(unsafe, rows)[:2], mask(plain, rows)[:2])
    assert torch.equal(mask(unsafe, rows)[2:], mask(mirrored, rows)[2:])
    assert torch.equal(unsafe[rows].batch.words.ids[0], plain[rows].batch.words.ids[0])


def test_seed_epoch_and_image_draw_whether_it_is_mirrored(small_index: Index) -> None:
    some = samples(small_index, 1, "train.flip=0.25", "image.size=32")
    ids = some.sources[0][1].image_id
    rows = [int(np.flatnonzero(ids == image)[0]) for image in np.unique(ids)]
    drawn = np.array(
        [
            [_is_mirrored(replace(some, epoch_seed=(seed, epoch)), row) for row in rows]
            for seed in range(2)
            for epoch in range(60)
        ]
    )
    assert abs(drawn.mean() - 0.25) < 0.09  # four standard deviations
    assert len({tuple(column) for column in drawn.T}) == len(rows) and (drawn[:60] != drawn[60:]).any()
    first = replace(some, epoch_seed=(0, 3))
    for row, image in enumerate(ids):  # all expressions of an image, whatever its batch
        assert _is_mirrored(first, row) == drawn[3][list(np.unique(ids)).index(image)]


def _is_mirrored(samples: TrainingSamples, row: int) -> bool:
    item, plain = samples[[row]], replace(samples, flip=0.0)[[row]]
    assert torch.equal(item.batch.image.flip(-1), plain.batch.image) or torch.equal(item.batch.image, plain.batch.image)
    return not torch.equal(item.batch.image, plain.batch.image)


def test_the_papers_recipes_mirror_nothing(method: str) -> None:
    assert recipe.load(methods.recipe_file(method), [], [])[0].train.flip == 0


def test_the_recipe_says_how_many_are_mirrored(small_index: Index) -> None:
    assert samples(small_index, 1, "train.flip=0.25").flip == 0.25
