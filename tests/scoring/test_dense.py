"""Dense masks: what is foreground, and files that are damaged, hostile or larger than memory."""

from __future__ import annotations

import io
import os
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from risbench.data import rle
from risbench.errors import InputError
from risbench.nn import weights
from risbench.scoring import dense

SIZE = (3, 4)


def arrays(path: Path, **named: Any) -> Path:
    np.savez_compressed(path, **named)
    return path


def tensors(path: Path, content: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(content(torch), path)
    return path


def encoded(mask: Any, threshold: float | None = None) -> NDArray[np.bool_]:
    (counts,) = dense.encode([(7, mask)], threshold).counts
    return rle.decode(counts, SIZE)


def test_foreground_is_what_lies_above_the_threshold() -> None:
    probability = np.random.default_rng(1).random(SIZE).round(1).astype(np.float32)
    probability[0, :2] = 0.5, np.nextafter(np.float32(0.5), np.float32(1))
    by_hand = [[float(value) > 0.5 for value in row] for row in probability]
    assert encoded(probability, 0.5).tolist() == by_hand
    probability[0, 2] = 0.75
    assert np.array_equal(encoded(np.log(probability + 0.25), 0), probability > 0.75)
    greys = np.array([[0, 127, 128, 255]] * 3, np.uint8)
    assert encoded(greys, 127).tolist() == [[False, False, True, True]] * 3
    assert encoded(greys, 0).tolist() == [[False, True, True, True]] * 3


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_binary_masks_of_any_type_stay_as_they_are(kind: type, threshold: float | None) -> None:
    mask: NDArray[Any] = np.tri(*SIZE).astype(kind)
    assert np.array_equal(encoded(mask, threshold), np.tri(*SIZE))
    assert np.array_equal(encoded(np.asfortranarray(mask), threshold), np.tri(*SIZE))
    if kind is not np.bool_:
        assert np.array_equal(encoded(mask * kind(255), threshold), np.tri(*SIZE))


VALUES: list[tuple[Any, float | None, str]] = [
    (np.full(SIZE, 0.3), None, "holds values from 0.3 to 0.3, not 0 and 1 or 0 and 255: give mask > 0.5, or --thr"),
    (np.array([[0, 38]]), None, "holds values from 0 to 38"),
    (np.array([[0, 1, 255]]), None, "holds values from 0 to 255"),
    (np.array([[-1, 1]]), None, "holds values from -1 to 1"),
    (np.array([[0.0, np.nan]]), 0.5, "holds values from nan to nan"),
    (np.array([[0, 38]]), 0.5, "holds values from 0 to 38, whole numbers: give --threshold in that unit"),
    (np.zeros((1, 3, 4)), None, r"has shape \(1, 3, 4\): give \(height, width\)"),
    (np.zeros((0, 4)), None, r"has shape \(0, 4\)"),
    (np.broadcast_to(np.uint8(0), (10**6, 10**6)), None, r"has shape \(1000000, 1000000\)"),
    (np.zeros(SIZE, "datetime64[s]"), None, r"holds datetime64\[s\]: give bool"),
    ([[1, 0], [1]], None, "is no array"),
]


@pytest.mark.parametrize(("mask", "threshold", "message"), VALUES, ids=[message[:40] for _, _, message in VALUES])
def test_an_array_that_is_no_mask_is_refused(mask: Any, threshold: float | None, message: str) -> None:
    with pytest.raises(InputError, match=f"The mask of sent_id 7 {message}") as refusal:
        dense.encode([(7, mask)], threshold)
    assert "\n" not in str(refusal.value)


NAMES = ["left", -1, 2**63, 1.5, None, "1.5", "1_2", "+1", " 12", "12 ", "12\n", "-1", "１２", "²", "9" * 20, "", True]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_sent_id_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match="is no sent_id"):
        dense.encode([(name, np.ones(SIZE, np.bool_))])


@pytest.mark.parametrize("name", ["12", "0012", 12, np.int32(12), np.uint64(12)])
def test_digits_and_integers_are_a_sent_id(name: Any) -> None:
    assert dense.encode([(name, np.ones(SIZE, np.bool_))]).sent_id.tolist() == [12]


