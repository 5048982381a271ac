"""The published numbers: all rows, risbench's names for them, and each method's headline."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from risbench import datasets
from risbench.errors import InputError
from risbench.scoring import metrics
from risbench.tables import published

FILE = Path(__file__).parents[2] / "results" / "published.csv"
SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
    "refcocog-google": ("val",),
}
CELLS = {  # numbers that each table prints
    ("LTS paper, CVPR 2021", "Table 1"): 87,
    ("LTS paper, CVPR 2021", "Table 2"): 126,
    ("LTS paper, CVPR 2021", "Table 3"): 6,
    ("LTS paper, CVPR 2021", "Table 4"): 6,
    ("LTS paper, CVPR 2021", "Table 5"): 12,
    ("LTS paper, CVPR 2021", "Table 6"): 18,
    ("LTS paper, CVPR 2021", "Table 7"): 6,
    ("CoupAlign supplement, NeurIPS 2022", "Table 1"): 30,
    ("CoupAlign supplement, NeurIPS 2022", "Table 2"): 14,
    ("CoupAlign supplement, NeurIPS 2022", "Table 3"): 36,
    ("MagNet results page", "Benchmark Results"): 8,
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
    assert len(printed) == 650
    for row, line in zip(published.load(), printed, strict=True):
        assert {name: str(getattr(row, name)) for name in line} == {**line, "value": str(float(line["value"]))}


def test_every_table_of_the_papers_is_complete() -> None:
    counts = Counter((row.source, row.table) for row in published.load())
    assert {place: counts[place] for place in CELLS} == CELLS


def test_no_number_stands_twice() -> None:
    fields = ("source", "table", "method", "backbone", "variant", "read_on", "dataset", "split", "metric")
    places = Counter(tuple(getattr(row, field) for field in fields) for row in published.load())
    assert {place for place, count in places.items() if count > 1} == set()


def test_every_reading_names_what_risbench_has_and_says_why_it_differs_from_the_print() -> None:
    for row in published.load():
        assert row.read_as in (*metrics.NAMES, "")
        assert row.metric == row.read_as or row.reason, row
        assert row.training_data in ("single data set", "mixed RefCOCO", "external data", "")
        assert not row.risbench_dataset or row.risbench_split in datasets.load(row.risbench_dataset).splits


def test_a_correction_is_a_note_beside_the_printed_label() -> None:
    page = [row for row in published.load() if row.source == "MagNet results page"]
    mislabelled = {(row.value, row.dataset, row.split, row.read_on): row.note for row in page if row.note}
    assert mislabelled == {
        (71.32, "RefCOCO", "testA", "refcoco+ testA"): (
            'printed label "RefCOCO testA": by mask-grounding README.md this is RefCOCO+ testA'
        ),
        (66.16, "RefCoCo", "val", "refcoco+ val"): (
            'printed label "RefCoCo val": by mask-grounding README.md this is RefCOCO+ val'
        ),
    }


def test_table_without_data_set_and_split_is_read_as_refcoco_val() -> None:
    rows = [row for row in published.load() if (row.source, row.table) == list(CELLS)[9]]
    assert {(row.dataset, row.split, row.read_on) for row in rows} == {("not stated", "not stated", "refcoco val")}
    assert all("names no data set and no split. Read as RefCOCO val" in row.reason for row in rows)


def test_rows_that_only_a_survey_or_a_leaderboard_states_are_secondary() -> None:
    secondary = {row.method for row in published.load() if row.secondary}
    assert secondary == {"CoupAlign", "MagNet", "X-SAM", "PPCR", "SetCon"}
    assert all(row.secondary for row in published.load() if "survey" in row.source or "wizwand" in row.source)


@pytest.mark.parametrize("name", HEADLINES)
def test_headline_oiou_is_the_papers(name: str) -> None:
    values = tuple(value(name, dataset, split) for dataset, splits in SPLITS.items() for split in splits)
    assert values == HEADLINES[name]


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
    unknown = [row for row in published.load() if not row.risbench_metric]
    assert {row.method for row in unknown} == {"MagNet", "Sa2VA-InternVL3-14B"}
    assert len(unknown) == 11
    assert all(row.reason.startswith("Not read as any metric") for row in unknown)


def test_lts_iou_says_how_it_was_printed() -> None:
    row = published.headline("lts", "refcoco", "val")
    assert row is not None
    printed, reading = "LTS paper, CVPR 2021, Table 1", 'Printed as "IoU", read as oIoU'
    assert row.footnote == f"{printed}. {reading}: later papers list the LTS value in that column."


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


HEADER = ",".join(field for field in published.Published.__dataclass_fields__ if field != "digits")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"method,value\nLTS,65\n", "line 2 does not have the columns method, year,"),
        (f"{HEADER}\nLTS,2021\n".encode(), "line 2 does not have the columns"),
        (f"{HEADER}\n{'x,' * 17}x\n".encode(), "line 2 does not have the columns"),
        *(
            (f"{HEADER}\n{'x,' * 8}{value}{',x' * 8}\n".encode(), f"line 2 has the value '{value[:40]}")
            for value in ("nan", "inf", "-1", "100.5", "1e400", "", "9" * 5000, "\u0663")
        ),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (f'{HEADER}\n"x'.encode(), "unexpected end of data"),
        (b"", "has no rows"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "published.csv").write_bytes(content)
    monkeypatch.setattr("risbench.tables.papers.data_file", lambda name: tmp_path / name)
    with pytest.raises(InputError, match=re.escape(words)) as raised:
        published.load.__wrapped__()
    assert str(tmp_path / "published.csv") in str(raised.value) and "take the file of the release" in str(raised.value)
    (tmp_path / "published.csv").unlink()
    with pytest.raises(InputError, match="it cannot be read: No such file"):
        published.load.__wrapped__()
