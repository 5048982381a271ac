"""The picture of `risbench segment`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image as PIL
from torch import Tensor

from risbench import methods, recipe
from risbench.api import Batch, Method, Panel, Prediction, Tokenizer
from risbench.data import images
from risbench.data.loader import Item
from risbench.data.text import WordTokenizer
from risbench.engine import checkpoint, distributed, predict, segment
from risbench.engine.checkpoint import Facts
from risbench.engine.predict import Predictor
from risbench.errors import InputError
from risbench.scoring import protocol

WORDS = WordTokenizer(["red", "cup"], 4)


class Shown(torch.nn.Module):
    """A method that shows the map that it answers."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def predict(self, batch: Batch) -> Prediction:
        return Prediction(self.values[None])

    def explain(self, batch: Batch, tokens: Sequence[int]) -> list[Panel]:
        return [Panel(f"of {list(tokens)}", self.values)]


def shown(values: Tensor, size: tuple[int, int], geometry: str) -> tuple[Tensor, Tensor]:
    """A map over the network input as it is drawn over an image of some size, and the mask made of it."""
    settings, _ = recipe.load(
        methods.recipe_file("lts"), ["tiny"], ["image.size=64", f"image.geometry={geometry}", "predict.threshold=0.5"]
    )
    predictor = Predictor.build(
        cast(Method, Shown(values)), WORDS, settings, protocol.load("original"), distributed.start()
    )
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.tensor([0]), WORDS(["cup"]), None)
    item = Item(batch, [0], [images.fit_to_input(size, settings.image)])
    [panel] = segment.explanation_panels(predictor, item, [0])
    [mask], *_ = predict.predict_masks(predictor, item)
    assert panel.title == "of [0]"
    return panel.values, mask


@pytest.mark.parametrize(
    ("geometry", "row"),
    [("stretch", 0), ("letterbox", 4)],  # 32 rows of 64 hold the image: cells 4 to 11 of 16
)
def test_a_map_that_is_1_in_a_corner_of_the_image_is_drawn_there(geometry: str, row: int) -> None:
    values = torch.zeros(16, 16)
    values[row, 0] = 1  # the upper left corner of the image
    values[15 - row, 12:] = 1  # the lower right one
    drawn, mask = shown(values, (20, 40), geometry)
    assert drawn.shape == (20, 40)
    assert drawn[0, 0] > 0.6 and drawn[19, 39] > 0.6  # between the cells on either side of the border
    assert drawn[0, 10:].max() == 0 and drawn[19, :20].max() == 0 and drawn[5:15].max() == 0
    assert torch.equal(drawn > 0.5, mask) and mask.any()


def test_a_map_in_the_border_of_a_letterbox_is_not_drawn() -> None:
    values = torch.ones(16, 16)
    values[3:13] = 0
    assert shown(values, (20, 40), "letterbox")[0].max() == 0


def test_a_method_without_maps_refuses_to_explain() -> None:
    batch = Batch(torch.zeros(1, 3, 64, 64), torch.tensor([0]), WORDS(["cup"]), None)
    with pytest.raises(InputError, match="no maps to explain its mask: leave --explain out"):
        Method.explain(cast(Method, Shown(torch.zeros(16, 16))), batch, [])


@pytest.mark.parametrize(("number", "grid"), [(0, (1, 2)), (1, (1, 3)), (4, (2, 3)), (8, (4, 3))])
def test_maps_follow_the_image_and_the_mask(number: int, grid: tuple[int, int]) -> None:
    picture = PIL.fromarray(np.zeros((20, 40, 3), np.uint8))
    maps = [Panel(f"$map {n}", torch.full((20, 40), n / 10)) for n in range(number)]
    figure: Any = segment._figure(picture, np.zeros((20, 40), np.bool_), (3, 4), "the cup", maps)
    cells = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert cells[0].get_gridspec().get_geometry() == grid
    assert [cell.get_title() for cell in cells[2 : 2 + number]] == [panel.title for panel in maps]
    assert [float(cell.images[1].get_array().max()) for cell in cells[2 : 2 + number]] == pytest.approx(
        [n / 10 for n in range(number)]
    )
    assert not any(cell.images for cell in cells[2 + number :])
    assert [cell.images[1].get_clim()[1] for cell in cells[2 : 2 + number]] == [panel.values.max() for panel in maps]
    figure.canvas.draw()
    pyplot.close(figure)