def test_masks_without_a_sent_id_are_refused() -> None:
    masks: Any = [np.ones(SIZE, np.bool_)]
    with pytest.raises(InputError, match="is no pair of sent_id and mask"):
        dense.encode(masks)


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_tensor_of_any_type_with_or_without_a_gradient_is_a_mask(kind: str, trained: bool) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(np.tri(*SIZE)).to(getattr(torch, kind))
    if trained and tensor.is_floating_point():
        tensor = torch.nn.Parameter(tensor) * 1  # with a gradient function
    assert np.array_equal(encoded(tensor), np.tri(*SIZE))
    if tensor.is_floating_point():
        assert np.array_equal(encoded(torch.nn.Parameter(0.75 * tensor), 0.5), np.tri(*SIZE))


@pytest.mark.gpu
def test_a_tensor_on_a_gpu_is_a_mask() -> None:
    import torch

    tensor = torch.tensor(np.tri(*SIZE), dtype=torch.bfloat16, device="cuda", requires_grad=True)
    assert np.array_equal(encoded(tensor), np.tri(*SIZE))


def test_a_tensor_that_is_no_dense_mask_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for mask, message in (
        (torch.ones(SIZE).to_sparse(), "is no array"),
        (torch.ones(SIZE, device="meta"), "is no array"),
        (torch.ones(SIZE, dtype=torch.complex64), "holds complex64: give bool"),
        (torch.tensor(0.3).expand(SIZE), "holds values from 0.3"),
        (torch.zeros(1, dtype=torch.bfloat16).expand(10**6, 10**6), r"has shape \(1000000, 1000000\)"),
    ):
        with pytest.raises(InputError, match=f"The mask of sent_id 7 {message}") as refusal:
            dense.encode([(7, mask)])
        assert "\n" not in str(refusal.value)


# files


class Harmful:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def load_torch(path: Path) -> dict[Any, Any]:
    return weights.read(path, contents="masks")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    harm = Harmful(tmp_path / "harm")
    for named in ({"7": np.array([[harm]])}, {"sent_id": np.array([harm]), "masks": np.ones((1, *SIZE))}):
        path = arrays(tmp_path / "a.npz", **named)
        with pytest.raises(InputError, match=r"a.npz.*(holds Python objects|Object arrays cannot be loaded)"):
            dense.encode(dense.read_npz(path))
    with pytest.raises(InputError, match="a.pth is refused: .* nothing in it was run"):
        dense.encode(dense.read_pth(tensors(tmp_path / "a.pth", lambda _: {7: harm}), load_torch))
    assert not (tmp_path / "harm").exists()


