"""Fixtures for every test: the folder of reference material, a cache for the tests, and small data sets on disk."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch: rows are bit for bit at equal threads
os.environ.pop("COLUMNS", None)  # a table on a terminal follows it, and it may come from anywhere

import pytest
from PIL import Image, ImageDraw

from risbench import datasets, methods, recipe
from risbench.cli import app
from risbench.data import index
from risbench.data.index import Index

CARD = """
name = "small"
title = "Twelve refs in six drawn images"
folder = "small"
refs = "refs(unc).p"
instances = "instances.json"
images = "images/small"
partition = "unc"
max_words = 15
default_variant = "tiny"
where = "tests/conftest.py draws it."
licence = "Apache-2.0"
citation = "none"

[splits]
train = { images = 3, refs = 6, expressions = 10, evaluation = false, source = "tests/conftest.py" }
val = { images = 1, refs = 2, expressions = 4, source = "tests/conftest.py" }
testA = { images = 1, refs = 2, expressions = 3, source = "tests/conftest.py" }
testB = { images = 1, refs = 2, expressions = 3, source = "tests/conftest.py" }
"""

# image id: height, width, suffix, split
IMAGES = {
    1: (48, 64, ".jpg", "train"),
    2: (60, 40, ".jpg", "train"),
    3: (40, 56, ".png", "train"),
    4: (33, 47, ".jpg", "val"),
    5: (64, 64, ".png", "testA"),
    6: (50, 30, ".jpg", "testB"),
}


def box(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


# annotation id (the image's id comes first): segmentation
SEGMENTATIONS: dict[int, Any] = {
    11: [box(4, 4, 20, 20), box(14, 14, 20, 20)],  # overlapping polygons
    12: [box(40, 2, 10, 12), box(44, 30, 14, 12)],  # two parts that do not touch
    21: {"size": [60, 40], "counts": [125, 30, 30, 30, 30, 30, 2125]},  # three columns, as run lengths
    22: [box(20, 30, 15, 20)],
    31: [box(2, 2, 20, 30)],
    32: [[30.0, 5.0, 50.0, 8.0, 38.0, 35.0]],
    33: {"size": [40, 56], "counts": [1840, 40, 360]},  # a crowd
    41: [box(1, 1, 15, 25)],
    42: [box(20.5, 3.5, 22, 12)],
    51: [box(6, 6, 30, 20), box(20, 16, 30, 20), box(10, 20, 14, 30)],  # overlapping polygons in an evaluation split
    52: [box(45, 45, 15, 15)],
    61: [box(2, 2, 12, 20), box(2, 26, 8, 8)],
    62: [box(16, 20, 12, 25)],
}

# annotation id: the expressions of its ref as (raw, kind)
EXPRESSIONS = {
    11: [("The RED thing!!", "colour"), ("left one", "location")],
    12: [("green pieces", "colour")],
    21: [("thin blue bar", "colour"), ("bar on the left of the box", "relation")],
    22: [("yellow box, lower right", "location")],
    31: [("Big box", "size"), ("the one on the LEFT", "location")],
    32: [("triangle", "category"), ("  right thing", "location")],
    41: [("left box", "location"), ("the taller one.", "size")],
    42: [("right box", "location"), ("flat one", "size")],
    51: [("red steps", "colour"), ("the biggest thing, not the small square in the corner", "relation")],
    52: [("small square", "size")],
    61: [("red parts on the left", "location")],
    62: [("green box", "colour"), ("right", "location")],
}
COLOURS = {1: "red", 2: "green", 3: "grey"}


# ref id: ann_id and expressions, as in gRefCOCO; every image but the third has a no-target ref
SETS: dict[int, tuple[list[int], list[str]]] = {
    1: ([11], ["red thing", "left one"]),
    2: ([12, 11], ["both things", "everything in the picture"]),
    3: ([-1], ["the purple cow"]),
    4: ([21, 22], ["bar and box"]),
    5: ([-1], ["a third box"]),
    6: ([32, 31], ["the box and the triangle"]),
    7: ([32], ["triangle"]),
    8: ([41], ["left box"]),
    9: ([42, 41], ["both boxes", "all of them"]),
    10: ([-1], ["the dog"]),
    11: ([52, 51], ["all red and small things"]),
    12: ([51], ["red steps"]),
    13: ([-1], ["the green square", "nothing of the kind"]),
    14: ([61], ["red parts"]),
    15: ([62, 61], ["all parts"]),
    16: ([-1], ["the cat"]),
}
NO_TARGET_IMAGES = {3: 1, 5: 2, 10: 4, 13: 5, 16: 6}  # ref id: image id


def _set_refs() -> list[dict[str, Any]]:
    """The refs of SETS as gRefCOCO's file holds them."""
    refs = []
    for key, (members, texts) in SETS.items():
        image_id = NO_TARGET_IMAGES.get(key, members[0] // 10)
        sentences = [
            {"sent_id": 10 * key + number, "raw": text, "sent": text, "tokens": text.split()}
            for number, text in enumerate(texts)
        ]
        target = {
            "ann_id": members,
            "category_id": [ann_id % 10 for ann_id in members],
            "no_target": members == [-1],
        }
        refs.append(
            {"ref_id": key, "image_id": image_id, "split": IMAGES[image_id][3], "sentences": sentences, **target}
        )
    return refs


def _images() -> list[dict[str, Any]]:
    return [
        {"id": key, "height": height, "width": width, "file_name": f"COCO_train2014_{key:012d}{suffix}"}
        for key, (height, width, suffix, _) in IMAGES.items()
    ]


def _annotations() -> list[dict[str, Any]]:
    return [
        {"id": key, "image_id": key // 10, "category_id": key % 10, "iscrowd": int(key == 33), "segmentation": value}
        for key, value in SEGMENTATIONS.items()
    ]


def _ref(ann_id: int, texts: list[tuple[str, str]]) -> dict[str, Any]:
    sentences = []
    for number, (raw, kind) in enumerate(texts):
        sent = "".join(c for c in raw.lower() if c.isalnum() or c == " ").strip()
        words = {"tokens": sent.split(), "raw": raw, "sent": sent, "sent_id": 1000 - 10 * ann_id + number}
        sentences.append({**words, "kind": kind})
    image_id = ann_id // 10
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": 100 + ann_id,
        "image_id": image_id,
        "split": IMAGES[image_id][3],
        "sentences": sentences,
        "category_id": ann_id % 10,
    }


def _draw(image: dict[str, Any], folder: Path) -> None:
    picture = Image.new("RGB", (image["width"], image["height"]), (40, 40, 60 + 20 * image["id"]))
    draw = ImageDraw.Draw(picture)
    for annotation in _annotations():
        if annotation["image_id"] == image["id"] and isinstance(annotation["segmentation"], list):
            for polygon in annotation["segmentation"]:
                draw.polygon(polygon, fill=COLOURS[annotation["category_id"]])
    picture.save(folder / image["file_name"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material; without it the test is skipped."""
    folder = Path(os.environ.get("RISBENCH_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no reference material: {folder} does not exist (RISBENCH_SHARED names another folder)")
    return folder


@pytest.fixture(scope="session")
def real_expressions(shared: Path) -> list[str]:
    """Every expression of RefCOCO's val, testA and testB, without images."""
    folder = shared / "data" / "refcoco_sample" / "refcoco_unc_eval_full"
    files = [folder / f"{split}.json.gz" for split in ("val", "testA", "testB")]
    return [item["text"] for file in files for item in json.loads(gzip.decompress(file.read_bytes()))["items"]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for this session, so that no test touches the cache of the user."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the small data set and its card `small.toml`. Do not write to it."""
    root = tmp_path_factory.mktemp("small_root")
    images = root / "images" / "small"
    images.mkdir(parents=True)
    (root / "small").mkdir()
    for image in _images():
        _draw(image, images)
    categories = [{"id": key, "name": name} for key, name in COLOURS.items()]
    instances = {"images": _images(), "annotations": _annotations(), "categories": categories}
    (root / "small" / "instances.json").write_text(json.dumps(instances))
    refs = [_ref(ann_id, texts) for ann_id, texts in EXPRESSIONS.items()]
    (root / "small" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "small.toml").write_text(CARD)
    return root


@pytest.fixture(scope="session")
def small_card(small_root: Path) -> Path:
    """The card of the small data set; `datasets.load` takes its path."""
    return small_root / "small.toml"


@pytest.fixture(scope="session")
def small_index(small_root: Path, small_card: Path) -> Index:
    """The opened index of the small data set."""
    return index.load(datasets.load(str(small_card)), small_root)


@pytest.fixture(scope="session")
def sets_root(tmp_path_factory: pytest.TempPathFactory, small_root: Path) -> Path:
    """A data root with the images of the small data set, the refs of SETS and the card `sets.toml`."""
    root = tmp_path_factory.mktemp("sets_root")
    shutil.copytree(small_root / "images", root / "images")
    (root / "sets").mkdir()
    shutil.copy(small_root / "small" / "instances.json", root / "sets")
    (root / "sets" / "grefs(unc).json").write_text(json.dumps(_set_refs()))
    head = CARD.replace('"small"', '"sets"').replace("refs(unc).p", "grefs(unc).json").partition("[splits]")[0]
    (root / "sets.toml").write_text(
        f"{head}[splits]\ntrain = {{ evaluation = false }}\nval = {{}}\ntestA = {{}}\ntestB = {{}}\n"
    )
    return root


@pytest.fixture(scope="session")
def sets_index(sets_root: Path) -> Index:
    """The opened index of the refs of SETS."""
    return index.load(datasets.load(str(sets_root / "sets.toml")), sets_root)


@pytest.fixture(scope="session")
def short_training() -> list[str]:
    """Overrides for a training of seconds on the small data set; later overrides may change them."""
    return [
        "train.batch_size=4",
        "train.per_image=1",
        "train.schedule=step",
        "train.decay=0.1",
        "train.lr=1e-3",
        "train.epochs=1",
        "train.milestones=[]",
        "image.size=64",
    ]


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run risbench in an empty folder and in this process; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["risbench", *map(str, arguments)])
        code: object = 0
        try:
            app.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        assert isinstance(code, int), code
        return code, *capsys.readouterr()

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method", action="append", default=[], help="run the method suite over this method or folder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test with a parameter `method` over the folders in methods/, or over the --method options.

    A parameter `trained_method` leaves out those whose recipe evaluates pretrained weights as they are.
    """
    names = metafunc.config.getoption("--method") or methods.names()
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", names, scope="module")
    if "trained_method" in metafunc.fixturenames:
        trained = [name for name in names if recipe.load(methods.recipe_file(name))[0].trains]
        metafunc.parametrize("trained_method", trained, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests for processes (-n) by file; the overfitting tests, which take longest, start first and alone."""
    for item in items:
        long = item.path.stem == "test_overfitting"
        item.add_marker(pytest.mark.xdist_group(item.nodeid if long else str(item.path)))
    items.sort(key=lambda item: item.path.stem != "test_overfitting")
