"""The no-target answer of a method, or of a threshold: checked, stored beside the mask, and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image as PIL
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Method, Prediction
from risbench.data.index import Index
from risbench.data.loader import Item
from risbench.data.text import WordTokenizer
from risbench.engine import distributed, predict, sanity, segment
from risbench.engine.predict import Predictor
from risbench.errors import InputError
from risbench.scoring import predictions_file, protocol
from risbench.scoring.predictions import Header, Predictions


class Answering(torch.nn.Module):
    """A method whose maps are alike, but for the largest number, and which answers no-target."""

    def __init__(self, largest: Tensor, no_target: Tensor | None) -> None:
        super().__init__()
        self.largest = largest
        self.no_target = no_target

    def predict(self, batch: Batch) -> Prediction:
        number = len(batch.words.ids)
        probability = torch.full((number, 4, 4), 0.1, dtype=self.largest.dtype)
        probability[:, 1, 2] = self.largest[:number]
        return Prediction(probability, no_target=None if self.no_target is None else self.no_target[:number])


def predictor(largest: Tensor, no_target: Tensor | None, *overrides: str) -> Predictor:
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"], ["image.size=64", *overrides])
    method = cast(Method, Answering(largest, no_target))
    return Predictor.build(method, WordTokenizer(["red"], 4), settings, protocol.load("original"), distributed.start())


def predict_val(made: Predictor, index: Index, path: Path) -> Predictions:
    """Predict val of the data set with sets: four expressions of one image."""
    header = Header(dataset="sets", split="val", input=dict(made.input_half), method="answering")
    return predict.predict_split(made, index, index.split("val"), header, path, "")


LARGEST = torch.tensor([0.9, 0.3, 0.6, 0.2])


def test_a_probability_above_one_half_is_stored_as_no_target(sets_index: Index, tmp_path: Path) -> None:
    made = predictor(LARGEST, torch.tensor([0.93, 0.5, 0.5001, 0.0]))
    stored = predict_val(made, sets_index, tmp_path / "val.parquet")
    assert stored.no_target is not None and stored.no_target.tolist() == [1, 0, 1, 0]
    without = predict_val(predictor(LARGEST, None), sets_index, tmp_path / "other.parquet")
    assert without.no_target is None and without.counts == stored.counts  # the masks stay what they are
    assert without.largest_probability is not None
    assert without.largest_probability.tolist() == LARGEST.tolist()


def test_a_threshold_on_the_largest_probability_answers_and_is_recorded(sets_index: Index, tmp_path: Path) -> None:
    made = predictor(LARGEST, None, "predict.no_target_below=0.6")
    stored = predict_val(made, sets_index, tmp_path / "val.parquet")
    assert stored.no_target is not None and stored.no_target.tolist() == [0, 1, 0, 1]  # 0.6 in float32 is not below
    assert stored.counts == predict_val(predictor(LARGEST, None), sets_index, tmp_path / "other.parquet").counts


def test_a_recipe_from_before_the_key_leaves_it_off() -> None:
    settings, _ = recipe.load(methods.recipe_file("lts"), ["tiny"])
    tables = settings.model_dump()
    del tables["predict"]["no_target_below"]
    assert recipe.validate(tables, "recipe.toml") == settings and settings.predict.no_target_below == 0


@pytest.mark.parametrize("value", ["1", "1.5", "-0.1", "nan", "true"])
def test_a_threshold_that_is_no_probability_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="no_target_below"):
        recipe.load(methods.recipe_file("lts"), ["tiny"], [f"predict.no_target_below={value}"])


def test_a_method_with_an_answer_refuses_the_threshold(sets_index: Index, tmp_path: Path) -> None:
    made = predictor(LARGEST, torch.zeros(4), "predict.no_target_below=0.6")
    with pytest.raises(
        InputError, match=r"answers itself .* predict\.no_target_below=0\.6 has no effect: leave it out"
    ):
        predict_val(made, sets_index, tmp_path / "val.parquet")
    assert not (tmp_path / "val.parquet").exists()


@pytest.mark.parametrize(
    ("no_target", "says"),
    [
        (torch.zeros(3), r"gives no-target answers \(3,\) of torch.float32 for 4 expressions"),
        (torch.zeros(4, 2), r"gives no-target answers \(4, 2\) of torch.float32 for 4 expressions. Return floating"),
        (torch.zeros(4, dtype=torch.bool), r"gives no-target answers \(4,\) of torch.bool for 4 expressions"),
        (torch.tensor([0.1, 1.2, 0.1, 0.1]), r"gives 1.2 as the probability that .* has no target. Return numbers"),
        (torch.tensor([0.1, 0.1, 0.1, -3.0]), r"gives -3 as the probability that"),
        (torch.tensor([0.1, 0.1, float("nan"), 0.1]), r"gives nan as the probability that"),
    ],
)
def test_answers_that_are_no_probabilities_are_refused(
    sets_index: Index, tmp_path: Path, no_target: Tensor, says: str
) -> None:
    class AsGiven(Answering):
        def predict(self, batch: Batch) -> Prediction:
            return super().predict(batch)._replace(no_target=no_target)

    made = replace(predictor(LARGEST, None), model=cast(Method, AsGiven(LARGEST, None)))
    with pytest.raises(InputError, match=says) as error:
        predict_val(made, sets_index, tmp_path / "val.parquet")
    assert "\n" not in str(error.value) and not (tmp_path / "val.parquet").exists()


def test_a_wrong_answer_is_named_by_its_expression(sets_index: Index, tmp_path: Path) -> None:
    text = sets_index.split("val").sent[2]
    with pytest.raises(InputError, match=f"the probability that '{text}' has no target"):
        predict_val(predictor(LARGEST, torch.tensor([0.1, 0.2, 7.0, 0.1])), sets_index, tmp_path / "val.parquet")


def test_rounding_is_no_defect_and_half_precision_keeps_its_answer() -> None:
    sanity.check_prediction(Prediction(torch.zeros(2, 4, 4), no_target=torch.tensor([1 + 1e-6, -1e-6])), 2, "ours")
    answers = torch.tensor([0.503, 0.497])  # bfloat16 rounds the first one to 0.504, and 0.5001 to 0.5
    made = predictor(LARGEST[:2].bfloat16(), answers)
    item = predict_item(made, ["red", "red"])
    assert predict.no_target_answers(made, predict.predict_masks(made, item)) == [True, False]


def predict_item(made: Predictor, expressions: list[str]) -> Item:
    one = segment._item(made, PIL.new("RGB", (40, 20)), expressions[0])
    batch = one.batch._replace(image_index=torch.zeros(2, dtype=torch.int64), words=made.tokenizer(expressions))
    return Item(batch, [0, 1], one.frames)


@pytest.mark.parametrize(
    ("no_target", "below", "words"),
    [
        (torch.tensor([0.931]), "0.0", "nothing here is meant: 0.93"),
        (torch.tensor([0.07]), "0.0", "nothing here is meant: 0.07"),
        (None, "0.95", "nothing here is meant: the largest probability 0.90 is below 0.95"),
        (None, "0.4", "something here is meant: the largest probability 0.90 is not below 0.4"),
        (None, "0.0", ""),
    ],
)
def test_the_answer_is_said_in_words(no_target: Tensor | None, below: str, words: str) -> None:
    made = predictor(LARGEST, no_target, f"predict.no_target_below={below}")
    item = segment._item(made, PIL.new("RGB", (40, 20)), "red")
    assert segment._no_target_words(made, predict.predict_masks(made, item)) == words


def test_a_file_from_before_the_columns_is_read(sets_index: Index, tmp_path: Path) -> None:
    stored = predict_val(predictor(LARGEST, None), sets_index, tmp_path / "val.parquet")
    predictions_file.write(tmp_path / "old.parquet", replace(stored, largest_probability=None))
    old = predictions_file.read(tmp_path / "old.parquet")
    assert old.largest_probability is None and old.no_target is None and old.counts == stored.counts
