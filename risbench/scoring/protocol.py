"""Protocols as data: what exactly is compared, at what size, with which ground truth.

A protocol has two halves. `input` acts before a mask is stored and is written into the predictions file, `score` acts
on stored masks. A literal lists only what the harness implements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from risbench import errors
from risbench.data import rle

if TYPE_CHECKING:
    from risbench.data.index import Index, Split
    from risbench.data.rle import Size

FromRecipe = Literal["recipe"]

_SENTENCE_SEED = 0  # belongs to every protocol with random sentences: another seed is another protocol


class InputHalf(BaseModel):
    """How images and expressions reach the method and how its probabilities become masks; "recipe" leaves it open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int | FromRecipe = "recipe"  # side of the square network input in pixels
    geometry: Literal["stretch", "letterbox"] | FromRecipe = "recipe"
    border: int | tuple[int, int, int] | FromRecipe = "recipe"  # around a letterboxed image: grey, or RGB, 0-255
    resampling: Literal["bilinear", "bicubic"] | FromRecipe = "recipe"
    text: Literal["raw", "sent"] | FromRecipe = "recipe"  # the field of the annotation file
    sentences: Literal["each", "random", "joined"] = "each"  # of a ref: each alone, one drawn, all as one expression
    max_tokens: int | FromRecipe = "recipe"
    threshold: float | FromRecipe = "recipe"  # foreground is probability > threshold
    cut_at: Literal["scored", "network"] = "scored"  # at which size; a mask cut at the network's is enlarged bilinearly

    def asked(self, split: Split) -> Split:
        """The expressions of a split that are answered."""
        if self.sentences == "random":
            return split.one_of_each_ref(_SENTENCE_SEED)
        return split.joined() if self.sentences == "joined" else split

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
    ground_truth: Literal["union", "once", "scored"] = "union"  # union of the polygons; pixels that exactly one covers;
    # or the union of polygons that are drawn at the scored size
    at_least: Literal[">=", ">"] = ">="  # how P@X compares IoU with X
    empty_union: Literal[0, 1, "nan"] = 0  # IoU of nothing predicted where nothing is; nan leaves the row out
    no_target: Literal["refused", "scored"] = "refused"  # a split with expressions that mean nothing in their image;
    # scored: right where the answer says so, by the rule in `metrics`
    headline: Literal["oIoU", "mIoU", "gIoU"] = "oIoU"

    def size(self, original: Size) -> Size:
        """Height and width at which an image of this original size is scored."""
        return original if self.scored_at == "original" else self.scored_at

    def truth(self, index: Index, ann_id: int, original: Size) -> bytes:
        """The RLE of a ground truth at the size at which an image of this original size is scored."""
        size = self.size(original)
        polygons = index.polygons(ann_id) if self.ground_truth == "scored" else None
        if polygons is not None:
            return rle.merge(rle.from_polygons(rle.scaled(polygons, original, size), size), size)
        kept = index.truth(ann_id, "once" if self.ground_truth == "once" else "union")
        return rle.resized(kept, original, size, self.mask_resize)


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
    Protocol(
        name="magnet",
        source="MagNet (CVPR 2024): test.py of the released code, whose transforms and data set are LAVT's: as `lavt`;"
        " the sigmoid of one logit > 0.5 is the larger of two classes. Not done here: the checkpoint of the joint"
        " training is evaluated at 448 x 448",
        input=_LAVT,
        score=_LAVT_SCORE,
    ),
    Protocol(
        name="cris",
        source="CRIS (CVPR 2022): engine.py (inference) and dataset.py of the released code: image centred with its"
        " aspect kept in 416 x 416 on the mean colour of CLIP, bicubic; the cleaned sentences, each alone; probability"
        " > 0.35 at the size of the image; union of the polygons; an empty union scores 0 (1e-6 is added to each);"
        ' "IoU" is the mean; P@X counts IoU > X. Done otherwise here: the probability is sampled once and bilinearly,'
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
        " empty union scores 0; P@X counts IoU >= X. Its cIoU is oIoU, its gIoU mIoU. Done otherwise here: a mask that"
        " the files give as run lengths is stretched by nearest neighbour. Not done here: answers that nothing is"
        " meant, which are those of `grefcoco`",
        input=_LAVT,
        score=ScoreHalf(scored_at=(480, 480), ground_truth="scored"),
    ),
    Protocol(
        name="grefcoco",
        source="GRES (CVPR 2023), evaluated as refer_evaluation.py of ReLA's released code does, where an expression"
        " may mean several objects, or none; input and truths as in `rela`, the truth of several objects being the"
        " union of theirs. An answer is a mask, or that nothing is meant; a file that does not tell says so by an"
        " empty mask. Where nothing is meant, that answer scores IoU 1 and adds nothing to cIoU; a mask scores 0, and"
        " its pixels count in the union. Where something is meant, that answer scores 0; its stored mask still counts"
        " in the union, as in the code. gIoU is the mean over all expressions, cIoU the sum of intersections over that"
        " of unions; N-acc is the share of the expressions without a target that are answered so, T-acc that of the"
        " others that are not; P@X, and here pointing and boundary IoU, are over expressions with a target, IoU >= X."
        " The headline is gIoU. Done otherwise here: an early version of the code takes T-acc for the share of right"
        " ones among the answers that nothing is meant, and adds 1 to the divisors of both; later ones do as here. A"
        " crowd among the objects, which the code leaves out, is part of the truth",
        input=_LAVT,
        score=ScoreHalf(scored_at=(480, 480), ground_truth="scored", no_target="scored", headline="gIoU"),
    ),
    Protocol(
        name="simrec",
        source="SimREC, whose code holds MCN (CVPR 2020): eval_engine.py, mask_op.py, dataset.py, mcn_heads.py: image"
        " centred with its aspect kept in 416 x 416 on grey 127, bilinear; the cleaned sentences, each alone, cut at 15"
        " words; probability > 0.35 at 416 x 416; that mask without its border enlarged bilinearly to the size of the"
        " image, where all that is above 0 is foreground; union of the polygons; an empty union scores 1; MaskIoU is"
        " the mean; P@X counts IoU > X. Done otherwise here: the way from the network's grid to 416 is a bilinear"
        " sampling of probabilities with align_corners=False; PIL's filter averages where it shrinks an image, OpenCV's"
        " does not; the sides of the letterbox are rounded, not cut; the mean is that of all sentences, not of the"
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
        " >= as in `original`. Done otherwise here: sentences are joined by spaces in the order of their ids, and the"
        " whole is cut at 90 pieces, where the code cuts each sentence at 30 and strings them with their [CLS], [SEP]"
        " and padding (a ref has 3 sentences on average); an empty union is left out of the mean; one mean, not that"
        " of the processes' means",
        input=_LAVT.model_copy(update={"image_size": 448, "max_tokens": 90, "sentences": "joined"}),
        score=ScoreHalf(ground_truth="once", empty_union="nan"),
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
