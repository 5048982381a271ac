from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from risbench.errors import InputError
from risbench.nn.swin import Swin, shift_mask
from risbench.nn.weights import hash_tensors

WIDTH, DEPTHS, HEADS, WINDOW, PATCH = 8, (2, 2), (1, 2), 4, 2


@pytest.fixture
def swin() -> Any:
    """Two stages of two blocks, the second of each shifted; biases large enough to matter."""
    torch.manual_seed(0)
    network = Swin(WIDTH, DEPTHS, HEADS, WINDOW, PATCH, drop_path=0.0)
    for block in network.blocks():
        nn.init.normal_(bias_table(block))
    return network.double().eval()


def bias_table(block: Any) -> nn.Parameter:
    table: nn.Parameter = block.attn.relative_position_bias_table
    return table


def stages(network: Any, image: Tensor) -> list[Tensor]:
    maps = [network.stage(0, network.embed(image))]
    for number in range(1, len(DEPTHS)):
        maps.append(network.stage(number, network.merge(number - 1, maps[-1])))
    return maps


def timm_stages(network: Any, side: int) -> list[Tensor]:
    """The maps of timm's own network with the same weights."""
    other = SwinTransformer(
        img_size=side,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depths=DEPTHS,
        num_heads=HEADS,
        window_size=WINDOW,
        always_partition=True,
        strict_img_size=False,
        num_classes=0,
    )
    other.load_state_dict(network.state_dict(), strict=False)
    x = other.double().eval().patch_embed(image(side))
    maps = []
    for layer in other.layers:
        x = layer(x)
        maps.append(x)
    return maps


def image(height: int, width: int = 0) -> Tensor:
    return torch.randn(2, 3, height, width or height, generator=torch.Generator().manual_seed(1)).double()


def test_where_windows_fit_the_maps_are_those_of_timm(swin: Any) -> None:
    """Maps of 16 and 8 cells, both more than one window."""
    pairs = list(zip(stages(swin, image(32)), timm_stages(swin, 32), strict=True))
    assert [tuple(ours.shape) for ours, _ in pairs] == [(2, 16, 16, 8), (2, 8, 8, 16)]
    assert all(torch.allclose(ours, other, rtol=0, atol=1e-12) for ours, other in pairs)


def test_where_windows_do_not_fit_padding_comes_before_the_shift(swin: Any) -> None:
    """Maps of 12 x 10 and 6 x 5 cells: the second is padded to 8 x 8."""
    x = swin.embed(image(24, 20))
    for number in range(len(DEPTHS)):
        x = swin.merge(number - 1, x) if number else x
        expected = x
        for block in swin.layers[number].blocks:
            expected = plain_block(block, expected)
        x = swin.stage(number, x)
        assert torch.allclose(x, expected, rtol=0, atol=1e-12)


def test_where_windows_do_not_fit_timm_differs(swin: Any) -> None:
    """The reason for our blocks. If this fails, timm pads first too, and they can be removed."""
    assert not torch.allclose(stages(swin, image(20))[1], timm_stages(swin, 20)[1], atol=1e-2)


def plain_block(block: Any, x: Tensor) -> Tensor:
    """A block as section 3.2 of the paper describes it, window by window and pair by pair."""
    window, shift, attention = block.window, block.shift, block.attn
    batch, height, width, channels = x.shape
    tall, wide = (window * math.ceil(length / window) for length in (height, width))
    padded = torch.zeros(batch, tall, wide, channels, dtype=x.dtype)
    padded[:, :height, :width] = block.norm1(x)
    attended = torch.zeros_like(padded)
    for top in range(0, tall, window):
        for left in range(0, wide, window):
            # where the cells of this window lay before the cyclic shift
            cells = [
                ((top + i + shift) % tall, (left + j + shift) % wide) for i in range(window) for j in range(window)
            ]
            rows, columns = torch.tensor(cells).T
            added = torch.tensor([[_added(block, a, b) for b in range(len(cells))] for a in range(len(cells))])
            if shift:
                added = added + _mask_of_window(top, left, tall, wide, window, shift)
            attended[:, rows, columns] = plain_attention(attention, padded[:, rows, columns], added)
    x = x + attended[:, :height, :width]
    whole: Tensor = x + block.mlp(block.norm2(x))
    return whole


def _added(block: Any, a: int, b: int) -> list[float]:
    """The bias of each head between two positions of a window, from their distance."""
    window = block.window
    down, right = a // window - b // window, a % window - b % window
    values: list[float] = bias_table(block)[(down + window - 1) * (2 * window - 1) + right + window - 1].tolist()
    return values


def _mask_of_window(top: int, left: int, tall: int, wide: int, window: int, shift: int) -> Tensor:
    """-100 between cells of a window of which only one has gone round a border: (N, N, 1)."""
    gone = [(top + i + shift >= tall, left + j + shift >= wide) for i in range(window) for j in range(window)]
    return torch.tensor([[[-100.0 * (a != b)] for b in gone] for a in gone])


