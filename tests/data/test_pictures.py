"""Image files, as training, prediction and `data doctor` read them."""

from __future__ import annotations

import os
import pickle
import re
import socket
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from risbench.data import pictures, rle
from risbench.errors import InputError

SIZE = (48, 64)  # height, width
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def saved(path: Path, mode: str = "RGB", **options: Any) -> Path:
    """Save noise in a mode of Pillow."""
    Image.fromarray(NOISE).convert(mode).save(path, **options)
    return path


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(pictures.ImageError, match=message) as raised:
        pictures.read(path, SIZE)
    assert len(re.split(r"[.:] ", str(raised.value))) == 2  # what, and a cure


@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_an_image_that_is_cut_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = saved(tmp_path / name)
    pictures.read(path, SIZE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert_refused(path, f"{name} cannot be read")


def test_a_missing_image_is_named_with_the_cure_of_its_command(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone.jpg", "no image .*gone.jpg.*--images")
    with pytest.raises(InputError, match="no image .*gone.jpg. Give the path"):
        pictures.read_photo(tmp_path / "gone.jpg")


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"48 x 64 .*instances.json says 64 x 48"):
        pictures.read(path, (64, 48))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [*(("jpg", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")), *(("png", mode) for mode in ("1", "L", "P", "RGB"))],
)
def test_every_colour_mode_becomes_the_rgb_of_pillow(tmp_path: Path, suffix: str, mode: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", mode)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(pictures.read(path, SIZE)), expected)
    if mode == "RGB" and suffix == "png":
        assert np.array_equal(expected, NOISE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_is_dropped_and_transparent_pixels_are_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    image.save(tmp_path / "opaque.png")
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(pictures.read(tmp_path / "opaque.png", SIZE)), expected)
    image.putpixel((3, 2), (0,) * len(mode))
    image.save(tmp_path / "clear.png")
    assert_refused(tmp_path / "clear.png", "transparent pixels. Save it without")


def test_a_palette_with_transparency_is_refused_only_where_it_is_used(tmp_path: Path) -> None:
    image = Image.fromarray(NOISE[..., 0] % 4).convert("P")
    image.save(tmp_path / "opaque.png", transparency=bytes([255] * 4))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(pictures.read(tmp_path / "opaque.png", SIZE)), expected)
    image.save(tmp_path / "clear.png", transparency=bytes([255, 255, 0, 255]))
    assert_refused(tmp_path / "clear.png", "transparent pixels. Save it without")


@pytest.mark.parametrize(("mode", "kind"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_more_than_8_bits_are_refused_with_the_mode(tmp_path: Path, mode: str, kind: type) -> None:
    image = Image.fromarray(np.full(SIZE, 300, kind))
    image.save(tmp_path / "deep.tiff")
    assert image.mode == mode
    with pytest.raises(InputError, match=f"deep.tiff is of mode {mode}.*8 bits"):
        pictures.read_photo(tmp_path / "deep.tiff")
    if mode == "I;16":
        image.save(tmp_path / "deep.png")
        assert_refused(tmp_path / "deep.png", "is of mode I;16")


def test_colours_of_16_bits_are_read_by_their_higher_byte(tmp_path: Path) -> None:
    """Pillow reads grey of 16 bits as such, which is refused, but colours with 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    deep = (NOISE.astype(np.uint16) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = (64).to_bytes(4, "big") + (48).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert np.array_equal(np.asarray(pictures.read(tmp_path / "deep.png", SIZE)), NOISE)


@pytest.mark.parametrize("format_", ["BMP", "GIF", "TIFF", "WEBP", "DDS", "PPM", "TGA", "ICO", "JPEG2000"])
def test_data_sets_hold_jpeg_and_png_and_photographs_a_few_more(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "image.jpg"  # whatever its name says
    Image.fromarray(NOISE).save(path, format=format_)
    assert_refused(path, "image.jpg is no JPEG or PNG, or damaged. Save it")
    if format_ in ("BMP", "GIF", "TIFF", "WEBP"):
        assert pictures.read_photo(path).size == (64, 48)
    else:
        with pytest.raises(InputError, match="no JPEG, PNG, BMP, GIF, TIFF or WEBP, or damaged. Save it"):
            pictures.read_photo(path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\xff\xd8\xff\xe0" + bytes(40), b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert_refused(tmp_path / "a.jpg", r"a\.jpg (is no JPEG|cannot be read)")


def test_an_avif_is_refused_with_or_without_its_plugin(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200))
    assert_refused(tmp_path / "a.jpg", "is no JPEG or PNG, or damaged")


def test_a_pipe_a_device_a_socket_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for name in ("pipe.png", "socket.png", "/dev/zero"):
            assert_refused(tmp_path / name, "is a device or a pipe, no regular file")
    (tmp_path / "folder.png").mkdir()
    assert_refused(tmp_path / "folder.png", "cannot be read")


def test_the_largest_number_of_pixels_is_stated_and_read_from_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rle.MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    path = saved(tmp_path / "bomb.png")
    monkeypatch.setattr(rle, "MAX_PIXELS", 48 * 64)
    pictures.read(path, SIZE)
    monkeypatch.setattr(rle, "MAX_PIXELS", 48 * 64 - 1)
    assert_refused(path, "bomb.png has more than 3,071 pixels. Shrink it")


@pytest.mark.parametrize("side", [10_000, 65_535])  # Pillow warns above its limit and raises above twice of it
def test_a_small_file_that_announces_a_huge_image_is_refused(tmp_path: Path, side: int) -> None:
    path = saved(tmp_path / "bomb.png")
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2  # width and height in the header, whose checksum is mended
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    assert_refused(path, "bomb.png has more than 89,478,485 pixels. Shrink it")


def test_exif_turns_a_photograph_of_a_user_but_no_image_of_a_data_set(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    for name in ("turned.jpg", "turned.png", "turned.tiff", "turned.webp"):
        path = saved(tmp_path / name, exif=exif)
        assert pictures.read_photo(path).size == (48, 64)
        if not name.endswith(("tiff", "webp")):
            assert pictures.read(path, SIZE).size == (64, 48)


def test_an_error_crosses_processes_with_what_the_doctor_says(tmp_path: Path) -> None:
    with pytest.raises(pictures.ImageError) as raised:
        pictures.read(tmp_path / "gone.jpg")
    again = pickle.loads(pickle.dumps(raised.value))
    assert str(again) == str(raised.value) and again.predicate == "are missing"
