"""Generate the `mini-gres` data set: a miniature of gRefCOCO, with mini's scenes and gRefCOCO's files.

    <folder>/mini-gres/grefs(unc).json, <folder>/mini-gres/instances.json, <folder>/images/mini-gres/*.png

A seed gives the same annotations and pixels on every machine; the card datasets/mini-gres.toml pins their hashes for
seed 0. No image is one of mini's. Each image has refs for one object, for several and for none. In addition to
gRefCOCO's keys, sentences have `kind` and `program`, and annotations have `attributes`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from risbench.data.mini import writing
from risbench.data.mini.language import SHARES, Expression, Picture, express
from risbench.data.mini.scene import Dice, Scene, draw_scene
from risbench.data.mini.writing import TARGET_SHAPES, Instances, Layout
from risbench.data.mini_gres import language
from risbench.data.mini_gres.language import NONE, SEVERAL
from risbench.data.targets import NO_TARGET

IMAGES = {"train": 1000, "val": 160, "testA": 170, "testB": 170}
LAYOUT = Layout("mini-gres", "grefs(unc).json")

_FIRST_DICE = 500_000  # mini rolls the dice from 1 on: with others, no image is one of mini's

Described = list[tuple[tuple[int, ...], list[Expression]]]  # objects with their expressions; no objects: no-target


def make(folder: Path, seed: int = 0, repair: bool = False) -> bool:
    """Write the data set below a data root unless it is there already; return whether it was written now.

    Seed 0 must have the hashes of the card; `repair` is that of `writing.generate`.
    """
    return _generate(folder, seed, IMAGES, repair)


def _generate(folder: Path, seed: int, images: dict[str, int], repair: bool = False) -> bool:
    def write(draft: Path) -> None:
        _write(draft, seed, images)

    return writing.generate(LAYOUT, folder, seed, write, pinned=seed == 0 and images == IMAGES, repair=repair)


def _write(draft: Path, seed: int, images: dict[str, int]) -> None:
    folder, annotations = draft / "images" / LAYOUT.name, draft / LAYOUT.name
    folder.mkdir(parents=True)
    annotations.mkdir()
    files = _AnnotationFiles(seed)
    for split, count in images.items():
        for _ in range(count):
            files.add_image(split, folder)
    (annotations / LAYOUT.refs).write_text(json.dumps(files.refs, sort_keys=True, separators=(",", ":")))
    files.instances.write(annotations)


class _AnnotationFiles:
    """The annotations so far. Ids count from 1, but ids of refs and sentences from 0, as in mini."""

    def __init__(self, seed: int) -> None:
        self.refs: list[dict[str, Any]] = []
        self.instances = Instances(LAYOUT.name, seed)
        self._seed = seed
        self._sentences = 0
        self._kind_counts = {split: dict.fromkeys((*SHARES, *SEVERAL, *NONE), 0) for split in IMAGES}

    def add_image(self, split: str, folder: Path) -> None:
        """Draw the next image, save it and describe objects of it, sets of them, and what it lacks."""
        scene, described = self._draw_scene(Dice(self._seed, _FIRST_DICE + self.instances.next_image), split)
        annotations = self.instances.add(scene, folder)
        for members, expressions in described:
            self._add_ref(expressions, split, annotations[0]["image_id"], [annotations[k] for k in members])

    def _draw_scene(self, dice: Dice, split: str) -> tuple[Scene, Described]:
        """Draw scenes until one has expressions for one object, for several and for none; return it with these."""
        while True:
            scene = draw_scene(dice)
            picture = Picture(scene.things, scene.pixels.shape[0], scene.pixels.shape[1], target=-1)
            one = self._describe_one(dice, picture, split)
            several = self._describe_others(dice, picture, split, SEVERAL, wanted=dice.pick((1, 2, 2, 3)))
            none = self._describe_others(dice, picture, split, NONE, wanted=dice.pick((1, 1, 2, 2)))
            if one and several and none:
                return scene, one + several + none

    def _describe_one(self, dice: Dice, picture: Picture, split: str) -> Described:
        """Describe one or two objects, each by one or two expressions."""
        targets = [k for k, thing in enumerate(picture.things) if thing.shape in TARGET_SHAPES[split]]
        described: Described = []
        for target in dice.shuffled(targets)[: dice.pick((1, 2))]:
            wanted = dice.pick((1, 2))
            expressions: list[Expression] = []
            for kind in self._kinds(split, SHARES):
                expression = express(dice, picture._replace(target=target), kind) if len(expressions) < wanted else None
                expressions += [expression] if expression else []
            described += [((target,), expressions)] if expressions else []
        return described

    def _describe_others(
        self, dice: Dice, picture: Picture, split: str, shares: dict[str, int], wanted: int
    ) -> Described:
        """Write expressions for several objects, or for none; those for the same objects make one ref."""
        described: dict[tuple[int, ...], list[Expression]] = {}
        written: list[Expression] = []
        for kind in self._kinds(split, shares):
            answer = language.express(dice, picture, kind, TARGET_SHAPES[split]) if len(written) < wanted else None
            if answer:
                written.append(answer[0])
                described.setdefault(tuple(answer[1]), []).append(answer[0])
        return list(described.items())

    def _kinds(self, split: str, shares: dict[str, int]) -> list[str]:
        """Return the kinds of a group, first those furthest below their share."""
        return writing.kinds_in_need({kind: self._kind_counts[split][kind] for kind in shares}, shares)

    def _add_ref(
        self, expressions: Sequence[Expression], split: str, image_id: int, annotations: list[dict[str, Any]]
    ) -> None:
        sentences = [writing.sentence(self._sentences + n, expression) for n, expression in enumerate(expressions)]
        self._sentences += len(sentences)
        for expression in expressions:
            self._kind_counts[split][expression.kind] += 1
        self.refs.append(
            {
                "ref_id": len(self.refs),
                "ann_id": [annotation["id"] for annotation in annotations] or [NO_TARGET],
                "image_id": image_id,
                "category_id": [annotation["category_id"] for annotation in annotations] or [NO_TARGET],
                "no_target": not annotations,
                "file_name": f"{LAYOUT.name}_{image_id:012d}.png",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
