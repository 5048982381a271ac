"""Generate the `mini` data set: a miniature of RefCOCO, made in seconds and read by the same reader.

    <folder>/mini/refs(unc).p, <folder>/mini/instances.json, <folder>/images/mini/*.png, <folder>/mini/sha256.json

A seed gives the same annotations and pixels on every machine; the card datasets/mini.toml pins their hashes for seed 0.
In addition to RefCOCO's keys, sentences have `kind` and `program`, and annotations have `attributes`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from risbench import datasets, files
from risbench.data import hashes, pickles
from risbench.data.mini.language import SHARES, Expression, Picture, express
from risbench.data.mini.scene import FAMILIES, Dice, Scene, Thing, draw_scene
from risbench.errors import InputError

IMAGES = {"train": 1000, "val": 160, "testA": 170, "testB": 170}
SHAPES = tuple(shape for shapes in FAMILIES.values() for shape in shapes)
TARGET_SHAPES = {"train": SHAPES, "val": SHAPES, "testA": FAMILIES["round"], "testB": FAMILIES["angular"]}

_ANNOTATIONS = ("mini/refs(unc).p", "mini/instances.json")

_log = logging.getLogger(__name__)


def make(folder: Path, seed: int = 0, repair: bool = False) -> bool:
    """Write the data set below a data root unless it is there already; return whether it was written now.

    Seed 0 must have the hashes of the card. Files that are damaged or missing are written again with `repair`, for the
    cache; else they are refused, since they may be somebody's work.
    """
    return _generate(folder, seed, IMAGES, repair)


def annotations_sha256(folder: Path) -> str:
    """Return the hash of the contents of both annotation files, as JSON with sorted keys."""
    refs = pickles.load(folder / "mini" / "refs(unc).p")
    instances = json.loads((folder / "mini" / "instances.json").read_text())
    text = json.dumps({"refs": refs, "instances": instances}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def pixels_sha256(folder: Path) -> str:
    """Return the hash of height, width and RGB values of every image, in the order of the ids."""
    digest = hashlib.sha256()
    for entry in json.loads((folder / "mini" / "instances.json").read_text())["images"]:
        with Image.open(folder / "images" / "mini" / entry["file_name"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        digest.update(f"{entry['id']} {pixels.shape[0]} {pixels.shape[1]}\n".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def _generate(folder: Path, seed: int, images: dict[str, int], repair: bool = False) -> bool:
    if (folder / "mini").exists():
        damage = hashes.find_damage(_manifest(folder), folder, _ANNOTATIONS)
        if not damage:
            _refuse_other_seed(folder, seed)
            return False
        if not repair:
            raise InputError(
                f"mini in {folder} is incomplete, damaged or changed ({damage}). Delete {folder / 'mini'} and "
                f"{folder / 'images' / 'mini'}, or name another folder."
            )
        _log.warning("mini in %s is incomplete or damaged (%s): it is made again.", folder, damage)
    with files.scratch(folder / "mini") as draft:
        _write(draft, seed, images)
        if seed == 0 and images == IMAGES:
            _check_hashes(draft)
        files.sync(draft)
        _move_into_place(draft, folder)
    return True


def _manifest(folder: Path) -> Path:
    return folder / "mini" / hashes.MANIFEST


def _check_hashes(draft: Path) -> None:
    """Refuse a data set with other hashes than the card: results on it could not be compared."""
    pinned = datasets.load("mini").sha256
    for part, digest in (("annotations", annotations_sha256(draft)), ("pixels", pixels_sha256(draft))):
        if digest != pinned[part]:
            raise InputError(
                f"The generated {part} of mini have the sha256 {digest[:12]}..., but the card says "
                f"{pinned[part][:12]}.... NumPy or Pillow draws differently here: install the versions of "
                "constraints.txt, and report it."
            )


def _refuse_other_seed(folder: Path, seed: int) -> None:
    existing = json.loads((folder / "mini" / "instances.json").read_text())["info"]["seed"]
    if existing != seed:
        raise InputError(
            f"{folder} holds mini of seed {existing}, not {seed}. Name another folder, or delete {folder / 'mini'}."
        )


def _move_into_place(draft: Path, folder: Path) -> None:
    """Move images, then annotations, then their hashes into place; another process may do the same at once."""
    names = [f"images/mini/{image.name}" for image in sorted((draft / "images" / "mini").iterdir())]
    names += _ANNOTATIONS
    hashes.write(_manifest(draft), draft, names)
    names.append(_manifest(draft).relative_to(draft).as_posix())
    hashes.clear(folder, names)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name, folder / name)


def _write(draft: Path, seed: int, images: dict[str, int]) -> None:
    folder = draft / "images" / "mini"
    folder.mkdir(parents=True)
    files = _AnnotationFiles(seed)
    for split, count in images.items():
        for _ in range(count):
            files.add_image(split, folder)
    (draft / "mini").mkdir()
    (draft / "mini" / "refs(unc).p").write_bytes(pickle.dumps(files.refs, protocol=2))
    text = json.dumps(files.instances(), sort_keys=True, separators=(",", ":"))
    (draft / "mini" / "instances.json").write_text(text)


class _AnnotationFiles:
    """The annotations so far. Ids count from 1, but ids of refs and sentences from 0, as in RefCOCO."""

    def __init__(self, seed: int) -> None:
        self.refs: list[dict[str, Any]] = []
        self._seed = seed
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._kind_counts = {split: dict.fromkeys(SHARES, 0) for split in IMAGES}

    def instances(self) -> dict[str, Any]:
        families = {shape: family for family, shapes in FAMILIES.items() for shape in shapes}
        return {
            "info": {"description": "mini, generated by risbench.data.mini", "seed": self._seed},
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": SHAPES.index(shape) + 1, "name": shape, "supercategory": family}
                for shape, family in families.items()
            ],
        }

    def add_image(self, split: str, folder: Path) -> None:
        """Draw the next image, save it and describe two or three of its objects."""
        number = len(self._images) + 1
        dice = Dice(self._seed, number)
        scene, described = self._draw_scene(dice, split)
        height, width, _ = scene.pixels.shape
        name = f"mini_{number:012d}.png"
        Image.fromarray(scene.pixels).save(folder / name, compress_level=1)
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        first = len(self._annotations)
        for thing, polygons in zip(scene.things, scene.polygons, strict=True):
            self._annotations.append(_annotation(len(self._annotations) + 1, number, thing, polygons))
        for target, expressions in described:
            self._add_ref(expressions, split, self._annotations[first + target])

    def _draw_scene(self, dice: Dice, split: str) -> tuple[Scene, list[tuple[int, list[Expression]]]]:
        """Draw scenes until two or three objects of one have several expressions; return it with these, by object."""
        wanted = 3 if dice.chance(35) else 2
        while True:
            scene = draw_scene(dice)
            targets = [k for k, thing in enumerate(scene.things) if thing.shape in TARGET_SHAPES[split]]
            described: list[tuple[int, list[Expression]]] = []
            for target in dice.shuffled(targets):
                expressions = self._write_expressions(dice, scene, target, split) if len(described) < wanted else []
                if len(expressions) > 1:
                    described.append((target, expressions))
            if len(described) > 1:
                return scene, described

    def _write_expressions(self, dice: Dice, scene: Scene, target: int, split: str) -> list[Expression]:
        """Write up to four expressions: first of the kinds below their share, and of no kind well above its share."""
        picture = Picture(scene.things, scene.pixels.shape[0], scene.pixels.shape[1], target)
        counts = self._kind_counts[split]
        shares = {kind: counts[kind] * 1000 // SHARES[kind] for kind in SHARES}
        limit = 11 * (sum(counts.values()) + 10)  # a tenth above the share
        kinds = sorted((kind for kind in SHARES if shares[kind] <= limit), key=lambda kind: shares[kind])
        wanted = dice.pick((2, 3, 3, 3, 4, 4))
        expressions: list[Expression] = []
        for kind in kinds * 2:
            expression = express(dice, picture, kind) if len(expressions) < wanted else None
            if expression and expression.program not in [other.program for other in expressions]:
                expressions.append(expression)
        return dice.shuffled(expressions)

    def _add_ref(self, expressions: list[Expression], split: str, annotation: dict[str, Any]) -> None:
        first = sum(count for counts in self._kind_counts.values() for count in counts.values())
        sentences = [_sentence(first + number, expression) for number, expression in enumerate(expressions)]
        for expression in expressions:
            self._kind_counts[split][expression.kind] += 1
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "file_name": f"mini_{annotation['image_id']:012d}_{annotation['id']}.png",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )


def _annotation(number: int, image: int, thing: Thing, polygons: list[list[int]]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": SHAPES.index(thing.shape) + 1,
        "segmentation": polygons,
        "area": thing.area,
        "bbox": list(thing.box),
        "iscrowd": 0,
        "attributes": {"colour": thing.colour, "pattern": thing.pattern, "size": thing.size},
    }


def _sentence(number: int, expression: Expression) -> dict[str, Any]:
    return {
        "sent_id": number,
        "raw": expression.raw,
        "sent": expression.sent,
        "tokens": expression.sent.split(),
        "kind": expression.kind,
        "program": expression.program,
    }
