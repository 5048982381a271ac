"""How long scoring takes: 10,000 predictions of 480 x 640 with peaks, from opening the files to the summary.

Run on one core: taskset -c 0 python -m pytest benchmarks/test_score.py
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from risbench import datasets
from risbench.data import index, rle
from risbench.scoring import predictions_file, protocol
from risbench.scoring.predictions import Predictions
from risbench.scoring.score import Score, score_predictions

IMAGES, REFS, SENTENCES = 1250, 4, 2  # 10,000 expressions; RefCOCO val has 1,500 images and 10,834
SIZE = (480, 640)
GOAL = 3.0  # seconds
CARD = """
name = "blobs"
title = "Random outlines"
folder = "blobs"
refs = "refs(unc).p"
instances = "instances.json"
images = "images"
partition = "unc"
max_words = 15
where = "benchmarks/test_score.py draws it."
licence = "Apache-2.0"
citation = "none"

[splits.val]
"""


def outlines(generator: np.random.Generator, number: int) -> NDArray[np.float64]:
    """Closed outlines (number, 60, 2) of x, y in pixels: an ellipse with waves, about the size of RefCOCO's objects."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = np.arange(2, 9)
    phase = generator.uniform(0, 2 * np.pi, (number, 1, len(waves)))
    height = generator.normal(0, 0.25, (number, 1, len(waves))) / waves
    radius = 1 + (height * np.cos(waves * angle[:, None] + phase)).sum(-1)
    half = generator.uniform([30, 50], [120, 200], (number, 2))[:, None]
    centre = generator.uniform([150, 180], [490, 300], (number, 2))[:, None]
    points = centre + half * radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.asarray(points.clip(0, [639, 479]), np.float64)


def masks(points: NDArray[np.float64]) -> list[bytes]:
    return [rle.from_polygons([outline.ravel().tolist()], SIZE)[0] for outline in points]


def ref(number: int) -> dict[str, Any]:
    sentences = [
        {"sent_id": number * SENTENCES + k, "raw": "the blob", "sent": "the blob", "tokens": ["the", "blob"]}
        for k in range(SENTENCES)
    ]
    ids = {"ref_id": number, "ann_id": number, "image_id": number // REFS, "category_id": 1, "split": "val"}
    return {**ids, "sentences": sentences, "file_name": f"{number // REFS}.jpg"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with annotations and predictions; images are not needed."""
    folder = tmp_path_factory.mktemp("root")
    generator = np.random.default_rng(0)
    truths = outlines(generator, IMAGES * REFS)
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1], "file_name": f"{i}.jpg"} for i in range(IMAGES)]
    annotations = [
        {"id": i, "image_id": i // REFS, "category_id": 1, "iscrowd": 0, "segmentation": [outline.ravel().tolist()]}
        for i, outline in enumerate(truths)
    ]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}]}
    (folder / "blobs").mkdir()
    (folder / "blobs" / "instances.json").write_text(json.dumps(instances))
    (folder / "blobs" / "refs(unc).p").write_bytes(pickle.dumps([ref(i) for i in range(IMAGES * REFS)]))
    (folder / "blobs.toml").write_text(CARD)
    outlines_ = np.repeat(truths, SENTENCES, 0)
    masks_ = masks((outlines_ + generator.normal(0, 4, outlines_.shape)).clip(0, [639, 479]))
    peaks: list[tuple[int, int] | None] = [(int(y), int(x)) for x, y in outlines_.mean(axis=1)]
    predictions = Predictions.build(None, range(len(outlines_)), [SIZE] * len(outlines_), masks_, peaks)
    predictions_file.write(folder / "val.parquet", predictions)
    return folder


def scored(root: Path, boundaries: bool = False) -> Score:
    opened = index.load(datasets.load(str(root / "blobs.toml")), root)
    return score_predictions(
        predictions_file.read(root / "val.parquet"), opened, "val", protocol.load("original"), boundaries
    )


@pytest.fixture
def cached(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root, with its index built in a cache of this test."""
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path))
    index.load(datasets.load(str(root / "blobs.toml")), root)
    return root


def test_scoring_ten_thousand_predictions_of_480_x_640(benchmark: BenchmarkFixture, cached: Path) -> None:
    score = benchmark(scored, cached)
    lengths = [len(counts) for counts in predictions_file.read(cached / "val.parquet").counts]
    benchmark.extra_info["characters of an RLE"] = float(np.mean(lengths))
    assert score.summary["n"] == 10_000
    assert 80 < score.summary["oIoU"] < 99
    assert score.summary["pointing"] > 95
    assert benchmark.stats is None or benchmark.stats["median"] < GOAL  # None where only correctness is run


def test_boundaries_of_ten_thousand_predictions_of_480_x_640(benchmark: BenchmarkFixture, cached: Path) -> None:
    score = benchmark.pedantic(scored, (cached, True), rounds=1)  # type: ignore[no-untyped-call]
    assert 30 < score.summary["boundary IoU"] < score.summary["mIoU"]
