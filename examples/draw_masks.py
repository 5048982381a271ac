"""Draw expressions: the image, the ground truth, and the mask of each predictions file with its IoU.

    python examples/draw_masks.py A.parquet B.parquet --names A,B --sent-id 8105 --sent-id 7406 --output masks.png

Data set and split are those of the first file; for JSON Lines, give --dataset and --split. Each column has its colour,
and the dotted line is the outline of the ground truth. torch is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from risbench.data import rle, source
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError
from risbench.scoring import metrics, predictions_file
from risbench.scoring import protocol as protocols
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.score import score_rows

Mask = NDArray[np.bool_]

# Okabe and Ito's colours, which colour-blind readers can tell apart
TRUTH = "#009E73"
COLOURS = ("#E69F00", "#0072B2", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")  # of the files, in order
TINT = 0.6  # share of the colour within a mask
PALE = 0.5  # contrast of the image below a mask
PANEL = 1.75  # width of a panel in inches
TEXT = 0.33  # height of the text of a row, in panels


@dataclass(frozen=True)
class Row:
    """One expression and what is drawn for it."""

    expression: str
    image: NDArray[np.uint8]  # (H, W, 3)
    truth: Mask  # (H, W)
    masks: list[Mask]  # one for each file
    ious: list[float]  # of these masks, in [0, 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture and return 0, or 2 for wrong input."""
    options = parser().parse_args(arguments)
    names = options.names.split(",") if options.names else [path.stem for path in options.files]
    try:
        if options.output.suffix != ".png":
            raise InputError(f"--output {options.output} does not name a picture. Give a file that ends in .png.")
        if len(names) != len(options.files):
            raise InputError(f"--names has {len(names)} names for {len(options.files)} files. Give one for each file.")
        write(draw(read_rows(options), names), options.output, options.palette)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("files", type=Path, nargs="+", metavar="FILE", help="predictions: Parquet or JSON Lines")
    options.add_argument("--sent-id", type=int, action="append", required=True, help="expression, repeatable")
    options.add_argument("--names", help="titles of the files, separated by commas; default: the file names")
    options.add_argument("--output", type=Path, required=True, help="PNG to write")
    options.add_argument("--palette", action="store_true", help="256 colours, a small file; not for photographs")
    options.add_argument("--dataset", default="", help="name or card; default: that of the first file")
    options.add_argument("--split", default="", help="default: that of the first file")
    options.add_argument("--protocol", default="original", help="how IoU is computed; default: original")
    options.add_argument("--data-root", default="", help="folder of the data sets; default: RISBENCH_DATA")
    options.add_argument("--partial", action="store_true", help="accept an incomplete copy of the data set")
    return options


def read_rows(options: argparse.Namespace) -> list[Row]:
    """Read and score the files; return a row for each --sent-id."""
    protocol = protocols.load(options.protocol)
    files = [predictions_file.read(path) for path in options.files]
    dataset, split_name = dataset_and_split(files[0].header, options)
    index = source.open_index(dataset, options.data_root, partial=options.partial)
    split = protocol.input.select_expressions(index.split(split_name))
    places = [find_place(sent_id, split) for sent_id in options.sent_id]
    ious = []
    for path, file in zip(options.files, files, strict=True):
        try:
            ious.append(metrics.iou(score_rows(file, index, split_name, protocol), protocol.score))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    files = [file.in_order_of(index.split(split_name), split) for file in files]
    rows = []
    for place in places:
        size = int(split.height[place]), int(split.width[place])
        image = read_image(index, int(split.image_id[place]), size)
        truth = rle.decode(index.ground_truth(int(split.ann_id[place]), "union"), size)
        masks = [decode_mask(file, place, size) for file in files]
        rows.append(Row(split.raw[place], image, truth, masks, [float(iou[place]) for iou in ious]))
    return rows


def decode_mask(file: Predictions, place: int, size: rle.Size) -> Mask:
    """Return the mask of one entry of a file, enlarged to the size of the image if a protocol stores it at another."""
    stored = int(file.height[place]), int(file.width[place])
    return rle.decode(rle.resize(file.counts[place], stored, size, "nearest"), size)


