"""What a notebook calls: `risbench.expressions` and `risbench.score`, and the example of both."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import risbench
from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import metrics, predictions_file, protocol, references, statistics
from risbench.scoring.score import score_predictions

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "score_your_model.py"


@pytest.fixture
def where(small_card: Path, small_root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The data set and the split, as the arguments of both functions."""
    monkeypatch.setenv("RISBENCH_DATA", str(small_root))
    return str(small_card), "testA"


def test_the_example_runs_and_prints_the_score_of_its_masks(
    where: tuple[str, str],
    small_index: Index,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "MIN_IMAGES", 3)
    code = EXAMPLE.read_text(encoding="utf-8").replace('"mini"', repr(where[0])).replace('"val"', '"train"')
    exec(compile(code, str(EXAMPLE), "exec"), {"__name__": "__main__"})
    whole = references.predict("whole-image", small_index, "train")
    expected = score_predictions(whole, small_index, "train", protocol.load("original")).summary
    out = capsys.readouterr().out
    assert out.startswith(f"10 expressions: oIoU {expected['oIoU']:.2f} [")
    assert out.endswith(f"], mIoU {expected['mIoU']:.2f}\n")


def test_every_expression_of_a_split_comes_with_its_image(where: tuple[str, str], small_root: Path) -> None:
    refs = pickle.loads((small_root / "small" / "refs(unc).p").read_bytes())
    expected = {
        (sentence["sent_id"], sentence["sent"], sentence["raw"], ref["image_id"])
        for ref in refs
        for sentence in ref["sentences"]
        if ref["split"] == "testA"
    }
    expressions = risbench.expressions(*where)
    assert {(each.sent_id, each.sent, each.raw, int(each.image.stem[-12:])) for each in expressions} == expected
    assert len(expressions) == len(expected)
    for each in expressions:
        with Image.open(each.image) as image:
            assert image.size == (64, 64)
    assert risbench.expressions(*where, images="elsewhere")[0].image.parent == Path("elsewhere")


def test_a_file_predictions_a_dictionary_and_pairs_have_one_score(
    where: tuple[str, str], small_index: Index, tmp_path: Path
) -> None:
    predictions = references.predict("largest-object", small_index, "testA")
    predictions_file.write(tmp_path / "a.parquet", predictions)
    masks = {
        sent_id: rle.decode(counts, (64, 64))
        for sent_id, counts in zip(predictions.sent_id.tolist(), predictions.counts, strict=True)
    }
    sources: list[Any] = [tmp_path / "a.parquet", str(tmp_path / "a.parquet"), predictions]
    sources += [masks, masks.items(), ((name, mask.tolist()) for name, mask in masks.items())]
    results = [risbench.score(source, *where) for source in sources]
    for result in results:
        for values in (result, result["intervals"]):
            values.pop("pointing", None)  # masks alone have no peaks
        assert result == results[0]


@pytest.mark.parametrize("min_images", [1, 20])
def test_a_result_is_the_json_of_a_score_with_intervals(
    min_images: int, where: tuple[str, str], small_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MIN_IMAGES", min_images)
    predictions, lts = references.predict("random-object", small_index, "testA"), protocol.load("lts")
    scored = score_predictions(predictions, small_index, "testA", lts)
    result = risbench.score(predictions, *where, protocol="lts")
    intervals = result.pop("intervals")
    assert {name: ends for name, ends in intervals.items() if ends} == statistics.intervals(scored.rows, lts)
    assert set(intervals) == {name for name in metrics.NAMES if name != metrics.BOUNDARY_IOU}
    assert (None in intervals.values()) == (min_images == 20)  # the split has one image
    assert result == scored.summary
    assert json.loads(json.dumps(result)) == result


def test_incomplete_predictions_and_wrong_masks_are_refused(where: tuple[str, str]) -> None:
    expressions = risbench.expressions(*where)
    masks = {each.sent_id: np.ones((64, 64), np.bool_) for each in expressions}
    with pytest.raises(InputError, match=f"Without a prediction: sent_id {expressions[1].sent_id} "):
        risbench.score({key: mask for key, mask in masks.items() if key != expressions[1].sent_id}, *where)
    with pytest.raises(InputError, match="3 masks differ in size from their images"):
        risbench.score({key: mask[1:] for key, mask in masks.items()}, *where)
    with pytest.raises(InputError, match="holds values from 0.4 to 0.4"):
        risbench.score({key: mask * 0.4 for key, mask in masks.items()}, *where)
    with pytest.raises(InputError, match="Unknown protocol 'orignal'"):
        risbench.score(masks, *where, protocol="orignal")


def test_importing_risbench_imports_nothing_heavy_and_no_module_hides_its_functions() -> None:
    command = "import sys, risbench; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    answer = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"numpy", "pandas", "pydantic", "pyarrow", "PIL", "torch"} & {*answer.stdout.split()}
    for name in ("score", "expressions", "Expression"):
        assert callable(getattr(risbench, name)) and importlib.util.find_spec(f"risbench.{name}") is None
