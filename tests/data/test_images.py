from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from torch.nn import functional

from risbench.data import images
from risbench.recipe import Image

STRETCH = Image(
    size=64, geometry="stretch", border=127, resampling="bilinear", mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]
)
LETTERBOX = STRETCH.model_copy(update={"geometry": "letterbox"})


def test_a_letterbox_keeps_the_aspect_and_is_centred() -> None:
    frame = images.fit_to_input((32, 128), LETTERBOX)
    assert (frame.top, frame.left, frame.height, frame.width) == (24, 0, 16, 64)


@pytest.mark.parametrize(
    ("size", "rounded", "cut"),
    [
        ((427, 640), (69, 0, 278, 416), (69, 0, 277, 416)),  # 416 x 427 / 640 = 277.55
        ((640, 427), (0, 69, 416, 278), (0, 69, 416, 277)),
        ((480, 640), (52, 0, 312, 416), (52, 0, 312, 416)),
        ((624, 378), (0, 82, 416, 252), (0, 82, 416, 251)),  # exactly 252, which floats miss: 416 x (378 / 624)
        ((5000, 2), (0, 207, 416, 1), (0, 207, 416, 1)),
    ],
)
def test_the_sides_of_a_letterbox_are_rounded_or_cut(
    size: tuple[int, int], rounded: tuple[int, ...], cut: tuple[int, ...]
) -> None:
    for geometry, expected in (("letterbox", rounded), ("letterbox-cut", cut)):
        frame = images.fit_to_input(size, STRETCH.model_copy(update={"size": 416, "geometry": geometry}))
        assert (frame.top, frame.left, frame.height, frame.width) == expected


def test_the_border_is_grey_and_the_image_inside_is_the_resized_one() -> None:
    image = PIL.fromarray(np.full((32, 64, 3), 255, np.uint8))
    pixels = images.to_input(image, images.fit_to_input((32, 64), LETTERBOX), LETTERBOX)
    assert pixels.shape == (3, 64, 64)
    assert (pixels[:, :16] == 127 / 255).all() and (pixels[:, 48:] == 127 / 255).all()
    assert (pixels[:, 16:48] == 1).all()


def test_the_border_may_have_a_colour() -> None:
    recipe = LETTERBOX.model_copy(update={"border": (123, 117, 104)})
    image = PIL.fromarray(np.full((32, 64, 3), 255, np.uint8))
    pixels = images.to_input(image, images.fit_to_input((32, 64), recipe), recipe)
    assert torch.equal(pixels[:, 0, 0], torch.tensor([123, 117, 104]) / 255)
    assert torch.equal(pixels[:, 63, 63], pixels[:, 0, 0]) and (pixels[:, 16:48] == 1).all()


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (333, 500), (640, 481), (480, 480)])
def test_an_image_is_stretched_as_pil_does_it_on_its_bytes(size: tuple[int, int]) -> None:
    image = PIL.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    recipe = STRETCH.model_copy(update={"size": 480})
    pixels = images.to_input(image, images.fit_to_input(size, recipe), recipe)
    expected = np.asarray(image.resize((480, 480), PIL.Resampling.BILINEAR), np.float32)
    assert np.abs(pixels.permute(1, 2, 0).numpy() * 255 - expected).max() < 0.01  # of a grey level


@pytest.mark.parametrize("size", [(48, 64), (100, 37)])
def test_stretched_probabilities_are_sampled_as_torch_interpolates(size: tuple[int, int]) -> None:
    probability = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = images.sample_to_size(probability, images.fit_to_input(size, STRETCH))
    torchs = functional.interpolate(probability[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(ours, torchs, atol=1e-5)


def test_equal_sizes_are_not_sampled() -> None:
    probability = torch.rand(1, 64, 64)
    assert images.sample_to_size(probability, images.fit_to_input((64, 64), STRETCH)) is probability


def test_a_mask_cut_at_the_size_of_the_network_is_enlarged_with_every_pixel_above_0_as_foreground() -> None:
    probability = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) ** 3
    frame = images.fit_to_input((50, 100), LETTERBOX)  # 16 rows of border above and below
    inside = (probability[0] > 0.35).numpy()[16:48]

    def neighbours(pixel: int, number: int, among: int) -> set[int]:
        """The source pixels of which one is a mixture; 0.64 (n + 0.5) - 0.5 is never whole."""
        position = (pixel + 0.5) * among / number - 0.5
        return {min(max(int(np.floor(position)) + k, 0), among - 1) for k in (0, 1)}

    expected = [
        [
            any(inside[r, c] for r in neighbours(row, 50, 32) for c in neighbours(column, 100, 64))
            for column in range(100)
        ]
        for row in range(50)
    ]
    masks = images.to_masks(probability, frame, 0.35, "network")[0]
    assert np.array_equal(masks.numpy(), expected)
    assert torch.equal(
        images.to_masks(probability, frame, 0.35, "scored"), images.sample_to_size(probability, frame) > 0.35
    )
    assert masks.float().mean() > (probability > 0.35).float().mean()


@pytest.mark.parametrize("recipe", [STRETCH, LETTERBOX])
def test_a_mask_taken_to_the_input_and_back_stays_where_it_is(recipe: Image) -> None:
    mask = np.zeros((40, 64), dtype=np.bool_)
    mask[8:24, 16:48] = True
    frame = images.fit_to_input((40, 64), recipe)
    back = images.sample_to_size(images.mask_to_input(mask, frame)[None], frame)[0] > 0.5
    assert (back.numpy() ^ mask).mean() < 0.02


def test_a_peak_comes_back_to_the_pixel_it_was_seen_at() -> None:
    frame = images.fit_to_input((40, 64), LETTERBOX)  # 12 rows of border above and below, scale 1
    assert images.peak_to_size((20, 30), (64, 64), frame) == (8, 30)
    assert images.peak_to_size((0, 0), (64, 64), frame) == (0, 0)  # in the border: the nearest pixel
    assert images.peak_to_size((7, 7), (16, 16), frame) == (18, 30)  # the centre of a 4 x 4 cell
