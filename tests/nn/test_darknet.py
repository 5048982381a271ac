"""Darknet53 stage by stage is Darknet53."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from risbench.errors import InputError
from risbench.nn.darknet import Darknet


@pytest.fixture(scope="module")
def network() -> Darknet:
    torch.manual_seed(0)
    return Darknet()


def maps(network: Darknet, image: Tensor) -> list[Tensor]:
    """The four maps (B, h, w, C)."""
    x, found = network.embed(image), []
    for number in range(4):
        x = network.stage(number, network.merge(number - 1, x) if number else x)
        found.append(x)
    return found


def test_its_stages_are_those_of_the_whole_network(network: Darknet) -> None:
    network.eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found = maps(network, image)
        whole = network.net(image)  # at H/8, H/16, H/32
    assert [tuple(x.shape) for x in found] == [(1, 64 // s, 96 // s, 32 * s) for s in (4, 8, 16, 32)]
    assert network.widths == [128, 256, 512, 1024] and network.stride == 4
    for one, other in zip(found[1:], whole, strict=True):
        assert torch.allclose(one.permute(0, 3, 1, 2), other, atol=1e-5)
    assert len(network.blocks()) == 2 + 8 + 8 + 4


def test_checkpointing_changes_neither_gradients_nor_statistics(network: Darknet) -> None:
    """A block that is computed twice counts its batch once."""
    network.train()
    image, state = torch.randn(2, 3, 32, 32), {key: value.clone() for key, value in network.state_dict().items()}
    found = []
    computed: list[int] = []
    for number, block in enumerate(network.blocks()):
        block.register_forward_pre_hook(lambda *_, number=number: computed.append(number))
    for network.checkpointing in (False, True):
        network.load_state_dict(state)
        network.zero_grad()
        torch.autograd.backward(maps(network, image)[3].square().mean())
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        found.append((gradients, {key: value.clone() for key, value in network.state_dict().items()}))
    assert all(map(torch.equal, found[0][0], found[1][0])) and len(found[0][0]) == 3 * 52
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in state)
    assert set(Counter(computed).values()) == {1 + 2}  # once without, twice with


def test_other_weights_than_timm_s_are_one_sentence(network: Darknet) -> None:
    with pytest.raises(InputError, match="darknet53.c2ns_in1k"):
        network.load_pretrained("yolov3.weights")
