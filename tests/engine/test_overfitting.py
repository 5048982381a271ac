"""Whether a method can learn at all: 32 expressions of 8 images of mini by heart, through the whole pipeline."""

from __future__ import annotations

import json
import pickle
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from risbench import datasets
from risbench.data import index_store, source
from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

COMMON = [
    "train.batch_size=32",
    "train.per_image=4",
    "train.min_scale=1.0",
    "train.schedule=step",
    "train.decay=0.1",
    "predict.threshold=0.5",  # a lower one widens outlines, which only pays while a method is unsure
]
QUICKEST = "lts"  # 73 s on one core, the others 165 s and 173 s; the gate (make check) trains those, too
# Optimiser steps, each an epoch, and what else a method needs to learn well; "" for those that are not named.
STEPS = {"": 250, "lavt": 150, "coupalign": 150}
OWN = {
    "": ["image.size=160", "train.lr=3e-3"],
    "lavt": ["image.size=160", "train.lr=2e-3", "train.warmup=10", "model.class_weights=[0.9, 1.1]"],
    "coupalign": ["image.size=160", "train.lr=2e-3", "train.warmup=10", "model.class_weights=[0.9, 1.1]"],
    "magnet": ["image.size=128", "train.lr=2e-3", "train.warmup=10", "train.flip=0"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose val repeats its train: four expressions of each of eight images."""
    source.make(datasets.load("mini"), made := index_store.cache_folder() / "data")
    root = tmp_path_factory.mktemp("root")
    (root / "eight").mkdir()
    (root / "images").symlink_to(made / "images")
    (root / "eight" / "instances.json").symlink_to(made / "mini" / "instances.json")
    refs = [ref for ref in pickle.loads((made / "mini" / "refs(unc).p").read_bytes()) if ref["split"] == "train"]
    by_image = [list(own) for _, own in groupby(sorted(refs, key=_image_id), key=_image_id)]
    chosen = [_four(own) for own in by_image if sum(len(ref["sentences"]) for ref in own) >= 4][:8]
    twice = [_copy(ref, split) for split in ("train", "val") for own in chosen for ref in own]
    (root / "eight" / "refs(unc).p").write_bytes(pickle.dumps(twice, protocol=2))
    card = (Path(__file__).parents[2] / "datasets" / "mini.toml").read_text(encoding="utf-8").partition("[splits.")[0]
    card = card.replace('name = "mini"', 'name = "eight"').replace('folder = "mini"', 'folder = "eight"')
    card += "[splits]\ntrain = { expressions = 32, source = 'here', evaluation = false }\nval = { images = 8 }\n"
    (root / "eight.toml").write_text(card, encoding="utf-8")
    return root


@pytest.mark.slow
def test_every_method_learns_32_expressions_of_8_images_by_heart(
    trained_method: str, root: Path, tmp_path: Path
) -> None:
    assert _learned(trained_method, root, tmp_path) >= 90


def test_the_trainer_brings_the_quickest_method_to_learn_them(root: Path, tmp_path: Path) -> None:
    assert _learned(QUICKEST, root, tmp_path) >= 90


def _learned(method: str, root: Path, runs: Path) -> float:
    """Train a method on the 32 expressions, and return its oIoU on them."""
    steps = STEPS.get(method, STEPS[""])
    length = [f"train.epochs={steps}", f"train.milestones=[{steps * 4 // 5}]", f"train.validate_every={steps}"]
    overrides = [*COMMON, *length, *OWN.get(method, OWN[""])]
    job = Job(method=method, dataset=str(root / "eight.toml"), overrides=overrides, data_root=str(root))
    run = open_run(job, runs)
    train(run)
    last = json.loads((run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return float(last["val"]["oIoU"])


def _image_id(ref: dict[str, Any]) -> int:
    return int(ref["image_id"])


def _four(refs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first four sentences of the refs of an image."""
    taken, kept = 0, []
    for ref in refs:
        sentences = ref["sentences"][: 4 - taken]
        taken += len(sentences)
        kept += [{**ref, "sentences": sentences}] if sentences else []
    return kept


def _copy(ref: dict[str, Any], split: str) -> dict[str, Any]:
    """The ref in a split, with ids of its own there."""
    moved = 1_000_000 * (split == "val")
    sentences = [{**sentence, "sent_id": sentence["sent_id"] + moved} for sentence in ref["sentences"]]
    ids = [sentence["sent_id"] for sentence in sentences]
    return {**ref, "split": split, "ref_id": ref["ref_id"] + moved, "sentences": sentences, "sent_ids": ids}
