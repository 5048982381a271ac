"""LAVT computes the same as the authors' released network with the same weights.

The weights are no checkpoint; they follow from the names and shapes in the authors' state dict, so that no file has to
be shipped. The authors' outputs were computed in float64 with Swin-T (window 7, 120x120) and Swin-B (window 12, 96x96).
Some of their entries are compared always, all of them when the folder of reference material is present.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Words
from risbench.nn.bert import Bert

CLOSE = 1e-5  # of an array's standard deviation
PIECES = 30522  # of bert-base-uncased
VARIANTS = {"tiny": ["swin-tiny"], "base": []}
SIDES = {"tiny": 120, "base": 96}  # stages of Swin-T: 30, 15, 8 and 4 cells, of Swin-B: 24, 12, 6 and 3
IDS = {
    "tiny": (
        [101, 16253, 27303, 7636, 27194, 102],
        [101, 9237, 13837, 1092, 23480, 28482, 28221, 3771, 29637, 27127, 102],
    ),
    "base": (
        [101, 17591, 12940, 27933, 28498, 102],
        [101, 29447, 3464, 5505, 23705, 19521, 6338, 15977, 2865, 28909, 102],
    ),
}
# Numbers of the authors' network: eight entries of each flattened array, evenly from the first to the last.
AUTHORS: dict[str, dict[str, list[float]]] = {
    "tiny": {
        "bert_hidden": [1.5026929, 0.919586, -0.8890574, 1.3178282, 0.8619656, -0.39483267, 0.49678126, 0.58772808],
        "stage4": [
            *(0.83884364, -0.077291988, 0.71686822, -0.8853609),
            *(-1.6511332, -0.92552936, 0.38225377, 0.67854315),
        ],
        "logits": [
            *(-0.040622193, -0.19277923, 0.69104052, 0.5546782),
            *(-0.24365957, -0.21880604, 0.52718669, 0.25895506),
        ],
    },
    "base": {
        "bert_hidden": [1.5829064, 0.30792129, -0.62098998, 1.5225396, 1.0012022, -0.6744383, 0.34591916, 0.18324532],
        "stage4": [1.0405617, 0.0045711724, -1.742626, -0.1699055, 1.5792161, 0.4612132, -1.1986281, -1.045388],
        "logits": [0.29310411, 0.38016132, 0.41555434, 0.46365446, 0.34036249, 0.33351389, 0.5492245, 0.23136728],
    },
}

Array = NDArray[np.float64]


class Outputs(NamedTuple):
    """The outputs of our network, and the names and shapes of its weights in the authors' checkpoint."""

    name: str
    arrays: dict[str, Array]
    manifests: dict[str, dict[str, list[int]]]  # model and bert_model


@pytest.fixture(scope="module")
def text() -> Bert:
    """BERT-base with computed weights; its names are the authors'. Both networks share it, as it is slow to build."""
    bert = Bert(PIECES, 768, 12, 12, 0.0)
    with torch.no_grad():
        for key, tensor in bert.named_parameters():
            tensor.copy_(torch.from_numpy(weights(key, list(tensor.shape))))
    return bert


@pytest.fixture(scope="module", params=["tiny", "base"])
def outputs(request: pytest.FixtureRequest, text: Bert) -> Outputs:
    name = request.param
    settings, _ = recipe.load(methods.recipe_file("lavt"), VARIANTS[name])
    model: Any = methods.load("lavt").build(settings, range(PIECES))
    model.network.text.load_state_dict(text.state_dict())
    manifest = {}
    with torch.no_grad():
        for key, tensor in model.network.state_dict().items():
            if tensor.is_floating_point() and not key.startswith("text."):
                released, shape = authors_name_and_shape(key, list(tensor.shape))
                manifest[released] = shape
                tensor.copy_(torch.from_numpy(weights(released, shape)).view(tensor.shape))
    manifests = {"model": manifest, "bert_model": {key: list(p.shape) for key, p in text.named_parameters()}}
    return Outputs(name, compute(model.double().eval(), SIDES[name], IDS[name]), manifests)


