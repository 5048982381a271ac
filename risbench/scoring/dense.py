"""Dense masks (height, width) of other programs become predictions: arrays, tensors, and the files that hold them.

A mask is 0 in the background, and 1 everywhere or 255 everywhere in the foreground. Other values need a threshold in
their unit; values above it are foreground. Masks are read and encoded one by one.
"""

from __future__ import annotations

import math
import operator
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image as PIL

from risbench.data import rle
from risbench.errors import InputError
from risbench.scoring.predictions import Predictions

Masks = Iterable[tuple[Any, Any]]  # sent_id, array or tensor

_MAX_PIXELS = 1 << 26  # of one mask: a small file can announce more than fits in memory
_GREY_MODES = ("1", "L", "P", "I", "I;16")


def encode(masks: Masks, threshold: float | None = None) -> Predictions:
    """Build predictions from pairs of a sent_id and its mask."""
    sent_ids: list[int] = []
    sizes: list[rle.Size] = []
    counts: list[bytes] = []
    for pair in masks:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"{pair!r:.60} is no pair of sent_id and mask: give such pairs, or a dictionary of them.")
        name, mask = pair
        sent_ids.append(_sent_id(name))
        label = f"The mask of sent_id {sent_ids[-1]}"
        foreground = _foreground(_values(mask, label), threshold, label)
        sizes.append((foreground.shape[0], foreground.shape[1]))
        counts.append(rle.encode(foreground))
    return Predictions.build(None, sent_ids, sizes, counts, [None] * len(counts))


def check_shape(shape: tuple[int, ...], label: str) -> None:
    """Raise InputError unless this can be the shape of one mask."""
    if len(shape) != 2 or min(shape) < 1 or math.prod(shape) > _MAX_PIXELS:
        raise InputError(f"{label} has shape {shape}: give (height, width), 1 to {_MAX_PIXELS} pixels.")


# files


def read_png(path: Path) -> NDArray[Any]:
    """Return the values of a PNG file with one channel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.DecompressionBombWarning)
            with PIL.open(path, formats=("PNG",)) as image:
                palette, mode, values = image.getpalette(), image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, PIL.DecompressionBombError, PIL.DecompressionBombWarning) as error:
        raise InputError(f"The mask {path} cannot be read ({_reason(error)}): write it again.") from None
    if mode not in _GREY_MODES:
        raise InputError(f"The mask {path} is of mode {mode}: write one channel of grey, 0 and 255.")
    if palette and any(palette[:3]):  # a black foreground would be read as background
        raise InputError(f"The mask {path} has a palette that does not begin with black: write it in grey, 0 and 255.")
    return values


def read_npz(source: Path) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Yield pairs of sent_id and mask of a .npz file: arrays `sent_id` and `masks`, or one array under each sent_id."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            if {"sent_id", "masks"} <= members.keys():
                with archive.open(members["sent_id"]) as file:
                    ids = npy.read_array(file, allow_pickle=False)
                with archive.open(members["masks"]) as file:
                    yield from zip(ids.ravel().tolist(), _read_masks(file, (ids.size,)), strict=True)
                return
            for name, member in members.items():
                with archive.open(member) as file:
                    yield from ((name, mask) for mask in _read_masks(file, ()))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except Exception as error:  # damaged zips and headers raise many kinds of errors
        raise InputError(f"{source} cannot be read ({_reason(error)}): write it with numpy.savez_compressed.") from None


def read_pth(source: Path, load: Callable[[Path], dict[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Return the pairs of sent_id and mask of a .pth file: tensors by sent_id, or `sent_id` and `masks`.

    `load` reads the file with torch, which risbench.scoring never imports.
    """
    content = load(source)
    if not {"sent_id", "masks"} <= content.keys():
        return iter(content.items())
    try:
        return iter(list(zip(content["sent_id"], content["masks"], strict=True)))
    except (TypeError, ValueError):
        raise InputError(f"{source}: 'sent_id' and 'masks' are not of one length: give a mask for each.") from None


def _read_masks(file: IO[bytes], number: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Yield the masks of a .npy file of shape (*number, height, width): together they may not fit in memory."""
    header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    size = shape[len(number) :]
    if shape[: len(number)] != number or (number and by_columns):
        order = ", column by column" if by_columns else ""
        raise InputError(f"masks of shape {shape}{order}: give ({number[0]}, height, width), one for each sent_id.")
    check_shape(size, "A mask")
    if dtype.hasobject:
        raise InputError("it holds Python objects, which are not read: give numbers.")
    for _ in range(math.prod(number)):
        values = np.frombuffer(file.read(math.prod(size) * dtype.itemsize), dtype)
        yield values.reshape(size, order="F" if by_columns else "C")


# sent_ids and values


def _sent_id(name: Any) -> int:
    try:
        sent_id = int(name) if isinstance(name, str) else operator.index(name)
    except (TypeError, ValueError):
        raise InputError(f"{name!r:.60} is no sent_id: name each mask by the number of its expression.") from None
    if not 0 <= sent_id < 2**63:
        raise InputError(f"{name!r:.60} is no sent_id of any data set: take it from the annotations.")
    return sent_id


def _values(mask: Any, label: str) -> NDArray[Any]:
    try:
        values = np.asarray(mask)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or with a gradient
        raise InputError(f"{label} is no array ({_reason(error)}): give mask.detach().cpu().numpy().") from None
    check_shape(values.shape, label)
    if values.dtype.kind not in "buif":
        raise InputError(f"{label} holds {values.dtype}: give bool.")
    return values


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


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
