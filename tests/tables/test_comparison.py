"""The comparison table: its rows, its cells, the tables of slices, and the width in a terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from risbench import render
from risbench.cli.results import app
from risbench.errors import InputError
from risbench.render import Table
from risbench.scoring.record import Record, find, write
from risbench.scoring.slices import AREA, DISTRACTORS, KINDS
from risbench.tables.comparison import COMPARISON, build, comparison_table, comparison_tables, slice_table


def record(**changes: Any) -> Record:
    values = {
        "method": "lts",
        "variants": [],
        "dataset": "refcoco",
        "split": "val",
        "protocol": "lts",
        "seed": 0,
        "n": 10834,
        "metrics": {"oIoU": 64.123456, "mIoU": 63.0, "P@0.5": 75.0, "P@0.7": 60.0, "P@0.9": 14.0, "pointing": 81.0},
        "intervals": {"oIoU": [63.5, 64.75]},
        "card": "",
        "index": "a" * 64,
        "training_data": ["refcoco", "ImageNet-1k"],
        "leaked": 0.0,
        "recipe": {"train": {"lr": 0.001}},
        "checkpoint": "one",
        "pretrained": [{"part": "Darknet53", "source": "darknet53.weights", "training_data": ["ImageNet-1k"]}],
        "commit": "",
        "versions": {},
        "device": "cpu",
        "cost": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record.model_validate({**values, **changes})


def at(oiou: float) -> dict[str, float | None]:
    return {"oIoU": oiou, "mIoU": 50.0, "pointing": None}


def rows(records: list[Record], **options: Any) -> list[dict[str, Any]]:
    return comparison_table(records, **options).as_dicts()


def texts(built: Table) -> list[dict[str, str]]:
    return [{name: cell.text for name, cell in zip(built.names(), row, strict=True)} for row in built.rows]


def test_single_run_shows_its_interval_and_stands_beside_the_published_number() -> None:
    (row,) = texts(comparison_table([record()]))
    assert row["oIoU"] == "64.12 [63.50, 64.75]"
    assert row["mIoU"] == "63.00"
    assert row["published oIoU"] == "65.43¹"
    assert row["difference"] == "-1.31"
    assert row["source"] == "LTS paper, CVPR 2021, Table 1"


def test_several_seeds_show_mean_and_sample_standard_deviation() -> None:
    seeds = [record(seed=seed, metrics=at(value)) for seed, value in enumerate([60.0, 62.0, 67.0])]
    (row,) = texts(comparison_table(seeds))
    assert row["oIoU"] == "63.00 ± 3.61"  # deviations -3, -1, 4: sqrt(26 / 2)
    assert row["seed"] == "0, 1, 2"
    assert row["difference"] == "-2.43"


def test_mean_is_empty_where_one_run_lacks_the_metric() -> None:
    (row,) = rows([record(seed=0), record(seed=1, metrics=at(60.0))])
    assert row["oIoU"] == pytest.approx((64.123456 + 60) / 2)
    assert row["pointing"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"partial": True},
        {"control": "expressions permuted within each image"},
        {"variants": ["tiny"]},
        {"pretrained": []},
        {"pretrained": [{"part": "Darknet53", "source": "darknet53.weights"}, {"part": "word vectors"}]},
        {"pretrained": [{"part": "network", "source": "checkpoint 0123", "pretrained": [{"part": "network"}]}]},
        {"training_data": ["refcoco", "refcoco+"]},
    ],
)
def test_difference_needs_what_the_source_measured(change: dict[str, Any]) -> None:
    (row,) = rows([record(**change)])
    assert row["published oIoU"] == 65.43
    assert row["difference"] is None


def test_overridden_settings_are_shown_and_have_no_difference() -> None:
    built = comparison_table([record(recipe={"train": {"lr": 0.01, "workers": 3}, "image": {"size": 320}})])
    assert texts(built)[0]["method"] == "lts (image.size=320; train.lr=0.01)"
    assert built.as_dicts()[0]["difference"] is None


def test_difference_needs_a_protocol_that_means_the_same() -> None:
    (row,) = rows([record(method="lavt", protocol="original")])
    assert row["published oIoU"] == 72.73
    assert row["difference"] is None


def test_partial_and_control_are_shown_beside_the_method() -> None:
    built = comparison_table([record(partial=True), record(control="no words"), record(resized=True)])
    assert [row["method"] for row in texts(built)] == ["lts (control: no words)", "lts (partial)", "lts (resized)"]
    names = ("partial", "resized", "control")
    assert [[row[name] for name in names] for row in built.as_dicts()] == [
        ["", "", "no words"],
        ["yes", "", ""],
        ["", "yes", ""],
    ]
    assert any(note.startswith("resized: predicted at the images' size") for note in built.notes)


@pytest.mark.parametrize(
    ("changes", "badge"),
    [
        ({}, ""),
        ({"leaked": 0.0}, ""),
        ({"leaked": 12.5}, "leaked 12.50 %"),
        ({"training_data": ["refcoco", "refcoco+"]}, "cross-data set"),
        ({"training_data": ["refcocog"], "leaked": 3.25}, "cross-data set; leaked 3.25 %"),
        ({"training_data": ["refcoco", "COCO train2017"]}, "cross-data set"),
        ({"training_data": ["refcoco", "MS-COCO"], "leaked": None}, "cross-data set; leaked unknown"),
        ({"training_data": ["refcoco", "refcoco+"], "leaked": None}, "cross-data set; leaked unknown"),
        ({"training_data": ["refcoco", "LVIS"], "leaked": None}, "leaked unknown"),
        ({"training_data": ["unknown", "ImageNet-22k"], "leaked": None}, "training data unknown"),
    ],
)
def test_what_was_trained_on_is_a_badge_of_the_row(changes: dict[str, Any], badge: str) -> None:
    built = comparison_table([record(**changes)])
    assert texts(built)[0]["method"] == (f"lts ({badge})" if badge else "lts")
    assert built.as_dicts()[0]["training"] == badge
    assert any(note.startswith("cross-data set: ") for note in built.notes) == bool(badge)


@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_a_protocol_that_is_not_comparable_is_marked_and_has_no_difference(format: str) -> None:
    trained = {"method": "lavt", "training_data": ["refcoco"], "recipe": {}}
    records = [record(**trained, protocol=name) for name in ("lavt", "lavt-train")]
    built = comparison_table(records)
    test, train = built.as_dicts()
    assert (test["protocol"], train["protocol"]) == ("lavt", "lavt-train")
    assert test["difference"] == pytest.approx(64.123456 - 72.73)
    assert train["difference"] is None
    assert "lavt-train†" in render.render([built], format) and "lavt†" not in render.render([built], format)
    assert sum(note.startswith("†: ") for note in built.notes) == 1
    assert not any("†" in note for note in comparison_table(records[:1]).notes)


def test_floors_and_ceilings_stand_above_the_methods_of_their_block() -> None:
    methods = ["lts", "a_method", "reference/oracle-13", "reference/whole-image"]
    records = [record(method=name, split=split) for split in ("testA", "val") for name in methods]
    shown = [(row["split"], row["method"]) for row in texts(comparison_table(records))]
    expected = ["reference/whole-image (floor)", "reference/oracle-13 (ceiling)", "a_method", "lts"]
    assert shown == [(split, name) for split in ("val", "testA") for name in expected]


def test_zero_shot_rows_stand_apart_from_trained_ones() -> None:
    """Above them, and named so; without any pretrained weights they are called untrained."""
    as_they_are: dict[str, Any] = {"recipe": {"train": {"epochs": 0}}, "training_data": ["PhraseCut"], "leaked": None}
    weights = [{"part": "network", "source": "owner/name", "training_data": ["PhraseCut"]}]
    records = [
        record(),
        record(method="zz", **as_they_are, pretrained=weights),
        record(method="zz", variants=["tiny"], **{**as_they_are, "training_data": [], "leaked": 0.0}, pretrained=[]),
        record(method="reference/whole-image", recipe={}),
    ]
    built = comparison_table(records)
    assert [row["method"] for row in texts(built)] == [
        "reference/whole-image (floor)",
        "zz (zero-shot; leaked unknown)",
        "zz (untrained)",
        "lts",
    ]
    assert [row["training"] for row in built.as_dicts()] == ["", "zero-shot; leaked unknown", "untrained", ""]
    assert sum(note.startswith("zero-shot: nothing was trained") for note in built.notes) == 1
    assert not any("zero-shot" in note for note in comparison_table(records[:1]).notes)


def test_remarks_on_licences_divide_no_rows() -> None:
    records = [
        record(seed=0),
        record(seed=1, recipe={"train": {"lr": 0.001, "licence": "MIT", "gated": True}}),
    ]
    (row,) = texts(comparison_table(records))
    assert row["seed"] == "0, 1" and row["method"] == "lts"


def test_same_record_twice_is_one_row_without_spread_or_note() -> None:
    once, twice = comparison_table([record()]), comparison_table([record(), record()])
    assert twice == once


def test_newest_of_two_checkpoints_stands_and_a_note_says_so() -> None:
    old = record(metrics=at(50.0), created="2026-01-01T00:00:00+00:00")
    new = record(metrics=at(55.0), created="2026-02-01T00:00:00+00:00", checkpoint="two")
    built = comparison_table([new, old])
    assert [row["oIoU"] for row in built.as_dicts()] == [55.0]
    assert "lts on refcoco val (lts, seed 0) has records of several checkpoints" in built.notes[-1]


def test_runs_with_other_settings_are_not_averaged_and_name_the_setting() -> None:
    records = [record(seed=0), record(seed=1, recipe={"train": {"lr": 0.01}})]
    seeds = {row["method"]: row["seed"] for row in texts(comparison_table(records))}
    assert seeds == {"lts (train.lr=0.001)": "0", "lts (train.lr=0.01)": "1"}


def test_named_data_set_brings_published_rows_that_were_not_measured() -> None:
    by_place = {
        (row["method"], row["split"]): row for row in rows([record(), record(dataset="mini")], dataset="refcoco")
    }
    assert len(by_place) == 12
    assert by_place["magnet", "testB"]["published oIoU"] == 71.05
    assert by_place["magnet", "testB"]["oIoU"] is None
    assert by_place["lts", "val"]["oIoU"] == 64.123456


def test_data_set_without_published_numbers_has_an_empty_column() -> None:
    built = comparison_table([record(dataset="mini")], dataset="mini")
    assert [row["published oIoU"] for row in built.as_dicts()] == [None]
    assert not any("¹" in note or "difference" in note for note in built.notes)


def test_without_records_the_published_numbers_stand_alone_and_a_note_says_how_to_measure() -> None:
    built = comparison_table([])
    assert len(built.rows) == 34
    assert "risbench run" in built.notes[-1]


def test_other_metric_is_compared_with_its_own_published_number() -> None:
    (row,) = rows([record()], metric="P@0.5")
    assert row["published P@0.5"] == 75.16
    assert row["difference"] == pytest.approx(-0.16)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match="Unknown data set 'refcocoo'. Known: .*refcocog-google"):
        comparison_table([], "refcocoo")
    with pytest.raises(InputError, match="Unknown metric.*oIoU, mIoU"):
        comparison_table([], metric="IoU")


def parts(*ends: float, **oious: float) -> dict[str, dict[str, Any]]:
    """A slice whose values have 20 expressions, 21, 22, ..."""
    intervals = {"oIoU": list(ends)} if ends else {}
    values = enumerate(oious.items(), start=20)
    return {value: {"n": n, "oIoU": oiou, "mIoU": 1.0, "intervals": intervals} for n, (value, oiou) in values}


COUNTED = parts(20.0, 50.0, **{"unknown": 30.0, "3+": 25.0, "0": 45.0})


def test_a_slice_is_a_table_of_its_own() -> None:
    kinds = {KINDS.name: parts(plain=40.0, relation=30.0)}
    first, second = comparison_tables([record(dataset="mini", slices=kinds), record(dataset="mini", split="testA")])
    assert (first.name, second.title) == ("comparison", "oIoU by kind of expression")
    assert [(row["split"], row["plain"], row["relation"]) for row in second.as_dicts()] == [("val", 40.0, 30.0)]
    assert not any(note.startswith("[low, high]") for note in second.notes)
    assert len(comparison_tables([record()])) == 1


def test_values_of_a_slice_stand_in_its_order_with_interval_and_number() -> None:
    built = slice_table([record(slices={DISTRACTORS.name: COUNTED}), record(split="testA")], DISTRACTORS)
    (row,) = texts(built)
    assert [name for name in row if name in COUNTED] == ["0", "3+", "unknown"]
    assert row["0"] == "45.00 [20.00, 50.00]"
    (plain,) = built.as_dicts()
    assert (plain["unknown"], plain["unknown n"], plain["0 n"], plain["0 low"]) == (30.0, 20, 22, 20.0)
    assert "Expressions of refcoco val, lts: 22 (0), 21 (3+), 20 (unknown)." in built.notes
    assert any(note.startswith("[low, high]: 95 % percentile interval of oIoU") for note in built.notes)
    assert any("unknown where the image may hold objects that are not annotated" in note for note in built.notes)


def test_an_older_record_shows_no_interval_of_a_few_expressions() -> None:
    few = {"0": {**COUNTED["0"], "n": 19}, "3+": COUNTED["3+"]}
    (row,) = texts(slice_table([record(slices={DISTRACTORS.name: few})], DISTRACTORS))
    assert (row["0"], row["3+"]) == ("45.00", "25.00 [20.00, 50.00]")


def test_slices_of_several_seeds_are_averaged_and_one_without_is_left_out() -> None:
    seeds = [record(seed=n, slices={DISTRACTORS.name: parts(1.0, 9.0, **{"0": oiou})}) for n, oiou in enumerate([4, 6])]
    (row,) = texts(slice_table([*seeds, record(seed=2)], DISTRACTORS))
    assert row["0"] == "5.00 ± 1.41"


def test_numbers_of_expressions_are_noted_once_for_protocols_with_the_same_ones() -> None:
    counts = [("lts", 9), ("original", 9), ("lavt-train", 4)]
    records = [
        record(protocol=name, slices={DISTRACTORS.name: {"0": {"n": n, "oIoU": 1.0, "mIoU": 1.0}}})
        for name, n in counts
    ]
    notes = [note for note in slice_table(records, DISTRACTORS).notes if note.startswith("Expressions")]
    assert notes == [
        "Expressions of refcoco val, lavt-train: 4 (0).",
        "Expressions of refcoco val, lts, original: 9 (0).",
    ]


def test_every_format_shows_the_slices() -> None:
    built = comparison_tables([record(slices={DISTRACTORS.name: COUNTED})])
    for format in render.FORMATS:
        text = render.render(built, format)
        assert "same-class distractors" in text and "45.0" in text


def test_terminal_cuts_no_number_short_and_keeps_markup_like_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = record(method="reference/largest-object", variants=["[bold]"], seed=123456, control="x" * 40)
    text = render.render([comparison_table([long, record(variants=["no_locate", "no_filter"])])], "terminal")
    for shown in ("[bold]", "[63.50, 64.75]", "65.43", "81.00", "no_locate", "10834"):
        assert shown in text
    assert "…" not in text


def test_terminal_fits_120_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    runs = [record(seed=seed, dataset=name) for seed in (0, 1, 2) for name in ("refcoco", "mini")]
    records = [*runs, record(method="reference/largest-object"), record(dataset="mini", variants=["tiny"])]
    text = render.render([comparison_table(records, "refcoco"), comparison_table(records, "mini")], "terminal")
    assert max(map(len, text.splitlines())) <= 120


def test_terminal_leaves_intervals_out_where_they_do_not_fit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    nine = parts(20.25, 50.75, **{f"kind {k}": 30.0 + k for k in range(9)})
    text = render.render([slice_table([record(variants=["tiny"], slices={KINDS.name: nine})], KINDS)], "terminal")
    assert max(map(len, text.splitlines())) <= 120
    assert "38.00" in text and "20.25" not in text and "Left out at 120 columns: intervals." in text
    text = render.render([slice_table([record(slices={DISTRACTORS.name: COUNTED})], DISTRACTORS)], "terminal")
    assert text.count("[20.00, 50.00]") == 3 and "Left out" not in text


def test_nothing_is_left_out_where_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    many = parts(20.25, 50.75, **{f"kind {k}": 30.0 + k for k in range(20)})
    text = render.render([slice_table([record(slices={KINDS.name: many})], KINDS)], "terminal")
    assert text.count("[20.25, 50.75]") == 20 and "Left out" not in text


def test_results_page_has_the_tables_of_the_committed_records() -> None:
    """Each block names the command that makes it."""
    results = Path(__file__).parents[2] / "results"
    page = (results / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- begin: risbench table (.*?)-->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert len(blocks) == 2
    for options, shown in blocks:
        words = options.split()
        name = words[0] if not words[0].startswith("--") else COMPARISON
        arguments = dict(zip(words[words[0] == name :: 2], words[1 + (words[0] == name) :: 2], strict=True))
        assert arguments.pop("--records") == "results/records" and arguments.pop("--format") == "markdown"
        records = find([results / "records"])
        printed = render.render(build(name, records, arguments.pop("--dataset", None)), "markdown")
        assert not arguments and shown.strip() == printed.strip(), f"run `risbench table {options.strip()}` again"


def test_the_command_divides_the_comparison_by_chosen_slices(tmp_path: Path) -> None:
    sizes = {"small": {"n": 3, "oIoU": 1.0, "mIoU": 1.0}}
    write(tmp_path / "one.json", record(slices={AREA.name: sizes, DISTRACTORS.name: COUNTED}))

    def ask(*options: str) -> Result:
        return CliRunner().invoke(app, ["table", "--records", str(tmp_path), *options])

    assert "oIoU by same-class distractors" in ask().output and "oIoU by object size" not in ask().output
    assert "oIoU by object size" in ask("--slices", "object-size,kind-words").output
    assert ask("--slices", "all", "--format", "markdown").output.count("**oIoU by") == 2
    with pytest.raises(InputError, match="Unknown slice 'size'.*object-size"):
        raise ask("--slices", "size").exception or AssertionError
    with pytest.raises(InputError, match="not the table lts-2"):
        raise ask("lts-2", "--slices", "all").exception or AssertionError
