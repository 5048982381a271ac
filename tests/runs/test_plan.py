"""Plans: the commands that fill a table, their durations, and refused input."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from risbench import datasets, methods, recipe
from risbench.errors import InputError
from risbench.runs.job import Job, training_settings
from risbench.runs.plan import Plan, Step, make_plan
from risbench.scoring.record import Record

SEVEN = ["fusion", "filter", "fusion-filter", "fusion-seg", "filter-seg", "fusion-filter-seg", ""]


def record(*variants: str, **changes: Any) -> Record:
    values = {
        "method": "lts",
        "variants": ["tiny", *variants],
        "dataset": "mini",
        "split": "val",
        "protocol": "original",
        "seed": 0,
        "n": 1168,
        "metrics": {"oIoU": 40.0, "P@0.5": 30.0},
        "intervals": {},
        "card": "",
        "index": "a" * 64,
        "training_data": ["mini"],
        "recipe": {},
        "checkpoint": "one",
        "commit": "",
        "versions": {},
        "device": "cpu, 1 x 2 threads",
        "cost": {"training_seconds": 360.0, "expressions_per_second": 100.0},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record.model_validate({**values, **changes})


def on_mini(*variants: str, **changes: Any) -> list[Record]:
    return [record(*variants, split=split, **changes) for split in ("val", "testA", "testB")]


def options(step: Step) -> dict[str, str]:
    words = shlex.split(step.command)
    assert words[:2] == ["risbench", "run"]
    return dict(zip(words[2::2], words[3::2], strict=True))


def variants(made: Plan) -> list[str]:
    return [",".join(step.job.variants) for step in made.steps]


def test_an_empty_table_needs_every_row_with_every_seed() -> None:
    made = make_plan("lts-2", [], dataset="mini", seeds=(0, 1))
    assert variants(made) == SEVEN * 2
    assert [step.job.seed for step in made.steps] == [0] * 7 + [1] * 7
    assert options(made.steps[0]) == {
        "--method": "lts",
        "--dataset": "mini",
        "--variant": "fusion",
        "--split": "val,testA,testB",
        "--protocol": "original",
        "--seed": "0",
    }
    assert made.lines()[0] == "# lts-2 on mini: runs to do: 14, 14 of unknown duration; recorded already: 0."
    assert made.lines()[1:3] == ["# no similar run is recorded", made.steps[0].command]


def test_recorded_splits_and_seeds_are_left_out() -> None:
    records = [*on_mini("fusion"), record("filter"), *on_mini("fusion-seg", seed=1)]
    made = make_plan("lts-2", records, dataset="mini")
    assert variants(made) == SEVEN[1:] and made.recorded == 1
    assert made.steps[0].job.splits == ["testA", "testB"]
    assert "fusion-seg" not in variants(make_plan("lts-2", records, dataset="mini", seeds=(1,)))


@pytest.mark.parametrize(
    "change",
    [
        {"partial": True},
        {"control": "permuted"},
        {"protocol": "lavt-train"},
        {"seed": None},
        {"recipe": {"train": {"epochs": 3}}},
        {"dataset": "refcoco"},
        {"training_data": ["refcoco"]},
    ],
)
def test_a_record_that_fills_no_cell_does_not_count(change: dict[str, Any]) -> None:
    filled = [variant for name in SEVEN for variant in on_mini(*filter(None, [name]), **change)]
    assert variants(make_plan("lts-2", filled, dataset="mini")) == SEVEN


def test_a_zero_shot_record_counts_though_it_was_trained_on_no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("risbench.tables.filling.overridden_settings", lambda run: [])
    as_it_is: dict[str, Any] = {"recipe": {"train": {"epochs": 0}}}
    filled = on_mini("fusion", **as_it_is, training_data=["PhraseCut"])
    assert variants(make_plan("lts-2", filled, dataset="mini")) == SEVEN[1:]
    filled = on_mini("fusion", **as_it_is, training_data=["mini"])
    assert variants(make_plan("lts-2", filled, dataset="mini")) == SEVEN


def test_paths_of_weights_and_workers_do_not_change_the_row() -> None:
    recipe = {"model": {"glove": "glove.6B.300d.txt", "pretrained": True}, "train": {"workers": 9, "epochs": 9}}
    assert variants(make_plan("lts-2", on_mini("fusion", recipe=recipe), dataset="mini")) == SEVEN[1:]


def test_a_full_table_needs_nothing() -> None:
    made = make_plan("lts-2", [r for name in SEVEN for r in on_mini(*filter(None, [name]))], dataset="mini")
    assert made.lines() == ["# lts-2 on mini: nothing to do; recorded already: 7."]


def test_the_default_protocol_is_the_source_s_or_original() -> None:
    def protocols(name: str, dataset: str | None, **more: Any) -> set[str]:
        return {step.job.protocols[0] for step in make_plan(name, [], dataset=dataset, **more).steps}

    assert protocols("lts-2", "refcoco") == {"lts"} and protocols("lavt", "refcoco+") == {"lavt"}
    assert protocols("coupalign-supplement-3", None) == {"original"} and protocols("lavt", "mini") == {"original"}
    assert protocols("lts-2", "refcoco", protocol_name="original") == {"original"}
    filled = on_mini(protocol="lts")
    assert "" in variants(make_plan("lts-2", filled, dataset="mini"))
    assert "" not in variants(make_plan("lts-2", filled, dataset="mini", protocol_name="lts"))


def test_without_a_data_set_the_papers_own_are_planned() -> None:
    made = make_plan("lts-4", [])
    assert [(step.job.dataset, step.job.variants) for step in made.steps[:3]] == [
        ("refcoco", []),
        ("refcoco+", []),
        ("refcocog", []),
    ]


def test_a_missing_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [name for name in methods.names() if name != "magnet"]
    monkeypatch.setattr(methods, "names", lambda: known)
    made = make_plan("leaders", [], dataset="refcoco")
    assert {step.job.method for step in made.steps} == {"lts", "lavt", "coupalign"}
    assert made.notes == ("Not in risbench yet, so not planned: magnet.",)


def test_durations_come_from_similar_runs() -> None:
    def minutes(*records: Record, dataset: str = "mini") -> list[str]:
        return [line for line in make_plan("lts-4", records, dataset=dataset).lines() if line.startswith("# ")][1:]

    here = "cpu, 1 x 2 threads"
    other = record("fusion", cost={"training_seconds": 600.0, "expressions_per_second": 1000.0})
    assert minutes(other) == [f"# 10 min, as its other variants took: {here}"] * 2
    own = record("transformer", split="testA", seed=5, cost={"training_seconds": 360.0, "expressions_per_second": 10.0})
    assert minutes(other, own)[1] == f"# 8 min, as recorded: {here}"  # 360 s, and 1,168 expressions at 10/s
    assert minutes(record("fusion", cost={})) == ["# no similar run is recorded"] * 2
    full = record(dataset="refcoco", variants=[], cost={"training_seconds": 36000.0, "expressions_per_second": 100.0})
    assert (
        minutes(other, dataset="refcoco") == ["# no similar run is recorded"] * 2
    )  # tiny does not tell the time of the full size
    assert minutes(full, dataset="refcoco+")[0] == f"# 10.0 h, as recorded on refcoco: {here}"  # 120,191 for 120,624
    total = make_plan("lts-4", [other], dataset="mini").lines()[0]
    assert total == "# lts-4 on mini: runs to do: 2, about 20 min; recorded already: 0."


def test_a_trained_run_takes_the_time_of_its_evaluation(tmp_path: Path) -> None:
    job = Job(method="lts", dataset="mini", seed=0, splits=["val"])
    (tmp_path / "one" / "checkpoints" / "last").mkdir(parents=True)
    job.write(tmp_path / "one")
    settings = training_settings(job)[0]
    (tmp_path / "one" / "recipe.toml").write_text(recipe.dumps(settings))
    file = tmp_path / "one" / "checkpoints" / "last" / "checkpoint.json"
    file.write_text(json.dumps({"epoch": settings.train.epochs}))
    slow = record(split="val", cost={"training_seconds": 3600.0, "expressions_per_second": 1.0})
    comments = [
        line for line in make_plan("lts-2", [slow], dataset="mini", runs=tmp_path).lines() if line.startswith("# ")
    ]
    counts = [count.n for split in ("testA", "testB") if (count := datasets.load("mini").splits[split].expressions)]
    assert (
        comments[-1] == f"# trained already: {sum(counts) / 60:.0f} min, as recorded: cpu, 1 x 2 threads"
    )  # one per second
    assert not any("trained" in line for line in comments[:-1]) and all(
        line.startswith("# 1.") for line in comments[1:-1]
    )
    other_seed = make_plan("lts-2", [slow], dataset="mini", seeds=[1], runs=tmp_path).lines()
    assert not any("trained" in line for line in other_seed)
    lines = make_plan("lts-2", [], dataset="mini", runs=tmp_path).lines()
    assert [line for line in lines if "trained" in line] == ["# trained already: no similar run is recorded"]


def test_overrides_stand_in_every_command_and_do_not_change_the_row() -> None:
    made = make_plan(
        "lts-4", [], dataset="refcoco", data_root="my data", overrides=["model.glove=a b.txt", "train.workers=2"]
    )
    assert made.steps[1].command.endswith("--seed 0 --data-root 'my data' 'model.glove=a b.txt' train.workers=2")
    with pytest.raises(InputError, match="train.epochs=3 would change the network or its training"):
        make_plan("lts-4", [], dataset="refcoco", overrides=["train.epochs=3"])
    for change in ("train.epochs=45", "text.max_tokens=3"):  # the first is what the recipe says of the full network
        with pytest.raises(InputError, match="would change the network or its training"):
            make_plan("lts-2", [], dataset="mini", overrides=[change])
    with pytest.raises(InputError, match="Unknown recipe key 'train.epoch'"):
        make_plan("lts-4", [], dataset="refcoco", overrides=["train.epoch=3"])


def test_a_partial_copy_and_its_images_stand_in_every_command_and_its_records_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "mini").mkdir(parents=True)
    records = on_mini("fusion", partial=True)
    made = make_plan("lts-2", records, dataset="mini", data_root="d", images="my images", partial=True)
    assert variants(made) == SEVEN[1:] and made.recorded == 1
    assert all(step.command.endswith("--data-root d --images 'my images' --partial") for step in made.steps)
    assert (
        "# Of an incomplete copy: its numbers fill no cell of the table; `risbench table` shows them." in made.lines()
    )
    assert variants(make_plan("lts-2", on_mini("fusion"), dataset="mini", partial=True)) == SEVEN


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(InputError, match="Unknown paper's table 'comparison'. .*lts-1.*leaders"):
        make_plan("comparison", [])
    with pytest.raises(InputError, match="Unknown data set 'minni'. Known: .*mini"):
        make_plan("lts-2", [], dataset="minni")
    with pytest.raises(InputError, match="lavt-train is for following a training"):
        make_plan("lts-2", [], dataset="mini", protocol_name="lavt-train")
    with pytest.raises(InputError, match="Unknown protocol 'lt'"):
        make_plan("lts-2", [], dataset="mini", protocol_name="lt")
