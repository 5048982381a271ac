"""Dense masks (height, width) of other programs become predictions: arrays, tensors, and the files that hold them.

A mask is 0 in the background, and 1 everywhere or 255 everywhere in the foreground. Other values need a threshold in
their unit; values above it are foreground. Masks are read and encoded one by one, and none is read whose stated size is
above rle.MAX_PIXELS: a file of some bytes can announce more than fits in memory.
"""

from __future__ import annotations

import math
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image as PIL

from risbench import files
from risbench.data import rle
from risbench.errors import InputError, first_line
from risbench.scoring import parquet
from risbench.scoring.predictions import Predictions

Masks = Iterable[tuple[Any, Any]]  # sent_id, array or tensor

_DIGITS = re.compile(r"[0-9]{1,19}")  # int() also takes 1_2, +12 and digits of other scripts
_ARCHIVE_LIMIT = 2**40  # bytes of a .npz file, whose masks are read one by one
_MAX_ITEM = 64  # bytes of a sent_id
_GREY_MODES = ("1", "L", "P", "I", "I;16")


def encode(masks: Masks, threshold: float | None = None) -> Predictions:
    """Build predictions from pairs of a sent_id and its mask."""
    sent_ids: list[int] = []
    sizes: list[rle.Size] = []
    counts: list[bytes] = []
    for pair in masks:
        if not isinstance(pair, tuple) or len(pair) != 2:
            shown = " ".join(repr(pair).split())[:60]
            raise InputError(f"{shown} is no pair of sent_id and mask: give such pairs, or a dictionary of them.")
        name, mask = pair
        sent_ids.append(_sent_id(name))
        label = f"The mask of sent_id {sent_ids[-1]}"
        foreground = _foreground(_values(mask, label), threshold, label)
        sizes.append((foreground.shape[0], foreground.shape[1]))
        counts.append(rle.encode(foreground))
    return Predictions.build(None, sent_ids, sizes, counts, [None] * len(counts))


def check_shape(shape: tuple[int, ...], label: str) -> None:
    """Raise InputError unless this can be the shape of one mask."""
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) > rle.MAX_PIXELS:
        raise InputError(f"{label} has shape {shape}: give (height, width), 1 to {rle.MAX_PIXELS:,} pixels.")


# files


def read_png(path: Path) -> NDArray[Any]:
    """Return the values of a PNG file with one channel."""
    try:
        files.check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.DecompressionBombWarning)
            with PIL.open(path, formats=("PNG",)) as image:
                check_shape((image.height, image.width), f"The mask {path}")
                palette, mode, values = image.getpalette(), image.mode, np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # Pillow documents no fixed set of exceptions for a damaged file
        raise InputError(f"The mask {path} cannot be read ({first_line(error)}): write it again.") from None
    if mode not in _GREY_MODES:
        raise InputError(f"The mask {path} is of mode {mode}: write one channel of grey, 0 and 255.")
    if palette and any(palette[:3]):  # a black foreground would be read as background
        raise InputError(f"The mask {path} has a palette that does not begin with black: write it in grey, 0 and 255.")
    return values


