from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from risbench import methods, recipe
from risbench.api import Batch, Method, Prediction, peak_of
from risbench.data import loader, rle
from risbench.data.index import Index
from risbench.data.split import Split
from risbench.engine import distributed, predict
from risbench.engine.predict import Predictor
from risbench.scoring import prediction_parts, predictions_file, protocol
from risbench.scoring.predictions import Header, Predictions
from risbench.scoring.protocol import ScoreHalf

SETTINGS, _ = recipe.load(
    methods.recipe_file("lts"), ["tiny"], ["image.size=64", "text.max_tokens=8", "predict.images_per_batch=1"]
)


@pytest.fixture
def train(small_index: Index) -> Split:
    """The split with most images: three, so three batches."""
    return small_index.split("train")


@pytest.fixture
def predictor(train: Split) -> Predictor:
    torch.manual_seed(0)
    tokenizer = methods.load("lts").tokenizer(SETTINGS, train.sent)
    model = methods.load("lts").build(SETTINGS, tokenizer)
    return Predictor.build(model, tokenizer, SETTINGS, protocol.load("original"), distributed.start())


class Fixed(torch.nn.Module):
    """A method with a fixed prediction."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction

    def predict(self, batch: Batch) -> Prediction:
        return self.prediction


def under(prediction: Prediction, train: Split, name: str = "lavt") -> Predictor:
    tokenizer = methods.load("lts").tokenizer(SETTINGS, train.sent)
    return Predictor.build(
        cast(Method, Fixed(prediction)), tokenizer, SETTINGS, protocol.load(name), distributed.start()
    )


def header(predictor: Predictor) -> Header:
    return Header(dataset="small", split="train", input=dict(predictor.input_half), method="lts")


def same(a: Predictions, b: Predictions) -> bool:
    return bool((a.sent_id == b.sent_id).all()) and a.counts == b.counts and bool((a.peak_row == b.peak_row).all())


def test_a_killed_prediction_continues_where_it_stopped(
    predictor: Predictor, small_index: Index, train: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict.predict_split(predictor, small_index, train, header(predictor), tmp_path / "whole.parquet", "")
    batch, computed = predict._predict_batch, []

    def counted(*arguments: object) -> Predictions:
        computed.append(1)
        if len(computed) == 2:
            raise KeyboardInterrupt
        return batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_predict_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        predict.predict_split(predictor, small_index, train, header(predictor), tmp_path / "killed.parquet", "")
    assert not (tmp_path / "killed.parquet").exists()

    again = predict.predict_split(predictor, small_index, train, header(predictor), tmp_path / "killed.parquet", "")
    assert len(computed) == 4  # three batches, of which the second was computed twice
    assert same(whole, again)
    assert same(predictions_file.read(tmp_path / "killed.parquet"), whole)


@pytest.mark.parametrize("change", ["nothing", "header", "origin", "device", "code", "folder", "image", "damage"])
def test_parts_of_other_data_images_or_code_are_computed_again(
    predictor: Predictor, small_index: Index, train: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    for name in ("one", "two"):
        shutil.copytree(small_index.images_folder, tmp_path / name)
    index = replace(small_index, images_folder=tmp_path / "one")
    mine, path, origin = header(predictor), tmp_path / "killed.parquet", ""
    batch, computed = predict._predict_batch, []

    def counted(*arguments: object) -> Predictions:
        computed.append(1)
        if len(computed) == 3:
            raise KeyboardInterrupt
        return batch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_predict_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        predict.predict_split(predictor, index, train, mine, path, "")
    if change == "header":
        mine = mine.model_copy(update={"code": "another"})
    elif change == "origin":
        origin = "another vocabulary"
    elif change == "device":
        monkeypatch.setattr(distributed, "device_name", lambda _: "another")
    elif change == "code":
        monkeypatch.setattr(predict, "_CODE_HASH", "another")
    elif change == "folder":
        index = replace(index, images_folder=tmp_path / "two")
    elif change == "image":
        image = index.image_path(int(train.image_id[0]))
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    elif change == "damage":
        next((tmp_path / "killed.parts").glob("*.parquet")).write_bytes(b"")
    predictions = predict.predict_split(predictor, index, train, mine, path, "", origin)
    stored = 2 if change == "nothing" else 0  # the two batches lie in one file
    assert len(computed) == 3 + 3 - stored  # three batches
    assert predictions.sent_id.tolist() == train.sent_id.tolist()
    assert [entry.name for entry in tmp_path.glob("killed*")] == ["killed.parquet"]


@pytest.mark.parametrize(("seconds", "written"), [(0.0, 3), (math.inf, 1)])
def test_a_part_is_written_again_and_again_or_once_at_the_end(
    predictor: Predictor,
    small_index: Index,
    train: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    written: int,
) -> None:
    """Three batches."""
    write, paths = predictions_file.write, []

    def recorded(path: Path, predictions: Predictions) -> None:
        paths.append(path)
        write(path, predictions)

    monkeypatch.setattr(predictions_file, "write", recorded)
    monkeypatch.setattr(prediction_parts, "_SHARE", 0.0)
    path = tmp_path / "file.parquet"
    predict.predict_split(predictor, small_index, train, header(predictor), path, "", seconds=seconds)
    assert len(paths) == written + 1 and paths[-1] == path and len(set(paths)) == 2


def test_a_batch_waits_for_its_device_once(
    predictor: Predictor, small_index: Index, train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the device `meta` have no values: whatever waits for one raises an error."""
    item = predictor.samples(small_index, train)[loader.evaluation_batches(train, 3)[0]]
    prediction = Prediction(
        torch.empty(len(item.positions), 16, 16, device="meta"),
        torch.empty(len(item.positions), 2, dtype=torch.int64, device="meta"),
    )
    copied = []

    def copy(tensors: Sequence[Tensor]) -> list[Tensor]:
        copied.append({tensor.device.type for tensor in tensors})
        return [torch.zeros(tensor.shape, dtype=tensor.dtype) for tensor in tensors]

    monkeypatch.setattr(predict, "_on_cpu", copy)
    for made in (prediction, prediction._replace(peak=None)):
        masks, peaks, *_ = predict.predict_masks(under(made, train, "original"), item)
        assert copied.pop() == {"meta"} and copied == []
        sizes = [small_index.image_size(int(train.image_id[position])) for position in item.positions]
        assert [tuple(mask.shape) for mask in masks] == sizes and len(peaks) == len(sizes)


