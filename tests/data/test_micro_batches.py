from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from risbench.data import micro_batches
from risbench.data.micro_batches import MicroBatch
from risbench.errors import InputError


def shares(batch: int, most: int, per_image: int, processes: int) -> list[list[MicroBatch]]:
    """Return the micro-batches of every process."""
    return [micro_batches.cut(range(batch), most, per_image, rank, processes) for rank in range(processes)]


@given(st.integers(1, 24), st.integers(1, 4), st.integers(0, 30), st.integers(1, 9))
def test_all_processes_together_compute_the_batch_in_equally_many_micro_batches(
    groups: int, per_image: int, more: int, processes: int
) -> None:
    most = per_image + more
    pieces = shares(groups * per_image, most, per_image, processes)
    assert len({len(share) for share in pieces}) == 1
    assert all(0 < len(piece.positions) <= most for share in pieces for piece in share)
    computed = [position for share in pieces for piece in share if piece.weight for position in piece.positions]
    assert computed == list(range(groups * per_image))
    for piece in (piece for share in pieces for piece in share):
        assert [position % per_image for position in piece.positions] == [*range(per_image)] * (
            len(piece.positions) // per_image
        )


@given(st.integers(1, 24), st.integers(1, 4), st.integers(0, 30), st.integers(1, 9))
def test_weighted_means_add_up_to_the_mean_of_the_batch(groups: int, per_image: int, more: int, processes: int) -> None:
    batch = groups * per_image
    pieces = [piece for share in shares(batch, per_image + more, per_image, processes) for piece in share]
    means = [piece.weight * sum(i**2 for i in piece.positions) / len(piece.positions) for piece in pieces]
    assert sum(means) / processes == pytest.approx(sum(i**2 for i in range(batch)) / batch)


@pytest.mark.parametrize(("batch", "most"), [(1, 1), (7, 7), (18, 100), (65_536, 65_536)])
def test_a_whole_batch_in_one_process_has_the_weight_1(batch: int, most: int) -> None:
    assert shares(batch, most, 1, 1) == [[MicroBatch(list(range(batch)), 1.0)]]


def test_the_batch_of_lts_is_shared_by_eight_processes() -> None:
    """18 expressions: six processes compute two and two compute three."""
    pieces = shares(18, 18, 1, 8)
    assert sorted(len(piece.positions) for share in pieces for piece in share) == [2] * 6 + [3] * 2
    assert [len(share) for share in pieces] == [1] * 8


def test_micro_batches_are_of_one_size_within_one_group() -> None:
    """17 expressions, at most 8 at once: not 8, 8 and 1, which batch normalisation could not use."""
    assert [len(piece.positions) for piece in shares(17, 8, 1, 1)[0]] == [5, 6, 6]


def test_a_process_without_an_expression_repeats_one_without_weight() -> None:
    pieces = shares(1, 1, 1, 3)
    assert [piece.positions for share in pieces for piece in share] == [[0]] * 3
    assert sorted(piece.weight for share in pieces for piece in share) == [0.0, 0.0, 3.0]


@pytest.mark.parametrize(("batch", "most", "per_image", "words"), [
    (6, 8, 4, "train.batch_size=6 .*take a multiple of 4"),
    (2, 8, 4, "train.batch_size=2 .*take a multiple of 4"),
    (8, 3, 4, "train.micro_batch=3 is less than the 4 .*raise train.micro_batch to 4"),
])  # fmt: skip
def test_groups_of_an_image_are_never_cut(batch: int, most: int, per_image: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        micro_batches.check(batch, most, per_image)


@pytest.mark.parametrize(("batch", "most", "per_image"), [(18, 18, 1), (18, 5, 1), (7, 1, 1), (8, 6, 4), (8, 100, 8)])
def test_any_other_sizes_are_cut_into_whole_groups(batch: int, most: int, per_image: int) -> None:
    micro_batches.check(batch, most, per_image)
    pieces = [piece.positions for piece in micro_batches.cut(range(batch), most, per_image, 0, 1)]
    assert sum(pieces, []) == list(range(batch))
    assert all(len(piece) <= most and len(piece) % per_image == 0 for piece in pieces)
