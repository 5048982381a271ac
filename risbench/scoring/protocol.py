"""Protocols as data: what is compared, at what size, with which ground truth.

A protocol has two halves. `input` acts before a mask is stored, and is written into the predictions file. `score` acts
on stored masks. Literals list only what the harness implements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from risbench import errors
from risbench.data import rle

if TYPE_CHECKING:
    from risbench.data.index import Index
    from risbench.data.rle import Size
    from risbench.data.split import Split

FromRecipe = Literal["recipe"]

_SENTENCE_SEED = 0  # belongs to every protocol with random sentences: another seed is another protocol


class InputHalf(BaseModel):
    """How images and expressions reach the method, and how its probabilities become masks.

    The value "recipe" leaves a setting to the recipe.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int | FromRecipe = "recipe"  # side of the square network input in pixels
    geometry: Literal["stretch", "letterbox"] | FromRecipe = "recipe"
    border: int | tuple[int, int, int] | FromRecipe = "recipe"  # around a letterboxed image: grey, or RGB, 0-255
    resampling: Literal["bilinear", "bicubic"] | FromRecipe = "recipe"
    text: Literal["raw", "sent"] | FromRecipe = "recipe"  # the field of the annotation file
    sentences: Literal["each", "random", "joined"] = "each"  # of a ref: each alone, one drawn, all joined
    max_tokens: int | FromRecipe = "recipe"
    threshold: float | FromRecipe = "recipe"  # foreground is probability > threshold
    cut_at: Literal["scored", "network"] = "scored"  # at which size; masks of the network size are enlarged bilinearly

    def select_expressions(self, split: Split) -> Split:
        """Return the expressions of a split that are predicted and scored."""
        if self.sentences == "random":
            return split.draw_one_per_ref(_SENTENCE_SEED)
        return split.join_by_ref() if self.sentences == "joined" else split

    def resolve(self, values: Mapping[str, Any]) -> InputHalf:
        """Replace every "recipe" by the value under the name of the field. Raises InputError if one is missing."""
        unresolved = [field for field, value in self if value == "recipe"]
        missing = [field for field in unresolved if field not in values]
        if missing:
            raise errors.InputError(
                f"The protocol leaves {', '.join(missing)} to the recipe, which does not set it: add it to the recipe."
            )
        return InputHalf.model_validate({**dict(self), **{field: values[field] for field in unresolved}})


class ScoreHalf(BaseModel):
    """How stored masks are compared with the ground truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scored_at: Literal["original"] | tuple[int, int] = "original"  # the size of the image file, or height and width
    mask_resize: Literal["nearest"] = "nearest"  # PIL's, for ground truths and for masks of the image's size
    # the union of the polygons; the pixels that exactly one covers; the union of polygons drawn at the scored size
    ground_truth: Literal["union", "once", "scored"] = "union"
    at_least: Literal[">=", ">"] = ">="  # how P@X compares IoU with X
    empty_union: Literal[0, 1, "nan"] = 0  # IoU of an empty mask and an empty ground truth; nan leaves the row out
    # expressions without a target: refused, or scored by the no-target rule of risbench.scoring.metrics
    no_target: Literal["refused", "scored"] = "refused"
    headline: Literal["oIoU", "mIoU", "gIoU"] = "oIoU"

    def size(self, image_size: Size) -> Size:
        """Return height and width at which an image of this size is scored."""
        return image_size if self.scored_at == "original" else self.scored_at

    def ground_truth_mask(self, index: Index, ann_id: int, image_size: Size) -> bytes:
        """Return the RLE of a ground truth at the size at which an image of this size is scored."""
        size = self.size(image_size)
        polygons = index.polygons(ann_id) if self.ground_truth == "scored" else None
        if polygons is not None:
            return rle.merge(rle.from_polygons(rle.scale_polygons(polygons, image_size, size), size), size)
        mask = index.ground_truth(ann_id, "once" if self.ground_truth == "once" else "union")
        return rle.resize(mask, image_size, size, self.mask_resize)


class Protocol(BaseModel):
    """A protocol with its name and source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    input: InputHalf
    score: ScoreHalf
    comparable: bool = True  # False: only to follow a training, never beside a published number


