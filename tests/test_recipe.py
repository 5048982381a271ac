from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from risbench import methods, recipe
from risbench.errors import InputError

LTS = methods.folder("lts") / "recipe.toml"


def test_variants_compose_left_to_right_and_overrides_come_last(tmp_path: Path) -> None:
    text = LTS.read_text(encoding="utf-8") + "\n[variant.wide.model]\nfusion_channels = 96\nword_width = 8\n"
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")

    wide, applied = recipe.load(tmp_path / "recipe.toml", ["tiny", "wide"], ["model.word_width=9"])
    tiny, _ = recipe.load(tmp_path / "recipe.toml", ["wide", "tiny"])

    assert applied == ["tiny", "wide"]
    assert wide.model["fusion_channels"] == 96 and wide.model["word_width"] == 9
    assert tiny.model["fusion_channels"] != 96


def test_the_default_variant_comes_first_unless_full_is_among_the_variants() -> None:
    assert recipe.load(LTS, [], default_variant="tiny")[1] == ["tiny"]
    assert recipe.load(LTS, ["full"], default_variant="tiny")[1] == []
    assert recipe.load(LTS, ["full"], default_variant="tiny")[0].image.size == 416


def test_the_papers_settings_are_the_defaults() -> None:
    lts, _ = recipe.load(LTS)
    assert (lts.train.optimizer, lts.train.lr, lts.train.batch_size, lts.train.epochs) == ("adam", 1e-3, 18, 45)
    assert (lts.train.milestones, lts.train.decay, lts.predict.threshold) == ([30], 0.1, 0.25)


def test_a_written_recipe_reads_back_the_same() -> None:
    lts, _ = recipe.load(LTS, ["tiny"], ['model.glove=a "quoted" \\ path'])
    assert recipe.validate(tomllib.loads(recipe.dumps(lts)), "copy") == lts


def test_a_value_that_is_not_toml_is_a_string() -> None:
    lts, _ = recipe.load(LTS, [], ["model.glove=/somewhere/glove.6B.300d.txt", "train.lr=3e-5", "text.field=raw"])
    assert lts.model["glove"] == "/somewhere/glove.6B.300d.txt"
    assert lts.train.lr == 3e-5
    assert lts.text.field == "raw"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epoch=3"], "Did you mean 'train.epochs'"),
        (["trian.epochs=3"], "Did you mean 'train'"),
        (["model.fusion_width=3"], "model.fusion_channels"),
        (["train.epochs=many"], "'many'"),
        (["train.epochs=1.5"], "1.5"),
        (["train.epochs=0"], "greater than 0"),
        (["text.max_tokens=513"], "text.max_tokens = 513"),
        (["image.border=256"], "image.border = 256 is wrong: Input should be less than or equal to 255"),
        (["epochs=3"], "section.key=value"),
        (["train.optimizer=sgd"], "'adam'"),
    ],
)
def test_a_wrong_override_is_one_sentence_that_names_it(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        recipe.load(LTS, [], overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_variant_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="Did you mean 'tiny'"):
        recipe.load(LTS, ["tiney"])


def test_a_recipe_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"# \xff")
    with pytest.raises(InputError, match="recipe.toml is not valid TOML"):
        recipe.read(tmp_path / "recipe.toml")


class ModelSettings(recipe.Section):
    """The [model] of some method."""

    width: recipe.PositiveInt
    rates: list[int]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 0, "rates": [1]}, "model.width = 0 is wrong"),
        ({"width": 1, "rates": [1, "two"]}, "model.rates.1 = 'two' is wrong"),
        ({"width": 1}, "model.rates is missing"),
        ({"width": 1, "rates": [], "widht": 1}, "'model.widht'. Did you mean 'model.width'"),
    ],
)
def test_a_section_of_a_method_is_checked_against_its_own_schema(values: dict[str, Any], words: str) -> None:
    assert recipe.validate_section(ModelSettings, {"width": 1, "rates": [2]}, "model").width == 1
    with pytest.raises(InputError) as error:
        recipe.validate_section(ModelSettings, values, "model")
    assert words in str(error.value) and "\n" not in str(error.value)
