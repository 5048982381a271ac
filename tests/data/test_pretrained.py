"""What pretrained weights were trained on: known by a name, declared, or unknown; and the prose of old records."""

from __future__ import annotations

from typing import Any

import pytest
import timm

from risbench.data import pretrained
from risbench.data.pretrained import Pretrained, bert_data, describe, from_scratch, timm_data, training_data
from risbench.errors import InputError

FILE = Pretrained(part="Darknet53", source="yolov3.weights", sha256="ab" * 32, hashed="file")
SWIN = Pretrained(part="Swin", source="timm swin_s3_base_224.ms_in1k", training_data=("ImageNet-1k",))
BERT = Pretrained(part="BERT", source="bert-base-uncased", training_data=("BookCorpus", "English Wikipedia"))
INITIAL = Pretrained(part="network", source="checkpoint 0123", training_data=("mini", "COCO"), pretrained=(SWIN,))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("swin_base_patch4_window12_384.ms_in22k", ("ImageNet-22k",)),
        ("swin_base_patch4_window12_384.ms_in22k_ft_in1k", ("ImageNet-22k", "ImageNet-1k")),
        ("resnet101.tv_in1k", ("ImageNet-1k",)),
        ("resnetv2_101.a1h_in1k", ("ImageNet-1k",)),
        ("resnetv2_50x1_bit.goog_in21k", ("ImageNet-22k",)),
        ("darknet53.c2ns_in1k", ("ImageNet-1k",)),
        ("resnet50.fb_ssl_yfcc100m_ft_in1k", None),
        ("resnet50_clip.openai", None),
        ("resnetv2_50x1_bit.goog_distilled_in1k", None),
        ("tf_efficientnet_b0.ns_jft_in1k", None),
        ("resnet101", None),
        ("resnet101.", None),
        ("resnet101.ms", None),
    ],
)
def test_a_tag_of_timm_says_which_data(name: str, data: tuple[str, ...] | None) -> None:
    assert timm_data(name) == data


def test_no_tag_with_other_data_than_imagenet_counts_as_imagenet_alone() -> None:
    tags = {name.partition(".")[2] for name in timm.list_models(pretrained=True)}
    known = {tag for tag in tags if timm_data(f"model.{tag}") is not None}
    others = (
        "yfcc",
        "ig1b",
        "jft",
        "laion",
        "openai",
        "coco",
        "webli",
        "lvd",
        "clip",
        "seer",
        "dist",
        "swag",
        "bamboo",
    )
    assert len(known) > 50 and not [tag for tag in known if any(word in tag for word in others)]


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-large-cased", "bert-large-uncased"])
def test_a_published_bert_says_which_data(name: str) -> None:
    assert bert_data(name) == ("BookCorpus", "English Wikipedia")


@pytest.mark.parametrize("name", ["bert-base-chinese", "me/bert-base-uncased", "bert-base-uncased-finetuned-mrpc", ""])
def test_another_bert_does_not(name: str) -> None:
    assert bert_data(name) is None


def test_the_training_data_of_all_parts_are_one_list() -> None:
    assert training_data([]) == [] == training_data([from_scratch("Swin")])
    assert training_data([SWIN, BERT]) == ["ImageNet-1k", "BookCorpus", "English Wikipedia"]
    assert training_data([FILE, BERT]) == ["unknown", "BookCorpus", "English Wikipedia"]
    assert training_data([INITIAL]) == ["mini", "COCO", "ImageNet-1k"]


def test_one_line_names_source_data_and_hash() -> None:
    assert describe([]) == describe([from_scratch("Swin"), from_scratch("BERT")]) == "from scratch"
    line = describe([FILE, from_scratch("word vectors")])
    assert line == "Darknet53 yolov3.weights (training data unknown; sha256 abababababab); word vectors from scratch"
    assert describe([INITIAL]).endswith("(mini, COCO; begun with Swin timm swin_s3_base_224.ms_in1k (ImageNet-1k))")


def test_weights_count_as_pretrained_by_what_was_loaded_and_not_by_words() -> None:
    random_init = Pretrained(part="Swin", source="random_init from scratch.pth")
    assert (
        pretrained.are_loaded([random_init])
        and pretrained.are_loaded([SWIN, BERT])
        and pretrained.are_loaded([INITIAL])
    )
    assert not pretrained.are_loaded([]) and not pretrained.are_loaded([SWIN, from_scratch("text")])
    begun_from_scratch = INITIAL.model_copy(update={"pretrained": (from_scratch("network"),)})
    assert not pretrained.are_loaded([begun_from_scratch])
    assert training_data([random_init]) == ["unknown"]


def test_a_declaration_fills_in_what_is_unknown_alone() -> None:
    assert pretrained.declare([FILE, BERT], []) == (FILE, BERT)
    assert pretrained.declare([FILE, BERT], ["Unknown"]) == (FILE, BERT)
    declared = pretrained.declare([FILE, BERT, from_scratch("words")], ["COCO", "RefCOCO+"])
    assert [one.training_data for one in declared] == [("COCO", "refcoco+"), BERT.training_data, ()]
    assert declared[0].sha256 == FILE.sha256


