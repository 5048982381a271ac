from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from risbench.errors import InputError
from risbench.nn import darknet
from risbench.nn.darknet import Darknet


@pytest.fixture(scope="module")
def network() -> Darknet:
    torch.manual_seed(0)
    return Darknet()


def maps(network: Darknet, image: Tensor) -> list[Tensor]:
    """The four maps (B, h, w, C)."""
    x, stages = network.embed(image), []
    for number in range(4):
        x = network.stage(number, network.merge(number - 1, x) if number else x)
        stages.append(x)
    return stages


def test_its_stages_are_those_of_the_whole_network(network: Darknet) -> None:
    network.eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        stages = maps(network, image)
        whole = network.net(image)  # at H/8, H/16, H/32
    assert [tuple(x.shape) for x in stages] == [(1, 64 // s, 96 // s, 32 * s) for s in (4, 8, 16, 32)]
    assert network.widths == [128, 256, 512, 1024] and network.stride == 4
    for x, expected in zip(stages[1:], whole, strict=True):
        assert torch.allclose(x.permute(0, 3, 1, 2), expected, atol=1e-5)
    assert len(network.blocks()) == 2 + 8 + 8 + 4


def test_checkpointing_changes_neither_gradients_nor_statistics(network: Darknet) -> None:
    """Nor with the normalisation that several processes on CUDA share, which is torch's own in one process."""
    network = copy.deepcopy(network).train()
    image, state = torch.randn(2, 3, 32, 32), {key: value.clone() for key, value in network.state_dict().items()}
    results = []
    computed: list[int] = []
    for number, block in enumerate(network.blocks()):
        block.register_forward_pre_hook(lambda *_, number=number: computed.append(number))
    for network.checkpointing, synchronised in ((False, False), (True, False), (True, True)):
        converted = convert_sync_batchnorm(network) if synchronised else network  # type: ignore[no-untyped-call]
        assert converted is network and synchronised == any(isinstance(m, nn.SyncBatchNorm) for m in network.modules())
        network.load_state_dict(state)
        network.zero_grad()
        torch.autograd.backward(maps(network, image)[3].square().mean())
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        results.append((gradients, {key: value.clone() for key, value in network.state_dict().items()}))
    assert len(results[0][0]) == 3 * 52
    for gradients, statistics in results[1:]:
        assert all(map(torch.equal, results[0][0], gradients))
        assert all(torch.equal(results[0][1][key], statistics[key]) for key in state)
    assert set(Counter(computed).values()) == {1 + 2 + 2}  # once without, twice with


def test_other_weights_than_timm_s_are_one_sentence(network: Darknet) -> None:
    with pytest.raises(InputError, match="darknet53.c2ns_in1k"):
        network.load_pretrained("yolov3.weights")


def write_darknet(path: Path, network: nn.Module, extra: int = 0) -> list[Tensor]:
    """A .weights file as darknet writes it, with known numbers."""
    numbers = np.random.default_rng(0).random(sum(t.numel() for t in darknet._in_file_order(network)) + extra)
    content = np.array([0, 2, 0, 0, 0], "<i4").tobytes() + numbers.astype("<f4").tobytes()
    path.write_bytes(content)
    return [torch.from_numpy(numbers.astype("<f4"))]


def test_a_darknet_file_fills_every_convolution_in_order(tmp_path: Path) -> None:
    network = darknet.darknet53(4, [6, 8, 10, 12, 14], [1, 1, 1, 1, 1], 0.1)
    [numbers] = write_darknet(tmp_path / "darknet.weights", network, extra=100)
    loaded = darknet.load_weights(network, str(tmp_path / "darknet.weights"), 0.1)
    hashed = hashlib.sha256((tmp_path / "darknet.weights").read_bytes()).hexdigest()
    assert (loaded.source, loaded.sha256, loaded.training_data) == ("darknet.weights", hashed, None)

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    first = norms[0]
    assert first.running_mean is not None
    assert torch.equal(first.bias, numbers[:4]) and torch.equal(first.weight, numbers[4:8])
    assert torch.equal(first.running_mean, numbers[8:12])
    assert torch.equal(convolutions[0].weight.flatten(), numbers[16 : 16 + 4 * 27])
    assert torch.equal(norms[1].bias, numbers[124:130])  # stage 1 begins with its stride-2 convolution to 6 channels
    assert torch.equal(convolutions[-1].weight.flatten(), numbers[-100 - convolutions[-1].weight.numel() : -100])


def test_the_52_convolutions_of_the_full_size_darknet_are_filled() -> None:
    network = darknet.darknet53(32, [64, 128, 256, 512, 1024], [1, 2, 8, 8, 4], 0.1)
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 52
    assert sum(t.numel() for t in darknet._in_file_order(network)) == 40_620_640  # the numbers in darknet53.conv.74


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("short", "holds .* numbers, but this Darknet53 needs"),
        ("missing", "There is no darknet file"),
        ("nan", "numbers that are not finite"),
        ("folder", "is a folder, no darknet file"),
        ("pipe", "is a device or a pipe"),
        ("page", "is a web page"),
        ("pointer", "is a pointer of git-lfs"),
        ("torch", "is a zip archive"),
        ("old", "does not begin as a darknet file of version 0.2 to 0.5"),
    ],
)
def test_a_wrong_darknet_file_is_one_sentence(tmp_path: Path, name: str, says: str) -> None:
    network = darknet.darknet53(4, [6, 8, 10, 12, 14], [1, 1, 1, 1, 1], 0.1)
    write_darknet(tmp_path / "short", network)
    whole = (tmp_path / "short").read_bytes()
    (tmp_path / "nan").write_bytes(whole[:400] + b"\xff" * 8 + whole[408:])
    (tmp_path / "old").write_bytes(bytes(4) + b"\x01" + whole[5:])
    (tmp_path / "short").write_bytes(whole[:-8])
    (tmp_path / "folder").mkdir()
    (tmp_path / "page").write_bytes(b"<html>Quota exceeded</html>")
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    torch.save(network.state_dict(), tmp_path / "torch")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=says) as error:
        darknet.load_weights(network, str(tmp_path / name), 0.1)
    assert str(tmp_path / name) in str(error.value)


def test_darknet_weights_want_their_slope(tmp_path: Path) -> None:
    network = darknet.darknet53(4, [6, 8, 10, 12, 14], [1, 1, 1, 1, 1], 0.01)
    with pytest.raises(InputError, match="model.backbone_slope=0.1"):
        darknet.load_weights(network, str(tmp_path / "any"), 0.01)


def test_weights_that_cannot_be_had_say_how_to_train_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> nn.Module:
        raise OSError("no network")

    network = darknet.darknet53(4, [6, 8, 10, 12, 14], [1, 1, 1, 1, 1], 0.01)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="model.pretrained=false"):
        darknet.load_weights(network, "timm", 0.01)