def plain_attention(attention: Any, x: Tensor, added: Tensor) -> Tensor:
    """Attention among the N cells of one window: (B, N, C), with (N, N, heads) added to the scores."""
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    width = query.shape[-1] // attention.num_heads
    parts = []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width) + added[..., head]
        parts.append(scores.softmax(dim=-1) @ value[..., part])
    output: Tensor = attention.proj(torch.cat(parts, dim=-1))
    return output


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(8, 12, 4, 2), (7, 7, 7, 3), (10, 5, 5, 2)])
def test_the_shift_mask_parts_what_only_the_shift_brought_together(
    height: int, width: int, window: int, shift: int
) -> None:
    mask = shift_mask(height, width, window, shift, torch.device("cpu"))
    windows = [(top, left) for top in range(0, height, window) for left in range(0, width, window)]
    expected = torch.stack([_mask_of_window(*corner, height, width, window, shift)[..., 0] for corner in windows])
    assert torch.equal(mask, expected)
    assert (mask != 0).any()


def test_the_bias_is_cached_without_gradient_and_follows_the_weights(swin: Any) -> None:
    block = swin.layers[0].blocks[1]

    def bias() -> Tensor:
        with torch.no_grad():
            cached: Tensor = block.bias(8, 8)
        assert torch.equal(cached, block._compute_bias(bias_table(block).detach(), 8, 8))
        return cached

    first = bias()
    assert bias() is first and not first.requires_grad
    assert block.bias(8, 8).requires_grad and block.bias(8, 8).grad_fn is not None  # never the cached one in training

    bias_table(block).grad = torch.ones_like(bias_table(block))
    for optimizer in (torch.optim.AdamW([bias_table(block)]), torch.optim.SGD([bias_table(block)], lr=0.1)):
        before = bias()
        optimizer.step()
        assert not torch.equal(bias(), before)

    before = bias()
    swin.load_state_dict({key: tensor + 1 for key, tensor in swin.state_dict().items()})
    assert torch.allclose(bias(), before + 1)
    swin.float()
    assert bias().dtype == torch.float32
    with torch.no_grad():
        assert block.bias(8, 4).shape == (2, 1, 16, 16)  # two windows
    assert bias().shape == (4, 1, 16, 16)


def test_a_network_made_in_inference_mode_follows_its_weights() -> None:
    with torch.inference_mode():
        network: Any = Swin(WIDTH, DEPTHS, HEADS, WINDOW, PATCH, 0.0)
        block = network.layers[0].blocks[1]
        before = block.bias(8, 8)
        bias_table(block).add_(1)
        assert torch.allclose(block.bias(8, 8), before + 1)


def test_training_goes_on_after_evaluation_at_a_new_size(swin: Any) -> None:
    """A tensor made in inference mode, as the mask of that size, must not enter a graph."""
    with torch.inference_mode():
        expected = stages(swin, image(36))[1]
    again = stages(swin.train(), image(36))[1]
    torch.autograd.backward(again.sum())
    assert torch.allclose(again, expected, rtol=0, atol=1e-12)
    assert all(bias_table(block).grad is not None for block in swin.blocks())


def test_every_stage_has_whole_windows_and_shifts_whatever_the_input(swin: Any) -> None:
    assert [(block.window, block.shift) for block in swin.blocks()] == [(4, 0), (4, 2)] * 2
    maps = stages(swin, image(4))  # maps of 2 and 1 cells are padded to a window
    assert [tuple(x.shape) for x in maps] == [(2, 2, 2, 8), (2, 1, 1, 16)]


def published(network: Any, window: int) -> dict[str, Tensor]:
    """The weights as the authors of Swin publish them, of another window: merging at the end of a stage, buffers."""
    torch.manual_seed(2)
    tensors = {"norm.weight": torch.ones(16), "head.weight": torch.ones(10, 16), "head.bias": torch.ones(10)}
    for key, tensor in network.state_dict().items():
        shape = [(2 * window - 1) ** 2, *tensor.shape[1:]] if key.endswith("bias_table") else tensor.shape
        tensors[key.replace("layers.1.downsample", "layers.0.downsample")] = torch.randn(*shape)
    for stage in (0, 1):
        tensors[f"layers.{stage}.blocks.0.attn.relative_position_index"] = torch.zeros(window**2, window**2)
        tensors[f"layers.{stage}.blocks.1.attn_mask"] = torch.zeros(1, window**2, window**2)
    return tensors