@pytest.mark.parametrize("loaded", [[], [from_scratch("Swin")], [SWIN, BERT], [INITIAL]])
def test_a_declaration_that_no_weights_need_is_refused(loaded: list[Pretrained]) -> None:
    with pytest.raises(InputError, match=r"train.pretraining=\['LVIS'\] declares .* Leave train.pretraining empty: "):
        pretrained.declare(loaded, ["LVIS"])
    with pytest.raises(InputError, match="train.pretraining holds an empty name"):
        pretrained.declare([FILE], [" "])


def test_a_declaration_that_says_what_is_known_is_no_contradiction() -> None:
    assert pretrained.declare([SWIN, BERT], ["ImageNet-1k"]) == (SWIN, BERT)
    assert pretrained.declare([INITIAL], ["COCO"]) == (INITIAL,)


@pytest.mark.parametrize("loaded", [None, "Swin", [None], {"part": "Swin"}])
def test_a_method_that_does_not_return_what_it_loaded_is_refused(loaded: object) -> None:
    assert pretrained.check([SWIN], "lts") == (SWIN,)
    with pytest.raises(InputError, match="load_pretrained of lts returns .*no list of risbench.api.Pretrained"):
        pretrained.check(loaded, "lts")


@pytest.mark.parametrize(
    ("prose", "parts"),
    [
        ("from scratch", []),
        ("none", []),
        ("Darknet53 from scratch; word vectors random", [("Darknet53", "", ()), ("word vectors", "", ())]),
        ("backbone from scratch; text from scratch", [("backbone", "", ()), ("text", "", ())]),
        (
            "Swin timm swin_base_patch4_window12_384.ms_in22k; BERT bert-base-uncased",
            [
                ("Swin", "timm swin_base_patch4_window12_384.ms_in22k", ("ImageNet-22k",)),
                ("BERT", "bert-base-uncased", ("BookCorpus", "English Wikipedia")),
            ],
        ),
        (
            "Darknet53 timm darknet53.c2ns_in1k (ImageNet-1k); word vectors random",
            [("Darknet53", "timm darknet53.c2ns_in1k", ("ImageNet-1k",)), ("word vectors", "", ())],
        ),
        (
            "Darknet53 yolov3.weights (darknet); word vectors random",
            [("Darknet53", "yolov3.weights (darknet)", None), ("word vectors", "", ())],
        ),
        ("Swin random_init.pth; BERT /folder", [("Swin", "random_init.pth", None), ("BERT", "/folder", None)]),
        ("CLIP of its authors", [("network", "CLIP of its authors", None)]),
        ("released lavt, lavt.pth sha256 0123456789ab", [("network", "lavt.pth", ("refcoco", "ImageNet-1k"))]),
    ],
)
def test_prose_of_old_records_becomes_data(prose: str, parts: list[tuple[str, str, Any]]) -> None:
    old = {"dataset": "refcoco", "training_data": ["refcoco", "ImageNet-1k"], "leaked": 0.0, "weights": prose}
    new = pretrained.upgraded(old)
    assert [(one.part, one.source, one.training_data) for one in new["pretrained"]] == parts
    is_unknown = any(data is None for *_, data in parts)
    assert new["training_data"] == ["refcoco", "ImageNet-1k"] + ["unknown"] * is_unknown
    assert new["leaked"] == (None if is_unknown else 0.0)
    assert "weights" not in new and old["weights"] == prose


def test_an_old_record_of_a_run_from_a_checkpoint_keeps_what_that_began_with() -> None:
    old = {
        "training_data": ["mini"],
        "weights": "checkpoint 0123456789ab (Darknet53 from scratch; word vectors random)",
    }
    (initial,) = pretrained.upgraded(old)["pretrained"]
    assert (initial.source, initial.training_data) == ("checkpoint 0123456789ab", ("mini",))
    assert not pretrained.are_loaded([initial])
    assert not pretrained.are_loaded(
        pretrained.upgraded({**old, "weights": "checkpoint 0123 (from scratch)"})["pretrained"]
    )


@pytest.mark.parametrize("others", [["COCO"], ["refcoco+"], ["LVIS"]])
def test_an_old_share_of_leaked_images_that_may_be_too_low_is_unknown(others: list[str]) -> None:
    old = {"dataset": "refcoco", "training_data": ["refcoco", *others], "leaked": 0.0, "weights": "from scratch"}
    assert pretrained.upgraded(old)["leaked"] is None
    assert pretrained.upgraded({**old, "pretrained": []})["leaked"] == 0.0


def test_a_declaration_reaches_what_a_checkpoint_had_begun_with() -> None:
    begun = Pretrained(
        part="network", source="checkpoint 1", training_data=("mini", "unknown"), pretrained=(FILE, BERT)
    )
    (declared,) = pretrained.declare([begun], ["COCO"])
    assert declared.training_data == ("mini", "COCO")
    assert [one.training_data for one in declared.pretrained] == [("COCO",), BERT.training_data]
    assert "unknown" not in training_data([declared]) and declared.source == begun.source
