from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from risbench.errors import InputError
from risbench.nn.resnet import ResNet


@pytest.fixture
def resnet() -> Any:
    torch.manual_seed(0)
    network = ResNet("resnet14t")  # bottlenecks, as in resnet101
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return network.eval()


def maps(network: Any, image: Tensor) -> list[Tensor]:
    maps_of_stages: list[Tensor] = [network.stage(0, network.embed(image))]
    for number in (1, 2, 3):
        maps_of_stages.append(network.stage(number, network.merge(number - 1, maps_of_stages[-1])))
    return maps_of_stages


def test_maps_are_those_of_timm_with_channels_last(resnet: Any) -> None:
    other: Any = timm.create_model("resnet14t", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    other.load_state_dict(resnet.net.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 96)
    ours = maps(resnet, image)
    assert resnet.widths == [x.shape[3] for x in ours] == other.feature_info.channels()
    assert [x.shape[1:3] for x in ours] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for x, expected in zip(ours, other(image), strict=True):
        assert torch.allclose(x, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_checkpointing_changes_neither_gradients_nor_statistics(resnet: Any) -> None:
    """Nor with the normalisation that several processes on CUDA share, which is torch's own in one process."""
    image = torch.randn(2, 3, 64, 64)
    start = {key: tensor.clone() for key, tensor in resnet.state_dict().items()}
    results = []
    computed: list[int] = []
    for number, block in enumerate(resnet.blocks()):
        block.register_forward_pre_hook(lambda *_, number=number: computed.append(number))
    for resnet.checkpointing, synchronised in ((False, False), (True, False), (True, True)):
        network = convert_sync_batchnorm(resnet) if synchronised else resnet  # type: ignore[no-untyped-call]
        assert network is resnet and synchronised == isinstance(resnet.net.layer1[0].bn1, nn.SyncBatchNorm)
        resnet.load_state_dict(start)
        resnet.train().zero_grad()
        torch.autograd.backward(maps(resnet, image)[3].square().sum())
        gradients = {name: parameter.grad.clone() for name, parameter in resnet.named_parameters()}
        results.append(gradients | {name: buffer.clone() for name, buffer in resnet.named_buffers()})
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for name, tensor in results[0].items():
            assert torch.allclose(tensor, result[name], rtol=1e-4, atol=1e-5), name
    assert set(Counter(computed).values()) == {1 + 2 + 2}  # once without, twice with


def test_blocks_are_all_residual_blocks(resnet: Any) -> None:
    assert len(resnet.blocks()) == 4 and len(ResNet("resnet18").blocks()) == 8


def test_weights_are_loaded_from_a_file_with_its_classifier(resnet: Any, tmp_path: Path) -> None:
    weights = timm.create_model("resnet14t").state_dict()
    torch.save(weights, tmp_path / "resnet.pth")
    assert "fc.weight" in weights and resnet.load_pretrained(str(tmp_path / "resnet.pth")).source == "resnet.pth"
    assert all(torch.equal(tensor, weights[key]) for key, tensor in resnet.net.state_dict().items())


def test_weights_of_another_size_are_one_sentence(resnet: Any, tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(InputError, match="resnet18.pth do not fit this ResNet: ") as error:
        resnet.load_pretrained(str(tmp_path / "resnet18.pth"))
    assert "\n" not in str(error.value)


def test_without_the_hub_the_sentence_says_what_else_can_be_done(resnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="resnet14t cannot be loaded .*model.pretrained=false"):
        resnet.load_pretrained("resnet14t")


def test_a_name_that_timm_does_not_know_is_one_sentence() -> None:
    with pytest.raises(InputError, match="model.backbone='resnet1' is no ResNet of timm"):
        ResNet("resnet1")