def members(path: Path, *named: tuple[str, tuple[int, ...]]) -> Path:
    """A .npz file whose members may have one name."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of zipfile, about the name
        for name, shape in named:
            buffer = io.BytesIO()
            np.save(buffer, np.ones(shape))
            archive.writestr(f"{name}.npy", buffer.getvalue())
    return path


def promising(path: Path, shape: tuple[int, ...]) -> Path:
    """A .npz file of some bytes whose header promises an array of this shape."""
    header = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("7.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(50))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no zip"), "a.npz: it is no .npz file, but text that begins with 'no zip'"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "a.npz: it is no .npz file, but a web page"),
        (lambda path: os.mkfifo(path), "a.npz: .*is a device or a pipe"),
        (lambda path: members(path, ("7", (3, 4)), ("7", (4, 3))), "a.npz: the array '7' stands twice in it"),
        (lambda path: members(path, ("7", (3, 4)), ("sent_id", (3,))), "'sent_id' is no sent_id|is no mask|has shape"),
        (lambda path: arrays(path, **{"12_3": np.ones(SIZE)}), "'12_3' is no sent_id"),
        (lambda path: arrays(path, sent_id=["1_2"], masks=np.ones((1, 3, 4))), "'1_2' is no sent_id"),
        (
            lambda path: arrays(path, sent_id=np.zeros(1, "U5000"), masks=np.ones((1, 3, 4))),
            "'sent_id' has 1 values of",
        ),
        (lambda path: arrays(path, **{"7": np.zeros(SIZE, "U9999999")}), "A mask holds <U9999999: give bool"),
        (lambda path: tensors(path, lambda torch: {7: torch.ones(SIZE)}), "is a file of torch, .* give --format pth"),
        (lambda path: path.mkdir(), "a.npz cannot be read"),
        (
            lambda path: promising(path, (10**5, 10**5)),
            r"A mask has shape \(100000, 100000\): give .* 89,478,485 pixels",
        ),
        (lambda path: promising(path, (10, 10)), "a.npz cannot be read"),
        (lambda path: promising(path, (2, 5, 5)), r"A mask has shape \(2, 5, 5\)"),
        (lambda path: arrays(path, left=np.ones(SIZE)), "'left' is no sent_id"),
        (
            lambda path: arrays(path, sent_id=[1, 2], masks=np.ones((3, 3, 4))),
            r"masks of shape \(3, 3, 4\): give \(2, h",
        ),
        (
            lambda path: arrays(path, sent_id=[1, 2], masks=np.asfortranarray(np.ones((2, 3, 4)))),
            r"masks of shape \(2, 3, 4\), column by column: give \(2, height, width\)",
        ),
        (lambda path: arrays(path, sent_id=[1.0], masks=np.ones((1, 3, 4))), "1.0 is no sent_id"),
    ],
)
def test_a_defect_of_npz_is_named(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.npz")
    with pytest.raises(InputError, match=message) as refusal:
        dense.encode(dense.read_npz(tmp_path / "a.npz"))
    assert "\n" not in str(refusal.value)


def test_every_truncation_of_npz_is_refused(tmp_path: Path) -> None:
    whole = arrays(tmp_path / "a.npz", sent_id=[1, 2], masks=np.ones((2, *SIZE), np.bool_)).read_bytes()
    for length in range(0, len(whole), 41):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(InputError, match="a.npz cannot be read|a.npz: it is no .npz file, but empty"):
            dense.encode(dense.read_npz(tmp_path / "a.npz"))


def test_a_flipped_bit_of_an_npz_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", sent_id=[1], masks=np.zeros((1, 64, 64), np.uint8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="a.npz cannot be read .*Bad CRC-32"):
        dense.encode(dense.read_npz(tmp_path / "a.npz"))


def test_masks_of_an_npz_are_never_all_in_memory(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", sent_id=np.arange(300), masks=np.zeros((300, 200, 300), np.uint8))
    tracemalloc.start()
    predictions = dense.encode(dense.read_npz(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(predictions) == 300 and peak < 300 * 200 * 300 / 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda torch: [torch.ones(SIZE)], "a.pth holds a list, not a dictionary of masks"),
        (lambda torch: {"left": torch.ones(SIZE)}, "'left' is no sent_id"),
        (lambda torch: {7: torch.full(SIZE, 0.3)}, "The mask of sent_id 7 holds values from .* --threshold"),
        (lambda torch: {7: torch.zeros(1).expand(10**6, 10**6)}, r"has shape \(1000000, 1000000\)"),
        (
            lambda torch: {"sent_id": [1, 2], "masks": torch.ones(3, *SIZE)},
            "'sent_id' and 'masks' are not of one length",
        ),
        (lambda torch: {"sent_id": 1, "masks": torch.ones(SIZE)}, "'sent_id' and 'masks' are not of one length"),
    ],
)
def test_a_defect_of_pth_is_named(content: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        dense.encode(dense.read_pth(tensors(tmp_path / "a.pth", content), load_torch))


def inverted() -> Image.Image:
    """A mask of the background, whose palette begins with white."""
    image = Image.new("L", (4, 3), 1)
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (4, 3)), "of mode RGB: write one channel of grey"),
        (inverted(), "has a palette that does not begin with black"),
        (None, r"7.png cannot be read \(cannot identify image file"),
    ],
)
def test_a_picture_that_is_no_mask_is_refused(image: Image.Image | None, message: str, tmp_path: Path) -> None:
    image.save(tmp_path / "7.png") if image else (tmp_path / "7.png").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=message):
        dense.read_png(tmp_path / "7.png")


def test_a_pipe_in_place_of_tensors_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a device or a pipe, no regular file"):
        dense.read_pth(tmp_path / "pipe", load_torch)
