"""Masks of other programs: every format gives the same predictions, every defect is one sentence, and export."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from risbench.data.index import Index
from risbench.data.split import Split
from risbench.errors import InputError
from risbench.nn import weights
from risbench.scoring import dense, formats, predictions_file, references
from risbench.scoring.predictions import Predictions

Masks = dict[int, NDArray[np.bool_]]
SIZE = (3, 4)


@pytest.fixture(scope="module")
def val(small_index: Index) -> Split:
    return small_index.split("val")


@pytest.fixture(scope="module")
def masks(val: Split) -> Masks:
    """A mask for each expression, not in the order of the split: one is empty and one is full."""
    generator = np.random.default_rng(0)
    sizes = zip(val.sent_id.tolist(), val.height.tolist(), val.width.tolist(), strict=True)
    drawn = {sent_id: generator.random((height, width)) < 0.4 for sent_id, height, width in sizes}
    first, second, *rest = sorted(drawn, reverse=True)
    return {first: drawn[first] & False, second: drawn[second] | True, **{name: drawn[name] for name in rest}}


def load_torch(path: Path) -> dict[Any, Any]:
    return weights.read(path, contents="masks")


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    lengths = [(value, len(list(run))) for value, run in groupby(mask.T.ravel().tolist())]
    begins = [0] if lengths[0][0] else []
    return {"size": list(mask.shape), "counts": begins + [length for _, length in lengths]}


def same(predictions: Predictions, masks: Masks) -> bool:
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    decoded = {
        sent_id: coco.decode({"size": list(size), "counts": counts})
        for sent_id, size, counts in zip(predictions.sent_id.tolist(), sizes, predictions.counts, strict=True)
    }
    return decoded.keys() == masks.keys() and all(np.array_equal(decoded[name], masks[name]) for name in masks)


def results(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries))
    return path


def lines(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def pictures(folder: Path, masks: dict[int, Any], draw: Callable[[Any], Image.Image]) -> Path:
    folder.mkdir()
    for sent_id, mask in masks.items():
        draw(mask).save(folder / f"{sent_id}.png")
    return folder


def grey(mask: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def palette(mask: NDArray[np.bool_]) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


def arrays(path: Path, **named: Any) -> Path:
    np.savez_compressed(path, **named)
    return path


def tensors(path: Path, content: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(content(torch), path)
    return path


def stacked(masks: Masks) -> dict[str, Any]:
    return {"sent_id": np.array(list(masks)), "masks": np.stack(list(masks.values()))}


WRITERS: dict[str, Callable[[Path, Masks], Path]] = {
    "coco": lambda at, masks: results(
        at / "a.json",
        [{"image_id": 4, "category_id": 1, "sent_id": s, "segmentation": encoded(m)} for s, m in masks.items()],
    ),
    "coco runs": lambda at, masks: results(
        at / "a.json", [{"sent_id": s, "segmentation": runs(m), "score": 0.3} for s, m in masks.items()]
    ),
    "png": lambda at, masks: pictures(at / "png", masks, grey),
    "png bits": lambda at, masks: pictures(at / "png", masks, lambda mask: grey(mask).convert("1")),
    "png palette": lambda at, masks: pictures(at / "png", masks, palette),
    "png 16 bits": lambda at, masks: pictures(at / "png", masks, lambda m: Image.fromarray(m.astype(np.uint16) * 255)),
    "npz": lambda at, masks: arrays(at / "a.npz", **stacked(masks)),
    "npz greys": lambda at, masks: arrays(
        at / "a.npz", **{**stacked(masks), "masks": stacked(masks)["masks"] * np.uint8(255)}
    ),
    "npz by name": lambda at, masks: arrays(at / "a.npz", **{str(s): m.astype(np.float32) for s, m in masks.items()}),
    "npz by column": lambda at, masks: arrays(at / "a.npz", **{str(s): np.asfortranarray(m) for s, m in masks.items()}),
    "pth": lambda at, masks: tensors(at / "a.pth", lambda t: {s: t.tensor(m) for s, m in masks.items()}),
    "pth stacked": lambda at, masks: tensors(
        at / "a.pt", lambda t: {key: t.tensor(value) for key, value in stacked(masks).items()}
    ),
    "jsonl": lambda at, masks: lines(
        at / "a.jsonl", [{"sent_id": s, "segmentation": encoded(m)} for s, m in masks.items()]
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_format_gives_the_masks_that_were_written(writer: str, masks: Masks, val: Split, tmp_path: Path) -> None:
    path = WRITERS[writer](tmp_path, masks)
    assert same(formats.read(path, load_torch=load_torch), masks)
    ordered = formats.read(path, load_torch=load_torch, split=val)
    assert same(ordered, masks) and ordered.sent_id.tolist() == val.sent_id.tolist()


@pytest.mark.parametrize("writer", WRITERS)
def test_an_incomplete_split_is_refused(writer: str, masks: Masks, val: Split, tmp_path: Path) -> None:
    missing, *rest = masks
    path = WRITERS[writer](tmp_path, {name: masks[name] for name in rest})
    with pytest.raises(InputError, match=rf"Without a prediction: sent_id {missing} \(1 in all\)"):
        formats.read(path, load_torch=load_torch, split=val)
    assert len(formats.read(path, load_torch=load_torch)) == len(masks) - 1


@pytest.mark.parametrize("writer", ["coco", "png", "npz", "npz by name", "pth", "jsonl"])
def test_an_empty_source_is_refused(writer: str, tmp_path: Path) -> None:
    path = WRITERS["npz by name" if writer == "npz" else writer](tmp_path, {})
    with pytest.raises(InputError, match="holds no masks of the format"):
        formats.read(path, load_torch=load_torch)


# names of PNG files


@pytest.fixture
def by_ref(masks: Masks, tmp_path: Path) -> Path:
    """PNG masks under the image, and named by ref and number, which the small data set's ids tell."""
    for sent_id, mask in masks.items():
        ann_id = -(-(1000 - sent_id) // 10)  # sent_id = 1000 - 10 * ann_id + number; ref_id = 100 + ann_id
        path = tmp_path / "png" / f"{ann_id // 10:012d}" / f"{100 + ann_id}_{sent_id - 1000 + 10 * ann_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(mask).save(path)
    (tmp_path / "png" / "._left_by_a_file_manager.png").touch()
    return tmp_path / "png"


def test_a_ref_and_the_number_of_the_sentence_name_an_expression(by_ref: Path, masks: Masks, val: Split) -> None:
    assert same(formats.read(by_ref, pattern="{image_id}/{ref_id}_{sentence}.png", split=val), masks)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{image_id}/{ref}_{sentence}.png", r"Unknown field in --pattern 'ref'. Did you mean 'ref_id'\?"),
        ("{image_id}/{ref_id}_{image_id}.png", "does not name an expression"),
        ("{sent_id}/{sent_id}_{ref_id}.png", "does not name an expression"),
        ("{image_id}/{ref_id}_{sentence}", "does not name an expression"),
        ("", r"000000000004/14\d_\d.png does not fit the pattern {sent_id}.png in "),
        (
            "{ref_id}/{image_id}_{sentence}.png",
            r"ref_id 4, image_id 14\d, sentence 0: the split has no such expression",
        ),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(by_ref: Path, val: Split, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        formats.read(by_ref, pattern=pattern, split=val)


def test_sentences_are_numbered_in_a_split_only(by_ref: Path) -> None:
    with pytest.raises(InputError, match="counts the sentences of a split: give --split"):
        formats.read(by_ref, pattern="{image_id}/{ref_id}_{sentence}.png")


def test_ids_that_disagree_with_the_split_are_refused(masks: Masks, val: Split, tmp_path: Path) -> None:
    entries = [{"sent_id": s, "image_id": 5, "segmentation": encoded(m)} for s, m in masks.items()]
    message = rf"sent_id {next(iter(masks))}, image_id 5: sent_id \d+ has ref_id 14\d, sentence \d, image_id 4"
    with pytest.raises(InputError, match=message):
        formats.read(results(tmp_path / "a.json", entries), split=val)
    folder = tmp_path / "png"
    folder.mkdir()
    for sent_id, mask in masks.items():
        grey(mask).save(folder / f"5_{sent_id}.png")
    with pytest.raises(InputError, match=r"image_id 5, sent_id \d+: sent_id \d+ has ref_id"):
        formats.read(folder, pattern="{image_id}_{sent_id}.png", split=val)
    assert same(formats.read(folder, pattern="{image_id}_{sent_id}.png"), masks)


def test_the_suffix_of_a_png_may_be_in_capitals(masks: Masks, tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    for number, (sent_id, mask) in enumerate(masks.items()):
        grey(mask).save(tmp_path / "png" / f"{sent_id}{('.png', '.PNG', '.Png')[number % 3]}")
    assert same(formats.read(tmp_path / "png"), masks)
    first = next(iter(masks))
    grey(masks[first]).save(tmp_path / "png" / f"00{first}.PNG")
    with pytest.raises(InputError, match=rf"Predicted more than once: sent_id {first} \(1 in all\)"):
        formats.read(tmp_path / "png")
    os.mkfifo(tmp_path / "png" / "7777.png")
    with pytest.raises(InputError, match="7777.png is a device or a pipe"):
        formats.read(tmp_path / "png")


# COCO results


def test_coco_results_may_begin_with_a_byte_order_mark(masks: Masks, tmp_path: Path) -> None:
    path = WRITERS["coco"](tmp_path, masks)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert same(formats.read(path), masks)


def entry(**changed: Any) -> dict[str, Any]:
    return {"sent_id": 7, "segmentation": {"size": SIZE, "counts": [5, 7]}, **changed}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([entry(), {"image_id": 4, **entry(), "sent_id": None}], "1.sent_id: Input should be a valid integer"),
        ([{"image_id": 4, "score": 1, "segmentation": {}}], "name images, not expressions: write the sent_id"),
        ([entry(segmentation=[[1, 1, 5, 1, 5, 5]])], "0.segmentation: Input should .* polygons are not read"),
        ([entry(segmentation={"size": SIZE, "counts": [5, 6]})], "runs of 11 pixels in all, not 3 x 4 = 12"),
        ([entry(segmentation={"size": SIZE, "counts": [13, -1]})], "a run length is no whole number, or negative"),
        ([entry(segmentation={"size": SIZE, "counts": [5.0, 7]})], "a run length is no whole number, or negative"),
        ([entry(segmentation={"size": [-3, -4], "counts": [5, 7]})], r"has shape \(-3, -4\)"),
        ([entry(segmentation={"size": [2**20, 2**20], "counts": [2**40]})], r"has shape \(1048576, 1048576\)"),
        ([{**entry(), "sent_id": True}], "0.sent_id: Input should be a valid integer"),
        ([{**entry(), "sent_id": "12"}], "0.sent_id: Input should be a valid integer"),
        ([entry(segmentation={"size": [SIZE[0], True], "counts": [5, 7]})], "0.segmentation.size.1: Input should be"),
        ([entry(segmentation={"size": SIZE, "counts": "56"})], "The mask of sent_id 7 has runs of"),
        ([entry(image_id="4")], "0.image_id: Input should be a valid integer"),
        ({"annotations": []}, r"Input should be a valid list\): give a list of results"),
        ([entry(), entry()], r"Predicted more than once: sent_id 7 \(1 in all\). Keep one mask"),
    ],
)
def test_a_defect_of_coco_results_is_named(entries: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        formats.read(results(tmp_path / "a.json", entries))


# export, and the commands


@pytest.fixture
def guessed(small_index: Index) -> Predictions:
    return references.predict("random-object", small_index, "testA")


def test_pycocotools_reads_the_results_and_finds_the_same_masks(
    small_index: Index, small_root: Path, guessed: Predictions, tmp_path: Path
) -> None:
    formats.write_coco(tmp_path / "new" / "a.json", guessed, small_index, "testA")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    results_of_coco = COCO(small_root / "small" / "instances.json").loadRes(str(tmp_path / "new" / "a.json"))
    split = small_index.split("testA")
    annotations = list(results_of_coco.anns.values())
    assert [annotation["sent_id"] for annotation in annotations] == split.sent_id.tolist()
    assert [annotation["image_id"] for annotation in annotations] == split.image_id.tolist()
    assert [annotation["category_id"] for annotation in annotations] == (
        split.ann_id % 10
    ).tolist()  # as tests/conftest.py numbers them
    assert same(
        guessed, {annotation["sent_id"]: results_of_coco.annToMask(annotation) != 0 for annotation in annotations}
    )


def test_predictions_come_back_from_coco_results_with_their_peaks(
    small_index: Index, guessed: Predictions, tmp_path: Path
) -> None:
    formats.write_coco(tmp_path / "a.json", guessed.take(np.array([2, 0, 1])), small_index, "testA")
    predictions = formats.read(tmp_path / "a.json", split=small_index.split("testA"))
    for name in ("sent_id", "height", "width", "counts", "peak_row", "peak_col"):
        assert np.array_equal(getattr(predictions, name), getattr(guessed, name))
    assert (predictions.peak_row >= 0).all() and predictions.header is None


def test_predictions_of_another_split_or_size_are_not_exported(
    small_index: Index, guessed: Predictions, masks: Masks, tmp_path: Path
) -> None:
    small = dense.encode((name, mask[1:]) for name, mask in masks.items())
    for predictions, split, message in (
        (guessed, "val", "The predictions are of small testA, not of small val"),
        (guessed.take(np.array([0, 1])), "testA", "Without a prediction"),
        (small, "val", r"Not of the size of its image: sent_id .* \(4 in all\)"),
    ):
        with pytest.raises(InputError, match=message):
            formats.write_coco(tmp_path / "a.json", predictions, small_index, split)
    assert not list(tmp_path.iterdir())


RunCommand = Callable[..., tuple[int, str, str]]


def test_imported_masks_are_scored_and_exported_by_commands(
    run_command: RunCommand, masks: Masks, small_root: Path, small_card: Path, tmp_path: Path
) -> None:
    where = ["--dataset", small_card, "--data-root", small_root, "--split", "val"]
    source = WRITERS["png"](tmp_path, masks)
    code, out, err = run_command("import", source, "--output", "val.parquet", *where)
    assert (code, out) == (0, "val.parquet: 4 masks, 1 of them empty\n"), err
    assert same(predictions_file.read(tmp_path / "val.parquet"), masks)
    code, out, err = run_command("score", "val.parquet", *where, "--json")
    assert code == 0 and json.loads(out)["n"] == 4, err
    assert run_command("export", "val.parquet", "--output", "val.json", *where)[:2] == (0, "val.json\n")
    assert run_command("import", "val.json", "--output", "again.parquet")[0] == 0
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "val.parquet").read_bytes()


@pytest.mark.parametrize("writer", ["coco", "png", "npz", "pth"])
def test_scoring_another_format_says_how_to_import_it(
    writer: str, run_command: RunCommand, masks: Masks, tmp_path: Path
) -> None:
    path = WRITERS[writer](tmp_path, masks)
    code, _, err = run_command("score", path, "--split", "val")
    assert code == 2 and f"risbench import {path} --output FILE.parquet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["a.json", "--output", "val.json"], "--output val.json does not name a predictions file"),
        (["a.json", "--format", "cocoa"], "Unknown format 'cocoa'. Did you mean 'coco'?"),
        (["a.json", "--threshold", "0.5"], "--threshold 0.5 cannot cut masks of the format coco"),
        (["a.json", "--pattern", "{sent_id}.png"], "has no effect on the format coco"),
        (["a.json", "--data-root", "."], "An import without --split takes no --data-root"),
        (["a.json", "--format", "npz"], "a.json: it is no .npz file, but JSON that begins with"),
        (["a.txt"], "The name a.txt does not tell its format: give --format"),
    ],
)
def test_a_refused_import_prints_one_sentence(
    arguments: list[str], message: str, run_command: RunCommand, tmp_path: Path
) -> None:
    results(tmp_path / "a.json", [entry()])
    (tmp_path / "a.txt").touch()
    output = [] if "--output" in arguments else ["--output", "new/val.parquet"]
    code, out, err = run_command("import", *arguments, *output)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_torch_file_is_refused_without_a_loader(masks: Masks, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a.pth is a torch file, which only `risbench import` reads"):
        formats.read(WRITERS["pth"](tmp_path, masks))


def test_only_torch_files_need_torch(
    run_command: RunCommand, masks: Masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import risbench.nn

    sources = [WRITERS[writer](tmp_path, masks) for writer in ("coco", "png", "npz", "pth")]
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "risbench.nn.weights", raising=False)
    monkeypatch.delattr(risbench.nn, "weights", raising=False)
    answers = [run_command("import", source, "--output", "val.parquet") for source in sources]
    assert [code for code, _, _ in answers] == [0, 0, 0, 2]
    assert answers[3][2] == "error: This command needs torch: run pip install '.[train]' in the clone of risbench.\n"
