"""Protocols as data: what exactly is compared, at what size, with which ground truth.

A protocol has two halves. `input` acts before a mask is stored and is written into the predictions file, `score` acts
on stored masks. A literal lists only what the harness implements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from risbench import errors

if TYPE_CHECKING:
    from risbench.data.index import Split
    from risbench.rle import Size

FromRecipe = Literal["recipe"]

_SENTENCE_SEED = 0  # belongs to every protocol with random sentences: another seed is another protocol


class InputHalf(BaseModel):
    """How images and expressions reach the method and how its probabilities become masks; "recipe" leaves it open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int | FromRecipe = "recipe"  # side of the square network input in pixels
    geometry: Literal["stretch", "letterbox"] | FromRecipe = "recipe"
    border: int | FromRecipe = "recipe"  # grey value 0-255 around a letterboxed image
    resampling: Literal["bilinear", "bicubic"] | FromRecipe = "recipe"
    text: Literal["raw", "sent"] | FromRecipe = "recipe"  # the field of the annotation file
    sentences: Literal["each", "random"] = "each"  # every expression is answered alone; or one drawn for each ref
    max_tokens: int | FromRecipe = "recipe"
    threshold: float | FromRecipe = "recipe"  # foreground is probability > threshold

    def asked(self, split: Split) -> Split:
        """The expressions of a split that are answered."""
        return split if self.sentences == "each" else split.one_of_each_ref(_SENTENCE_SEED)

    def resolved(self, values: Mapping[str, Any]) -> InputHalf:
        """Replace every "recipe" by the value under the field's name."""
        left = [field for field, value in self if value == "recipe"]
        missing = [field for field in left if field not in values]
        if missing:
            raise errors.InputError(
                f"The protocol leaves {', '.join(missing)} to the recipe, which does not set it: add it to the recipe."
            )
        return InputHalf.model_validate({**dict(self), **{field: values[field] for field in left}})


class ScoreHalf(BaseModel):
    """How stored masks are compared with the ground truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scored_at: Literal["original"] | tuple[int, int] = "original"  # the size of the image file, or height and width
    mask_resize: Literal["nearest"] = "nearest"  # PIL's, of truths and of masks at the image's size, to that one
    ground_truth: Literal["union", "once"] = "union"  # union of the polygons, or pixels that exactly one covers
    at_least: Literal[">=", ">"] = ">="  # how P@X compares IoU with X
    empty_union: Literal[0, 1, "nan"] = 0  # IoU of nothing predicted where nothing is; nan leaves the row out
    headline: Literal["oIoU", "mIoU"] = "oIoU"

    def size(self, original: Size) -> Size:
        """Height and width at which an image of this original size is scored."""
        return original if self.scored_at == "original" else self.scored_at


class Protocol(BaseModel):
    """A named protocol and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    input: InputHalf
    score: ScoreHalf
    comparable: bool = True  # False: for following a training only, never beside a published number


_LAVT = InputHalf(image_size=480, geometry="stretch", resampling="bilinear", text="raw", max_tokens=20, threshold=0.5)
_LAVT_SCORE = ScoreHalf(scored_at=(480, 480), ground_truth="once")

_PROTOCOLS = (
    Protocol(
        name="original",
        source="risbench's default: the input of the recipe, every sentence alone, masks compared at the size of the"
        " image with the union of the referent's polygons; P@X counts IoU >= X and an empty union scores 0, as in the"
        " released code of LAVT and MagNet",
        input=InputHalf(),
        score=ScoreHalf(),
    ),
    Protocol(
        name="lts",
        source='LTS (CVPR 2021): section 3.4, threshold 0.25 after up-sampling to the "original image size" without'
        " post-processing (ambiguous: read here as the size of the image file, not the 416 x 416 input); section 4.1,"
        ' prec@X counts IoU "higher than" X. "IoU" is not said to be overall or mean: oIoU, the column in which the'
        " supplement of CoupAlign lists the same values. Not stated, taken as in `original`: ground truth, sentences,"
        " empty union",
        input=InputHalf(threshold=0.25),
        score=ScoreHalf(at_least=">"),
    ),
    Protocol(
        name="lavt",
        source="LAVT (CVPR 2022): test.py, transforms.py and refer.py of the released code: image and ground truth are"
        " stretched to 480 x 480 (ground truth by PIL's nearest neighbour) and compared there; pixels that several"
        " polygons of the referent cover are background; the raw expression, cut at 20 word pieces; the larger of two"
        " classes, a tie being background, is a probability > 0.5; P@X counts IoU >= X; an empty union scores 0."
        " MagNet's test.py does the same",
        input=_LAVT,
        score=_LAVT_SCORE,
    ),
    Protocol(
        name="lavt-train",
        source="LAVT (CVPR 2022): the validation inside train.py of the released code: as `lavt`, but on one random"
        " sentence of each ref, by which the best epoch is chosen. Its README says that these numbers do not compare"
        " with those of test.py. The released code draws anew each time; here the draw is fixed by seed 0 and depends"
        " on nothing but the ref",
        input=_LAVT.model_copy(update={"sentences": "random"}),
        score=_LAVT_SCORE,
        comparable=False,
    ),
)


def names() -> list[str]:
    """Names of all protocols, the default first."""
    return [protocol.name for protocol in _PROTOCOLS]


def load(name: str) -> Protocol:
    """The protocol of that name."""
    for protocol in _PROTOCOLS:
        if protocol.name == name:
            return protocol
    raise errors.unknown("protocol", name, names())
