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
    # stretched; letterboxed with sides rounded to pixels; letterboxed with sides cut to pixels
    geometry: Literal["stretch", "letterbox", "letterbox-cut"] | FromRecipe = "recipe"
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
    # the union of the polygons; the pixels that exactly one covers; the union of polygons drawn at the scored size; the
    # union, which counts as a crowd of COCO if there are several polygons: the union of masks is then the prediction
    ground_truth: Literal["union", "once", "scored", "crowd"] = "union"
    at_least: Literal[">=", ">", "> float32"] = ">="  # how P@X compares IoU with X, see metrics.precision_hits
    empty_union: Literal[0, 1, "nan"] = 0  # IoU of an empty mask and an empty ground truth; nan leaves the row out
    # expressions without a target: refused, or scored by the no-target rule of risbench.scoring.metrics, under which a
    # wrong no-target prediction scores 0 or, with `mask counts`, as its mask
    no_target: Literal["refused", "scored", "mask counts"] = "refused"
    headline: Literal["oIoU", "mIoU", "gIoU"] = "oIoU"

    def size(self, image_size: Size) -> Size:
        """Return height and width at which an image of this size is scored."""
        return image_size if self.scored_at == "original" else self.scored_at

    def ground_truth_mask(self, index: Index, ann_id: int, image_size: Size) -> bytes:
        """Return the RLE of a ground truth at the size at which an image of this size is scored."""
        size = self.size(image_size)
        if self.ground_truth != "scored":
            mask = index.ground_truth(ann_id, "once" if self.ground_truth == "once" else "union")
            return rle.resize(mask, image_size, size, self.mask_resize)
        polygons = index.polygons(ann_id)
        if polygons is not None:
            return rle.merge(rle.from_polygons(rle.scale_polygons(polygons, image_size, size), size), size)
        masks = [index.ground_truth(member, "union") for member in index.members(ann_id, crowds=False) or [ann_id]]
        return rle.resize(rle.merge(masks, image_size), image_size, size, self.mask_resize)

    def is_crowd(self, index: Index, ann_id: int) -> bool:
        """Whether a ground truth counts as a crowd of COCO; one that is given as run lengths does not."""
        return self.ground_truth == "crowd" and len(index.polygons(ann_id) or []) > 1


