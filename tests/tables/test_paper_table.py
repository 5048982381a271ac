"""A paper's table with measured values: what stands in a cell, what is marked, and every format."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from risbench import render
from risbench.errors import InputError
from risbench.render import Table
from risbench.scoring.record import Record
from risbench.tables import comparison, papers
from risbench.tables.comparison import comparison_tables
from risbench.tables.grid import Quantity, full_grid
from risbench.tables.papers import Configuration


def record(oiou: float = 66.0, half: float = 0.5, **changes: Any) -> Record:
    metrics = {"oIoU": oiou, "mIoU": oiou + 1, **{f"P@0.{k}": oiou - k for k in range(5, 10)}, "pointing": None}
    values = {
        "method": "lts",
        "variants": [],
        "dataset": "refcoco",
        "split": "val",
        "protocol": "lts",
        "seed": 0,
        "n": 10834,
        "metrics": metrics,
        "intervals": {
            name: [value - half, min(value + half, 100.0)] for name, value in metrics.items() if value is not None
        },
        "card": "",
        "index": "a" * 64,
        "training_data": [changes.get("dataset", "refcoco"), "ImageNet-1k"],
        "leaked": 0.0,
        "recipe": {},
        "checkpoint": "one",
        "pretrained": [{"part": "Darknet53", "source": "darknet53.weights", "training_data": ["ImageNet-1k"]}],
        "commit": "",
        "versions": {},
        "device": "cpu",
        "cost": {},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record.model_validate({**values, **changes})


def on_mini(oiou: float, *variants: str, **changes: Any) -> Record:
    named: dict[str, Any] = {"dataset": "mini", "protocol": "original", "training_data": ["mini"], "pretrained": []}
    return record(oiou, variants=["tiny", *variants], **named, **changes)


def build(name: str, *records: Record, dataset: str | None = None) -> Table:
    (built,) = comparison.build(name, records, dataset)
    return built


def fillable(name: str) -> list[tuple[Configuration, Quantity]]:
    """Every position of a table that risbench can fill."""
    grid = full_grid(papers.load(name))
    return [(row.configuration, row.quantity(at)) for row in grid.rows if row.configuration for at in grid.columns]


def numbers(built: Table, kind: str, column: str) -> list[str]:
    """The texts of a column in the rows of one kind that have a value."""
    names = built.names()
    rows = [dict(zip(names, row, strict=True)) for row in built.rows]
    return [row[column].text for row in rows if row["number"].value == kind and row[column].value is not None]


def test_measured_value_and_difference_stand_under_the_published_number() -> None:
    built = build("lts-4", record(64.0))
    assert numbers(built, "published", "RefCOCO val") == ["65.43", "66.15"]
    assert numbers(built, "measured", "RefCOCO val") == ["64.00 [63.50, 64.50]"]
    assert numbers(built, "difference", "RefCOCO val") == ["-1.43"]
    assert not numbers(built, "measured", "RefCOCO+ val")
    assert "Measured under the protocol lts." in built.notes


def test_a_variant_fills_its_own_row_only() -> None:
    built = build("lts-2", record(60.0, variants=["filter-seg"]))
    measured = [row for row in built.as_dicts() if row["number"] == "measured" and row["IoU"] is not None]
    assert [(row["split"], row["Fusion"], row["Filter"], row["Seg"]) for row in measured] == [
        ("RefCOCO val", "", "✓", "✓")
    ]
    assert [(row["folder"], row["variants"], row["protocol"], row["seed"]) for row in measured] == [
        ("lts", "filter-seg", "lts", "0")
    ]
    assert measured[0]["P@0.7"] == 53.0


def test_a_variant_that_names_a_default_is_that_default() -> None:
    assert numbers(build("lts-6", record(64.0, variants=["size-416"])), "difference", "RefCOCO val") == ["-1.43"]


def test_on_mini_a_variant_that_names_a_default_is_a_network_of_its_own() -> None:
    column = "mini val"
    assert numbers(build("lts-6", on_mini(40.0), dataset="mini"), "measured", column) == []
    runs = [on_mini(40.0), on_mini(44.0, "size-416")]
    assert numbers(build("lts-6", *runs, dataset="mini"), "measured", column) == ["44.00 [43.50, 44.50]"]
    built = build("coupalign-supplement-3", on_mini(39.0, method="coupalign"), dataset="mini")
    assert not numbers(built, "measured", "P@0.5")


def test_several_seeds_show_mean_and_spread() -> None:
    built = build("lts-4", *(record(value, seed=seed) for seed, value in enumerate([60.0, 62.0, 67.0])))
    assert numbers(built, "measured", "RefCOCO val") == ["63.00 ± 3.61"]
    assert numbers(built, "difference", "RefCOCO val") == ["-2.43"]


@pytest.mark.parametrize("name", papers.titles())
def test_neither_mini_nor_a_part_nor_a_control_stands_in_a_papers_cell(name: str) -> None:
    others: list[Record] = []
    for configuration, quantity in fillable(name):
        changes: list[dict[str, Any]] = [{"partial": True}, {"control": "permuted"}, {"protocol": "lavt-train"}]
        changes += [{"variants": ["tiny", *configuration.variants]}, {"dataset": "mini"}]
        fields = {**configuration.model_dump(mode="json"), "dataset": quantity.dataset, "split": quantity.split}
        others += [record(99.0, **{**fields, **change}) for change in changes]
    built = build(name, *others)
    assert not [row for row in built.as_dicts() if row["number"] == "difference" or row["seed"]]
    assert not any(cell.value == 99.0 for row in built.rows for cell in row)
    assert "Records of partial copies are left out." in built.notes


def test_mini_has_the_same_shape_with_measured_numbers_only() -> None:
    runs = [on_mini(40.0), on_mini(30.0, "fusion"), record(99.0), record(99.0, dataset="mini")]  # the last one is full
    built = build("lts-2", *runs, dataset="mini")
    assert built.title.endswith("Measured on mini") and "Every row is of the variant `tiny`." in built.notes
    assert len(built.rows) == 21 and {row["number"] for row in built.as_dicts()} == {"measured"}
    assert numbers(built, "measured", "oIoU") == ["30.00 [29.50, 30.50]", "40.00 [39.50, 40.50]"]
    assert "number" not in render.render([built], "markdown") and "65.43" not in render.render([built], "markdown")


def test_a_metric_that_one_seed_lacks_is_empty() -> None:
    built = build("lts-2", record(), record(seed=1, metrics={"oIoU": 60.0}))
    assert numbers(built, "measured", "IoU") == ["63.00 ± 4.24"]
    assert numbers(built, "measured", "P@0.5") == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("coupalign-supplement-3", {"method": "coupalign", "protocol": "original"}),  # its protocol is not known
        ("lavt", {"method": "lavt", "protocol": "original"}),  # published under another one
    ],
)
def test_difference_under_an_unknown_or_another_protocol_has_a_dagger_and_is_never_best(
    name: str, change: dict[str, Any]
) -> None:
    built = build(name, record(99.0, **change))
    row = next(row for row in built.as_dicts() if row["number"] == "difference")
    assert row["P@0.5 mark"] == "†"
    assert not any(cell.best for cells in built.rows for cell in cells)
    assert any(note.startswith("†: another protocol") for note in built.notes)


def test_a_network_trained_otherwise_has_no_difference() -> None:
    for change, mark in (({"pretrained": []}, ""), ({"training_data": ["refcoco", "refcoco+"]}, "¹")):
        built = build("lts-4", record(99.0, **change))
        assert numbers(built, "measured", "RefCOCO val") == [f"99.00‡{mark} [98.50, 99.50]"]
        assert not numbers(built, "difference", "RefCOCO val")
        assert any(note.startswith("‡: trained otherwise") for note in built.notes)


def test_training_data_that_weaken_a_number_are_shown_beside_it_in_every_format() -> None:
    mixed: dict[str, Any] = {"training_data": ["refcoco", "refcoco+", "ImageNet-1k"]}
    runs = [
        record(64.0, leaked=12.5, **mixed),
        record(64.5, dataset="refcoco+", leaked=0.0, **mixed),
        record(60.0, variants=["transformer"], training_data=["unknown"], leaked=None),
        record(61.0, dataset="refcoco+", variants=["transformer"], training_data=["unknown"], leaked=None),
    ]
    built = build("lts-4", *runs)
    assert numbers(built, "measured", "RefCOCO val") == ["64.00‡¹ [63.50, 64.50]", "60.00‡³ [59.50, 60.50]"]
    assert numbers(built, "measured", "RefCOCO+ val") == ["64.50‡² [64.00, 65.00]", "61.00‡³ [60.50, 61.50]"]
    for text in ("¹ cross-data set; leaked 12.50 %.", "² cross-data set.", "³ training data unknown."):
        assert text in built.notes
    assert sum(note.startswith("cross-data set: trained on other data sets") for note in built.notes) == 1
    assert "64.00‡¹ [63.50" in render.render([built], "markdown")
    latex = render.render([built], "latex")
    assert r"64.00$\ddagger$\textsuperscript{1}" in latex and r"leaked 12.50 \%." in latex
    rows = list(csv.DictReader(io.StringIO(render.render([built], "csv"))))
    assert [row["training"] for row in rows if row["number"] == "measured"] == [
        "RefCOCO val: cross-data set; leaked 12.50 %, RefCOCO+ val: cross-data set",
        "training data unknown",
    ]
    usual = build("lts-4", record(64.0, leaked=0.0))
    assert not any(row["training"] for row in usual.as_dicts()) and "cross-data set" not in " ".join(usual.notes)


def test_best_is_marked_only_where_the_interval_is_above_every_other_number() -> None:
    def best(*records: Record, dataset: str | None = None) -> list[str]:
        built = build("lts-4", *records, dataset=dataset)
        return [cell.text for cells in built.rows for cell in cells if cell.best]

    assert best(record(67.0, 0.5)) == ["67.00 [66.50, 67.50]"]  # published: 65.43 and 66.15
    assert best(record(67.0, 0.9)) == []
    assert best(record(67.0), record(68.0, 0.5, variants=["transformer"])) == []
    assert best(record(67.0), record(68.1, 0.5, variants=["transformer"])) == ["68.10 [67.60, 68.60]"]
    assert best(record(67.0, seed=0), record(66.0, seed=1)) == []  # of two seeds, one reaches below 66.15
    seeds = [record(value, 0.5, seed=seed, variants=["transformer"]) for seed, value in enumerate([60.0, 67.0])]
    assert best(record(67.4, 0.1), *seeds) == []  # above the mean, not above the highest end
    assert best(record(67.7, 0.1), *seeds) == ["67.70 [67.60, 67.80]"]
    assert best(record(67.0, intervals={})) == []
    assert best(on_mini(40.0), on_mini(42.0, "transformer"), dataset="mini") == ["42.00 [41.50, 42.50]"]
    assert best(on_mini(40.0), dataset="mini") == []
    other = on_mini(42.0, "transformer").model_copy(update={"protocol": "lts"})
    assert best(on_mini(40.0), other, dataset="mini") == []


def test_best_among_numbers_of_unknown_protocols_is_not_called() -> None:
    assert not any(cell.best for row in build("lts-1", record(99.0)).rows for cell in row)


def test_the_protocol_of_the_source_is_preferred_to_others() -> None:
    built = build("lts-4", record(40.0, protocol="lavt"), record(50.0, protocol="original"), record(64.0))
    assert numbers(built, "measured", "RefCOCO val") == ["64.00 [63.50, 64.50]"]


def test_of_several_settings_the_newest_stands_and_a_note_says_so() -> None:
    later = record(61.0, recipe={"of": {"another": 1}}, created="2026-02-01T00:00:00+00:00")
    built = build("lts-4", later, record(64.0, recipe={"of": {"another": 2}}))
    assert numbers(built, "measured", "RefCOCO val") == ["61.00 [60.50, 61.50]"]
    assert any("records of several settings; those shown are of 2026-02-01" in note for note in built.notes)


def test_what_overrides_make_of_a_network_fills_no_row() -> None:
    free = {"model": {"glove": "glove.6B.300d.txt", "pretrained": False}, "train": {"workers": 9}}
    assert numbers(build("lts-4", record(64.0, recipe=free)), "measured", "RefCOCO val")
    for recipe, words in (
        ({"model": {"filters": 2}}, "lts on refcoco with model.filters=2"),
        (
            {"model": {"transformer": True}, "train": {"epochs": 1}},
            "lts on refcoco with model.transformer=True, train.epochs=1",
        ),
        ({"text": {"field": "raw"}}, "lts on refcoco with text.field=raw"),
        ({"text": {"max_tokens": 3}}, "lts on refcoco with text.max_tokens=3"),
        (
            {"model": {"backbone_weights": "resnet50.a1_in1k"}},
            "lts on refcoco with model.backbone_weights=resnet50.a1_in1k",
        ),
    ):
        built = build("lts-4", record(64.0, recipe=recipe))
        assert not numbers(built, "measured", "RefCOCO val")
        assert f"Left out, since settings of today's recipe were overridden: {words}." in built.notes


def test_a_zero_shot_row_has_a_footnote_no_difference_and_no_bold_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes no bold number from a trained row. A recipe that evaluates weights as they are is not overridden."""
    monkeypatch.setattr("risbench.tables.filling.overridden_settings", lambda run: [])
    as_it_is: dict[str, Any] = {"recipe": {"train": {"epochs": 0}}, "training_data": ["PhraseCut"], "leaked": None}
    built = build("lts-4", record(90.0, **as_it_is))
    (cell,) = numbers(built, "measured", "RefCOCO val")
    assert cell == "90.00¹ [89.50, 90.50]"
    assert not numbers(built, "difference", "RefCOCO val")
    assert any(note.endswith(" zero-shot; leaked unknown.") for note in built.notes)
    assert any(note.startswith("zero-shot: nothing was trained") for note in built.notes)
    assert not any(note.startswith("‡") for note in built.notes)