_LAVT = InputHalf(image_size=480, geometry="stretch", resampling="bilinear", text="raw", max_tokens=20, threshold=0.5)
_LAVT_SCORE = ScoreHalf(scored_at=(480, 480), ground_truth="once")
_LETTERBOX = InputHalf(image_size=416, geometry="letterbox", text="sent", threshold=0.35)

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
        ' prec@X counts IoU "higher than" X. The paper does not say whether "IoU" is overall or mean; here it is oIoU,'
        " under which the supplement of CoupAlign lists the same values. Not stated, taken as in `original`: ground"
        " truth, sentences, empty union",
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
        " sentence of each ref; it chooses the best epoch. Its README says that these numbers do not compare with those"
        " of test.py. The released code draws new sentences each time; here the draw is fixed by seed 0 and depends"
        " only on the ref",
        input=_LAVT.model_copy(update={"sentences": "random"}),
        score=_LAVT_SCORE,
        comparable=False,
    ),
    Protocol(
        name="magnet",
        source="MagNet (CVPR 2024): test.py of the released code, whose transforms and data set are LAVT's: as `lavt`;"
        " the sigmoid of one logit > 0.5 is the larger of two classes. Not done here: the code evaluates the checkpoint"
        " of the joint training at 448 x 448",
        input=_LAVT,
        score=_LAVT_SCORE,
    ),
    Protocol(
        name="cris",
        source="CRIS (CVPR 2022): engine.py (inference) and dataset.py of the released code: image centred with its"
        " aspect kept in 416 x 416 on the mean colour of CLIP, bicubic; the cleaned sentences, each alone; probability"
        " > 0.35 at the size of the image; union of the polygons; an empty union scores 0 (1e-6 is added to each);"
        ' "IoU" is the mean; P@X counts IoU > X. Differences here: the probability is sampled once, bilinearly,'
        " not bicubically to 416 and from there to the image; PIL's bicubic filter averages where it shrinks an image,"
        " OpenCV's does not; the border has whole pixels and levels; tokens (there 17 pieces of CLIP, 22 on RefCOCOg)"
        " are the recipe's",
        input=_LETTERBOX.model_copy(update={"border": (123, 117, 104), "resampling": "bicubic"}),
        score=ScoreHalf(at_least=">", headline="mIoU"),
    ),
    Protocol(
        name="rela",
        source="ReLA (CVPR 2023): refcoco_mapper.py, refer_evaluation.py and the configurations of the released code:"
        " image stretched to 480 x 480, bilinear, the referent's polygons stretched with it and drawn there, their"
        " union; the raw expression, cut at 20 word pieces; the larger of two classes, read as a probability > 0.5; an"
        " empty union scores 0; P@X counts IoU >= X. Its cIoU is oIoU, its gIoU mIoU. Difference here: a mask that the"
        " files give as run lengths is stretched by nearest neighbour. Not done here: no-target predictions, which"
        " `grefcoco` scores",
        input=_LAVT,
        score=ScoreHalf(scored_at=(480, 480), ground_truth="scored"),
    ),
    Protocol(
        name="grefcoco",
        source="GRES (CVPR 2023), evaluated as refer_evaluation.py of ReLA's released code does, for expressions with"
        " one target, several, or none; input and ground truths as in `rela`, with the union of the targets. A"
        " prediction is a mask or no-target; if a file does not say which, an empty mask means no-target. Without"
        " a target, a no-target prediction scores IoU 1 and adds nothing to cIoU; a mask scores 0, and its pixels"
        " count in the union. With a target, a no-target prediction scores 0; its stored mask still counts in the"
        " union, as in the code. gIoU is the mean over all expressions, cIoU the sum of intersections over the sum"
        " of unions. N-acc is the share of the expressions without a target that are predicted as no-target, T-acc"
        " the share of the expressions with a target that are not. P@X, and here pointing and boundary IoU, are"
        " over expressions with a target, IoU >= X. The headline is gIoU. Differences here: an early version of"
        " the code takes T-acc as the share of correct ones among no-target predictions, and adds 1 to the"
        " divisors of both; later versions do as here. A crowd among the targets, which the code leaves out, is"
        " part of the ground truth",
        input=_LAVT,
        score=ScoreHalf(scored_at=(480, 480), ground_truth="scored", no_target="scored", headline="gIoU"),
    ),
    Protocol(
        name="simrec",
        source="SimREC, whose code holds MCN (CVPR 2020): eval_engine.py, mask_op.py, dataset.py, mcn_heads.py: image"
        " centred with its aspect kept in 416 x 416 on grey 127, bilinear; the cleaned sentences, each alone, cut at 15"
        " words; probability > 0.35 at 416 x 416; that mask without its border enlarged bilinearly to the size of the"
        " image, where values above 0 are foreground; union of the polygons; an empty union scores 1; MaskIoU is"
        " the mean; P@X counts IoU > X. Differences here: from the network's grid to 416, probabilities are sampled"
        " bilinearly with align_corners=False; PIL's filter averages where it shrinks an image, OpenCV's"
        " does not; the sides of the letterbox are rounded, not cut; the mean is over all sentences, not over the"
        " processes' means",
        input=_LETTERBOX.model_copy(
            update={"border": 127, "resampling": "bilinear", "max_tokens": 15, "cut_at": "network"}
        ),
        score=ScoreHalf(at_least=">", empty_union=1, headline="mIoU"),
    ),
    Protocol(
        name="zs-lavt",
        source="LAVT-pytorch by zichengsaber, an unofficial LAVT and a base of CoupAlign: its default evaluation"
        " (eval.sh, args.py, ReferDataset.py, transform.py): image stretched to 448 x 448; all raw sentences of a ref"
        " as one sequence, one row per ref; the larger of two classes is a probability > 0.5, compared at the size of"
        " the image; pixels that several polygons cover are background; an empty union is 0/0. P@X is not in the code:"
        " >= as in `original`. Differences here: sentences are joined by spaces in the order of their ids, and the"
        " whole is cut at 90 pieces, where the code cuts each sentence at 30 and strings them with their [CLS], [SEP]"
        " and padding (a ref has 3 sentences on average); an empty union is left out of the mean; the mean is over"
        " all refs, not over the processes' means",
        input=_LAVT.model_copy(update={"image_size": 448, "max_tokens": 90, "sentences": "joined"}),
        score=ScoreHalf(ground_truth="once", empty_union="nan"),
    ),
)


def names() -> list[str]:
    """Return the names of all protocols; the default comes first."""
    return [protocol.name for protocol in _PROTOCOLS]


def load(name: str) -> Protocol:
    """Return the protocol with this name. Raises InputError for an unknown one."""
    for protocol in _PROTOCOLS:
        if protocol.name == name:
            return protocol
    raise errors.unknown("protocol", name, names())
