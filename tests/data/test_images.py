from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PIL
from torch.nn import functional

from risbench.data import images
from risbench.errors import InputError
from risbench.recipe import Image

STRETCH = Image(
    size=64, geometry="stretch", border=127, resampling="bilinear", mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0]
)
LETTERBOX = STRETCH.model_copy(update={"geometry": "letterbox"})


def test_a_letterbox_keeps_the_aspect_and_is_centred() -> None:
    frame = images.fit_to_input((32, 128), LETTERBOX)
    assert (frame.top, frame.left, frame.height, frame.width) == (24, 0, 16, 64)


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


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    PIL.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(InputError, match="cut.jpg cannot be read"):
        images.read(path)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image .*gone.jpg.*--images"):
        images.read(tmp_path / "gone.jpg")


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    PIL.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"10 x 20 .*instances.json says 20 x 10"):
        images.read(tmp_path / "a.png", (20, 10))


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    PIL.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(images.read(tmp_path / "grey.png")).shape == (4, 4, 3)


@pytest.mark.parametrize(("mode", "kind"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_an_image_of_more_than_8_bits_is_refused_with_its_mode(tmp_path: Path, mode: str, kind: type) -> None:
    image = PIL.fromarray(np.full((4, 4), 300, kind))
    image.save(tmp_path / "deep.tiff")
    assert image.mode == mode
    with pytest.raises(InputError, match=f"deep.tiff is of mode {mode}.*8 bits"):
        images.read(tmp_path / "deep.tiff")


@pytest.mark.parametrize("limit", [150, 50])  # Pillow warns above its limit and raises above twice of it
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    PIL.fromarray(np.zeros((20, 10, 3), np.uint8)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=f"bomb.png has more than {limit} pixels"):
        images.read(tmp_path / "bomb.png")


def test_exif_rotates_a_photograph_of_a_user_but_no_image_of_a_data_set(tmp_path: Path) -> None:
    exif = PIL.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    PIL.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.read(tmp_path / "turned.jpg", (10, 20)).size == (20, 10)
    assert images.read(tmp_path / "turned.jpg", upright=True).size == (10, 20)
