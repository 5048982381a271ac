"""Segment one image by one expression: write the mask, draw it over the image, and draw the maps behind it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image as PIL

from risbench import files
from risbench.api import Batch, Panel, Tokenizer
from risbench.data import images, pictures
from risbench.data.loader import Item
from risbench.data.rle import Mask
from risbench.data.text import Vocabulary
from risbench.engine import distributed, predict
from risbench.engine.checkpoint import Checkpoint
from risbench.engine.predict import Masks, Predictor
from risbench.errors import InputError
from risbench.scoring import protocol

_log = logging.getLogger(__name__)
_COLOUR = (255, 40, 60)
_OPACITY = 0.5  # of the colour over the image
_HEAT = "inferno"  # colour map of a panel, from 0 to its maximum


def draw_segmentation(
    checkpoint: Path,
    image: Path,
    expression: str,
    output: Path | None,
    explain: bool = False,
    word: str = "",
    method: str = "",
    mask_output: Path | None = None,
) -> tuple[float, str]:
    """Draw the image, the mask and the peak to `output`; return the share of the image that the mask covers.

    Beside it stands the no-target answer in words, or "" where there is none; the mask is drawn whatever it is.

    `explain` adds the maps behind the mask, those of one word of the expression if `word` is not empty. `method` is the
    name or the folder of the checkpoint's method, if it is not known by name. `mask_output` is a PNG of the size of the
    upright image, 255 on the mask and 0 elsewhere.
    """
    _check_options(expression, output, explain, word, mask_output)
    opened = Checkpoint(checkpoint, method)
    model, tokenizer = opened.model()
    fabric = distributed.start()  # in full precision, which every device has
    original = protocol.load("original")
    predictor = Predictor.build(model.to(fabric.device).eval(), tokenizer, opened.recipe, original, fabric)
    _check_words(predictor.tokenizer, expression)
    tokens = predictor.tokenizer.places(expression, word) if word else []
    picture = pictures.read_photo(image)
    item = _item(predictor, picture, expression)
    with torch.inference_mode():
        predicted = predict.predict_masks(predictor, item, [expression])
        panels = explanation_panels(predictor, item, tokens) if explain else []
    mask, answer = predicted.masks[0].numpy(), _no_target_words(predictor, predicted)
    title = f"{expression}   (word: {word})" if word else expression
    if mask_output:
        with files.replacing(mask_output) as new:
            PIL.fromarray(mask.astype(np.uint8) * 255).save(new, format="PNG")
    if output:
        _save(_figure(picture, mask, predicted.peaks[0], title, panels, answer), output)
    return float(mask.mean()), answer


def _no_target_words(predictor: Predictor, predicted: Masks) -> str:
    """Return the no-target answer of one expression in words: "nothing here is meant: 0.93", or "" without one."""
    if predicted.no_target is not None:
        return f"nothing here is meant: {predicted.no_target[0]:.2f}"
    below = predictor.recipe.predict.no_target_below
    if not below:
        return ""
    if predicted.largest[0] < below:
        return f"nothing here is meant: the largest probability {predicted.largest[0]:.2f} is below {below:g}"
    return f"something here is meant: the largest probability {predicted.largest[0]:.2f} is not below {below:g}"


def explanation_panels(predictor: Predictor, item: Item, tokens: Sequence[int]) -> list[Panel]:
    """Return the maps behind the prediction of one expression, at the size of its image: values (H, W)."""
    with predictor.fabric.autocast(), distributed.arithmetic(predictor.recipe.train.matmul):
        panels = predictor.model.explain(predictor.fabric.to_device(item.batch), tokens)
    return [Panel(title, images.sample_to_size(values[None], item.frames[0])[0]) for title, values in panels]


def _check_options(expression: str, output: Path | None, explain: bool, word: str, mask_output: Path | None) -> None:
    if not expression.strip():
        raise InputError('The expression is empty. Say what to segment: "the left cup".')
    if word and not explain:
        raise InputError("--word chooses what --explain shows: add --explain, or leave --word out.")
    if mask_output and (mask_output.is_dir() or mask_output.suffix.lower() != ".png"):
        raise InputError(f"--mask {mask_output} does not name a mask: give a file that ends in .png.")
    if output is None:
        if explain:
            raise InputError("--explain draws into the picture: give its --output beside --mask.")
        return
    if mask_output and output.resolve() == mask_output.resolve():
        raise InputError(f"--output and --mask both name {output}: give each a file of its own.")
    suffixes = sorted(FigureCanvasBase.get_supported_filetypes())
    if output.is_dir() or output.suffix.lower().removeprefix(".") not in suffixes:
        raise InputError(
            f"--output {output} does not name a picture: give a file that ends in .png (or {', '.join(suffixes)})."
        )


def _check_words(tokenizer: Tokenizer, expression: str) -> None:
    """Name the words that the checkpoint's vocabulary lacks; refuse an expression of which it knows nothing."""
    known = tokenizer.known_words(expression) if isinstance(tokenizer, Vocabulary) else {expression: True}
    unknown = ", ".join(repr(word) for word, is_known in known.items() if not is_known)
    if not any(known.values()):
        what = f"has seen none of the words {unknown}" if unknown else f"reads no word in {expression!r}"
        raise InputError(f"The checkpoint {what}, so its mask would mean nothing. Say it in other words.")
    if unknown:
        _log.warning("Words that the checkpoint has never seen, and does not understand: %s.", unknown)