def compute(model: Any, side: int, ids: tuple[list[int], list[int]]) -> dict[str, Array]:
    """Return the arrays under the names of the reference material, with channels second."""
    image = np.random.RandomState(7).standard_normal((2, 3, side, side)).astype(np.float32)
    padded = torch.tensor([row + [0] * (20 - len(row)) for row in ids])
    words = Words(padded, padded > 0)
    network = model.network
    with torch.inference_mode():
        first = network.encode_image(torch.from_numpy(image).double())
        hidden = network.text.hidden_states(words)
        maps: list[Tensor] = network.fused_maps(first, hidden, words.mask)
        tensors = {
            "bert_hidden": hidden,
            "logits": model.logits((first,), words),
            "stage4": maps[3].permute(0, 3, 1, 2),
        }
        tensors |= {f"stage{number}_mean": maps[number - 1].mean(dim=(1, 2)) for number in (1, 2, 3)}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


FUSION = {
    "visual": "vis_project",
    "query": "image_lang_att.f_query",
    "key": "image_lang_att.f_key",
    "value": "image_lang_att.f_value",
    "out": "image_lang_att.W",
    "project": "project_mm",
}
RENAMED: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"backbone\.layers\.(\d)\.downsample\.(.+)", lambda m: f"backbone.layers.{int(m[1]) - 1}.downsample.{m[2]}"),
    (r"fusions\.(\d)\.(\w+)\.(.+)", lambda m: f"backbone.layers.{m[1]}.fusion.{FUSION[m[2]]}.0.{m[3]}"),
    (r"gates\.(\d)\.inner\.weight", lambda m: f"backbone.layers.{m[1]}.res_gate.0.weight"),
    (r"gates\.(\d)\.outer\.weight", lambda m: f"backbone.layers.{m[1]}.res_gate.2.weight"),
    (r"norms\.(\d)\.(.+)", lambda m: f"backbone.norm{m[1]}.{m[2]}"),
    (r"decoder\.levels\.(\d)\.(\d)\.conv\.(.+)", lambda m: f"classifier.conv{int(m[2]) + 1}_{4 - int(m[1])}.{m[3]}"),
    (r"decoder\.levels\.(\d)\.(\d)\.norm\.(.+)", lambda m: f"classifier.bn{int(m[2]) + 1}_{4 - int(m[1])}.{m[3]}"),
    (r"decoder\.logits\.(.+)", lambda m: f"classifier.conv1_1.{m[1]}"),
]


def authors_name_and_shape(key: str, shape: list[int]) -> tuple[str, list[int]]:
    """Return the name and shape of a weight of our network in the authors' checkpoint."""
    if key.startswith("fusions.") and len(shape) == 2:
        shape = [*shape, 1]  # the authors' 1x1 convolution
    for pattern, renamed in RENAMED:
        if match := re.fullmatch(pattern, key):
            return renamed(match), shape
    return key, shape


def weights(key: str, shape: list[int]) -> NDArray[np.float32]:
    """Return numbers that a name and a shape determine: scales and variances near 1, all else near 0."""
    values = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(values)
    if key.endswith("weight") and len(shape) == 1:
        return 1 + np.float32(0.1) * values
    if len(shape) >= 2:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.float32(0.1) * values


def test_outputs_hold_the_authors_numbers(outputs: Outputs) -> None:
    for name, expected in AUTHORS[outputs.name].items():
        array = outputs.arrays[name]
        places = np.linspace(0, array.size - 1, len(expected)).astype(int)
        assert np.abs(array.ravel()[places] - expected).max() < CLOSE * array.std(), name


def test_every_array_equals_the_authors(outputs: Outputs, shared: Path) -> None:
    golden = np.load(shared / "golden" / f"lavt_{outputs.name}_golden.npz")
    assert outputs.arrays.keys() == set(golden.files) - {"image", "input_ids", "attention_mask"}
    for name, array in outputs.arrays.items():
        expected = golden[name].astype(np.float64)
        assert array.shape == expected.shape
        assert np.abs(array - expected).max() < CLOSE * expected.std(), name


def test_weights_have_names_and_shapes_of_the_authors_checkpoint(outputs: Outputs, shared: Path) -> None:
    files = {"model": f"lavt_{outputs.name}_model_manifest.json", "bert_model": "bert_base_manifest.json"}
    for part, file in files.items():
        assert outputs.manifests[part] == json.loads((shared / "golden" / file).read_text(encoding="utf-8"))