def test_what_is_not_in_risbench_yet_is_empty_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("risbench.recipe.variant_names", lambda path: [])
    built = build("lts-7")
    assert "Not in risbench yet, so not measured: lts star." in built.notes
    assert any(note.startswith("Nothing is measured yet. A row: risbench run --method lts") for note in built.notes)
    assert "`star` is our reading" in " ".join(built.notes)
    assert [row["number"] for row in built.as_dicts()] == ["published", "measured"] * 2
    assert built.as_dicts()[1]["RefCOCO val"] is None
    assert [cell.text for cell in built.rows[1]].count("–") == 3
    assert "–: not measured." in built.notes


def test_doubts_about_numbers_are_notes_of_the_table() -> None:
    assert any(note.startswith('Printed as "IoU", read as oIoU') for note in build("lts-2").notes)
    assert any("names no data set and no split" in note for note in build("coupalign-supplement-3").notes)
    built = build("magnet")
    assert numbers(built, "published", "Overall IoU")[2] == "71.32¹"
    assert any(note.startswith('¹ printed label "RefCOCO testA"') for note in built.notes)
    assert any("secondary: known only from a survey" in note for note in build("leaders").notes)


def test_published_numbers_keep_their_digits() -> None:
    published = numbers(build("leaders"), "published", "RefCOCO val")
    assert {"65.43", "77.3", "82.4⁴"} <= set(published)


