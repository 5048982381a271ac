"""One image, one expression: the mask drawn over the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from PIL import Image as PIL

from risbench import dist, predict, protocol
from risbench.api import Batch
from risbench.checkpoint import Checkpoint
from risbench.data import images
from risbench.data.loader import Item
from risbench.errors import InputError
from risbench.predict import Predictor
from risbench.rle import Mask

_COLOUR = (255, 40, 60)
_WEIGHT = 0.5  # of the colour over the image


def draw(checkpoint: Path, image: Path, expression: str, output: Path) -> float:
    """Write a picture of the image, the mask and the peak; return the share of the image that the mask covers."""
    if not expression.strip():
        raise InputError('The expression is empty. Say what to segment: "the left cup".')
    _check_output(output)
    opened = Checkpoint(checkpoint)
    model, tokenizer = opened.model()
    fabric = dist.start()  # in full precision, which every device has
    original = protocol.load("original")
    predictor = Predictor.of(model.to(fabric.device).eval(), tokenizer, opened.recipe, original, fabric)
    picture = images.read(image, upright=True)
    place = images.frame((picture.height, picture.width), predictor.image())
    batch = Batch(
        image=images.to_input(picture, place, predictor.image())[None],  # (1, 3, side, side)
        image_index=torch.tensor([0]),
        words=predictor.tokenizer([expression]),
        mask=None,
    )
    with torch.inference_mode():
        masks, peaks = predict.masks(predictor, Item(batch, [0], [place]))
    mask = masks[0].cpu().numpy()
    _write(_figure(picture, mask, peaks[0], expression), output)
    return float(mask.mean())


def _check_output(output: Path) -> None:
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if output.is_dir() or output.suffix.lower().removeprefix(".") not in known:
        raise InputError(
            f"--output {output} does not name a picture: give a file that ends in .png (or {', '.join(known)})."
        )


def _figure(picture: PIL.Image, mask: Mask, peak: tuple[int, int] | None, expression: str) -> Figure:
    pixels = np.asarray(picture).astype(np.float64)
    pixels[mask] = (1 - _WEIGHT) * pixels[mask] + _WEIGHT * np.array(_COLOUR)
    height = min(max(6.0 * picture.height / picture.width, 1.0), 24.0)  # inches, also of a strip of pixels
    figure, axes = pyplot.subplots(1, 2, figsize=(12, height + 0.5), layout="constrained")
    axes[0].imshow(picture)
    axes[1].imshow(pixels.astype(np.uint8))
    if min(mask.shape) > 1 and mask.any() and not mask.all():
        axes[1].contour(mask, levels=[0.5], colors="white", linewidths=1)
    if peak is not None:
        axes[1].plot(peak[1], peak[0], "+", color="yellow", markersize=12, markeredgewidth=2)
    for axis in axes:
        axis.axis("off")
    figure.suptitle(expression, parse_math=False)
    return figure


def _write(figure: Figure, output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=100)
    except (OSError, ValueError) as error:
        raise InputError(f"The picture {output} cannot be written: {error}. Give another --output.") from None
    finally:
        pyplot.close(figure)
