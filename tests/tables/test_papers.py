"""The papers' tables: each has the paper's shape and contains each of its published numbers once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from risbench import methods, recipe
from risbench.errors import InputError
from risbench.tables import papers
from risbench.tables.grid import Grid, Quantity, full_grid, label_text, numbers
from risbench.tables.papers import Configuration, Label

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
    "magnet": (17, 17, 1, 17),
    "lavt": (126, 18, 7, 18),
    "leaders": (171, 23, 9, 7),
}


def grid(name: str) -> Grid:
    return full_grid(papers.load(name))


def variants(name: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The variants of the rows that risbench fills, by their labels."""
    return {row.labels: row.configuration.variants for row in grid(name).rows if row.configuration}


def test_every_table_has_a_shape() -> None:
    assert set(papers.titles()) == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_the_papers_and_every_number_has_a_place(name: str) -> None:
    laid_out = grid(name)
    filled = sum(row.configuration is not None for row in laid_out.rows)
    assert (len(laid_out.numbers), len(laid_out.rows), len(laid_out.columns), filled) == SHAPES[name]
    placed = [number for row in laid_out.rows for number in row.published.values()]
    assert len(placed) == len({id(number) for number in placed}) == len(laid_out.numbers)


@pytest.mark.parametrize("name", SHAPES)
def test_every_filled_row_is_a_row_of_the_published_numbers(name: str) -> None:
    paper = papers.load(name)
    assert {row.printed for row in paper.filled_rows} <= {(n.method, n.variant) for n in numbers(paper)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_number_has_the_quantity_it_is_read_as(name: str) -> None:
    for row in grid(name).rows:
        for column, number in row.published.items():
            quantity = Quantity(number.risbench_dataset, number.risbench_split, number.risbench_metric)
            assert row.quantity(column) == quantity


def test_rows_and_columns_keep_the_order_of_the_source() -> None:
    assert [row.labels[0] for row in grid("lts-1").rows][::12] == ["RMI [22]", "LTS (Ours)"]
    assert [row.labels for row in grid("lts-6").rows][::5] == [("320×320",), ("480×480",)]
    assert list(grid("lts-2").columns) == [Quantity("", "", metric) for metric in METRICS]
    assert list(grid("lavt").columns.values())[-2:] == ["Overall IoU", "Mean IoU"]


def test_modules_of_lts_are_check_marks() -> None:
    rows = grid("lts-2").rows
    assert [row.group for row in rows[::7]] == ["RefCOCO val", "RefCOCO testA", "RefCOCO testB"]
    assert rows[4].labels == ("", "✓", "✓", "")
    assert rows[4].published[Quantity("", "", "oIoU")].value == 63.64
    assert rows[6].labels == ("✓", "✓", "✓", "✓")


def test_every_ablation_names_its_variant() -> None:
    modules = ["fusion", "filter", "fusion-filter", "fusion-seg", "filter-seg", "fusion-filter-seg"]
    assert list(variants("lts-2").values()) == [*((name,) for name in modules), ()]
    assert variants("lts-4") == {("LTS",): (), ("LTS-Trans",): ("transformer",)}
    assert list(variants("lts-5").values()) == [(), ("filters-2",), ("filters-3",), ("word-filter",)]
    sizes = [(f"size-{side}",) for side in (320, 352, 384, 416, 448, 480)]
    assert list(variants("lts-6").values()) == sizes
    assert variants("lts-7") == {("LTS",): (), ("LTS*",): ("star",)}
    masks = {("0",): "masks-0", ("20",): "masks-20", ("50",): "masks-50", ("150",): "masks-150", ("200",): "masks-200"}
    assert variants("coupalign-supplement-3") == {
        ("100",): ("masks-100",),
        **{n: (name,) for n, name in masks.items()},
    }
    assert [row.configuration for row in grid("coupalign-supplement-2").rows] == [
        Configuration(method="lts"),
        None,
        Configuration(method="coupalign", variants=("darknet53",)),
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_every_filled_row_names_variants_of_a_recipe(name: str) -> None:
    for row in grid(name).rows:
        if row.configuration and row.configuration.method in methods.names():
            assert set(row.configuration.variants) <= set(
                recipe.variant_names(methods.recipe_file(row.configuration.method))
            )


def test_a_method_that_is_not_trained_here_is_replaced_and_the_note_says_so() -> None:
    paper = papers.load("lts-3")
    assert [(row.labels[0], row.configuration) for row in grid("lts-3").rows] == [
        ("CMPC", None),
        ("CMPC+Seg", None),
        ("LAVT (not in the paper)", Configuration(method="lavt")),
        ("LAVT+Seg (not in the paper)", Configuration(method="lavt", variants=("lts-seg",))),
    ]
    assert "CMPC is not trained here" in paper.note


def test_a_mislabelled_number_keeps_its_label_and_stands_where_it_belongs() -> None:
    labels = {(row.labels, number.value) for row in grid("magnet").rows for number in row.published.values()}
    assert (("RefCOCO testA", "refcoco+", "testA"), 71.32) in labels
    assert (("RefCOCO testA", "refcoco", "testA"), 78.24) in labels


def test_leaders_stand_in_groups_by_training_data_and_keep_their_metric() -> None:
    rows = grid("leaders").rows
    groups = dict.fromkeys(row.group for row in rows)
    assert list(groups) == ["single data set", "mixed RefCOCO", "external data", "training data not stated"]
    metrics = {(row.labels[0], row.labels[2]) for row in rows}
    assert {("CRIS", "mIoU"), ("DeRIS-L", "oIoU"), ("DeRIS-L", "mIoU")} <= metrics
    assert ("Sa2VA-InternVL3-14B", "not named") in metrics


def test_no_number_from_memory_is_among_the_leaders() -> None:
    (xsam,) = [row for row in grid("leaders").rows if row.labels[0] == "X-SAM"]
    assert {column[:2]: number.value for column, number in xsam.published.items()} == {
        ("refcoco", "val"): 85.1,
        ("refcoco", "testA"): 87.1,
        ("refcoco+", "val"): 78.0,
        ("refcoco+", "testA"): 81.0,
    }


def test_a_label_takes_its_words_from_a_row_of_the_published_numbers() -> None:
    number = next(number for number in numbers(papers.load("lts-6")) if "448" in number.variant)
    assert label_text(Label(name="input", part="n=1, input (.*)"), number) == "448×448"
    assert label_text(Label(name="x", part="no match (.*)"), number) == number.variant
    assert label_text(Label(name="where", text="{number.dataset} {number.split}"), number) == "RefCOCO val"
    unstated = next(number for number in numbers(papers.load("leaders")) if not number.training_data)
    assert label_text(Label(name="data", text="{number.training_data}", missing="not stated"), unstated) == "not stated"
    modules = next(number for number in numbers(papers.load("lts-2")) if number.variant == "Fusion+Seg")
    assert [label_text(Label(name=name, check=True), modules) for name in ("Fusion", "Filter", "Seg")] == ["✓", "", "✓"]


def test_an_unknown_key_of_the_data_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        Label.model_validate({"name": "method", "colour": "red"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2] + "[[", "it is not TOML"),
        (lambda text: text.replace("default_variants", "defaults", 1), "default_variants: Field required"),
        (lambda text: "x = " + "[" * 100_000, "nested too deeply"),
        (lambda text: text.replace('text = "', 'text = "{number.__class__}', 1), "is no column: write {number.COLUMN}"),
        (
            lambda text: text.replace('part = "', 'part = "(', 1).replace("part = '", "part = '(", 1),
            "regular expression",
        ),
        (lambda text: "\ud800", "can't decode"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    change: Callable[[str], str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = papers.data_file("papers.toml").read_text(encoding="utf-8")
    (tmp_path / "papers.toml").write_bytes(change(text).encode("utf-8", "surrogatepass"))
    monkeypatch.setattr(papers, "data_file", lambda name: tmp_path / name)
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        papers._read.__wrapped__()
    assert str(tmp_path / "papers.toml") in str(raised.value)


def test_a_label_of_a_column_that_does_not_exist_is_one_sentence() -> None:
    number = numbers(papers.load("lts-2"))[0]
    with pytest.raises(InputError, match="the label 'x': 'Published' object has no attribute 'nothing'"):
        label_text(Label(name="x", text="{number.nothing}"), number)
