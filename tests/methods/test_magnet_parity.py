"""MagNet computes the same as the authors' released network with the same weights.

The weights are no checkpoint; they follow from the names and shapes in the authors' state dict, so that no file has to
be shipped. The authors' outputs were computed in float64 with Swin-T (window 7, 128x128) and Swin-B (window 12, 96x96),
under the mask of the released code on the language side. Some of their entries are compared always, all of them when
the folder of reference material is present.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Words
from risbench.engine import convert

BERT = ("language_model.embeddings.", "language_model.encoder.")
CLOSE = 1e-5  # of an array's standard deviation
RECIPE = methods.recipe_file("magnet")
VARIANTS = {"tiny": ["swin-tiny", "released"], "base": ["released"]}
SIDES = {"tiny": 128, "base": 96}  # stages of Swin-T: 32, 16, 8 and 4 cells, of Swin-B: 24, 12, 6 and 3
IDS = {
    "tiny": (
        [101, 12734, 29801, 7413, 17307, 102],
        [101, 17466, 8600, 18706, 6929, 24170, 29256, 10695, 7314, 21009, 102],
    ),
    "base": (
        [101, 7652, 13264, 2426, 12987, 102],
        [101, 16447, 20664, 5589, 4724, 11463, 10434, 28855, 22870, 17410, 102],
    ),
}
# Numbers of the authors' network: eight entries of each flattened array, or all four, from the first to the last.
AUTHORS: dict[str, dict[str, list[float]]] = {
    "tiny": {
        "pred_logits": [-0.17662814, -0.21897255, 0.041698597, -0.39806846],
        "pred_masks": [
            *(-5.9041853, -5.0862904, -8.5851851, -4.3255472),
            *(-4.8129849, -10.378232, -9.1385622, 2.8814974),
        ],
        "probability": [
            *(0.0027205818, 0.048451979, 0.0052627842, 0.0011453156),
            *(0.0028803784, 0.015738085, 0.0027769604, 0.94692415),
        ],
    },
    "base": {
        "pred_logits": [0.60716039, 0.64575487, 0.66985929, 0.6919921],
        "pred_masks": [
            *(-3.6951668, -4.1217446, -3.9163153, -0.76169604),
            *(6.8942738, 0.94696873, 2.3136542, 6.6443658),
        ],
        "probability": [
            *(0.024241079, 0.13334222, 0.0015459988, 0.83384472),
            *(0.23712398, 0.87504894, 0.35186067, 0.99870038),
        ],
    },
}

Array = NDArray[np.float64]


class Outputs(NamedTuple):
    """The outputs of our network."""

    name: str
    arrays: dict[str, Array]
    decided: float  # share of the pixels that float32 decides as float64 does


def weights(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return numbers that a name and a shape determine: scales near 1, all else near 0."""
    values = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if key.endswith("weight") and len(shape) == 1:
        return torch.from_numpy(1 + np.float32(0.1) * values)
    scale = np.float32(np.sqrt(np.prod(shape[1:]))) if len(shape) >= 2 else None
    return torch.from_numpy(np.float32(0.1) * values if scale is None else values / scale)


@cache
def text_weights(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return the weights of BERT, which both networks share."""
    return weights(key, shape)


@pytest.fixture(scope="module", autouse=True)
def cleared() -> Iterator[None]:
    """Let nobody hold the weights of BERT after these tests."""
    yield
    text_weights.cache_clear()


def _files() -> ModuleType:
    spec = importlib.util.spec_from_file_location("magnet_files", Path(__file__).with_name("magnet_files.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = _files()
MANIFESTS: dict[str, dict[str, list[int]]] = {
    "tiny": FILES.manifest(FILES.TINY),
    "base": FILES.manifest(FILES.BASE),
}


@pytest.fixture(scope="module", params=["tiny", "base"])
def outputs(request: pytest.FixtureRequest) -> Outputs:
    name = request.param
    cls: Any = methods.load("magnet")
    content = {
        key: (text_weights if key.startswith(BERT) else weights)(key, tuple(shape))
        for key, shape in MANIFESTS[name].items()
    }
    converted = cls.convert({"model": content})
    settings, variants = convert._settings(RECIPE, converted)
    assert variants == VARIANTS[name] and settings == recipe.load(RECIPE, variants)[0]
    model = cls.build(settings, range(30522))
    assert convert._load_tensors(model, converted) == []
    single = compute(model.eval(), name)
    arrays = compute(model.double(), name)
    decided = ((single["probability"] > 0.5) == (arrays["probability"] > 0.5)).mean()
    return Outputs(name, arrays, float(decided))


def compute(model: Any, name: str) -> dict[str, Array]:
    """Return the arrays under the names of the reference material."""
    side, ids = SIDES[name], IDS[name]
    image = np.random.RandomState(11).standard_normal((2, 3, side, side)).astype(np.float32)
    padded = torch.tensor([row + [0] * (20 - len(row)) for row in ids])
    words = Words(padded, padded > 0)
    with torch.inference_mode():
        dtype = model.network.decoder.query.dtype
        first = model.network.encode_image(torch.from_numpy(image).to(dtype))
        decoded = model.network(first, words)
        tensors = {
            "pred_logits": model.network.decoder.classes(decoded.query)[:, None],
            "pred_masks": decoded.masks[:, -1:],
            "probability": model.predict_from((first,), words).probability[:, None],
        }
    return {key: tensor.double().numpy() for key, tensor in tensors.items()}


def test_outputs_hold_the_authors_numbers(outputs: Outputs) -> None:
    for name, expected in AUTHORS[outputs.name].items():
        array = outputs.arrays[name]
        places = np.linspace(0, array.size - 1, len(expected)).astype(int)
        assert np.abs(array.ravel()[places] - expected).max() < CLOSE * array.std(), name


def test_in_float32_all_but_a_few_pixels_are_decided_alike(outputs: Outputs) -> None:
    """Masked attention has a threshold, at which rounding can decide otherwise."""
    assert outputs.decided > 0.999


def test_every_array_equals_the_authors(outputs: Outputs, shared: Path) -> None:
    golden = np.load(shared / "golden" / f"magnet_{outputs.name}_golden.npz")
    assert outputs.arrays.keys() == set(golden.files) - {"image", "input_ids", "attention_mask"}
    for name, array in outputs.arrays.items():
        expected = golden[name].astype(np.float64)
        assert array.shape == expected.shape
        assert np.abs(array - expected).max() < CLOSE * expected.std(), name


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_weights_have_names_and_shapes_of_the_authors_checkpoint(name: str, shared: Path) -> None:
    path = shared / "golden" / f"magnet_{name}_manifest.json"
    assert MANIFESTS[name] == json.loads(path.read_text(encoding="utf-8"))
