from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from risbench import methods, recipe
from risbench.data import loader
from risbench.data.index import Index
from risbench.data.loader import EvaluationSamples, TrainingSamples
from risbench.data.split import Split
from risbench.data.text import WordTokenizer
from risbench.errors import InputError

SETTINGS, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["image.size=96"])


def training_samples(index: Index, per_image: int = 1) -> TrainingSamples:
    split = index.split("train")
    return TrainingSamples(
        sources=[(index, split)],
        rows=[(0, row) for row in range(len(split))],
        field="sent",
        tokenizer=WordTokenizer.build(split.sent, 6),
        image=SETTINGS.image,
        per_image=per_image,
    )


def evaluation_samples(index: Index) -> EvaluationSamples:
    split = index.split("train")
    return EvaluationSamples(index, split, "sent", WordTokenizer.build(split.sent, 6), SETTINGS.image)


def test_an_evaluation_batch_holds_each_image_once_and_no_masks(small_index: Index) -> None:
    train = evaluation_samples(small_index)
    batch = train[list(range(len(train)))].batch
    assert batch.image.shape == (len(np.unique(small_index.split("train").image_id)), 3, 96, 96)
    assert batch.mask is None
    for number, image in enumerate(batch.image_index.tolist()):
        assert torch.equal(train[[number]].batch.image[0], batch.image[image])


def test_in_training_all_batches_have_one_shape(small_index: Index) -> None:
    train = training_samples(small_index, per_image=2)
    for numbers in loader.training_batches(replace(train, epoch_seed=(0, 0)), 4):
        batch = train[numbers].batch
        assert batch.mask is not None
        assert (len(batch.image), len(batch.words.ids), len(batch.mask)) == (2, 4, 4)
        for number, image, mask in zip(numbers, batch.image_index.tolist(), batch.mask, strict=True):
            alone = training_samples(small_index)[[number]].batch
            assert alone.mask is not None
            assert torch.equal(alone.image[0], batch.image[image]) and torch.equal(alone.mask[0], mask)


def test_the_mask_lies_where_the_object_was_drawn(small_index: Index) -> None:
    train = training_samples(small_index)
    row = small_index.split("train").sent.index("the red thing")
    item = train[[row]]
    assert item.batch.mask is not None
    pixels = item.batch.image[0] * torch.tensor(SETTINGS.image.std)[:, None, None]
    red = pixels[0] + SETTINGS.image.mean[0] > 0.8
    overlap = (red & (item.batch.mask[0] > 0)).sum() / (red | (item.batch.mask[0] > 0)).sum()
    assert overlap > 0.85


def test_evaluation_batches_are_whole_images_in_order(small_index: Index) -> None:
    split = small_index.split("train")
    batches = loader.evaluation_batches(split, 2)
    assert [number for batch in batches for number in batch] == list(range(len(split)))
    assert [len(np.unique(split.image_id[batch])) for batch in batches] == [2, 1]


def test_an_epoch_holds_every_expression_once_and_depends_on_seed_and_epoch(small_index: Index) -> None:
    train = training_samples(small_index)
    batches = loader.training_batches(replace(train, epoch_seed=(0, 3)), 5)
    assert sorted(number for batch in batches for number in batch) == list(range(10))
    assert batches == loader.training_batches(replace(train, epoch_seed=(0, 3)), 5)
    assert batches != loader.training_batches(replace(train, epoch_seed=(0, 4)), 5)
    assert batches != loader.training_batches(replace(train, epoch_seed=(1, 3)), 5)
    assert len(loader.training_batches(replace(train, epoch_seed=(0, 0)), 4)) == 2


@pytest.mark.parametrize("per_image", [2, 3, 7])
def test_groups_are_of_one_image_and_leave_no_expression_out(small_index: Index, per_image: int) -> None:
    train = training_samples(small_index, per_image)
    batches = loader.training_batches(replace(train, epoch_seed=(0, 0)), per_image)
    image_id = small_index.split("train").image_id
    assert {number for batch in batches for number in batch} == set(range(10))
    assert all(len(set(image_id[batch])) == 1 and len(batch) == per_image for batch in batches)


def test_an_epoch_of_random_sentences_holds_one_expression_of_each_ref(small_index: Index) -> None:
    train = replace(training_samples(small_index), sentences="random")
    ref_id = small_index.split("train").ref_id
    epochs = [replace(train, epoch_seed=(0, epoch)) for epoch in range(300)]
    for epoch in epochs[:5]:
        batches = loader.training_batches(epoch, 3)
        assert sorted(ref_id[number] for batch in batches for number in batch) == sorted(set(ref_id))
        assert batches == loader.training_batches(epoch, 3)
    drawn = np.concatenate([epoch.draw_epoch() for epoch in epochs])
    for number, times in enumerate(np.bincount(drawn, minlength=len(train))):
        of_ref = int((ref_id == ref_id[number]).sum())  # one or two
        assert abs(times / len(epochs) - 1 / of_ref) < 0.12  # four standard deviations
    by_seed = [
        [replace(train, epoch_seed=(seed, epoch)).draw_epoch().tolist() for epoch in range(5)] for seed in (0, 1)
    ]
    assert by_seed[0] != by_seed[1]


