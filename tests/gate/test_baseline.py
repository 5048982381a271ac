"""Reading a baseline: numbers that no predictions can have are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from risbench.errors import InputError
from risbench.gate import baseline

COMMITTED = sorted((Path(__file__).parents[2] / "results" / "baselines").glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.stem))
def test_a_committed_baseline_is_read_also_after_a_byte_order_mark(path: Path, tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert baseline.read(tmp_path / "marked.json") == baseline.read(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("scores.original.n", -1, "n, intersection, union .-1, 108299, 351437. are of no predictions"),
        ("scores.original.n", "1168", "scores.original.n.*: Input should be a valid integer"),
        ("scores.original.intersection", 351438, "are of no predictions"),
        ("scores.original.union", 10**400, "are of no predictions"),
        ("scores.original.union", None, "n, intersection, union are not all whole numbers"),
        ("scores.original.oIoU", 100.5, "oIoU"),
        ("scores.original.oIoU", float("nan"), "Invalid JSON: NaN is no number of JSON"),
        ("training.seeds.0.metrics.oIoU", 101.0, "training.seeds.0.metrics.oIoU: Input should be less than"),
        ("training.seeds.0.seed", -1, "training.seeds.0.seed: Input should be greater than"),
        ("flipped", -1, "flipped: Input should be greater than"),
        ("moved", 10**30, "moved: Input should be less than"),
        ("moved", 1.0, "moved: Input should be a valid integer"),
    ],
)
def test_an_impossible_number_is_refused(tmp_path: Path, place: str, value: object, message: str) -> None:
    content = json.loads(next(path for path in COMMITTED if path.stem == "lts").read_text())
    *folders, name = place.split(".")
    part: Any = content
    for folder in folders:
        part = part[int(folder) if isinstance(part, list) else folder]
    assert name in part
    part[name] = value
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=rf"a.json is no baseline \(.*{message}.*\): make it again with --update"
    ) as refusal:
        baseline.read(tmp_path / "a.json")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
