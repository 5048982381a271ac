"""The published numbers: all rows, risbench's names for them, and each method's headline."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from risbench import published

FILE = Path(__file__).parents[1] / "results" / "published.csv"
SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
    "refcocog-google": ("val",),
}
HEADLINES = {  # data sets and splits in the order of SPLITS; read off the papers' tables
    "lts": (65.43, 67.76, 63.08, 54.21, 58.32, 48.02, 54.40, 54.25, None),
    "lavt": (72.73, 75.82, 68.79, 62.14, 68.38, 55.10, 61.24, 62.09, 60.50),
    "coupalign": (74.70, 77.76, 70.58, 62.92, 68.34, 56.69, 62.84, 62.22, None),
    "magnet": (75.24, 78.24, 71.05, 66.16, 71.32, 58.14, 65.36, 66.03, 63.13),
}


def value(method: str, dataset: str, split: str, metric: str = "oIoU") -> float | None:
    row = published.headline(method, dataset, split, metric)
    return row.value if row else None


def test_every_row_of_the_file_is_read_with_its_columns_unchanged() -> None:
    with FILE.open(encoding="utf-8", newline="") as lines:
        printed = list(csv.DictReader(lines))
    assert len(printed) == 557
    for row, line in zip(published.load(), printed, strict=True):
        assert {name: str(getattr(row, name)) for name in line} == {**line, "value": str(float(line["value"]))}


@pytest.mark.parametrize("name", HEADLINES)
def test_headline_oiou_is_the_papers(name: str) -> None:
    found = tuple(value(name, dataset, split) for dataset, splits in SPLITS.items() for split in splits)
    assert found == HEADLINES[name]


def test_headline_of_other_metrics_comes_from_the_same_network() -> None:
    assert value("lavt", "refcoco", "val", "mIoU") == 74.46
    assert value("lavt", "refcoco", "val", "P@0.9") == 34.30
    assert value("lts", "refcoco", "testA", "P@0.5") == 78.47
    assert value("lts", "refcoco", "val", "mIoU") is None
    assert value("magnet", "refcoco", "val", "P@0.5") is None


def test_every_headline_is_one_row_only() -> None:
    keys = Counter((p.risbench_method, p.risbench_dataset, p.split) for p in published.headlines())
    assert len(keys) == 34
    assert set(keys.values()) == {1}


def test_cris_mean_iou_never_stands_as_overall_iou() -> None:
    cris = [row for row in published.load() if row.method == "CRIS"]
    assert {row.risbench_metric for row in cris} == {"mIoU"}


def test_number_of_unknown_metric_has_no_metric() -> None:
    unknown = [row for row in published.load() if "unknown" in row.metric]
    assert {row.risbench_metric for row in unknown} == {""}
    assert len(unknown) == 8


def test_lts_iou_says_how_it_was_printed() -> None:
    row = published.headline("lts", "refcoco", "val")
    assert row is not None
    assert row.footnote.startswith('LTS paper, CVPR 2021, Table 1: printed as "IoU"; paper says only "IoU"')


def test_methods_are_known_under_the_names_of_their_folders() -> None:
    names = {row.method: row.risbench_method for row in published.load()}
    assert names["LTS (Ours)"] == names["LTS-Darknet53 [6]"] == names["LTS"] == "lts"
    assert names["LAVT [8]-Resnet101"] == "lavt"
    assert names["CoupAlign-Darknet53 (ours)"] == "coupalign"
    assert names["LSCM [14]"] == names["CRIS"] == ""


def test_headline_of_a_method_without_published_numbers_is_none() -> None:
    assert published.headline("mine", "refcoco", "val") is None
    assert published.headline("lts", "mini", "val") is None
    assert published.headline("", "", "", "") is None
