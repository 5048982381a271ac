"""Predictions that cannot be scored and weights that are no numbers: refused, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Method, Prediction
from risbench.data.index import Index
from risbench.data.text import WordTokenizer
from risbench.engine import checkpoint, distributed, predict, sanity
from risbench.engine.checkpoint import Checkpoint, Facts
from risbench.engine.predict import Predictor
from risbench.errors import InputError
from risbench.scoring import protocol
from risbench.scoring.predictions import Header

NAN, INF = float("nan"), float("inf")


class Constant(torch.nn.Module):
    """A method that predicts 0.5, and another number in the first cell of the last expression."""

    def __init__(self, value: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value = torch.tensor(value, dtype=dtype)

    def predict(self, batch: Batch) -> Prediction:
        probability = torch.full((len(batch.words.ids), 4, 4), 0.5, dtype=self.value.dtype)
        probability[-1, 0, 0] = self.value
        return Prediction(probability)


def predict_train(value: float, index: Index, path: Path, dtype: torch.dtype = torch.float32) -> None:
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["image.size=64"])
    words = WordTokenizer(["red"], 4)
    method = cast(Method, Constant(value, dtype))
    predictor = Predictor.build(method, words, settings, protocol.load("original"), distributed.start())
    header = Header(dataset="small", split="train", input=dict(predictor.input_half), method="constant")
    predict.predict_split(predictor, index, index.split("train"), header, path, "")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            NAN,
            "test_sanity predicts NaN for 'the one on the left': .* Give another checkpoint, compute with train.prec",
        ),
        (INF, "test_sanity predicts numbers from 0.5 to inf for 'the one on the left', which are no probabilities"),
        (-INF, "predicts numbers from -inf to 0.5 for"),
        (1.01, "predicts numbers from 0.5 to 1.01 for .* Return numbers from 0 to 1 from predict_from, such as"),
        (-0.2, "predicts numbers from -0.2 to 0.5 for"),
    ],
)
def test_a_number_that_is_no_probability_is_refused_with_its_expression(
    small_index: Index, tmp_path: Path, value: float, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        predict_train(value, small_index, tmp_path / "file.parquet")
    assert not (tmp_path / "file.parquet").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_the_range_are_probabilities_in_every_precision(
    small_index: Index, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    predict_train(value, small_index, tmp_path / "file.parquet", dtype)
    assert (tmp_path / "file.parquet").exists()


def test_rounding_beyond_the_range_is_no_fault_and_more_is_one() -> None:
    sanity.check_prediction(Prediction(torch.tensor([[[1 + 1e-6, -1e-6]]])), 1, "ours")
    for value in (1.01, -0.01):
        with pytest.raises(InputError):
            sanity.check_prediction(Prediction(torch.tensor([[[value]]])), 1, "ours")


@pytest.mark.parametrize(
    ("probability", "peak", "says"),
    [
        (torch.zeros(2, 4, 5), None, r"probabilities \(2, 4, 5\) of torch.float32 for 3 expressions"),
        (torch.zeros(3, 1, 4, 5), None, r"probabilities \(3, 1, 4, 5\)"),
        (torch.zeros(3, 0, 5), None, r"probabilities \(3, 0, 5\)"),
        (torch.zeros(3, 4, 5, dtype=torch.bool), None, "of torch.bool for 3 expressions. Return floating-point"),
        (torch.zeros(3, 4, 5), torch.tensor([[0, 0], [3, 4], [4, 0]]), "peaks that are no cells of its grid of 4 x 5"),
        (torch.zeros(3, 4, 5), torch.tensor([[0, 0], [-1, 4], [2, 0]]), "peaks that are no cells"),
        (torch.zeros(3, 4, 5), torch.tensor([[0, 0]]), "peaks that are no cells"),
        (torch.zeros(3, 4, 5), torch.zeros(3, 2), "peaks that are no cells"),
    ],
)
def test_another_shape_is_refused(probability: Tensor, peak: Tensor | None, says: str) -> None:
    with pytest.raises(InputError, match=f"^ours gives .*{says}"):
        sanity.check_prediction(Prediction(probability, peak), 3, "ours")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Callable[[float], None]]:
    """A checkpoint, and a function that saves it again with a number in one of its weights."""
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"])
    tokenizer = WordTokenizer(["red"], 4)
    torch.manual_seed(0)
    model = methods.load("lts").build(settings, tokenizer)
    facts = Facts(method="lts", variants=[], training_data=[], seed=0, epoch=0, training_seconds=0.0)

    def save(value: float) -> None:
        with torch.no_grad():
            model.get_parameter("network.fusion.visual2.0.weight")[0, 0] = value
        checkpoint.save(tmp_path / "best", model, tokenizer, settings, facts)

    save(0.5)
    return tmp_path / "best", save


@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_are_no_numbers_are_not_saved(saved: tuple[Path, Callable[[float], None]], value: float) -> None:
    folder, save = saved
    before = Checkpoint(folder).facts.sha256
    with pytest.raises(InputError, match="best: 1 of .* first network.fusion.visual2.0.weight. .*lower train.lr"):
        save(value)
    assert Checkpoint(folder).facts.sha256 == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["best"]


def test_weights_that_are_no_numbers_are_not_loaded(
    saved: tuple[Path, Callable[[float], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, save = saved
    with monkeypatch.context() as patch:  # as an older version saved it
        patch.setattr(checkpoint, "check_finite", lambda *_: None)
        save(NAN)
    with pytest.raises(
        InputError, match="safetensors: 1 of .* weights hold NaN .* first network.fusion.visual2.0.weig"
    ):
        Checkpoint(folder).model()