def test_expressions_in_another_order_than_their_images_keep_their_masks(small_index: Index, train: Split) -> None:
    probability = torch.rand(4, 480, 480, generator=torch.Generator().manual_seed(0))
    predictor = under(Prediction(probability), train)
    item = predictor.samples(small_index, train)[[0, 1, 9, 8]]
    mixed = item._replace(batch=item.batch._replace(image_index=torch.tensor([1, 0, 1, 0])))
    masks, *_ = predict.predict_masks(predictor, mixed)
    assert torch.equal(torch.stack(masks), probability > 0.5)


def test_masks_are_cut_at_the_threshold_at_the_size_of_the_image(
    predictor: Predictor, small_index: Index, train: Split
) -> None:
    samples = predictor.samples(small_index, train)
    item = samples[loader.evaluation_batches(train, 3)[0]]
    predictor.model.eval()
    with torch.inference_mode():
        sizes = [small_index.image_size(int(image_id)) for image_id in train.image_id]
        areas = {}
        for threshold in (0.02, 0.05, 0.98):
            inputs = predictor.input_half.model_copy(update={"threshold": threshold})
            masks, peaks, *_ = predict.predict_masks(replace(predictor, input_half=inputs), item)
            assert [tuple(mask.shape) for mask in masks] == sizes
            areas[threshold] = sum(int(mask.sum()) for mask in masks)
    assert areas[0.02] > areas[0.05] > areas[0.98] == 0
    assert all(
        peak is not None and 0 <= peak[0] < h and 0 <= peak[1] < w for peak, (h, w) in zip(peaks, sizes, strict=True)
    )


def test_the_default_peak_is_the_maximum_of_the_probability(
    predictor: Predictor, small_index: Index, train: Split
) -> None:
    item = predictor.samples(small_index, train)[[0]]
    probability = torch.zeros(1, 16, 16)
    probability[0, 9, 3] = probability[0, 9, 7] = 0.8  # on ties the first in row order
    assert peak_of(probability).tolist() == [[9, 3]]
    ours = predict.scaled_peaks(Prediction(probability), item.frames)
    stated = predict.scaled_peaks(Prediction(probability, torch.tensor([[9, 3]])), item.frames)
    assert ours == stated


def test_under_lavt_a_prediction_at_480_is_not_resampled(small_index: Index, train: Split) -> None:
    probability = torch.rand(2, 480, 480, generator=torch.Generator().manual_seed(0))
    probability[0, 3, 5] = 0.5  # a tie of two classes is background
    predictor = under(Prediction(probability, torch.tensor([[7, 470], [479, 0]])), train)
    item = predictor.samples(small_index, train)[[0, 1]]
    assert item.batch.image.shape == (1, 3, 480, 480)
    masks, peaks, *_ = predict.predict_masks(predictor, item)
    assert torch.equal(torch.stack(masks), probability > 0.5) and not masks[0][3, 5]
    assert peaks == [(7, 470), (479, 0)]


def test_under_lavt_a_coarser_prediction_is_sampled_once_to_480(small_index: Index, train: Split) -> None:
    probability = torch.rand(2, 120, 120, generator=torch.Generator().manual_seed(0))
    predictor = under(Prediction(probability), train)
    masks, peaks, *_ = predict.predict_masks(predictor, predictor.samples(small_index, train)[[0, 1]])
    sampled = functional.interpolate(probability[None], (480, 480), mode="bilinear", align_corners=False)[0]
    clear = (sampled - 0.5).abs() > 1e-4
    assert torch.equal(torch.stack(masks)[clear], (sampled > 0.5)[clear])
    assert peaks == [(4 * row + 2, 4 * column + 2) for row, column in peak_of(probability).tolist()]


