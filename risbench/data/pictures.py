"""Read image files: regular files of a known format, of bounded size, whole to the last byte.

`data doctor` examines images by reading them as training and prediction do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from risbench import files
from risbench.data import rle
from risbench.data.rle import Size
from risbench.errors import InputError

_FORMATS = ("JPEG", "PNG")
_PHOTO_FORMATS = (*_FORMATS, "BMP", "GIF", "TIFF", "WEBP")
MAX_BYTES = 2**29  # of a file; the largest image has fewer without any compression


class ImageError(InputError):
    """A defect of an image file; `predicate` describes the defect of several images."""

    def __init__(self, message: str, predicate: str = "cannot be read") -> None:
        super().__init__(message)
        self.predicate = predicate


def read(path: Path, size: Size | None = None) -> Image.Image:
    """Decode an image of a data set to RGB. Raises ImageError if its height and width differ from `size`.

    Its pixels are read as they are stored, as COCO's annotations were made: an EXIF orientation is not applied.
    """
    with _opened(path, _FORMATS) as image:
        _check_header(image, path, size)
        return _to_rgb(image, path)


def read_photo(path: Path) -> Image.Image:
    """Decode a photograph of a user to RGB, upright by its EXIF orientation. Raises ImageError."""
    with _opened(path, _PHOTO_FORMATS) as image:
        _check_header(image, path)
        return _to_rgb(ImageOps.exif_transpose(image), path)


@contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    try:
        files.check_regular(path, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                yield image
    except ImageError:
        raise
    except InputError as error:  # a pipe, or too many bytes
        raise ImageError(str(error)) from None
    except FileNotFoundError:
        raise _missing(path, formats) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(path) from None
    except UnidentifiedImageError:
        names = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise ImageError(f"The image {path} is no {names}, or damaged. Save it as one of them.") from None
    except Exception as error:  # Pillow documents no fixed set of exceptions for a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"The image {path} cannot be read ({reason}). Copy the file again.") from None


def _check_header(image: Image.Image, path: Path, size: Size | None = None) -> None:
    if image.width * image.height > rle.MAX_PIXELS:
        raise _too_large(path)
    if image.mode.startswith(("I", "F")):  # convert() would cut off values above 255
        message = f"The image {path} is of mode {image.mode}, more than 8 bits a channel. Save it with 8 bits."
        raise ImageError(message, "have more than 8 bits a channel")
    if size is not None and (image.height, image.width) != size:
        message = (
            f"The image {path} is {image.height} x {image.width} (height x width), but instances.json says "
            f"{size[0]} x {size[1]}. Take the image and the annotations from the same source."
        )
        raise ImageError(message, "have another size than instances.json says")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Decode an image to its end. Raises ImageError for transparent pixels, whose colour no viewer shows."""
    image.load()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            message = f"The image {path} has transparent pixels. Save it without transparency."
            raise ImageError(message, "have transparent pixels")
    return image.convert("RGB")


def _missing(path: Path, formats: tuple[str, ...]) -> ImageError:
    of_data_set = "Copy it there, or give the folder of the images with --images."
    cure = of_data_set if formats == _FORMATS else "Give the path of an image."
    return ImageError(f"There is no image {path}. {cure}", "are missing")


def _too_large(path: Path) -> ImageError:
    problem = f"more than {rle.MAX_PIXELS:,} pixels"
    return ImageError(f"The image {path} has {problem}. Shrink it.", f"have {problem}")
