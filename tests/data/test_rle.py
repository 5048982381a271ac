"""RLE masks, and the check that keeps malformed ones from pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from risbench.data import rle


def compressed(runs: list[int], size: rle.Size) -> bytes:
    """Compress run lengths as they are."""
    return bytes(coco.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"])


masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@settings(deadline=None, derandomize=True)
@given(masks)
def test_a_mask_comes_back_from_its_rle_which_passes_the_check(mask: NDArray[np.bool_]) -> None:
    counts, size = rle.encode(mask), mask.shape
    assert rle.find_defect(counts, (size[0], size[1])) is None
    assert np.array_equal(rle.decode(counts, (size[0], size[1])), mask)
    assert rle.area(counts, (size[0], size[1])) == mask.sum()


@settings(deadline=None, derandomize=True)
@given(masks, st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_a_mask_is_resized_as_pil_resizes_its_pixels(mask: NDArray[np.bool_], to: rle.Size) -> None:
    size = (mask.shape[0], mask.shape[1])
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    expected = np.asarray(image.resize((to[1], to[0]), Image.Resampling.NEAREST))
    assert np.array_equal(rle.decode(rle.resize(rle.encode(mask), size, to, "nearest"), to), expected)


def test_pils_nearest_neighbour_adds_up_its_steps_and_torch_takes_other_columns() -> None:
    """640 columns to 480: every third centre lies on the border of two pixels, where PIL's rounding errors decide."""
    torch = pytest.importorskip("torch")
    taken = np.zeros(480, np.int64)
    for column in range(640):
        mask = np.arange(640)[None] == column  # (1, 640)
        taken[rle.decode(rle.resize(rle.encode(mask), (1, 640), (1, 480), "nearest"), (1, 480))[0]] = column
    step = 640 / 480
    assert np.array_equal(taken, np.add.accumulate([step / 2, *[step] * 479]).astype(np.int64))
    assert taken[[0, 1, 2, 3, 4, 5, 238, 479]].tolist() == [0, 2, 3, 4, 5, 7, 317, 639]  # 4 and 238: not 6 and 318
    assert (taken != (2 * np.arange(480) + 1) * 640 // 960).sum() == 99  # of the exact borders

    columns = torch.arange(640.0)[None, None]
    for mode, differing in (("nearest-exact", 99), ("nearest", 221)):
        theirs = torch.nn.functional.interpolate(columns, size=480, mode=mode)[0, 0].numpy()
        assert (taken != theirs).sum() == differing


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.booleans())
def test_the_check_reads_runs_of_every_length(runs: list[int], starts_with_foreground: bool) -> None:
    runs = [0, *runs] if starts_with_foreground else runs
    size = (1, sum(runs))
    counts = rle.from_counts(runs, size)
    assert rle.find_defect(counts, size) is None
    assert rle.find_defect(counts, (1, size[1] + 1)) == (
        f"has runs of {size[1]} pixels in all, not 1 x {size[1] + 1} = {size[1] + 1}"
    )


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.binary(max_size=12))
def test_what_passes_the_check_is_what_pycocotools_reads(counts: bytes) -> None:
    size = (3, 5)
    if rle.find_defect(counts, size) is None:
        assert rle.decode(rle.encode(rle.decode(counts, size)), size).sum() == rle.area(counts, size)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"", "is not a compressed RLE string"),
        (b"0 \n", "is not a compressed RLE string"),
        (b"\xff0", "is not a compressed RLE string"),
        (b"P", "ends within a number"),  # 32 + 48: another character follows
        (b"oooooooooo0", "holds a number beyond any image"),
        (b"O?", "has a negative run (number 1)"),  # -1, then 15
        (b"4", "has runs of 4 pixels in all, not 2 x 5 = 10"),
        (compressed([2, 0, 3, 5], (2, 5)), "has an empty run (number 2)"),
    ],
)
def test_the_defect_of_a_malformed_rle_is_described(counts: bytes, message: str) -> None:
    assert rle.find_defect(counts, (2, 5)) == message


def test_an_empty_run_at_either_end_is_well_formed() -> None:
    assert rle.find_defect(compressed([0, 10], (2, 5)), (2, 5)) is None
    assert rle.find_defect(compressed([10, 0], (2, 5)), (2, 5)) is None


def test_masks_above_the_largest_size_and_endless_strings_are_refused_before_they_are_read() -> None:
    size = (65_535, 65_535)
    message = "has 65535 x 65535 pixels, more than 89,478,485"
    assert rle.find_defect(compressed([size[0] * size[1] - 1, 1], size), size) == message
    assert rle.find_defect(b"0" * (1 << 24) + b"0", (5000, 5000)) == (
        "has an RLE of 16,777,217 characters, more than 16,777,216"
    )
    largest = (9000, 9942)  # 89,478,000 pixels
    assert rle.find_defect(rle.from_counts([89_478_000], largest), largest) is None


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_empty_runs_are_written_out_of_a_list_of_runs(runs: list[int]) -> None:
    size = (1, sum(runs) + 1)
    mask = np.repeat(np.arange(len(runs) + 1) % 2 == 1, [*runs, 1])[None]
    assert rle.from_counts([*runs, 1], size) == rle.encode(mask)


