"""The index at the size of RefCOCO: 142,000 expressions and 197,000 annotations in 20,000 images.

Targets on 2 cores: opened in under 0.5 s, built in under 25 s.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from risbench.data import index
from risbench.datasets import Card, SplitCounts

IMAGES, REFS, EXPRESSIONS, ANNOTATIONS = 20_000, 50_000, 142_000, 197_000
CARD = Card(
    name="large",
    title="Large",
    folder="large",
    refs="refs(unc).p",
    instances="instances.json",
    images="images",
    partition="unc",
    max_words=15,
    where="",
    licence="",
    citation="",
    splits={"train": SplitCounts(), "val": SplitCounts()},
)


def polygons(generator: np.random.Generator, height: int, width: int) -> list[list[float]]:
    """Draw one to three blobs, which overlap at random: 1.2 on average; 63 real annotations of COCO have 1.1."""
    parts = []
    for _ in range(generator.choice([1, 2, 3], p=[0.85, 0.1, 0.05])):
        angles = np.linspace(0, 2 * np.pi, generator.integers(12, 34), endpoint=False)
        radius = generator.gamma(2, 30) * generator.uniform(0.7, 1.3, len(angles)) + 3
        x = np.clip(generator.uniform(0, width) + radius * np.cos(angles), 0, width)
        y = np.clip(generator.uniform(0, height) + radius * np.sin(angles), 0, height)
        parts.append(np.stack([x, y], axis=1).round(2).ravel().tolist())
    return parts


def write_large(root: Path) -> None:
    """Write annotation files of RefCOCO's size."""
    generator = np.random.default_rng(0)
    sizes = [((480, 640), (640, 480), (427, 640))[i] for i in generator.integers(0, 3, IMAGES)]
    images = [
        {"id": i, "height": h, "width": w, "file_name": f"COCO_train2014_{i:012d}.jpg"}
        for i, (h, w) in enumerate(sizes)
    ]
    annotations: list[dict[str, Any]] = []
    for i in range(ANNOTATIONS):
        image = i % IMAGES
        segmentation = polygons(generator, *sizes[image])
        other_keys = {"iscrowd": 0, "area": 1234.5, "bbox": [100.5, 100.5, 50.25, 50.25], "category_id": 1 + i % 80}
        annotations.append({"id": i, "image_id": image, "segmentation": segmentation, **other_keys})
    (root / "large").mkdir()
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "large" / "instances.json").write_text(json.dumps(content))
    (root / "large" / "refs(unc).p").write_bytes(pickle.dumps([make_ref(i) for i in range(REFS)], protocol=2))


def make_ref(i: int) -> dict[str, Any]:
    tokens = f"the person number {i} on the left".split()
    text = " ".join(tokens)
    ids = range(i * EXPRESSIONS // REFS, (i + 1) * EXPRESSIONS // REFS)
    sentences = [{"tokens": tokens, "raw": text, "sent": text, "sent_id": s} for s in ids]
    split = "val" if i % 10 == 0 else "train"
    other_keys = {"sent_ids": list(ids), "file_name": f"COCO_train2014_{i % IMAGES:012d}_{i}.jpg", "category_id": 1}
    return {"ref_id": i, "ann_id": i, "image_id": i % IMAGES, "split": split, "sentences": sentences, **other_keys}


@pytest.fixture(scope="module")
def large_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large_root")
    write_large(root)
    return root


def test_building(
    benchmark: BenchmarkFixture, large_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path))
    built = benchmark.pedantic(index.load, (CARD, large_root), rounds=1)  # type: ignore[no-untyped-call]
    assert sum(len(built.split(name)) for name in built.split_names()) == EXPRESSIONS


def test_opening(
    benchmark: BenchmarkFixture, large_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path))
    index.load(CARD, large_root)

    def opening() -> int:
        opened = index.load(CARD, large_root)
        return sum(len(opened.split(name)) for name in opened.split_names())

    assert benchmark(opening) == EXPRESSIONS
