"""Every loader of pretrained weights loads all of a network or refuses the file, and names what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from risbench.engine.checkpoint import load_weights
from risbench.errors import InputError
from risbench.nn import darknet
from risbench.nn.bert import Bert
from risbench.nn.resnet import ResNet
from risbench.nn.swin import Swin

Tensors = dict[str, Tensor]
Load = Callable[[Tensors], None]


class Case:
    """A small network, weights that fit it under the names of their file, and how a file of weights is loaded."""

    def __init__(self, network: nn.Module, tensors: Tensors, load: Load, deeper: Tensors, head: Tensors) -> None:
        self.network = network
        self.tensors = {name: tensor + 1 for name, tensor in tensors.items()}
        self.load = load
        self.deeper = deeper
        self.head = head

    def is_untouched(self, before: Tensors) -> bool:
        return all(torch.equal(tensor, before[name]) for name, tensor in self.network.state_dict().items())


def bert(folder: Path, _: pytest.MonkeyPatch) -> Case:
    network = Bert(30, 16, 2, 2, 0.0)

    def load(tensors: Tensors) -> None:
        network.save_pretrained(folder)
        (folder / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
        save_file(tensors, folder / "model.safetensors")
        network.load_pretrained(str(folder))

    deeper = Bert(30, 16, 3, 2, 0.0).state_dict()
    return Case(network, network.state_dict(), load, deeper, {"cls.predictions.bias": torch.ones(30)})


def resnet(folder: Path, _: pytest.MonkeyPatch) -> Case:
    network = ResNet("resnet10t")

    def load(tensors: Tensors) -> None:
        torch.save(tensors, folder / "resnet.pth")
        network.load_pretrained(str(folder / "resnet.pth"))

    deeper = timm.create_model("resnet14t").state_dict()
    return Case(network, network.net.state_dict(), load, deeper, {"fc.bias": torch.ones(1000)})


def swin_of_depths(*depths: int) -> Swin:
    return Swin(8, depths, (1, 2), 4, 2, 0.0)


def swin(folder: Path, _: pytest.MonkeyPatch) -> Case:
    network = swin_of_depths(1, 1)

    def load(tensors: Tensors) -> None:
        torch.save({"model": tensors}, folder / "swin.pth")
        network.load_pretrained(str(folder / "swin.pth"))

    deeper = swin_of_depths(1, 3).state_dict()
    return Case(network, network.state_dict(), load, deeper, {"head.weight": torch.ones(10, 16)})


class Loaded:
    """A model as timm returns it."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def state_dict(self) -> Tensors:
        return self.tensors


