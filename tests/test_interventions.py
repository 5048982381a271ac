"""The tool that intervenes in a trained CoupAlign: what it changes, what it counts, what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from risbench.runs.job import Job
from risbench.runs.opening import open_run
from risbench.runs.training import train

ROOT = Path(__file__).parents[1]
CHANGES = {
    "as it is",
    "uniform weights",
    "weights of another referent of the image",
    "weights of the next expression",
    "nothing gathered",
    "no logit of the masks",
    "neither",
    "both averaged over the image",
}


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("interventions", ROOT / "tools" / "coupalign_interventions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["interventions"] = module
    spec.loader.exec_module(module)
    return module


class Proposals(NamedTuple):
    weights: Tensor
    masks: Tensor


class Align(nn.Module):
    """The shape of an alignment: `align` makes proposals, and a call makes two maps of them."""

    def align(self, masks: Tensor) -> Proposals:
        return Proposals(torch.tensor([[0.75, 0.25]]), masks)

    def forward(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        weights, masks = self.align(masks)
        total = (weights[:, :, None, None] * masks).sum(dim=1)
        return total[:, None], total


def boxes(*corners: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(corners), 8, 8, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def test_another_referent_is_of_the_same_image(tool: Any) -> None:
    image_ids, ann_ids = np.array([1, 1, 1, 2, 2, 3]), np.array([7, 7, 8, 9, 9, 5])
    assert tool.other_referents(image_ids, ann_ids) == [2, 2, 0, 3, 4, 5]  # itself where there is no other


def test_changes_act_within_their_context_only(tool: Any) -> None:
    align, masks = Align(), torch.tensor([[[[4.0, 0.0]], [[0.0, 8.0]]]])
    with tool.changed_proposals(align, lambda made: made._replace(weights=torch.tensor([[0.5, 0.5]]))):
        assert align(masks)[1].tolist() == [[[2.0, 4.0]]]
    with tool.changed_output(align, tool._WITHOUT["nothing gathered"]):
        written, signal = align(masks)
        assert not written.any() and signal.tolist() == [[[3.0, 2.0]]]
    with tool.changed_output(align, tool._WITHOUT["both averaged over the image"]):
        assert [part.flatten().tolist() for part in align(masks)] == [[2.5, 2.5], [2.5, 2.5]]
    assert align(masks)[1].tolist() == [[[3.0, 2.0]]]


def test_proposals_are_compared_with_each_other_and_with_the_objects(tool: Any) -> None:
    objects = boxes((0, 0, 4, 4), (4, 4, 8, 8), (0, 4, 4, 8))
    masks = boxes((0, 0, 4, 3), (4, 4, 8, 8), (0, 4, 2, 8), (0, 0, 0, 0))  # IoU 0.75, 1, and 0.5, which is not above
    coverage = tool.examine(masks, objects, torch.tensor([False, True, False]))
    assert coverage == (3, 0.0, True, True, pytest.approx(2 / 3))
    coverage = tool.examine(boxes((0, 0, 4, 4), (0, 0, 4, 2)), objects, torch.tensor([True, False, False]))
    assert coverage == (2, 0.5, True, False, pytest.approx(1 / 3))
    assert np.isnan(tool.examine(masks[1:2], objects, torch.tensor([True, False, False])).overlap)


def test_a_checkpoint_is_measured_under_every_change(
    tool: Any, tmp_path: Path, small_root: Path, small_card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["train.epochs=1", "train.batch_size=2", "train.micro_batch=2", "train.per_image=1", "image.size=32"]
    overrides += ["model.masks=4", "model.mask_layers=1", "model.width=8", "model.depths=[1,1,1,1]"]
    overrides += ["model.heads=[1,1,1,1]", "model.text_width=16", "model.text_heads=1"]
    job = Job(method="coupalign", dataset=str(small_card), overrides=overrides, data_root=str(small_root))
    checkpoint = train(open_run(job, tmp_path)).folder
    where = ["--dataset", str(small_card), "--data-root", str(small_root)]
    assert tool.main([str(checkpoint), *where, "--split", "val"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["expressions"] == 4 and set(measured["oIoU"]) == CHANGES
    assert not measured["IoU of two proposals"]  # 0, or null without two: masks share out the pixels
    assert tool.main([str(checkpoint), *where, "--split", "valid"]) == 2
    assert "valid" in capsys.readouterr().err


def test_a_checkpoint_without_masks_is_refused(
    tool: Any,
    tmp_path: Path,
    small_root: Path,
    small_card: Path,
    short_training: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = Job(method="lts", dataset=str(small_card), overrides=short_training, data_root=str(small_root))
    checkpoint = train(open_run(job, tmp_path)).folder
    where = ["--dataset", str(small_card), "--data-root", str(small_root), "--split", "val"]
    assert tool.main([str(checkpoint), *where]) == 2
    assert "no sentence-mask alignment. Give a checkpoint of CoupAlign" in capsys.readouterr().err