@settings(deadline=None, derandomize=True)
@given(arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)))
def test_what_one_mask_alone_covers_is_counted_pixel_by_pixel(parts: NDArray[np.bool_]) -> None:
    size = (parts.shape[1], parts.shape[2])
    assert rle.covered_once([rle.encode(part) for part in parts], size) == rle.encode(parts.sum(0) == 1)


def test_covers_looks_up_one_pixel() -> None:
    mask = np.zeros((4, 6), np.bool_)
    mask[1, 5] = mask[0, 0] = True
    counts = rle.encode(mask)
    covered = [[rle.covers(counts, (4, 6), row, column) for column in range(6)] for row in range(4)]
    assert np.array_equal(covered, mask)


def test_merging_gives_union_and_intersection() -> None:
    first, second = np.eye(5, dtype=np.bool_), np.tri(5, dtype=np.bool_).T
    both = [rle.encode(first), rle.encode(second)]
    assert np.array_equal(rle.decode(rle.merge(both, (5, 5)), (5, 5)), first | second)
    assert np.array_equal(rle.decode(rle.merge(both, (5, 5), intersect=True), (5, 5)), first & second)


def test_polygons_are_stretched_in_x_by_the_width_and_in_y_by_the_height() -> None:
    scaled = rle.scale_polygons([[1, 2, 3, 4, 5, 6], [8.5, 0]], (40, 56), (80, 28))
    assert scaled == [[0.5, 4, 1.5, 8, 2.5, 12], [4.25, 0]]


def test_polygons_and_run_lengths_become_masks() -> None:
    (square,) = rle.from_polygons([[1, 1, 3, 1, 3, 3, 1, 3]], (5, 6))
    assert rle.decode(square, (5, 6))[1:3, 1:3].all()
    assert rle.area(square, (5, 6)) == 4
    assert np.array_equal(np.flatnonzero(rle.decode(rle.from_counts([2, 3, 5], (5, 2)), (5, 2)).T), [2, 3, 4])


def flood_count(mask: NDArray[np.bool_]) -> int:
    """Count the pieces: take the pixels that a flood from one pixel reaches, until none is left."""
    left, count = {(int(row), int(column)) for row, column in np.argwhere(mask)}, 0
    while left:
        count += 1
        reached = {left.pop()}
        while reached:
            row, column = reached.pop()
            near = {(row + i, column + k) for i in (-1, 0, 1) for k in (-1, 0, 1)} & left
            left -= near
            reached |= near
    return count


@settings(deadline=None, derandomize=True, max_examples=300)
@given(masks)
def test_pieces_are_counted_as_by_a_flood_fill(mask: NDArray[np.bool_]) -> None:
    assert rle.count_pieces(rle.encode(mask), (mask.shape[0], mask.shape[1])) == flood_count(mask)


def test_a_ring_is_one_piece_and_a_disc_within_it_another() -> None:
    row, column = np.mgrid[-20:21, -30:31]
    far = row**2 + column**2
    assert rle.count_pieces(rle.encode((far > 100) & (far < 300)), (41, 61)) == 1
    assert rle.count_pieces(rle.encode((far < 50) | (far > 100) & (far < 300)), (41, 61)) == 2


@settings(deadline=None, derandomize=True)
@given(masks)
def test_the_border_is_touched_where_a_pixel_of_it_is_foreground(mask: NDArray[np.bool_]) -> None:
    inner = mask.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False
    size = (mask.shape[0], mask.shape[1])
    assert rle.touches_border(rle.encode(mask), size) == (mask != inner).any()
    assert not rle.touches_border(rle.encode(inner), size)


def eroded(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """Erode by 3 x 3 pixels, step by step as in the published definition; pixels outside the image are background."""
    for _ in range(times):
        around = np.pad(mask, 1)
        height, width = mask.shape
        shifted = [around[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        mask = np.asarray(np.logical_and.reduce(shifted))
    return mask


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 60), (61, 33)])
@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.1])
def test_the_boundary_is_the_part_that_erosion_removes(size: rle.Size, ratio: float) -> None:
    random = np.random.default_rng(3)
    width = max(1, round(ratio * (size[0] ** 2 + size[1] ** 2) ** 0.5))
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        mask = random.random(size) < share
        expected = mask & ~eroded(mask, width)
        assert np.array_equal(rle.decode(rle.boundary(rle.encode(mask), size, ratio), size), expected)


def test_boundary_of_a_square_in_a_large_image() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:150, 200:280] = True  # a diagonal of 500 pixels: 10 of them wide
    boundary = rle.decode(rle.boundary(rle.encode(mask), (300, 400), 0.02), (300, 400))
    assert boundary.sum() == 50 * 80 - 30 * 60 and not boundary[110:140, 210:270].any()