def read_npz(source: Path) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Yield pairs of sent_id and mask of a .npz file: arrays `sent_id` and `masks`, or one array under each sent_id."""
    try:
        files.check_regular(source, _ARCHIVE_LIMIT)
        kind = "" if zipfile.is_zipfile(source) else files.foreign_kind(source)
        if kind and not kind.startswith("a zip"):  # a zip that is cut off is damaged
            raise InputError(f"it is no .npz file, but {kind}")
        with zipfile.ZipFile(source) as archive:
            members = _members(archive)
            if {"sent_id", "masks"} <= members.keys():
                with archive.open(members["sent_id"]) as file:
                    ids = _read_ids(file)
                with archive.open(members["masks"]) as file:
                    yield from zip(ids, _read_masks(file, (len(ids),)), strict=True)
                return
            for name, member in members.items():
                with archive.open(member) as file:
                    yield from ((name, mask) for mask in _read_masks(file, ()))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except Exception as error:  # damaged zips and headers raise many kinds of errors
        raise InputError(
            f"{source} cannot be read ({first_line(error)}): write it with numpy.savez_compressed."
        ) from None


def read_pth(source: Path, load: Callable[[Path], dict[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Return the pairs of sent_id and mask of a .pth file: tensors by sent_id, or `sent_id` and `masks`.

    `load` reads the file with torch, which risbench.scoring never imports.
    """
    files.check_regular(source, _ARCHIVE_LIMIT)
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                raise InputError(f"{source} holds arrays of NumPy, no tensors: give --format npz.")
    content = load(source)
    if not {"sent_id", "masks"} <= content.keys():
        return iter(content.items())
    ids, masks = content["sent_id"], content["masks"]
    try:
        are_paired = len(ids) == len(masks)
    except TypeError:  # a number, or a tensor without dimensions
        are_paired = False
    if not are_paired:
        raise InputError(f"{source}: 'sent_id' and 'masks' are not of one length: give a mask for each.")
    if len(ids) > parquet.MAX_ROWS:
        raise InputError(f"{source} holds {len(ids):,} masks; at most {parquet.MAX_ROWS:,} are read: give one split.")
    return zip(ids, masks, strict=True)


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the members of a .npz file by the names of their arrays. Raises InputError for a name in it twice."""
    members: dict[str, str] = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        if name in members:
            raise InputError(f"the array {name!r} stands twice in it: write each array once.")
        if name.endswith("data.pkl"):
            raise InputError("it is a file of torch, no .npz file: give --format pth.")
        members[name] = member
    return members


def _read_ids(file: IO[bytes]) -> list[Any]:
    """Read the array `sent_id`."""
    shape, by_columns, dtype = _read_header(file)
    if math.prod(shape) > parquet.MAX_ROWS or dtype.itemsize > _MAX_ITEM:
        raise InputError(f"'sent_id' has {math.prod(shape):,} values of {dtype}: give {parquet.MAX_ROWS:,} at most.")
    return list(_read_array(file, shape, by_columns, dtype).ravel().tolist())


def _read_masks(file: IO[bytes], number: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the masks of a .npy file of shape (*number, height, width): together they may not fit in memory."""
    shape, by_columns, dtype = _read_header(file)
    size = shape[len(number) :]
    if shape[: len(number)] != number or (number and by_columns):
        order = ", column by column" if by_columns else ""
        raise InputError(f"masks of shape {shape}{order}: give ({number[0]}, height, width), one for each sent_id.")
    check_shape(size, "A mask")
    if dtype.kind not in "buif":
        raise InputError(f"A mask holds {dtype}: give bool.")
    for _ in range(math.prod(number)):
        yield _read_array(file, size, by_columns, dtype)
    if file.read(1):  # the end of the file is where its checksum is compared
        raise InputError(f"masks of shape {shape}: it holds more values than that. Write it again.")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, order and type of a .npy file. Raises InputError for types that are no numbers."""
    header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    if dtype.hasobject:
        raise InputError("it holds Python objects, which are not read: give numbers.")
    if dtype.kind not in "buifU":  # the sent_ids may be strings
        raise InputError(f"it holds {dtype}: give bool.")
    return shape, by_columns, dtype


def _read_array(file: IO[bytes], shape: tuple[int, ...], by_columns: bool, dtype: np.dtype[Any]) -> NDArray[Any]:
    values = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
    return values.reshape(shape, order="F" if by_columns else "C")


# sent_ids and values


def _sent_id(name: Any) -> int:
    """Return a sent_id from its digits, or from an integer of any library."""
    try:
        if isinstance(name, bool) or (isinstance(name, str) and not _DIGITS.fullmatch(name)):
            raise ValueError
        sent_id = int(name) if isinstance(name, str) else operator.index(name)
    except (TypeError, ValueError):
        raise InputError(f"{name!r:.60} is no sent_id: name each mask by the number of its expression.") from None
    if not 0 <= sent_id < 2**63:
        raise InputError(f"{name!r:.60} is no sent_id of any data set: take it from the annotations.")
    return sent_id


def _values(mask: Any, label: str) -> NDArray[Any]:
    check_shape(tuple(getattr(mask, "shape", (1, 1))), label)  # a tensor may repeat one value without end
    try:
        values = _tensor_values(mask) if hasattr(mask, "detach") else np.asarray(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{label} is no array ({first_line(error)}): give a bool array (height, width).") from None
    check_shape(values.shape, label)
    if values.dtype.kind not in "buif":
        raise InputError(f"{label} holds {values.dtype}: give bool.")
    return values


def _tensor_values(tensor: Any) -> NDArray[Any]:
    """Return the values of a torch tensor on any device, with or without a gradient."""
    tensor = tensor.detach().cpu()
    try:
        return np.asarray(tensor)
    except TypeError:  # bfloat16 and other types that NumPy lacks; float32 holds their values exactly
        return np.asarray(tensor.float())


def _foreground(values: NDArray[Any], threshold: float | None, label: str) -> NDArray[np.bool_]:
    if values.dtype.kind == "b":
        return values
    top = values.max()
    binary = top in (0, 1, 255) and bool(((values == 0) | (values == top)).all())
    problem = f"{label} holds values from {values.min():g} to {top:g}"
    if np.isnan(top) or (threshold is None and not binary):
        raise InputError(f"{problem}, not 0 and 1 or 0 and 255: give mask > 0.5, or --threshold when importing.")
    if threshold is None:
        return np.asarray(values != 0)
    if 0 < threshold < 1 and values.dtype.kind in "ui" and not binary:
        raise InputError(f"{problem}, whole numbers: give --threshold in that unit, such as 127 of 255.")
    return np.asarray(values > threshold)
