"""The grid of a paper's table: one data set of it, and another data set in its shape."""

from __future__ import annotations

import pytest

from risbench.tables import papers
from risbench.tables.grid import dataset_grid, full_grid


def test_one_data_set_of_a_table_keeps_its_numbers() -> None:
    grid = dataset_grid(papers.load("lts-1"), "refcoco+", ["val"])
    assert list(grid.columns.values()) == ["RefCOCO+ val", "RefCOCO+ testA", "RefCOCO+ testB"]
    assert {number.risbench_dataset for number in grid.numbers} == {"refcoco+"}


def test_another_data_set_takes_the_shape_without_the_numbers() -> None:
    grid = dataset_grid(papers.load("lts-2"), "mini", ["train", "val", "testA", "testB"])
    assert [row.labels for row in grid.rows] == [row.labels for row in full_grid(papers.load("lts-2")).rows]
    assert [row.group for row in grid.rows[::7]] == ["mini val", "mini testA", "mini testB"]
    assert list(grid.columns.values()) == ["oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
    assert not grid.numbers and not any(row.published for row in grid.rows)


@pytest.mark.parametrize("name", papers.titles())
def test_another_data_set_has_every_position_once_and_only_rows_that_can_be_filled(name: str) -> None:
    grid = dataset_grid(papers.load(name), "mini", ["val", "testA", "testB"])
    assert grid.rows and all(row.configuration for row in grid.rows)
    positions = [(row, column) for row in grid.rows for column in grid.columns]
    assert len(positions) == len(set(positions))
    assert {row.quantity(column).dataset for row, column in positions} == {"mini"}
