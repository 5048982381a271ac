"""The no-target rule from files to tables: against a naive evaluation over pixels, and through the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import risbench
from risbench.analysis.compare_tables import compare_tables
from risbench.analysis.explain import KNOBS
from risbench.analysis.run_rows import RunOptions
from risbench.analysis.sides import open_sides
from risbench.data import rle
from risbench.data.index import Index
from risbench.errors import InputError
from risbench.scoring import formats, metrics, predictions_file, protocol, references, statistics
from risbench.scoring.metrics import Sums
from risbench.scoring.predictions import Predictions
from risbench.scoring.score import score_predictions, score_rows, score_under_all_protocols

RULE = protocol.load("grefcoco")
WITH_RULE = ["grefcoco", "gsva"]
Case = tuple[NDArray[np.bool_], NDArray[np.bool_], bool, bool]  # mask, truth, no target, no-target prediction
RunCommand = Callable[..., tuple[int, str, str]]


def naive(cases: list[Case]) -> dict[str, float | None]:
    """The counting of ReLA's refer_evaluation.py, a pixel and an expression at a time."""
    scores, overlap, whole, reached = [], 0, 0, {0.7: 0, 0.8: 0, 0.9: 0}
    seen = {"TP": 0, "FN": 0, "TN": 0, "FP": 0}
    for mask, truth, no_target, predicted_none in cases:
        i = u = 0
        for row in range(mask.shape[0]):
            for column in range(mask.shape[1]):
                i += int(mask[row, column] and truth[row, column])
                u += int(mask[row, column] or truth[row, column])
        if no_target and predicted_none:
            seen["TP"] += 1
            scores.append(1.0)
            continue
        if no_target:
            seen["FN"] += 1
            scores.append(0.0)
            whole += u
            continue
        seen["FP" if predicted_none else "TN"] += 1
        i = 0 if predicted_none else i
        score = i / u if u else 0.0
        scores.append(score)
        overlap, whole = overlap + i, whole + u
        for bar in reached:
            reached[bar] += score >= bar
    with_target, without_target = seen["TN"] + seen["FP"], seen["TP"] + seen["FN"]
    precision = {f"P@{bar}": 100 * n / with_target if with_target else None for bar, n in reached.items()}
    return {
        **precision,
        "gIoU": 100 * sum(scores) / len(scores),
        "cIoU": 100 * overlap / whole if whole else 100 * sum(scores) / len(scores),
        "N-acc": 100 * seen["TP"] / without_target if without_target else None,
        "T-acc": 100 * seen["TN"] / with_target if with_target else None,
    }


