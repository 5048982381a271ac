"""Converted checkpoints of the released sizes, with made-up weights, compute the same as the authors' network."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Words
from risbench.engine import convert
from risbench.engine.checkpoint import Checkpoint

RECIPE = methods.recipe_file("lavt")


def manifest_of(settings: dict[str, Any]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the names and shapes in the two parts of a file that determine its sizes."""
    model = {
        "backbone.patch_embed.proj.weight": [settings["width"], 3, settings["patch"], settings["patch"]],
        "classifier.conv1_4.weight": [settings["decoder_channels"], 12 * settings["width"], 3, 3],
    }
    for stage, (depth, heads) in enumerate(zip(settings["depths"], settings["heads"], strict=True)):
        for block in range(depth):
            name = f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
            model[name] = [(2 * settings["window"] - 1) ** 2, heads]
    bert = {"embeddings.word_embeddings.weight": [30_522, settings["text_width"]]}
    bert |= {f"encoder.layer.{n}.output.dense.bias": [settings["text_width"]] for n in range(settings["text_layers"])}
    return model, bert


@pytest.mark.parametrize("variants", [[], ["swin-tiny"], ["swin-small"], ["window-7"], ["swin-large"]])
def test_the_shapes_determine_the_variant(variants: list[str]) -> None:
    expected, _ = recipe.load(RECIPE, variants)
    parts = [
        {name: torch.zeros(()).expand(shape) for name, shape in part.items()} for part in manifest_of(expected.model)
    ]
    for inside in (False, True):
        one = {f"text_encoder.{name}": tensor for name, tensor in parts[1].items()}
        content = {"model": {**parts[0], **one}} if inside else {"model": parts[0], "bert_model": parts[1]}
        converted = methods.load("lavt").convert(content)
        settings, matched = convert._settings(RECIPE, converted)
        assert matched == [*variants, *(["one"] if inside else [])]
        assert settings == recipe.load(RECIPE, matched)[0]
        assert converted.pieces == 30_522


@pytest.fixture(params=["tiny", pytest.param("base", marks=pytest.mark.slow)])
def file(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A file of the form `lavt`; it is large and removed afterwards."""
    name = str(request.param)
    content = {
        part: {key: torch.from_numpy(np.asarray(value)) for key, value in _filled(shared, manifest).items()}
        for part, manifest in (("model", f"lavt_{name}_model_manifest"), ("bert_model", "bert_base_manifest"))
    }
    torch.save(content, tmp_path / "lavt.pth")
    yield name, tmp_path / "lavt.pth"
    shutil.rmtree(tmp_path)


def _filled(shared: Path, manifest: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden" / "weights.py")
    assert spec is not None and spec.loader is not None
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    shapes = json.loads((shared / "golden" / f"{manifest}.json").read_text(encoding="utf-8"))
    return cast(dict[str, Any], weights.fill(shapes))


def test_a_converted_checkpoint_computes_the_same_as_the_authors_network(file: tuple[str, Path], shared: Path) -> None:
    name, path = file
    vocabulary = shared / "reference" / "bert-base-uncased-vocab.txt"
    convert.convert_checkpoint("lavt", path, path.parent / "two", vocabulary)
    two = Checkpoint(path.parent / "two")
    variants = ["swin-tiny"] if name == "tiny" else []
    assert two.facts.variants == variants
    golden = np.load(shared / "golden" / f"lavt_{name}_golden.npz")
    assert _difference(two, {key: torch.from_numpy(golden[key]) for key in golden}) < 1e-5

    content = torch.load(path, weights_only=True, mmap=True)  # the other form holds the same
    content["model"] |= {f"text_encoder.{key}": value for key, value in content.pop("bert_model").items()}
    torch.save(content, path.parent / "lavt_one.pth")
    convert.convert_checkpoint("lavt", path.parent / "lavt_one.pth", path.parent / "one", vocabulary)
    one = Checkpoint(path.parent / "one")
    assert one.facts.variants == [*variants, "one"]
    assert one.facts.sha256 == two.facts.sha256


def _difference(opened: Checkpoint, golden: dict[str, Tensor]) -> float:
    """The largest difference of the logits, in standard deviations of the authors'."""
    built, _ = opened.model()
    model: Any = built.double().eval()
    words = Words(golden["input_ids"], golden["attention_mask"].bool())
    with torch.inference_mode():
        features = (model.network.encode_image(golden["image"].double()),)
        logits = model.logits(features, words)
    return float((logits - golden["logits"].double()).abs().max() / golden["logits"].double().std())