def test_groups_of_random_sentences_are_different_refs_of_one_image(small_index: Index) -> None:
    train = replace(training_samples(small_index, per_image=2), sentences="random")
    split = small_index.split("train")  # two refs in each of three images
    batches = loader.training_batches(train, 2)
    assert sorted({int(split.image_id[number]) for batch in batches for number in batch}) == [1, 2, 3]
    for batch in batches:
        assert len(set(split.image_id[batch])) == 1 and len(set(split.ref_id[batch])) == 2


def test_refs_of_two_data_sets_are_drawn_apart(small_index: Index) -> None:
    one = training_samples(small_index)
    rows = [(source, row) for source in (0, 1) for _, row in one.rows]
    both = replace(one, sources=[*one.sources, *one.sources], rows=rows, sentences="random")
    assert len(both.draw_epoch()) == 2 * len(set(small_index.split("train").ref_id))


def test_pixels_that_two_polygons_cover_are_background_where_the_recipe_says_once(small_index: Index) -> None:
    row = small_index.split("train").sent.index("the red thing")  # two squares of 20 x 20 that share 10 x 10
    image = SETTINGS.image.model_copy(update={"size": 64, "geometry": "stretch"})
    train = replace(training_samples(small_index), image=image)
    union, once = (replace(train, ground_truth=rule)[[row]].batch.mask for rule in ("union", "once"))
    assert union is not None and once is not None
    height, width = 48, 64
    assert int(union.sum()) == pytest.approx(700 * 64 * 64 / (height * width), rel=0.05)
    assert int((union - once).sum()) == pytest.approx(100 * 64 * 64 / (height * width), rel=0.2)
    assert (once <= union).all()


def test_training_images_are_shrunk_with_their_masks_from_seed_and_epoch(small_index: Index) -> None:
    train = replace(training_samples(small_index), min_scale=0.5)
    whole = replace(train, min_scale=1.0)[[0]].batch
    first, again = train[[0]].batch, train[[0]].batch
    other = replace(train, epoch_seed=(0, 1))[[0]].batch
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    masks = [batch.mask for batch in (whole, first, other)]
    assert all(mask is not None and mask.any() for mask in masks)
    assert masks[0] is not None and masks[1] is not None and masks[1].sum() < masks[0].sum()
    assert torch.equal(evaluation_samples(small_index)[[0]].batch.image, whole.image)


def test_a_batch_larger_than_the_training_set_is_refused(small_index: Index) -> None:
    with pytest.raises(InputError, match="10 training expressions in an epoch, fewer than train.batch_size=11"):
        loader.training_batches(training_samples(small_index), 11)


def test_several_data_sets_leave_out_the_images_of_every_evaluation_split(small_index: Index) -> None:
    other = _validating_on_image_1(small_index)
    places = loader.training_rows([small_index, other], small_index)
    train = small_index.split("train")
    assert {int(train.image_id[row]) for _, row in places} == {2, 3}
    assert {source for source, _ in places} == {0, 1}


def test_when_nothing_is_left_to_train_on_it_says_so(small_index: Index) -> None:
    other = _validating_on_image_1(small_index, images=(1, 2, 3))
    with pytest.raises(InputError, match="No training expression is left"):
        loader.training_rows([other], small_index)


def test_one_data_set_keeps_its_train_split(small_index: Index) -> None:
    assert len(loader.training_rows([small_index], small_index)) == len(small_index.split("train"))


def test_samples_pickle_for_loader_processes(small_index: Index) -> None:
    train = training_samples(small_index)
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy[[0]].batch.image, train[[0]].batch.image)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_keep_the_order(small_index: Index, workers: int) -> None:
    train = training_samples(small_index)
    batches = [[3, 1], [0], [5, 2, 4]]
    assert [item.positions for item in loader.load(train, batches, workers)] == batches


def _validating_on_image_1(index: Index, images: tuple[int, ...] = (1,)) -> Index:
    """Another data set over the same images, whose val holds training images of the first."""

    class Other(Index):
        def split(self, name: str) -> Split:
            if name != "val":
                return super().split(name)
            train = super().split("train")
            rows = np.flatnonzero(np.isin(train.image_id, images))
            return replace(train, name="val", image_id=train.image_id[rows])

    card = index.card.model_copy(update={"name": "other"})
    return Other(card, index.hash, index.partial, index.images_folder, index.folder)
