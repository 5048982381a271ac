"""Generate the `mini` data set: a miniature of RefCOCO, made in seconds and read by the same reader.

    <folder>/mini/refs(unc).p, <folder>/mini/instances.json, <folder>/images/mini/*.png, <folder>/mini/sha256.json

A seed gives the same annotations and pixels on every machine; the card datasets/mini.toml pins their hashes for seed 0.
In addition to RefCOCO's keys, sentences have `kind` and `program`, and annotations have `attributes`.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from risbench.data.mini import writing
from risbench.data.mini.language import SHARES, Expression, Picture, express
from risbench.data.mini.scene import Dice, Scene, draw_scene
from risbench.data.mini.writing import TARGET_SHAPES, Instances, Layout

IMAGES = {"train": 1000, "val": 160, "testA": 170, "testB": 170}
LAYOUT = Layout("mini", "refs(unc).p")


def make(folder: Path, seed: int = 0, repair: bool = False) -> bool:
    """Write the data set below a data root unless it is there already; return whether it was written now.

    Seed 0 must have the hashes of the card. Files that are damaged or missing are written again with `repair`, for the
    cache; else they are refused, since they may be somebody's work.
    """
    return _generate(folder, seed, IMAGES, repair)


def _generate(folder: Path, seed: int, images: dict[str, int], repair: bool = False) -> bool:
    def write(draft: Path) -> None:
        _write(draft, seed, images)

    return writing.generate(LAYOUT, folder, seed, write, pinned=seed == 0 and images == IMAGES, repair=repair)


def _write(draft: Path, seed: int, images: dict[str, int]) -> None:
    folder = draft / "images" / "mini"
    folder.mkdir(parents=True)
    files = _AnnotationFiles(seed)
    for split, count in images.items():
        for _ in range(count):
            files.add_image(split, folder)
    (draft / "mini").mkdir()
    (draft / "mini" / "refs(unc).p").write_bytes(pickle.dumps(files.refs, protocol=2))
    files.instances.write(draft / "mini")


class _AnnotationFiles:
    """The annotations so far. Ids count from 1, but ids of refs and sentences from 0, as in RefCOCO."""

    def __init__(self, seed: int) -> None:
        self.refs: list[dict[str, Any]] = []
        self.instances = Instances("mini", seed)
        self._seed = seed
        self._kind_counts = {split: dict.fromkeys(SHARES, 0) for split in IMAGES}

    def add_image(self, split: str, folder: Path) -> None:
        """Draw the next image, save it and describe two or three of its objects."""
        scene, described = self._draw_scene(Dice(self._seed, self.instances.next_image), split)
        annotations = self.instances.add(scene, folder)
        for target, expressions in described:
            self._add_ref(expressions, split, annotations[target])

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
        kinds = writing.kinds_in_need(self._kind_counts[split], SHARES)
        wanted = dice.pick((2, 3, 3, 3, 4, 4))
        expressions: list[Expression] = []
        for kind in kinds * 2:
            expression = express(dice, picture, kind) if len(expressions) < wanted else None
            if expression and expression.program not in [other.program for other in expressions]:
                expressions.append(expression)
        return dice.shuffled(expressions)

    def _add_ref(self, expressions: list[Expression], split: str, annotation: dict[str, Any]) -> None:
        first = sum(count for counts in self._kind_counts.values() for count in counts.values())
        sentences = [writing.sentence(first + number, expression) for number, expression in enumerate(expressions)]
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