def dataset_and_split(header: Header | None, options: argparse.Namespace) -> tuple[str, str]:
    """Return data set and split: those of the options, otherwise those of the file's header."""
    dataset = options.dataset or (header.dataset if header else "")
    split = options.split or (header.split if header else "")
    if not (dataset and split):
        raise InputError(f"{options.files[0]} does not name its data set and split. Give --dataset and --split.")
    return dataset, split


def find_place(sent_id: int, split: Split) -> int:
    """Return the position of an expression in its split."""
    places = np.flatnonzero(split.sent_id == sent_id)
    if not len(places):
        nearest = split.sent_id[np.argsort(np.abs(split.sent_id - sent_id), kind="stable")[:3]]
        known = ", ".join(str(known_id) for known_id in sorted(nearest.tolist()))
        raise InputError(
            f"No expression of {split.name} that the protocol scores has sent_id {sent_id}. The nearest are {known}."
        )
    return int(places[0])


def read_image(index: Index, image_id: int, size: rle.Size) -> NDArray[np.uint8]:
    """Return the image as RGB, (H, W, 3)."""
    path = index.image_path(image_id)
    try:
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))
    except OSError as error:
        raise InputError(f"The image {path} cannot be read: {error}. Check the data root.") from None
    if image.shape[:2] != size:
        raise InputError(f"The image {path} is {image.shape[:2]} pixels, not {size} as annotated. Copy it again.")
    return image


def draw(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Draw each expression above its panels: image, ground truth, then one panel for each file."""
    heights = [row.image.shape[0] / row.image.shape[1] + TEXT for row in rows]  # a panel is 1 wide
    width = PANEL * (2 + len(names))
    figure = Figure(figsize=(width, PANEL * sum(heights)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, hspace=0.05, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        part.suptitle(f"“{row.expression}”", x=0.012, ha="left", fontsize=12, parse_math=False)
        image, truth, *others = part.subplots(1, 2 + len(names))
        image.imshow(row.image)
        finish(image, "image")
        draw_mask(truth, row, row.truth, TRUTH)
        finish(truth, "ground truth")
        for axis, name, mask, iou, colour in zip(others, names, row.masks, row.ious, cycle(COLOURS)):
            draw_mask(axis, row, mask, colour)
            outline(axis, row.truth, "black", "dotted")
            finish(axis, f"{name}: IoU {100 * iou:.1f}")
    return figure


def draw_mask(axis: Axes, row: Row, mask: Mask, colour: str) -> None:
    """Tint the mask over the pale image and outline it."""
    colours = row.image / 255  # (H, W, 3)
    grey = colours.mean(axis=2, keepdims=True)
    pale = 1 - PALE * (1 - (colours + 2 * grey) / 3)
    axis.imshow(np.where(mask[..., None], (1 - TINT) * pale + TINT * np.array(to_rgb(colour)), pale))
    outline(axis, mask, colour, "solid")


def outline(axis: Axes, mask: Mask, colour: str, style: str) -> None:
    """Draw the outline of a mask along the edges of its pixels."""
    if not mask.any():
        return
    fine = max(1, 512 // max(mask.shape))  # points for each pixel, so that small masks get square corners
    values = np.pad(np.kron(mask, np.ones((fine, fine))), 1)
    y, x = ((np.arange(length) - 0.5) / fine - 0.5 for length in values.shape)
    axis.contour(x, y, values, levels=[0.5], colors=[colour], linestyles=style, linewidths=1.4)


def finish(axis: Axes, title: str) -> None:
    """Write the title below a panel and remove its frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_xlabel(title, fontsize=10, parse_math=False)


def write(figure: Figure, output: Path, palette: bool) -> None:
    """Write the picture as a PNG, with a palette of 256 colours if wanted."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=130)
    picture = Image.open(content).convert("RGB")
    if palette:
        picture = picture.quantize(256, Image.Quantize.FASTOCTREE)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(output, format="PNG", optimize=True)
    except OSError as error:
        raise InputError(f"The picture {output} cannot be written: {error}. Give another --output.") from None


if __name__ == "__main__":
    sys.exit(main())