class Protocol(BaseModel):
    """A protocol with its name and source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    input: InputHalf
    score: ScoreHalf
    comparable: bool = True  # False: only to follow a training, never beside a published number
    defect: str = (
        ""  # a mistake of the code that the protocol follows, which makes its numbers incomparable with others
    )


_LAVT = InputHalf(image_size=480, geometry="stretch", resampling="bilinear", text="raw", max_tokens=20, threshold=0.5)
_LAVT_SCORE = ScoreHalf(scored_at=(480, 480), ground_truth="once")
_LAVT_448 = _LAVT.model_copy(update={"image_size": 448})
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
        " the sigmoid of one logit > 0.5 is the larger of two classes. The checkpoint of the joint training has"
        " another size: `magnet-448`",
        input=_LAVT,
        score=_LAVT_SCORE,
    ),
    Protocol(
        name="magnet-448",
        source="MagNet (CVPR 2024): run_test.sh and test.py of the released code, for the checkpoint of the joint"
        " training (magnet_all.pth): as `magnet`, but image and ground truth are stretched to 448 x 448 and compared"
        " there",
        input=_LAVT_448,
        score=_LAVT_SCORE.model_copy(update={"scored_at": (448, 448)}),
    ),
    Protocol(
        name="cris",
        source="CRIS (CVPR 2022): engine.py (inference) and dataset.py of the released code: image centred with its"
        " aspect kept in 416 x 416 on the mean colour of CLIP, bicubic; the cleaned sentences, each alone; probability"
        " > 0.35 at the size of the image; union of the polygons; 1e-6 is added to the union, so that an empty one"
        ' scores 0; "IoU" is the mean; P@X counts I / (U + 1e-6) > X, where X is the float32 nearest to it: those of'
        " 0.7 and 0.9 lie below (0.69999999, 0.89999998), so that an IoU of exactly 0.7 or 0.9 counts from unions of"
        " 60 and 40 pixels on, those of 0.6 and 0.8 above. Differences here: in the mean, nothing is added to the"
        " union; the probability is sampled once, bilinearly,"
        " not bicubically to 416 and from there to the image; PIL's bicubic filter averages where it shrinks an image,"
        " OpenCV's does not; the border has whole pixels and levels; tokens (there 17 pieces of CLIP, 22 on RefCOCOg)"
        " are the recipe's",
        input=_LETTERBOX.model_copy(update={"border": (123, 117, 104), "resampling": "bicubic"}),
        score=ScoreHalf(at_least="> float32", headline="mIoU"),
    ),
    Protocol(
        name="rela",
        source="ReLA (CVPR 2023): refcoco_mapper.py, refer_evaluation.py and the configurations of the released code:"
        " image stretched to 480 x 480, bilinear, the referent's polygons stretched with it and drawn there, their"
        " union; the raw expression, cut at 20 word pieces; the larger of two classes, read as a probability > 0.5; an"
        " empty union scores 0; P@X counts IoU >= X. Its cIoU is oIoU, its gIoU mIoU. Difference here: a mask that the"
        " files give as run lengths is stretched by nearest neighbour; a polygon whose coordinates are all whole"
        " numbers in the JSON file is stretched exactly, while the code cuts its stretched coordinates to whole"
        " numbers. Not done here: no-target predictions, which `grefcoco` scores",
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
        " divisors of both; later versions do as here. A crowd among the targets is left out, as in the code. A polygon"
        " whose coordinates are all whole numbers in the JSON file is stretched exactly, while the code cuts its"
        " stretched coordinates to whole numbers",
        input=_LAVT,
        score=ScoreHalf(scored_at=(480, 480), ground_truth="scored", no_target="scored", headline="gIoU"),
    ),
    Protocol(
        name="simrec",
        source="SimREC, whose code holds MCN (CVPR 2020): eval_engine.py, mask_op.py, dataset.py, mcn_heads.py: image"
        " centred with its aspect kept in 416 x 416 on grey 127, bilinear; the cleaned sentences, each alone, cut at 15"
        " words; probability > 0.35 at 416 x 416; that mask without its border enlarged bilinearly to the size of the"
        " image, where values above 0 are foreground; the sides of the letterbox are cut to whole pixels; union of the"
        " polygons; 1e-10 is added to intersection and union, so that an empty union scores 1; MaskIoU is the mean;"
        " P@X counts IoU > X, which the added 1e-10 makes IoU >= X, as here. Differences here: in the code an IoU of"
        " exactly X falls short in unions above 23,910 pixels, for 0.9, and 63,270, for the others, now and then, by"
        " rounding; from the network's grid to 416, probabilities are sampled bilinearly with align_corners=False;"
        " PIL's filter averages where it shrinks an image, OpenCV's does not; the mean is over all sentences, not over"
        " the processes' means",
        input=_LETTERBOX.model_copy(
            update={
                "geometry": "letterbox-cut",
                "border": 127,
                "resampling": "bilinear",
                "max_tokens": 15,
                "cut_at": "network",
            }
        ),
        score=ScoreHalf(empty_union=1, headline="mIoU"),
    ),
    Protocol(
        name="zs-lavt",
        source="LAVT-pytorch by zichengsaber, an unofficial LAVT and a base of CoupAlign: its default evaluation"
        " (eval.sh, args.py, ReferDataset.py, transform.py): image stretched to 448 x 448; all raw sentences of a ref"
        " as one sequence, one row per ref; the larger of two classes is a probability > 0.5, compared at the size of"
        " the image; pixels that several polygons cover are background; an empty union is 0/0. P@X is not in the code:"
        " >= as in `original`. Differences here: sentences are joined by spaces in the order of their ids, and the"
        " whole is cut at 90 pieces (a ref has 3 sentences on average), where the code cuts each sentence at 30 and"
        " interleaves their pieces, with [CLS], [SEP] and padding: the first pieces of all sentences, then the second"
        " ones, and so on; an empty union is left out of the mean; the mean is over all refs, not over the processes'"
        " means",
        input=_LAVT_448.model_copy(update={"max_tokens": 90, "sentences": "joined"}),
        score=ScoreHalf(ground_truth="once", empty_union="nan"),
    ),
    Protocol(
        name="zs-ris",
        source="Zero-shot RIS (CVPR 2023): Our_method_with_free_solo.py, dataset_refer_bert.py and utils.py of the"
        " released code: every raw sentence alone; a mask of the size of the image is chosen from proposals, so there"
        " is no threshold; pixels that several polygons of the referent cover are background; an empty union scores 0;"
        " overall and mean IoU. P@X is not in the code: >= as in `original`. Differences here: an image without any"
        " proposal counts with empty masks, while the code leaves it out; geometry, size and tokens are the recipe's",
        input=InputHalf(text="raw"),
        score=ScoreHalf(ground_truth="once"),
    ),
    Protocol(
        name="lisa",
        source="LISA (CVPR 2024): validate of train_ds.py, and dataset.py, of the released code: the cleaned sentences;"
        " masks of the size of the image; an empty union scores 1. Its cIoU is oIoU, its gIoU mIoU. P@X is not in the"
        " code: >= as in `original`. Differences here: the ground truth is the union of the polygons, as in `original`;"
        " in the code, pixels that several polygons cover have the value 2 and count as background, as under `once` of"
        " `zs-ris`; each sentence is asked alone, while the code asks all sentences of an image in one batch; image"
        " size, geometry, tokens and threshold (there a logit > 0) are the recipe's",
        input=InputHalf(),
        score=ScoreHalf(empty_union=1),
    ),
    Protocol(
        name="gsva",
        source="GSVA (CVPR 2024): eval_gres of solver.py, and dataset.py, of the released code, for gRefCOCO: masks of"
        " the size of the image; the union of the targets and of their polygons. As in `grefcoco`, without a target a"
        " no-target prediction scores IoU 1 and adds nothing to cIoU, a mask scores 0 and counts in the union. With a"
        " target, a no-target prediction keeps the intersection and the union of its mask, and is wrong in T-acc only."
        " gIoU, cIoU, N-acc, T-acc. Not in the code, taken as in `grefcoco`: P@X, pointing, boundary IoU. Differences"
        " here: each sentence is asked alone, while the code asks all sentences of an image in one prompt; a crowd"
        " among the targets is part of the ground truth; image size, geometry, text (there the cleaned sentence),"
        " tokens and threshold (there a logit >= 0) are the recipe's",
        input=InputHalf(),
        score=ScoreHalf(no_target="mask counts", headline="gIoU"),
    ),
    Protocol(
        name="seqtr",
        source="SeqTR (ECCV 2022): test.py, loading.py and transforms.py of the released code: image with its aspect"
        " kept in 640 x 640; the cleaned sentence, cut at 15 words; the mask is a filled polygon, so there is no"
        " threshold; the union of the polygons; an empty intersection scores 0; the mean; P@X counts IoU >= X."
        " Differences here: masks are compared at the size of the image, not at that of the padded input; the image is"
        " centred, and the border is the recipe's; the mean and P@X are over all sentences, not over the batches' and"
        " processes' means; the code has no overall IoU. Run lengths count as one part",
        input=InputHalf(image_size=640, geometry="letterbox", resampling="bilinear", text="sent", max_tokens=15),
        score=ScoreHalf(ground_truth="crowd", headline="mIoU"),
        defect="a ground truth of several polygons counts as a crowd of COCO: its IoU is the intersection over the"
        " predicted area, so that one part alone scores 1",
    ),
    Protocol(
        name="deris",
        source="DeRIS (ICCV 2025): test.py of the released code: image and ground truth are stretched to 640 x 640 and"
        " compared there; 20 tokens; the union of the polygons; an empty union scores 0; oIoU and mIoU; P@X counts"
        " IoU >= X. Not known: the rule by which ground truths are resized, taken as PIL's nearest neighbour; the"
        " text, taken as the recipe's. Its stored configurations of RefCOCO stretch the image to 384 x 384, so the"
        " size of the published numbers is not certain. Differences here: the code gathers the processes' answers with"
        " those that the sampler repeats; resampling and threshold are the recipe's",
        input=InputHalf(image_size=640, geometry="stretch", max_tokens=20),
        score=ScoreHalf(scored_at=(640, 640)),
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
