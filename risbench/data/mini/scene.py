"""The scenes of `mini`: the objects of an image, its pixels and its polygons.

Everything is integer arithmetic on generators with guaranteed streams (random.Random.random, raw bits of Philox), so
that a seed gives the same pixels on every machine and with every version of the libraries.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from risbench.data.rle import Mask

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
T = TypeVar("T")

FAMILIES = {"round": ("circle", "heart", "moon", "pill"), "angular": ("square", "triangle", "cross", "star")}
COLOURS = {
    "red": (215, 35, 40),
    "orange": (245, 140, 25),
    "yellow": (245, 225, 55),
    "green": (40, 165, 60),
    "blue": (40, 90, 225),
    "purple": (150, 50, 190),
    "white": (245, 245, 245),
    "black": (22, 22, 22),
}
SIZES = {"small": (11, 13), "medium": (16, 18), "large": (22, 26)}  # smallest and largest extent in pixels
SIDES = (64, 72, 80, 88, 96)  # of an image, pixels
VISIBLE_PERCENT = 60  # of an object, at least
VISIBLE_PIXELS = 30  # of an object, at least
BACKGROUND_COLOURS = (
    (150, 140, 118),
    (92, 88, 84),
    (110, 122, 132),
    (96, 112, 88),
    (132, 104, 100),
    (165, 158, 150),
    (80, 86, 98),
)


class Thing(NamedTuple):
    """An object as programs see it: its attributes and its visible extent in pixels."""

    shape: str
    colour: str
    pattern: str
    size: str
    box: tuple[int, int, int, int]  # x, y, width, height
    area: int

    @property
    def centre(self) -> tuple[int, int]:
        """Centre of the box in half pixels, (x, y)."""
        x, y, width, height = self.box
        return 2 * x + width, 2 * y + height


@dataclass(frozen=True)
class Scene:
    """One image: pixels (height, width, 3), objects from back to front, and the polygons of their visible parts."""

    pixels: Pixels
    things: list[Thing]
    polygons: list[list[list[int]]]


class Dice:
    """Random draws that every version of Python repeats; random.Random guarantees this for random() alone."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(seed * 1_000_000 + number)
        self._bits = np.random.Philox(key=[seed, number])

    def below(self, count: int) -> int:
        return int(self._random.random() * count)

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in values]

    def bytes(self, height: int, width: int) -> Ints:
        """Uniform integers from 0 to 255, (height, width)."""
        words = self._bits.random_raw((height * width + 7) // 8).astype("<u8")
        return words.view(np.uint8)[: height * width].reshape(height, width).astype(np.int64)

    def noise(self, height: int, width: int, most: int) -> Ints:
        """Uniform integers from -most to most, (height, width)."""
        return self.bytes(height, width) * (2 * most + 1) // 256 - most


class _Draft(NamedTuple):
    shape: str
    colour: str
    pattern: str
    size: str
    parts: list[Mask]  # (extent, extent) each; their union is the shape

    @property
    def mask(self) -> Mask:
        return np.asarray(np.logical_or.reduce(self.parts))


def draw_scene(dice: Dice) -> Scene:
    """Draw one image."""
    height, width = dice.pick(SIDES), dice.pick(SIDES)
    while True:
        drafts = _draw_drafts(dice)
        corners = _place_drafts(dice, drafts, height, width)
        if corners:
            return _render(dice, drafts, corners, _background(dice, height, width))


def trace_polygons(mask: Mask) -> list[list[int]]:
    """Return polygons along pixel edges whose union is exactly the mask; a region with a hole is cut in two."""
    loops = _trace_loops(mask)
    holes = [loop for loop in loops if _doubled_area(loop) < 0]
    if not holes:
        return loops
    cut = (min(holes[0][::2]) + max(holes[0][::2])) // 2
    left = np.arange(mask.shape[1]) < cut
    return trace_polygons(mask & left) + trace_polygons(mask & ~left)


def _draw_drafts(dice: Dice) -> list[_Draft]:
    """Draw 4 to 7 objects: several of one class, at least two of each family, few colours."""
    family, other = dice.shuffled(list(FAMILIES))
    first, second = dice.pick(FAMILIES[family]), dice.pick(FAMILIES[other])
    shapes = [first, first, second, dice.pick(FAMILIES[other])]
    every = FAMILIES[family] + FAMILIES[other]
    shapes += [first if dice.chance(45) else dice.pick(every) for _ in range(dice.below(4))]
    colours = dice.shuffled(list(COLOURS))[:4]
    return [_draw_draft(dice, shape, dice.pick(colours)) for shape in dice.shuffled(shapes)]


def _draw_draft(dice: Dice, shape: str, colour: str) -> _Draft:
    size = dice.pick(list(SIZES))
    pattern = "plain"  # on a small object, where another pattern would blur
    if size != "small":
        pattern = dice.pick(("plain", "plain", "striped", "dotted"))
    return _Draft(shape, colour, pattern, size, _draw_shape(dice, shape, dice.between(*SIZES[size])))


def _draw_shape(dice: Dice, shape: str, extent: int) -> list[Mask]:
    """Return masks of the parts of a shape; u and v are half pixels from the middle: -extent < u, v < extent."""
    row, column = _grid(extent, extent)
    u, v = 2 * column + 1 - extent, 2 * row + 1 - extent
    if shape == "cross":
        bars = [abs(u) <= extent // 3, abs(v) <= extent // 3]
        return bars if dice.chance(60) else [bars[0] | bars[1]]  # some annotators draw two bars, others one outline
    mask = _SHAPES[shape](u, v, extent)
    if shape in ("moon", "pill", "triangle") and dice.chance(50):
        mask = mask[::-1, ::-1]
    return [mask.T if shape in ("moon", "pill") and dice.chance(50) else mask]


def _circle(u: Ints, v: Ints, extent: int) -> Mask:
    return u * u + v * v <= extent * extent


def _heart(u: Ints, v: Ints, extent: int) -> Mask:
    x, y = 115 * u // extent, 20 - 115 * v // extent  # hundredths, y upwards
    ring: Ints = x * x + y * y - 10_000
    return ring * ring * ring <= 100 * x * x * y * y * y


def _moon(u: Ints, v: Ints, extent: int) -> Mask:
    bite = (10 * u - 7 * extent) ** 2 + 100 * v * v < 81 * extent * extent
    return _circle(u, v, extent) & ~bite


def _pill(u: Ints, v: Ints, extent: int) -> Mask:
    """Two halves with a gap between them: one object in two parts."""
    radius = extent * 3 // 5
    beyond = np.maximum(abs(u) - (extent - radius), 0)
    inside: Mask = (beyond * beyond + v * v <= radius * radius) & (abs(u) > max(2, extent // 7))
    return inside


def _square(u: Ints, v: Ints, extent: int) -> Mask:
    return (8 * abs(u) <= 7 * extent) & (8 * abs(v) <= 7 * extent)


def _triangle(u: Ints, v: Ints, extent: int) -> Mask:
    return 2 * abs(u) <= v + extent


def _star(u: Ints, v: Ints, extent: int) -> Mask:
    """A pentagram lies within at least four of its five half-planes; a disc in the middle makes it stouter."""
    v = v - extent // 10
    normals = ((0, -1000), (951, -309), (-951, -309), (588, 809), (-588, 809))
    inside = sum((a * u + b * v <= 325 * extent).astype(np.int64) for a, b in normals)
    return (inside >= 4) | (4 * (u * u + v * v) <= extent * extent)


_SHAPES = {
    "circle": _circle,
    "heart": _heart,
    "moon": _moon,
    "pill": _pill,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
}


def _place_drafts(dice: Dice, drafts: list[_Draft], height: int, width: int) -> list[tuple[int, int]]:
    """Return a corner (row, column) for each object, later objects in front, with all visible; empty if that fails."""
    owner = np.full((height, width), -1)
    corners: list[tuple[int, int]] = []
    for number, draft in enumerate(drafts):
        for _ in range(25):
            row, column = _corner(dice, drafts, corners, (height, width))
            if _leaves_others_visible(owner, drafts, row, column, draft.mask):
                _window(owner, row, column, draft.mask)[draft.mask] = number
                corners.append((row, column))
                break
        else:
            return []
    return corners


def _corner(dice: Dice, drafts: list[_Draft], corners: list[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """Draw a corner anywhere in the image, or in a quarter of the cases close to an object that is already there."""
    extent = len(drafts[len(corners)].mask)
    rows, columns = size[0] - extent, size[1] - extent
    if not corners or dice.chance(75):
        return dice.between(0, rows), dice.between(0, columns)
    neighbour = dice.below(len(corners))
    reach = (extent + len(drafts[neighbour].mask)) // 2
    middle = (len(drafts[neighbour].mask) - extent) // 2
    row, column = (corners[neighbour][k] + middle + dice.between(-reach, reach) for k in (0, 1))
    return min(max(row, 0), rows), min(max(column, 0), columns)


def _window(image: NDArray[Any], row: int, column: int, mask: Mask) -> NDArray[Any]:
    return image[row : row + mask.shape[0], column : column + mask.shape[1]]


def _leaves_others_visible(owner: Ints, drafts: list[_Draft], row: int, column: int, mask: Mask) -> bool:
    covered = _window(owner, row, column, mask)[mask]
    for number in set(covered.tolist()) - {-1}:
        rest = int((owner == number).sum() - (covered == number).sum())
        if rest < VISIBLE_PIXELS or 100 * rest < VISIBLE_PERCENT * drafts[number].mask.sum():
            return False
    return True


def _background(dice: Dice, height: int, width: int) -> Ints:
    """Draw a texture between two background colours, (height, width, 3)."""
    row, column = _grid(height, width)
    period = dice.between(3, 8)
    blend: Ints = (
        lambda: _blotches(dice, height, width),
        lambda: (row + column * dice.below(3)) // period % 2 * 160,
        lambda: (row // period + column // period) % 2 * 160,
        lambda: (row * dice.between(0, 3) + column * dice.between(1, 3)) * 255 // (3 * (height + width)),
    )[dice.below(4)]()
    first, second = (np.array(colour, dtype=np.int64) for colour in dice.shuffled(BACKGROUND_COLOURS)[:2])
    mixed = first * (255 - blend[..., None]) + second * blend[..., None]
    return mixed // 255 + dice.noise(height, width, 9)[..., None]


def _grid(height: int, width: int) -> tuple[Ints, Ints]:
    """Return row and column of every pixel."""
    row, column = np.indices((height, width), dtype=np.int64)
    return row, column


def _blotches(dice: Dice, height: int, width: int) -> Ints:
    """Noise on a coarse grid, interpolated bilinearly to 0..255."""
    cell = dice.pick((8, 12))
    grid = dice.bytes(height // cell + 2, width // cell + 2)
    row, column = _grid(height, width)
    i, j, down, right = row // cell, column // cell, row % cell, column % cell
    upper: Ints = grid[i, j] * (cell - right) + grid[i, j + 1] * right
    lower: Ints = grid[i + 1, j] * (cell - right) + grid[i + 1, j + 1] * right
    return (upper * (cell - down) + lower * down) // (cell * cell)


def _render(dice: Dice, drafts: list[_Draft], corners: list[tuple[int, int]], canvas: Ints) -> Scene:
    owner = np.full(canvas.shape[:2], -1)
    for number, (draft, (row, column)) in enumerate(zip(drafts, corners, strict=True)):
        mask = draft.mask
        _window(owner, row, column, mask)[mask] = number
        _window(canvas, row, column, mask)[mask] = _paint(dice, draft)[mask]
    things, segmentations = [], []
    for number, (draft, (row, column)) in enumerate(zip(drafts, corners, strict=True)):
        visible = _window(owner, row, column, draft.mask) == number
        things.append(_thing(draft, row, column, visible))
        loops = [loop for part in draft.parts for loop in trace_polygons(part & visible)]
        segmentations.append([[value + (column, row)[k % 2] for k, value in enumerate(loop)] for loop in loops])
    return Scene(canvas.clip(0, 255).astype(np.uint8), things, segmentations)


def _thing(draft: _Draft, row: int, column: int, visible: Mask) -> Thing:
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    x, y = int(columns[0]), int(rows[0])
    box = (column + x, row + y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
    return Thing(draft.shape, draft.colour, draft.pattern, draft.size, box, int(visible.sum()))


def _paint(dice: Dice, draft: _Draft) -> Ints:
    """Paint colour, pattern, light from the upper left, a contour against objects of the same colour, and noise."""
    mask = draft.mask
    extent = len(mask)
    base = np.array(COLOURS[draft.colour])
    accent = np.array((105, 105, 105)) if draft.colour == "black" else base * 2 // 5
    row, column = _grid(extent, extent)
    canvas: Ints = np.where(_pattern(dice, draft.pattern, row, column)[..., None], accent, base)
    inner = np.pad(mask, 1)
    inside = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    canvas = np.where(inside[..., None], canvas, (2 * base + accent) // 3)
    light = (extent - row - column) * 10 // extent + dice.noise(extent, extent, 6)
    return canvas + light[..., None]


def _pattern(dice: Dice, pattern: str, row: Ints, column: Ints) -> Mask:
    if pattern == "striped":
        across, down = dice.pick(((1, 0), (0, 1), (1, 1)))
        return np.asarray((row * down + column * across) // 2 % 2 == 0)
    return np.asarray((row % 5 // 2 == 1) & (column % 5 // 2 == 1) & (pattern == "dotted"))


_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up


def _trace_loops(mask: Mask) -> list[list[int]]:
    """Return the corners of the paths along the border of a mask: clockwise round regions, reversed round holes."""
    padded = np.pad(mask, 1)
    starts = ((-1, 0, 0, 0), (0, 1, 1, 0), (1, 0, 1, 1), (0, -1, 0, 1))  # neighbour's row, column; start's x, y
    edges: dict[tuple[int, int, int], None] = {}
    for direction, (down, right, dx, dy) in enumerate(starts):
        neighbour = padded[1 + down : 1 + down + mask.shape[0], 1 + right : 1 + right + mask.shape[1]]
        for y, x in np.argwhere(mask & ~neighbour).tolist():
            edges[x + dx, y + dy, direction] = None
    loops = []
    while edges:
        loops.append(_follow_loop(edges, next(iter(edges))))
    return loops


def _follow_loop(edges: dict[tuple[int, int, int], None], edge: tuple[int, int, int]) -> list[int]:
    """Follow the border from an edge that starts at a corner, and remove its edges from `edges`."""
    loop: list[int] = []
    last = -1
    while edge in edges:
        del edges[edge]
        x, y, direction = edge
        if direction != last:
            loop += [x, y]
        x, y, last = x + _STEPS[direction][0], y + _STEPS[direction][1], direction
        turns = ((x, y, (direction + turn) % 4) for turn in (1, 0, 3))  # right first: touching corners stay apart
        edge = next((turn for turn in turns if turn in edges), edge)
    return loop


def _doubled_area(loop: list[int]) -> int:
    xs, ys = loop[::2], loop[1::2]
    return sum(xs[k - 1] * ys[k] - xs[k] * ys[k - 1] for k in range(len(xs)))