def _item(predictor: Predictor, picture: PIL.Image, expression: str) -> Item:
    """Return the batch of one image with one expression."""
    settings = predictor.image_settings()
    frame = images.fit_to_input((picture.height, picture.width), settings)
    batch = Batch(
        image=images.to_input(picture, frame, settings)[None],  # (1, 3, side, side)
        image_index=torch.tensor([0]),
        words=predictor.tokenizer([expression]),
        mask=None,
    )
    return Item(batch, [0], [frame])


def _figure(
    picture: PIL.Image,
    mask: Mask,
    peak: tuple[int, int] | None,
    title: str,
    panels: Sequence[Panel],
    answer: str = "",
) -> Figure:
    columns = 3 if panels else 2
    rows = math.ceil((2 + len(panels)) / columns)
    height = min(max(6.0 * picture.height / picture.width, 1.0), 24.0 / rows)  # inches; bounded for narrow strips
    size = (6 * columns + bool(panels), rows * height + 0.5)  # the colour bar takes an inch
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes.flat[0].imshow(picture)
    _draw_mask(axes.flat[1], picture, mask, peak)
    axes.flat[1].set_title(answer, parse_math=False)
    for axis, panel in zip(axes.flat[2:], panels, strict=False):  # the last row may not be full
        axis.imshow(picture.convert("L"), cmap="gray", vmin=-255, vmax=255)  # pale, to be visible under dark colours
        axis.imshow(panel.values.cpu().numpy(), cmap=_HEAT, vmin=0, vmax=float(panel.values.max()), alpha=0.6)
        axis.set_title(panel.title, parse_math=False)
    if panels:
        scale = ScalarMappable(Normalize(0, 1), _HEAT)
        figure.colorbar(scale, ax=axes, shrink=0.5, alpha=0.6, label="share of the map's own maximum")
    figure.suptitle(title, parse_math=False)
    return figure


def _draw_mask(axis: Axes, picture: PIL.Image, mask: Mask, peak: tuple[int, int] | None) -> None:
    pixels = np.asarray(picture).astype(np.float64)
    pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(_COLOUR)
    axis.imshow(pixels.astype(np.uint8))
    if min(mask.shape) > 1 and mask.any() and not mask.all():
        axis.contour(mask, levels=[0.5], colors="white", linewidths=1)
    if peak is not None:
        axis.plot(peak[1], peak[0], "+", color="yellow", markersize=12, markeredgewidth=2)


def _save(figure: Figure, output: Path) -> None:
    try:
        with files.replacing(output) as new:
            figure.savefig(new, dpi=100, format=output.suffix.removeprefix("."))
    finally:
        pyplot.close(figure)
