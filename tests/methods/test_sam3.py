"""SAM 3 agrees with transformers' own forward, and is evaluated alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from risbench import methods, recipe
from risbench.api import Batch, Words
from risbench.errors import InputError
from risbench.nn.byte_pairs import BytePairTokenizer

RECIPE = methods.recipe_file("sam3")
TEXTS = ["left box", "the red thing on the right side of the biggest box", "a"]


def build(*overrides: str, seed: int = 0) -> Any:
    """A small random network, in double precision."""
    chosen = recipe.load(RECIPE, ["tiny"], overrides)[0]
    torch.manual_seed(seed)
    tokenizer = methods.load("sam3").tokenizer(chosen, [])
    return methods.load("sam3").build(chosen, tokenizer).double().eval()


def batch(side: int = 112) -> Batch:
    """Three expressions of two images, the later expression first; the second one is cut at 32 tokens."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(images, torch.tensor([1, 0, 1]), BytePairTokenizer.of_bytes(32, 32)(TEXTS), None)


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_mask_and_presence_are_those_of_transformers_best_instance(seed: int) -> None:
    """Computed by its own forward, called once, with every image repeated for its expressions."""
    model, chosen = build(seed=seed), batch()
    prediction = model.predict(chosen)
    words = {"input_ids": chosen.words.ids, "attention_mask": chosen.words.mask.long()}
    answer = model.network(pixel_values=chosen.image[chosen.image_index], **words)
    scores = answer.pred_logits.sigmoid() * answer.presence_logits.sigmoid()  # (B, Q)
    masks = answer.pred_masks[torch.arange(3), scores.argmax(dim=1)].sigmoid()
    assert prediction.probability.shape == (3, 32, 32) and prediction.probability.std() > 0.01
    assert (scores.topk(2).values.diff().abs() > 1e-4).all()  # the best one is no tie
    torch.testing.assert_close(prediction.probability.double(), masks, rtol=0, atol=1e-5)
    absent = 1 - answer.presence_logits.sigmoid()[:, 0]
    torch.testing.assert_close(prediction.no_target.double(), absent, rtol=0, atol=1e-5)


@torch.no_grad()
def test_neither_padding_nor_the_batch_matters() -> None:
    model, whole = build(), batch()
    together = model.predict(whole)
    for row in range(3):
        length = int(whole.words.mask[row].sum())
        alone = Words(whole.words.ids[row : row + 1, :length], whole.words.mask[row : row + 1, :length])
        other = model.predict(Batch(whole.image[whole.image_index[row]][None], torch.tensor([0]), alone, None))
        torch.testing.assert_close(other.probability[0], together.probability[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(other.no_target[0], together.no_target[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((112, 126), "reads square images, and this one is 112 x 126"),
        ((126, 126), "was built for image.size=112, and the input has 126 pixels a side: give image.size and a protoc"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build().encode_image(batch()._replace(image=torch.zeros(2, 3, *shape, dtype=torch.float64)))


def test_a_training_is_refused_before_the_network_is_built_and_in_its_loss() -> None:
    says = "SAM 3 is evaluated zero-shot here, and is not trained: give train.epochs=0"
    with pytest.raises(InputError, match=says):
        build("train.epochs=3")
    with pytest.raises(InputError, match=says):
        build().loss(batch())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.global_layers=[2]", r"model.global_layers=\[2\] must name layers from 0 to 1"),
        ("model.detector_heads=5", "5 heads cannot share 32 channels"),
        ("image.size=120", "image.size=120 cannot be filled by patches of 14 pixels"),
        ("model.position_size=50", "model.position_size=50 cannot be filled by patches of 14"),
        ("model.width=36", "must be multiples of 4"),
    ],
)
def test_settings_that_fit_no_network_are_one_sentence(override: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(override)


@pytest.mark.parametrize("with_tracker", [False, True])
def test_a_folder_of_weights_becomes_the_network(tmp_path: Path, with_tracker: bool) -> None:
    """Released weights are of the video network, which holds this one beside its tracker."""
    released = build(seed=5).float()
    released.network.save_pretrained(tmp_path)
    BytePairTokenizer.of_bytes(32, 32).save(tmp_path)
    if with_tracker:
        detector = json.loads((tmp_path / "config.json").read_text())
        video = {"model_type": "sam3_video", "detector_config": detector}
        (tmp_path / "config.json").write_text(json.dumps(video))
        state = {f"detector_model.{name}": t.contiguous() for name, t in released.network.state_dict().items()}
        state["tracker_model.one"] = torch.zeros(2)
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    chosen = recipe.load(RECIPE, ["tiny"], [f"model.weights={tmp_path}"])[0]
    model = methods.load("sam3")
    tokenizer = model.tokenizer(chosen, [])
    other = model.build(chosen, tokenizer)
    [loaded] = other.load_pretrained(chosen, tokenizer)
    assert (loaded.part, loaded.source, loaded.training_data) == ("Sam3Model", str(tmp_path), None)
    state, expected = other.state_dict(), released.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_an_older_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.module("sam3"), "transformers", type("Old", (), {"__version__": "4.50.0"}))
    with pytest.raises(InputError, match="SAM 3 needs transformers 5, and 4.50.0 is installed"):
        build()
