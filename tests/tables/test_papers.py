"""The papers' tables: each has the paper's shape, and every number of the ledger that belongs to it, once."""

from __future__ import annotations

import pytest

from risbench import methods, recipe
from risbench.tables import papers
from risbench.tables.papers import Ours, Slot

METRICS = ["oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
SHAPES = {  # numbers, rows, columns, rows that risbench fills
    "lts-1": (87, 13, 8, 1),
    "lts-2": (126, 21, 6, 21),
    "lts-3": (6, 4, 3, 2),
    "lts-4": (6, 2, 3, 2),
    "lts-5": (12, 4, 3, 4),
    "lts-6": (18, 6, 3, 6),
    "lts-7": (6, 2, 3, 2),
    "coupalign-supplement-1": (30, 5, 6, 2),
    "coupalign-supplement-2": (14, 3, 6, 2),
    "coupalign-supplement-3": (36, 6, 6, 6),
    "magnet": (8, 8, 1, 8),
    "lavt": (126, 18, 7, 18),
    "leaders": (171, 23, 9, 7),
}


def grid(name: str) -> papers.Grid:
    return papers.grid(papers.load(name))


def measured_by(name: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The variants of the rows that risbench fills, by their labels."""
    return {row.labels: row.ours.variants for row in grid(name).rows if row.ours}


def test_every_table_has_a_shape() -> None:
    assert set(papers.titles()) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_the_papers_and_every_number_has_a_place(name: str) -> None:
    found = grid(name)
    ours = sum(row.ours is not None for row in found.rows)
    assert (len(found.numbers), len(found.rows), len(found.columns), ours) == SHAPES[name]
    placed = [number for row in found.rows for number in row.published.values()]
    assert len(placed) == len({id(number) for number in placed}) == len(found.numbers)


@pytest.mark.parametrize("name", SHAPES)
def test_what_fills_a_row_names_a_row_of_the_ledger(name: str) -> None:
    paper = papers.load(name)
    assert set(paper.ours) <= {(number.method, number.variant) for number in paper.numbers()}


@pytest.mark.parametrize("name", SHAPES)
def test_a_number_stands_where_it_is_read(name: str) -> None:
    for row in grid(name).rows:
        for at, number in row.published.items():
            where = (number.risbench_dataset, number.risbench_split, number.risbench_metric)
            assert row.slot(at) == Slot(*where)


def test_rows_and_columns_keep_the_order_of_the_source() -> None:
    assert [row.labels[0] for row in grid("lts-1").rows][::12] == ["RMI [22]", "LTS (Ours)"]
    assert [row.labels for row in grid("lts-6").rows][::5] == [("320×320",), ("480×480",)]
    assert list(grid("lts-2").columns) == [Slot("", "", metric) for metric in METRICS]
    assert list(grid("lavt").columns.values())[-2:] == ["Overall IoU", "Mean IoU"]


def test_modules_of_lts_are_check_marks() -> None:
    rows = grid("lts-2").rows
    assert [row.block for row in rows[::7]] == ["RefCOCO val", "RefCOCO testA", "RefCOCO testB"]
    assert rows[4].labels == ("", "✓", "✓", "")
    assert rows[4].published[Slot("", "", "oIoU")].value == 63.64
    assert rows[6].labels == ("✓", "✓", "✓", "✓")


def test_every_ablation_names_its_variant() -> None:
    modules = ["fusion", "filter", "fusion-filter", "fusion-seg", "filter-seg", "fusion-filter-seg"]
    assert list(measured_by("lts-2").values()) == [*((name,) for name in modules), ()]
    assert measured_by("lts-4") == {("LTS",): (), ("LTS-Trans",): ("transformer",)}
    assert list(measured_by("lts-5").values()) == [(), ("filters-2",), ("filters-3",), ("word-filter",)]
    sizes = [(f"size-{side}",) for side in (320, 352, 384, 416, 448, 480)]
    assert list(measured_by("lts-6").values()) == sizes
    assert measured_by("lts-7") == {("LTS",): (), ("LTS*",): ("star",)}
    masks = {("0",): "masks-0", ("20",): "masks-20", ("50",): "masks-50", ("150",): "masks-150", ("200",): "masks-200"}
    assert measured_by("coupalign-supplement-3") == {
        ("100",): ("masks-100",),
        **{n: (name,) for n, name in masks.items()},
    }
    assert [row.ours for row in grid("coupalign-supplement-2").rows] == [
        Ours("lts"),
        None,
        Ours("coupalign", ("darknet53",)),
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_every_row_of_a_method_that_is_there_is_a_variant_of_its_recipe(name: str) -> None:
    for row in grid(name).rows:
        if row.ours and row.ours.method in methods.names():
            assert set(row.ours.variants) <= set(recipe.variants(methods.recipe_file(row.ours.method)))


def test_a_method_that_is_not_trained_here_has_a_stand_in_that_says_so() -> None:
    paper = papers.load("lts-3")
    assert [(row.labels[0], row.ours) for row in grid("lts-3").rows] == [
        ("CMPC", None),
        ("CMPC+Seg", None),
        ("LAVT (not in the paper)", Ours("lavt")),
        ("LAVT+Seg (not in the paper)", Ours("lavt", ("lts-seg",))),
    ]
    assert "CMPC is not trained here" in paper.note


def test_a_mislabelled_number_keeps_its_label_and_stands_where_it_belongs() -> None:
    labels = {(row.labels, row.published[at].value) for row in grid("magnet").rows for at in row.published}
    assert (("RefCOCO testA", "refcoco+", "testA"), 71.32) in labels
    assert (("RefCOCO testA", "refcoco", "testA"), 78.24) in labels


def test_leaders_stand_in_groups_by_training_data_and_keep_their_metric() -> None:
    rows = grid("leaders").rows
    groups = dict.fromkeys(row.block for row in rows)
    assert list(groups) == ["single data set", "mixed RefCOCO", "external data", "training data not stated"]
    metrics = {(row.labels[0], row.labels[2]) for row in rows}
    assert {("CRIS", "mIoU"), ("DeRIS-L", "oIoU"), ("DeRIS-L", "mIoU")} <= metrics
    assert ("Sa2VA-InternVL3-14B", "not named") in metrics


def test_no_number_from_memory_is_among_the_leaders() -> None:
    (xsam,) = [row for row in grid("leaders").rows if row.labels[0] == "X-SAM"]
    assert {at[:2]: number.value for at, number in xsam.published.items()} == {
        ("refcoco", "val"): 85.1,
        ("refcoco", "testA"): 87.1,
        ("refcoco+", "val"): 78.0,
        ("refcoco+", "testA"): 81.0,
    }


def test_one_data_set_of_a_table_keeps_its_numbers() -> None:
    found = papers.only(papers.load("lts-1"), "refcoco+", ["val"])
    assert list(found.columns.values()) == ["RefCOCO+ val", "RefCOCO+ testA", "RefCOCO+ testB"]
    assert {number.risbench_dataset for number in found.numbers} == {"refcoco+"}


def test_another_data_set_takes_the_shape_without_the_numbers() -> None:
    found = papers.only(papers.load("lts-2"), "mini", ["train", "val", "testA", "testB"])
    assert [row.labels for row in found.rows] == [row.labels for row in grid("lts-2").rows]
    assert [row.block for row in found.rows[::7]] == ["mini val", "mini testA", "mini testB"]
    assert list(found.columns.values()) == METRICS
    assert not found.numbers and not any(row.published for row in found.rows)


@pytest.mark.parametrize("name", SHAPES)
def test_another_data_set_has_every_place_once_and_only_rows_that_can_be_filled(name: str) -> None:
    found = papers.only(papers.load(name), "mini", ["val", "testA", "testB"])
    assert found.rows and all(row.ours for row in found.rows)
    places = [(row, at) for row in found.rows for at in found.columns]
    assert len(places) == len(set(places))
    assert {row.slot(at).dataset for row, at in places} == {"mini"}
