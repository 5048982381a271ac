"""Write a generated data set: its images, its annotation files and their hashes, whole or not at all.

<folder>/NAME/REFS, <folder>/NAME/instances.json, <folder>/images/NAME/*.png, <folder>/NAME/sha256.json
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from risbench import datasets, files
from risbench.data import hashes, pickles
from risbench.data.mini.language import Expression
from risbench.data.mini.scene import FAMILIES, Scene, Thing
from risbench.errors import InputError

SHAPES = tuple(shape for shapes in FAMILIES.values() for shape in shapes)
TARGET_SHAPES = {"train": SHAPES, "val": SHAPES, "testA": FAMILIES["round"], "testB": FAMILIES["angular"]}

_log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The name of a generated data set, and of the file of its refs: a pickle, or JSON."""

    name: str
    refs: str

    @property
    def annotations(self) -> tuple[str, str]:
        """Both annotation files, below the data root."""
        return f"{self.name}/{self.refs}", f"{self.name}/instances.json"

    def read(self, folder: Path) -> tuple[Any, Any]:
        """Read the refs and the instances below a data root."""
        refs, instances = (folder / name for name in self.annotations)
        content = pickles.load(refs) if refs.suffix == ".p" else json.loads(refs.read_text())
        return content, json.loads(instances.read_text())


def annotations_sha256(layout: Layout, folder: Path) -> str:
    """Return the hash of the contents of both annotation files, as JSON with sorted keys."""
    refs, instances = layout.read(folder)
    text = json.dumps({"refs": refs, "instances": instances}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def pixels_sha256(layout: Layout, folder: Path) -> str:
    """Return the hash of height, width and RGB values of every image, in the order of the ids."""
    digest = hashlib.sha256()
    for entry in layout.read(folder)[1]["images"]:
        with Image.open(folder / "images" / layout.name / entry["file_name"]) as image:
            pixels = np.asarray(image.convert("RGB"))
        digest.update(f"{entry['id']} {pixels.shape[0]} {pixels.shape[1]}\n".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def generate(
    layout: Layout, folder: Path, seed: int, write: Callable[[Path], None], pinned: bool, repair: bool = False
) -> bool:
    """Write a data set below a data root unless it is there already; return whether it was written now.

    `write` writes it to an empty folder. A `pinned` one must have the hashes of its card. Files that are damaged or
    missing are written again with `repair`, for the cache; else they are refused, since they may be somebody's work.
    """
    name = layout.name
    if (folder / name).exists():
        damage = hashes.find_damage(_manifest(layout, folder), folder, layout.annotations)
        if not damage:
            _refuse_other_seed(layout, folder, seed)
            return False
        if not repair:
            raise InputError(
                f"{name} in {folder} is incomplete, damaged or changed ({damage}). Delete {folder / name} and "
                f"{folder / 'images' / name}, or name another folder."
            )
        _log.warning("%s in %s is incomplete or damaged (%s): it is made again.", name, folder, damage)
    with files.scratch(folder / name) as draft:
        write(draft)
        if pinned:
            _check_hashes(layout, draft)
        files.sync(draft)
        move_into_place(layout, draft, folder)
    return True


def _manifest(layout: Layout, folder: Path) -> Path:
    return folder / layout.name / hashes.MANIFEST


def _check_hashes(layout: Layout, draft: Path) -> None:
    """Refuse a data set with other hashes than the card: results on it could not be compared."""
    pins = datasets.load(layout.name).sha256
    digests = {"annotations": annotations_sha256(layout, draft), "pixels": pixels_sha256(layout, draft)}
    for part, digest in digests.items():
        if digest != pins[part]:
            raise InputError(
                f"The generated {part} of {layout.name} have the sha256 {digest[:12]}..., but the card says "
                f"{pins[part][:12]}.... NumPy or Pillow draws differently here: install the versions of "
                "constraints.txt, and report it."
            )


def _refuse_other_seed(layout: Layout, folder: Path, seed: int) -> None:
    name, existing = layout.name, layout.read(folder)[1]["info"]["seed"]
    if existing != seed:
        raise InputError(
            f"{folder} holds {name} of seed {existing}, not {seed}. Name another folder, or delete {folder / name}."
        )


def move_into_place(layout: Layout, draft: Path, folder: Path) -> None:
    """Move images, then annotations, then their hashes into place; another process may do the same at once."""
    images = draft / "images" / layout.name
    names = [f"images/{layout.name}/{image.name}" for image in sorted(images.iterdir())]
    names += layout.annotations
    hashes.write(_manifest(layout, draft), draft, names)
    names.append(_manifest(layout, draft).relative_to(draft).as_posix())
    hashes.clear(folder, names)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name, folder / name)


# annotations


class Instances:
    """Images and their objects so far, as they stand in instances.json; ids count from 1."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._seed = seed
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    @property
    def next_image(self) -> int:
        """The id of the next image."""
        return len(self._images) + 1

    def add(self, scene: Scene, folder: Path) -> list[dict[str, Any]]:
        """Save the next image to a folder; return the annotations of its objects."""
        number = self.next_image
        height, width, _ = scene.pixels.shape
        name = f"{self._name}_{number:012d}.png"
        Image.fromarray(scene.pixels).save(folder / name, compress_level=1)
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})
        first = len(self._annotations) + 1
        added = [
            _annotation(first + place, number, thing, polygons)
            for place, (thing, polygons) in enumerate(zip(scene.things, scene.polygons, strict=True))
        ]
        self._annotations += added
        return added

    def write(self, folder: Path) -> None:
        """Write instances.json into a folder."""
        families = {shape: family for family, shapes in FAMILIES.items() for shape in shapes}
        content = {
            "info": {
                "description": f"{self._name}, generated by risbench.data.{self._name.replace('-', '_')}",
                "seed": self._seed,
            },
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": SHAPES.index(shape) + 1, "name": shape, "supercategory": family}
                for shape, family in families.items()
            ],
        }
        (folder / "instances.json").write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


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


def sentence(number: int, expression: Expression) -> dict[str, Any]:
    """Return a sentence with this id, as it stands in the refs."""
    return {
        "sent_id": number,
        "raw": expression.raw,
        "sent": expression.sent,
        "tokens": expression.sent.split(),
        "kind": expression.kind,
        "program": expression.program,
    }


def kinds_in_need(counts: Mapping[str, int], shares: Mapping[str, int]) -> list[str]:
    """Return the kinds, first those furthest below their share; none that is well above its share."""
    reached = {kind: counts[kind] * 1000 // shares[kind] for kind in shares}
    limit = 11 * (sum(counts.values()) + 10)  # a tenth above the share
    return sorted((kind for kind in shares if reached[kind] <= limit), key=lambda kind: reached[kind])