@pytest.fixture(scope="module")
def lavt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of LAVT with random weights."""
    settings, _ = recipe.load(
        methods.recipe_file("lavt"), ["tiny"], ["image.size=32", "model.pretrained=false", "text.max_tokens=5"]
    )
    torch.manual_seed(0)
    cls = methods.load("lavt")
    tokenizer = cls.tokenizer(settings, ["the red cup", "a teacup, left"])
    facts = Facts(method="lavt", variants=["tiny"], training_data=[], seed=0, epoch=0, training_seconds=0.0)
    folder = tmp_path_factory.mktemp("lavt") / "best"
    checkpoint.save(folder, cls.build(settings, tokenizer), tokenizer, settings, facts)
    return folder


def test_the_attention_to_a_word_is_drawn(lavt: Path, tmp_path: Path) -> None:
    PIL.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "a.png")
    plain, output = tmp_path / "plain.png", tmp_path / "explained.png"
    covered = segment.draw_segmentation(lavt, tmp_path / "a.png", "Red cup", plain)
    assert covered == segment.draw_segmentation(lavt, tmp_path / "a.png", "Red cup", output, explain=True, word="RED")
    with PIL.open(plain) as few, PIL.open(output) as many:
        assert many.width > few.width and many.height > 1.8 * few.height


def test_words_that_the_checkpoint_has_never_seen_are_named(
    lavt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PIL.new("RGB", (40, 20)).save(tmp_path / "a.png")
    segment.draw_segmentation(lavt, tmp_path / "a.png", "red cup", tmp_path / "x.png")
    assert not caplog.records
    segment.draw_segmentation(lavt, tmp_path / "a.png", "red zigzag on a box", tmp_path / "x.png")
    assert [record.message for record in caplog.records] == [
        "Words that the checkpoint has never seen, and does not understand: 'zigzag', 'on', 'box'."
    ]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("zigzag Box", "has seen none of the words 'zigzag', 'box', so its mask would mean nothing"),
        ("?!", "reads no word in '.!', so its mask would mean nothing"),
    ],
)
def test_an_expression_of_which_the_checkpoint_knows_nothing_is_refused(
    lavt: Path, tmp_path: Path, expression: str, says: str
) -> None:
    PIL.new("RGB", (40, 20)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=says):
        segment.draw_segmentation(lavt, tmp_path / "a.png", expression, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_tokenizer_that_cannot_say_what_it_knows_is_no_obstacle(caplog: pytest.LogCaptureFixture) -> None:
    segment._check_words(cast(Tokenizer, object()), "zigzag")
    assert not caplog.records


@pytest.mark.parametrize(
    ("expression", "word", "says"),
    [
        ("red cup", "", "choose one of the expression with --word"),
        ("red cup", "cups", "holds no word 'cups'. Choose one of its words: red cup."),
        ("the very same small red cup", "small", "'small' is cut off: only the first 5 tokens"),
    ],
)
def test_a_word_that_cannot_be_shown_is_one_sentence(
    lavt: Path, tmp_path: Path, expression: str, word: str, says: str
) -> None:
    PIL.new("RGB", (40, 20)).save(tmp_path / "a.png")
    with pytest.raises(InputError) as error:
        segment.draw_segmentation(lavt, tmp_path / "a.png", expression, tmp_path / "x.png", explain=True, word=word)
    assert says in str(error.value) and not (tmp_path / "x.png").exists()
