"""Which settings of a run count as overridden: never what its data set's card decided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from risbench import methods, recipe
from risbench.scoring.record import Record
from risbench.tables.measured import overridden_settings


def run(dataset: str, max_tokens: int, **train: object) -> Record:
    """A record of LTS with as many tokens, by default of training on that data set alone."""
    settings = recipe.load(methods.recipe_file("lts"), ["tiny"], [])[0].model_dump()
    assert settings["text"]["max_tokens"] == 0  # left to the card
    settings["text"]["max_tokens"] = max_tokens
    settings["train"].update(train)
    return Record.model_construct(method="lts", variants=["tiny"], dataset=dataset, recipe=settings)


def test_max_words_of_a_built_in_card_are_no_override() -> None:
    assert overridden_settings(run("refcoco", 15)) == []
    assert overridden_settings(run("refcoco", 14)) == ["text.max_tokens=14"]


def test_max_words_of_a_card_that_is_not_at_hand_are_no_override() -> None:
    assert overridden_settings(run("own", 7)) == []
    assert overridden_settings(run("refcoco", 40, datasets=["long.toml"])) == ["train.datasets=['long.toml']"]


def test_a_card_in_a_named_folder_decides_exactly(
    small_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(
        small_card.read_text().replace('name = "small"', 'name = "own"').replace("max_words = 15", "max_words = 7")
    )
    monkeypatch.setenv("RISBENCH_DATASETS", os.fspath(tmp_path))
    assert overridden_settings(run("own", 7)) == []
    assert overridden_settings(run("own", 8)) == ["text.max_tokens=8"]


def test_what_pretrained_weights_were_trained_on_is_no_setting() -> None:
    """Records before 0.3 hold what their recipe declared of names that now say it themselves."""
    assert overridden_settings(run("refcoco", 15, pretraining=["ImageNet-22k", "BookCorpus"])) == []