@cache
def measured(name: str) -> Table:
    records = [
        record(**configuration.model_dump(mode="json"), dataset=quantity.dataset, split=quantity.split)
        for configuration, quantity in dict.fromkeys(fillable(name))
    ]
    return build(name, *records)


@pytest.mark.parametrize("format", render.FORMATS)
@pytest.mark.parametrize("name", papers.titles())
def test_every_format_shows_every_table(name: str, format: str) -> None:
    built = measured(name)
    text = render.render([built], format)
    first = next(cell for row in built.rows for cell in row if isinstance(cell.value, float))
    assert first.head.rstrip("¹²³") in text or str(first.value) in text


def test_csv_and_json_repeat_labels_and_carry_marks() -> None:
    built = build("lts-4", record(67.0), record(60.0, variants=["transformer"], protocol="lavt"))
    rows = list(csv.DictReader(io.StringIO(render.render([built], "csv"))))
    assert [row["method"] for row in rows] == ["LTS"] * 3 + ["LTS-Trans"] * 3
    assert float(rows[1]["RefCOCO val low"]) == 66.5
    assert rows[5]["RefCOCO val mark"] == "†"
    (table,) = json.loads(render.render([built], "json"))["tables"]
    assert table["name"] == "lts-4" and len(table["rows"]) == 6