def cases(seed: int, number: int = 40) -> list[Case]:
    """Random predictions for random truths of all four kinds; some are nearly right, some empty masks."""
    draw = np.random.default_rng(seed)
    cases = []
    for place in range(number):
        no_target, predicted_none = bool(place % 2), bool(place // 2 % 2)
        truth = np.zeros((6, 5), bool) if no_target else draw.random((6, 5)) < 0.5
        flipped = draw.random((6, 5)) < draw.choice([0.02, 0.1, 0.5])
        mask = np.zeros((6, 5), bool) if draw.random() < 0.2 else truth ^ flipped
        cases.append((mask, truth, no_target, predicted_none))
    return cases


def table(some: list[Case]) -> pd.DataFrame:
    counts = [metrics.count_pixels(rle.encode(mask), rle.encode(truth), (6, 5), (1, 1)) for mask, truth, _, _ in some]
    frame = pd.DataFrame(counts, columns=list(metrics.MaskCounts._fields))
    return frame.assign(no_target=[int(case[2]) for case in some], said_no_target=[int(case[3]) for case in some])


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_a_naive_evaluation_over_pixels(seed: int) -> None:
    some = cases(seed)
    values = metrics.compute(Sums.from_rows(table(some), RULE.score))
    for name, expected in naive(some).items():
        assert values[name] == pytest.approx(expected, rel=1e-12), name
    assert all(values[name] is None for name in ("oIoU", "mIoU", "P@0.5", "P@0.6"))


@pytest.mark.parametrize("kind", [(False, False), (False, True), (True, False), (True, True)])
def test_each_kind_of_prediction_alone_agrees_with_a_naive_evaluation(kind: tuple[bool, bool]) -> None:
    some = [case for case in cases(7) if case[2:] == kind]
    values = metrics.compute(Sums.from_rows(table(some), RULE.score))
    for name, expected in naive(some).items():
        assert values[name] == (None if expected is None else pytest.approx(expected, rel=1e-12)), name


def test_sums_of_parts_merge_to_the_whole() -> None:
    rows = table(cases(3))
    parts = [Sums.from_rows(rows[place::3], RULE.score) for place in range(3)]
    whole = Sums.from_rows(rows, RULE.score)
    assert parts[2] + parts[0] + parts[1] == sum(parts, Sums()) == whole
    assert metrics.compute(parts[1] + parts[2] + parts[0]) == metrics.compute(whole)
    assert tuple(metrics.compute(whole)) == metrics.names(RULE.score)


def test_a_wrong_no_target_prediction_keeps_the_pixels_of_its_mask_in_the_union() -> None:
    mask, truth = np.zeros((6, 5), bool), np.zeros((6, 5), bool)
    mask[:2], truth[1:3] = True, True
    values = metrics.compute(
        Sums.from_rows(table([(mask, truth, False, True), (truth, truth, False, False)]), RULE.score)
    )
    assert (values["gIoU"], values["cIoU"], values["T-acc"]) == (50, 100 * 10 / 25, 50)


def test_pointing_and_boundaries_are_over_expressions_with_a_target() -> None:
    rows = table(cases(3)[:8]).assign(peak_hit=1, boundary_intersection=1, boundary_union=2)
    values = metrics.compute(Sums.from_rows(rows, RULE.score))
    # every second expression with a target has a no-target prediction
    assert (values["pointing"], values["boundary IoU"]) == (50, 25)


def test_every_metric_with_a_value_has_an_interval_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MIN_IMAGES", 2)
    rows = table(cases(1)).assign(image_id=np.arange(40) // 3)
    values, intervals = (
        metrics.compute(Sums.from_rows(rows, RULE.score)),
        statistics.intervals(rows, RULE, resamples=200),
    )
    assert set(intervals) == {name for name, value in values.items() if value is not None}
    assert all(intervals[name][0] <= (values[name] or 0) <= intervals[name][1] for name in intervals)


# files


def perfect(index: Index, split: str = "val") -> Predictions:
    expressions = index.split(split)
    sizes = list(zip(expressions.height.tolist(), expressions.width.tolist(), strict=True))
    counts = [index.ground_truth(target, "union") for target in expressions.ann_id.tolist()]
    return Predictions.build(None, expressions.sent_id.tolist(), sizes, counts, [None] * len(expressions))


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
def test_perfect_predictions_score_one_hundred_everywhere(sets_index: Index, split: str) -> None:
    drawn = references.predict("oracle-480", sets_index, split, protocol=RULE)  # the truth at 480 x 480 itself
    summary = score_predictions(drawn, sets_index, split, RULE, boundaries=True).summary
    exact = ("gIoU", "cIoU", "N-acc", "T-acc", "P@0.7", "P@0.8", "P@0.9", "boundary IoU")
    assert {name: summary[name] for name in exact} == dict.fromkeys(exact, 100.0)
    assert summary["slices"]["targets"]["none"]["gIoU"] == summary["slices"]["targets"]["several"]["cIoU"] == 100
    assert summary["slices"]["targets"]["several"]["intervals"] == {}  # three images or one


def test_no_target_for_every_expression_has_full_n_acc_and_zero_t_acc(sets_index: Index) -> None:
    predictions = perfect(sets_index)
    sizes = zip(predictions.height.tolist(), predictions.width.tolist(), strict=True)
    empty = replace(predictions, counts=[rle.from_counts([height * width], (height, width)) for height, width in sizes])
    flagged = replace(predictions, no_target=np.ones(len(predictions), np.int8))
    for changed in (empty, flagged):
        summary = score_predictions(changed, sets_index, "val", RULE).summary
        assert (summary["N-acc"], summary["T-acc"], summary["cIoU"]) == (100, 0, 0)
        assert summary["gIoU"] == 100 * 1 / 4  # one of four expressions has no target


def test_a_no_target_flag_overrides_an_empty_mask(sets_index: Index) -> None:
    predictions = perfect(sets_index)  # one mask is empty
    target = replace(predictions, no_target=np.zeros(len(predictions), np.int8))
    assert score_predictions(target, sets_index, "val", RULE).summary["N-acc"] == 0
    unflagged = replace(predictions, no_target=np.full(len(predictions), -1, np.int8))
    assert score_predictions(unflagged, sets_index, "val", RULE).summary["N-acc"] == 100


def test_a_small_mask_that_is_lost_in_resizing_is_not_a_no_target_prediction(sets_index: Index) -> None:
    small = protocol.load("grefcoco").model_copy(
        update={"score": RULE.score.model_copy(update={"scored_at": (2, 2)}), "input": protocol.load("original").input}
    )
    predictions = perfect(sets_index)
    pixel = [
        rle.encode(np.eye(1, h * w, dtype=bool).reshape(h, w))
        for h, w in zip(predictions.height, predictions.width, strict=True)
    ]
    rows = score_rows(replace(predictions, counts=pixel), sets_index, "val", small)
    assert not rows["predicted_area"].any() and not rows["said_no_target"].any()


@pytest.mark.parametrize("name", [name for name in protocol.names() if name not in WITH_RULE])
def test_other_protocols_refuse_expressions_without_a_target(sets_index: Index, name: str) -> None:
    match = r"1 of 4 expressions of sets val have no target, and the protocol .* give --protocol grefcoco"
    with pytest.raises(InputError, match=match):
        score_predictions(perfect(sets_index), sets_index, "val", protocol.load(name))


def test_all_protocols_are_those_that_have_a_rule(sets_index: Index) -> None:
    summaries, refused = score_under_all_protocols(perfect(sets_index), sets_index, "val")
    assert [summary["protocol"] for summary in summaries] == WITH_RULE
    assert set(refused) == {*protocol.names()} - {*WITH_RULE}


def test_refcoco_can_be_scored_by_the_rule_too(small_index: Index) -> None:
    predictions = references.predict("oracle-32", small_index, "testA")
    with_rule, without_rule = (
        score_predictions(predictions, small_index, "testA", protocol.load(name)).summary
        for name in ("grefcoco", "rela")
    )
    assert (with_rule["gIoU"], with_rule["cIoU"], with_rule["N-acc"]) == (
        without_rule["mIoU"],
        without_rule["oIoU"],
        None,
    )
    assert all(with_rule[f"P@0.{k}"] == without_rule[f"P@0.{k}"] for k in (7, 8, 9))


# commands


@pytest.fixture
def where(sets_root: Path) -> list[str]:
    return ["--dataset", str(sets_root / "sets.toml"), "--data-root", str(sets_root)]


SHORT = ["train.batch_size=4", "train.per_image=1", "train.schedule=step", "train.decay=0.1", "train.epochs=1"]
TINY = [*SHORT, "train.milestones=[]", "image.size=64"]


def test_a_method_trains_predicts_and_is_scored(
    run_command: RunCommand, where: list[str], sets_root: Path, tmp_path: Path
) -> None:
    run = ["run", "--method", "lts", *where, "--protocol", "grefcoco", "--seed", "0,1", "--json", *TINY]
    code, out, err = run_command(*run)
    assert code == 0, err
    records = json.loads(out)
    assert [(r["split"], r["protocol"], r["seed"]) for r in records[:3]] == [
        (split, "grefcoco", 0) for split in ("val", "testA", "testB")
    ]
    assert all(r["metrics"]["gIoU"] is not None and r["metrics"]["oIoU"] is None for r in records)
    folder = sorted((tmp_path / "runs").iterdir())[0]
    log = (folder / "log.jsonl").read_text()
    assert '"gIoU"' in log
    file = folder / "predictions" / "val-grefcoco.parquet"
    code, out, err = run_command("score", file, *where, "--split", "val", "--protocol", "grefcoco", "--json")
    summary = json.loads(out)
    recorded = json.loads((folder / "records" / "val-grefcoco.json").read_text())
    assert {name: summary[name] for name in metrics.NO_TARGET_METRICS} == {
        n: recorded["metrics"][n] for n in metrics.NO_TARGET_METRICS
    }
    assert recorded["slices"] == summary["slices"]
    assert not recorded["intervals"]  # of one image
    intervals = risbench.score(file, where[1], "val", "grefcoco", where[3])["intervals"]
    assert set(metrics.NO_TARGET_METRICS) < set(intervals) and set(intervals.values()) == {None}
    code, out, err = run_command("table", "--records", tmp_path / "runs", "--slices", "targets")
    assert code == 0 and all(text in out for text in ("gIoU", "T-acc", "gIoU by targets", "several")), err
    assert "oIoU by targets" not in out
    first, second = sorted((tmp_path / "runs").iterdir())
    code, out, err = run_command("compare", first, second, "--protocol", "grefcoco")
    assert code == 0 and "gIoU on sets val, protocol grefcoco" in out and "T-acc" in out, err
    assert "sets val" in compare_tables(open_sides([str(first), str(second)], RunOptions(protocol="grefcoco")))[0].title


@pytest.mark.parametrize("what", [("lts", *TINY), ("reference/whole-image",)])
def test_a_run_is_refused_before_any_work_under_a_protocol_without_the_rule(
    run_command: RunCommand, where: list[str], what: tuple[str, ...]
) -> None:
    code, _, err = run_command("run", *where, "--method", *what)
    assert code == 2 and "have no target" in err and "give --protocol grefcoco" in err and "--protocol" in err
    assert not Path("runs").exists()


def test_text_and_json_of_a_score_show_the_metrics_of_the_rule(
    run_command: RunCommand, where: list[str], sets_index: Index
) -> None:
    predictions_file.write(
        Path("val.parquet"), replace(perfect(sets_index), no_target=np.array([1, 0, -1, 0], np.int8))
    )
    code, out, err = run_command("score", "val.parquet", *where, "--split", "val", "--protocol", "grefcoco")
    assert code == 0 and "gIoU by targets" in out and "N-acc" in out and "oIoU" not in out, err
    code, out, _ = run_command("score", "val.parquet", *where, "--split", "val")
    assert code == 2 and not out
    code, out, err = run_command("score", "val.parquet", *where, "--split", "val", "--protocol", "all")
    assert code == 0 and "grefcoco" in out and "(resized)" in out and "T-acc" in out, err


def test_coco_results_keep_no_target_flags(run_command: RunCommand, where: list[str], sets_index: Index) -> None:
    predictions = replace(perfect(sets_index), no_target=np.array([1, 0, -1, 0], np.int8))
    predictions_file.write(Path("val.parquet"), predictions)
    assert run_command("export", "val.parquet", "--output", "val.json", *where, "--split", "val")[0] == 0
    assert [entry.get("no_target") for entry in json.loads(Path("val.json").read_text())] == [True, False, None, False]
    code, _, err = run_command("import", "val.json", "--output", "again.parquet", *where, "--split", "val")
    assert code == 0, err
    again = predictions_file.read(Path("again.parquet"))
    assert again.no_target is not None and again.no_target.tolist() == [1, 0, -1, 0]
    assert again.counts == predictions.counts


def test_numbers_with_and_without_the_rule_are_not_explained_by_each_other(
    run_command: RunCommand, where: list[str], sets_index: Index
) -> None:
    predictions_file.write(Path("val.parquet"), perfect(sets_index))
    code, _, err = run_command("explain", "val.parquet", "--protocol", "rela,grefcoco", *where, "--split", "val")
    assert code == 2 and "mIoU" not in err and "only one of the two has a rule for expressions without a target" in err
    assert "no_target" in KNOBS


def test_rows_without_the_columns_of_the_rule_are_refused(run_command: RunCommand, sets_index: Index) -> None:
    rows: Any = score_rows(perfect(sets_index), sets_index, "val", RULE)
    rows.drop(columns="said_no_target").to_parquet("val-grefcoco.parquet")
    code, _, err = run_command("compare", "val-grefcoco.parquet", "val-grefcoco.parquet")
    assert code == 2 and "does not have 0 or 1 as no_target, said_no_target, which 'grefcoco' needs" in err


@pytest.mark.parametrize("split_name", ["train", "val", "testA"])
def test_pycocotools_reads_and_evaluates_results_of_several_and_no_targets(
    sets_index: Index, sets_root: Path, tmp_path: Path, split_name: str
) -> None:
    split = sets_index.split(split_name)
    ids, sizes = split.ann_id.tolist(), list(zip(split.height.tolist(), split.width.tolist(), strict=True))
    masks = [sets_index.ground_truth(ann_id, "union") for ann_id in ids]
    perfect = Predictions.build(None, split.sent_id.tolist(), sizes, masks, [None] * len(ids))
    formats.write_coco(tmp_path / "a.json", perfect, sets_index, split_name)
    truth = COCO(sets_root / "sets" / "instances.json")
    results = truth.loadRes(str(tmp_path / "a.json"))
    members = [sets_index.members(ann_id) for ann_id in ids]
    assert {len(ann_ids) for ann_ids in members} >= {0, 2}
    categories = [ann_ids[0] % 10 if ann_ids else -1 for ann_ids in members]  # as tests/conftest.py numbers them
    assert [result["category_id"] for result in results.anns.values()] == categories
    for annotation in truth.anns.values():
        annotation["area"] = truth.annToMask(annotation).sum()  # which tests/conftest.py leaves out
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval["precision"].shape[2] == len(truth.getCatIds())
    assert formats.read(tmp_path / "a.json", split=split).counts == masks