def from_timm(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    network = swin_of_depths(1, 1)

    def load(tensors: Tensors) -> None:
        patch.setattr(timm, "create_model", lambda *_, **__: Loaded(tensors))
        network.load_pretrained("swin_tiny_patch4_window7_224.ms_in1k")

    deeper = swin_of_depths(3, 1).state_dict()
    return Case(network, network.state_dict(), load, deeper, {"head.fc.weight": torch.ones(10, 16)})


def darknet_from_timm(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    def build(depth: int) -> nn.Module:
        return darknet.darknet53(4, [6, 8, 10, 12, 14], [1, 1, 1, 1, depth], 0.01)

    def classifier(network: nn.Module) -> Tensors:
        names = network.state_dict().items()
        return {name.replace("stem_", "stem.").replace("stages_", "stages."): tensor for name, tensor in names}

    network = build(1)

    def load(tensors: Tensors) -> None:
        patch.setattr(timm, "create_model", lambda *_, **__: Loaded(tensors))
        darknet.load_weights(network, "timm", 0.01)

    return Case(network, classifier(network), load, classifier(build(2)), {"head.fc.bias": torch.ones(1000)})


def checkpoint(folder: Path, _: pytest.MonkeyPatch) -> Case:
    """As --init reads it."""

    def build(depth: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(depth)))

    network = build(2)

    def load(tensors: Tensors) -> None:
        save_file(tensors, folder / "weights.safetensors")
        load_weights(network, folder / "weights.safetensors")

    return Case(network, network.state_dict(), load, build(3).state_dict(), {"head.weight": torch.ones(3)})


LOADERS = (bert, resnet, swin, from_timm, darknet_from_timm, checkpoint)


def prefixed(case: Case) -> Tensors:
    return {f"encoder2.{name}": tensor for name, tensor in case.tensors.items()}


def halved(case: Case) -> Tensors:
    return dict(list(case.tensors.items())[::2])


def extended(case: Case) -> Tensors:
    return {**case.tensors, "encoder2.weight": torch.ones(3)}


def without_the_last(case: Case) -> Tensors:
    """Without a running variance, where the network has one."""
    names = [name for name in case.tensors if "num_batches" not in name]
    return {name: tensor for name, tensor in case.tensors.items() if name != names[-1]}


def reshaped(case: Case) -> Tensors:
    name, tensor = next((n, t) for n, t in case.tensors.items() if t.ndim and "bias_table" not in n)
    return {**case.tensors, name: torch.cat((tensor, tensor))}


def quantised(case: Case) -> Tensors:
    """Whole numbers, which torch would copy as they are."""
    return {name: tensor.to(torch.int8) for name, tensor in case.tensors.items()}


WRONG: dict[str, Callable[[Case], Tensors]] = {
    "a wrong prefix": prefixed,
    "half of it": halved,
    "an unknown key": extended,
    "one is missing": without_the_last,
    "only a head": lambda case: case.head,
    "another depth": lambda case: case.deeper,
    "another shape": reshaped,
    "another type": quantised,
}


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def case(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    torch.manual_seed(0)
    made: Case = request.param(tmp_path, monkeypatch)
    return made


def test_the_whole_weights_are_loaded(case: Case) -> None:
    is_extended = case.load.__qualname__.startswith("checkpoint")
    case.load(case.tensors if is_extended else {**case.tensors, **case.head})
    loaded = sorted(float(tensor.double().sum()) for tensor in case.network.state_dict().values())
    assert loaded == sorted(float(tensor.double().sum()) for tensor in case.tensors.values())


@pytest.mark.parametrize("wrong", WRONG)
def test_other_weights_are_refused_by_name_and_nothing_is_loaded(case: Case, wrong: str) -> None:
    tensors = WRONG[wrong](case)
    before = {name: tensor.clone() for name, tensor in case.network.state_dict().items()}
    with pytest.raises(InputError, match=r"\d+ .* first [a-z0-9_.]+") as error:
        case.load(tensors)
    assert case.is_untouched(before)
    assert "\n" not in str(error.value) and str(error.value).count(",") < 25


def test_a_counter_of_steps_that_old_files_lack_is_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = resnet(tmp_path, monkeypatch)
    made.load({name: tensor for name, tensor in made.tensors.items() if "num_batches" not in name})
    assert torch.equal(made.network.state_dict()["net.bn1.weight"], made.tensors["bn1.weight"])


def test_two_names_of_one_weight_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bert(tmp_path, monkeypatch)
    name = "encoder.layer.0.output.LayerNorm.weight"
    for other in (f"bert.{name}", name.replace("Norm.weight", "Norm.gamma")):
        with pytest.raises(InputError, match=f"hold {name} twice, as .*{other}.* Give a file of one network"):
            made.load({**made.tensors, other: torch.ones(16)})


def test_a_darknet_file_of_another_depth_is_refused(tmp_path: Path) -> None:
    """Its numbers have no names, so that those of a kernel would become variances."""
    torch.manual_seed(0)
    network, deeper = (darknet.darknet53(4, [6, 8, 10, 12, 14], [1, 1, 1, 1, n], 0.1) for n in (1, 2))
    shallower = darknet.darknet53(4, [6, 8, 10, 12, 14], [2, 1, 1, 1, 1], 0.1)
    for name, written in (("whole", network), ("deeper", deeper), ("shallower", shallower)):
        numbers = torch.cat([tensor.detach().flatten() for tensor in darknet._in_file_order(written)])
        header = torch.tensor([0, 2, 5, 0, 0], dtype=torch.int32).numpy().tobytes()
        (tmp_path / name).write_bytes(header + numbers.numpy().tobytes() + bytes(4000))
    darknet.load_weights(network, str(tmp_path / "whole"), 0.1)
    with pytest.raises(InputError, match="is of another network .* would have a negative variance. Give darknet53"):
        darknet.load_weights(network, str(tmp_path / "shallower"), 0.1)
    with pytest.raises(InputError, match="is of another network .* would have a negative variance. Give darknet53"):
        darknet.load_weights(shallower, str(tmp_path / "deeper"), 0.1)