def test_under_cris_the_border_has_the_colour_of_clip(small_index: Index, train: Split) -> None:
    predictor = under(Prediction(torch.zeros(1, 104, 104)), train, "cris")
    image = predictor.samples(small_index, train)[[0]].batch.image[0]  # 48 x 64, so 312 rows from row 52 on
    mean, std = torch.tensor(SETTINGS.image.mean), torch.tensor(SETTINGS.image.std)
    corner = (image[:, 51, 0] * std + mean) * 255
    assert image.shape == (3, 416, 416) and torch.allclose(corner, torch.tensor([123.0, 117.0, 104.0]), atol=1e-3)


def test_under_simrec_a_mask_is_cut_before_it_is_enlarged(small_index: Index, train: Split) -> None:
    probability = torch.zeros(1, 416, 416)
    probability[0, 200, 200] = 0.36
    predictor = under(Prediction(probability), train, "simrec")
    item = predictor.samples(small_index, train)[[0]]
    larger = item._replace(frames=[item.frames[0]._replace(size=(624, 832))])  # twice the network's 312 x 416
    masks, *_ = predict.predict_masks(predictor, larger)
    rows, columns = masks[0].nonzero().T
    assert (rows.unique().tolist(), columns.unique().tolist()) == ([295, 296, 297, 298], [399, 400, 401, 402])


def test_joined_sentences_are_predicted_as_one_expression(
    predictor: Predictor, small_index: Index, train: Split, tmp_path: Path
) -> None:
    joining = replace(predictor, input_half=predictor.input_half.model_copy(update={"sentences": "joined"}))
    predictions = predict.predict_split(joining, small_index, train, header(joining), tmp_path / "joined.parquet", "")
    selected = joining.input_half.select_expressions(train)
    assert predictions.sent_id.tolist() == selected.sent_id.tolist() and len(predictions) == 6
    samples = joining.samples(small_index, train)
    assert samples.split.texts(samples.field) == selected.sent


def test_the_protocol_sets_the_maximum_of_tokens(small_index: Index, train: Split) -> None:
    """The recipe says 8 words, lavt 20."""
    predictor = under(Prediction(torch.zeros(1, 4, 4)), train)
    assert predictor.tokenizer.max_tokens == 20
    assert predictor.samples(small_index, train)[[0]].batch.words.ids.shape == (1, 20)


def test_only_the_expressions_that_the_protocol_selects_are_predicted(
    predictor: Predictor, small_index: Index, train: Split, tmp_path: Path
) -> None:
    drawing = replace(predictor, input_half=predictor.input_half.model_copy(update={"sentences": "random"}))
    predictions = predict.predict_split(drawing, small_index, train, header(drawing), tmp_path / "drawn.parquet", "")
    whole = predict.predict_split(predictor, small_index, train, header(predictor), tmp_path / "whole.parquet", "")
    selected = drawing.input_half.select_expressions(train)
    assert predictions.sent_id.tolist() == selected.sent_id.tolist()
    assert predictions.counts == whole.in_order_of(train, selected).counts
    assert predict.measure_speed(drawing, small_index, train, seconds=0) > 0


def test_the_header_names_a_fixed_size(predictor: Predictor, small_index: Index, train: Split, tmp_path: Path) -> None:
    small = ScoreHalf(scored_at=(40, 30))
    made = header(predictor).model_copy(update={"scored_at": (40, 30)})
    predict.predict_split(replace(predictor, score_half=small), small_index, train, made, tmp_path / "file.parquet", "")
    predictions = predictions_file.read(tmp_path / "file.parquet")
    assert predictions.header and predictions.header.scored_at == (40, 30)
    assert (set(predictions.height.tolist()), set(predictions.width.tolist())) == ({40}, {30})
    assert (predictions.peak_row < 40).all() and (predictions.peak_col < 30).all()


def test_the_stored_mask_is_the_predicted_one(
    predictor: Predictor, small_index: Index, train: Split, tmp_path: Path
) -> None:
    lower = replace(predictor, input_half=predictor.input_half.model_copy(update={"threshold": 0.05}))
    predictions = predict.predict_split(lower, small_index, train, header(lower), tmp_path / "file.parquet", "")
    item = predictor.samples(small_index, train)[loader.evaluation_batches(train, 1)[0]]
    with torch.inference_mode():
        masks, *_ = predict.predict_masks(lower, item)
    for row, mask in zip(item.positions, masks, strict=True):
        size = (int(predictions.height[row]), int(predictions.width[row]))
        assert (rle.decode(predictions.counts[row], size) == mask.numpy()).all()
    assert any(mask.any() for mask in masks)