def test_the_best_is_bold() -> None:
    built = build("lts-4", record(67.0))
    assert "67.00*" in render.render([built], "terminal")
    assert "**67.00** [66.50" in render.render([built], "markdown")
    assert r"\textbf{67.00} {[}66.50" in render.render([built], "latex")
    assert "<b>67.00</b><small> [66.50" in render.render([built], "html")


@pytest.mark.parametrize("columns", [120, 100, 80, 60])
def test_terminals_of_any_width_hold_whole_numbers(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in papers.titles():
        built = measured(name)
        lines = render.render([built], "terminal").splitlines()
        assert max(map(len, lines)) <= columns, name
        cells = [cell for row in built.rows for cell in row]
        whole = {word for cell in cells for word in (*cell.text.split(), f"{cell.head}*")}
        words = "\n".join(lines).partition("Left out at")[0].partition("Metrics in percent")[0].split()
        numbers = {word for word in words if re.match(r"[-+]?\d+\.\d", word)}
        assert numbers and numbers <= whole, name


def test_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-base, texlive-latex-recommended)")
    text = render.render([measured(name) for name in papers.titles()], "latex")
    assert text.isascii()
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "tables.tex").write_text(f"{head}\n{text}\n\\end{{document}}\n", encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-2000:]
    assert (tmp_path / "tables.pdf").is_file()


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match="Unknown table 'lts-8'. Did you mean 'lts-[1-7]'.*comparison, lts-1.*leaders"):
        comparison.build("lts-8", [])
    with pytest.raises(InputError, match="Unknown data set 'minni'. Known: .*mini"):
        comparison.build("lts-2", [], "minni")


def test_comparison_is_a_table_by_name() -> None:
    assert comparison.build("comparison", [record()]) == comparison_tables([record()])