def test_weights_as_their_authors_publish_them_are_loaded(swin: Any, tmp_path: Path) -> None:
    """From a window of 7 to one of 4, whose bias tables are sampled from the larger ones."""
    tensors = published(swin, 7)
    torch.save({"model": tensors}, tmp_path / "swin.pth")
    loaded = swin.load_pretrained(str(tmp_path / "swin.pth"))
    hashed = hashlib.sha256((tmp_path / "swin.pth").read_bytes()).hexdigest()
    assert (loaded.part, loaded.source, loaded.sha256, loaded.hashed) == ("Swin", "swin.pth", hashed, "file")
    assert loaded.training_data is None
    state = swin.state_dict()
    for key in ("layers.0.blocks.1.attn.qkv.weight", "patch_embed.proj.weight", "layers.1.blocks.0.mlp.fc1.bias"):
        assert torch.equal(state[key].float(), tensors[key])
    assert torch.equal(state["layers.1.downsample.norm.bias"].float(), tensors["layers.0.downsample.norm.bias"])
    key = "layers.1.blocks.0.attn.relative_position_bias_table"
    for head in (0, 1):
        expected = resized(tensors[key][:, head].view(13, 13).numpy(), 7)
        assert np.allclose(state[key][:, head].view(7, 7).numpy(), expected, atol=1e-5)


def resized(grid: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Bicubic sampling between the centres of cells (Keys, a = -0.75), the border repeated beyond it."""
    weights = np.zeros((side, len(grid)))
    for row in range(side):
        place = (row + 0.5) * len(grid) / side - 0.5
        for near in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - near)
            inner, outer = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            weights[row, np.clip(near, 0, len(grid) - 1)] += inner if d <= 1 else outer
    return weights @ grid @ weights.T


def test_weights_of_the_same_window_are_loaded_as_they_are(swin: Any, tmp_path: Path) -> None:
    tensors = {key: torch.rand_like(tensor) for key, tensor in swin.state_dict().items()}
    save_file(tensors, tmp_path / "swin.safetensors")
    assert swin.load_pretrained(str(tmp_path / "swin.safetensors")).source == "swin.safetensors"
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in swin.state_dict().items())


@pytest.mark.parametrize(
    ("width", "depths", "heads"),
    [(16, DEPTHS, HEADS), (WIDTH, (2, 4), HEADS), (WIDTH, (2, 1), HEADS), (8, DEPTHS, (2, 2))],
)
def test_weights_of_another_size_are_one_sentence(
    swin: Any, tmp_path: Path, width: int, depths: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    other = Swin(width, depths, heads, 7, PATCH, 0.0)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth do not fit this Swin") as error:
        swin.load_pretrained(str(tmp_path / "other.pth"))
    assert "\n" not in str(error.value)


def test_a_name_that_timm_does_not_know_is_one_sentence(swin: Any) -> None:
    with pytest.raises(InputError, match="'swin_huge' is neither a weights file .*swin_base_patch4_window12_384"):
        swin.load_pretrained("swin_huge")


def test_without_the_hub_the_sentence_says_what_else_can_be_done(swin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="swin_tiny_patch4_window7_224 cannot be loaded .*model.pretrained=false"):
        swin.load_pretrained("swin_tiny_patch4_window7_224")


def test_weights_of_timm_are_loaded_by_name(swin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained: Any = Swin(WIDTH, DEPTHS, HEADS, 7, PATCH, 0.0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pretrained)
    loaded = swin.load_pretrained("swin_tiny_patch4_window7_224")
    assert loaded.source == "timm swin_tiny_patch4_window7_224.ms_in1k" and loaded.training_data == ("ImageNet-1k",)
    assert (loaded.sha256, loaded.hashed) == (hash_tensors(pretrained.state_dict()), "tensors")
    assert torch.equal(swin.patch_embed.proj.weight.float(), pretrained.patch_embed.proj.weight)


def test_drop_path_has_timm_s_rates_and_keeps_the_mean() -> None:
    network: Any = Swin(WIDTH, (3, 3), HEADS, WINDOW, PATCH, drop_path=0.5)
    assert [round(1 - float(block.keep_rate), 6) for block in network.blocks()] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    torch.manual_seed(0)
    block, x = network.blocks()[-1], torch.ones(4000, 1, 1, 1)
    kept = block.train()._drop_path(x)
    assert set(kept.flatten().tolist()) == {0.0, 2.0} and abs(kept.mean() - 1) < 0.05
    assert torch.equal(network.blocks()[0].train()._drop_path(x), x) and torch.equal(block.eval()._drop_path(x), x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer
def test_compiled_blocks_of_one_width_and_shift_share_their_code() -> None:
    """Though the rates of their drop paths differ; the first block of all has none."""
    network: Any = Swin(WIDTH, (6,), (1,), WINDOW, PATCH, drop_path=0.5)
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in network.blocks():
        block.compile(backend=backend)
    x = torch.randn(2, 8, 8, WIDTH)
    network.train().stage(0, x)
    assert len(graphs) == 3
    with torch.no_grad():
        network.eval().stage(0, x)
    assert len(graphs) == 5
    torch._dynamo.reset()
