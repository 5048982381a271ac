from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from risbench import methods, recipe
from risbench.errors import InputError

LTS = methods.folder("lts") / "recipe.toml"
TINY = recipe.load(LTS, ["tiny"])[0]


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


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), _FLOATS, _TEXT)
_LISTS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(_FLOATS), st.lists(_TEXT))


@given(st.dictionaries(_TEXT, st.one_of(_VALUES, _LISTS)), st.lists(_TEXT, unique=True), _TEXT)
def test_any_values_read_back_the_same(model: dict[str, Any], names: list[str], text: str) -> None:
    tables = {**TINY.model_dump(), "model": {**TINY.model, **model, "glove": text}}
    tables["train"] = {**tables["train"], "pretraining": names, "datasets": names}
    changed = recipe.validate(tables, "here")
    assert recipe.validate(tomllib.loads(recipe.dumps(changed)), "copy") == changed


@pytest.mark.parametrize("text", ["a\x01b", "\x7f", "\u2028", "a\tb\n", "'\"\\", "\x85"])
def test_an_override_with_odd_characters_reads_back_the_same(text: str) -> None:
    lts, _ = recipe.load(LTS, [], [f"model.glove=begin{text}end"])
    assert lts.model["glove"] == f"begin{text}end"
    assert recipe.validate(tomllib.loads(recipe.dumps(lts)), "copy") == lts


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr=nan", "'train.lr=nan' is no finite number"),
        ("train.lr=-inf", "is no finite number"),
        ("train.lr=1e400", "is no finite number"),
        ("model.slope=inf", "is no finite number"),
        ("image.mean=[0.5, nan, 0.5]", "image.mean = nan is wrong"),
        ("image.std=[0.2, 0.0, 0.2]", "image.std = 0.0 is wrong"),
        ("model.aspp_rates=[1.0, inf]", "a list of finite numbers"),
        ("model.aspp_rates=[[1]]", "a list of finite numbers"),
        ("model.glove=a\udcff", "not text in UTF-8"),
        ("train.lr=0.1\n[model]\nfilters=2", "sets more than one key"),
        ("model.aspp_rates=" + "[" * 100_000, "nested too deeply"),
        ("train.epochs=" + "9" * 5_000, "cannot be read"),
        ("image.size=100000", "less than or equal to 4096"),
        ("train.batch_size=10000000", "less than or equal to 65536"),
        ("predict.images_per_batch=100000", "less than or equal to 4096"),
        ('train.datasets=["mini", "mini"]', "each name may stand once"),
        ("train.lr=" + "x" * 10_000, "must be a float"),
    ],
    ids=lambda text: text[:30].replace("\udcff", ""),
)
def test_a_value_out_of_range_is_refused_in_a_short_sentence(override: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        recipe.load(LTS, [], [override])
    assert words in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def test_a_wrong_value_is_blamed_on_what_set_it(tmp_path: Path) -> None:
    text = LTS.read_text(encoding="utf-8")
    file = tmp_path / "recipe.toml"
    file.write_text(f"{text}\n[variant.bad.train]\nlr = -1.0\n", encoding="utf-8")
    cases = {
        "^the override 'train.lr=-1': train.lr = -1.0 is wrong: Input should be greater than 0": ["train.lr=-1"],
        "^the override 'train.lr=-2': train.lr = -2.0": ["train.lr=-1", "train.lr=-2"],
        f"^variant 'bad' of {file}: train.lr = -1.0": ["train.epochs=3"],
    }
    for message, overrides in cases.items():
        with pytest.raises(InputError, match=message):
            recipe.load(file, ["bad"], overrides)
    file.write_text(text.replace("lr = 1e-3", "lr = -1.0"), encoding="utf-8")
    with pytest.raises(InputError, match=f"^{file}: train.lr = -1.0"):
        recipe.load(file, [], ["train.epochs=3"])


@pytest.mark.parametrize("tables", ["variant = 3", "[variant]\nx = 3", "[variant.x]\nmodel = 3"])
def test_variants_that_are_no_tables_are_one_sentence(tmp_path: Path, tables: str) -> None:
    (tmp_path / "recipe.toml").write_text(f"{tables}\n{LTS.read_text(encoding='utf-8').partition('[variant')[0]}")
    with pytest.raises(InputError, match="variant"):
        recipe.load(tmp_path / "recipe.toml")


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
        (["train.epochs=-1"], "greater than or equal to 0"),
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


def test_the_former_key_names_the_one_in_its_place(tmp_path: Path) -> None:
    text = LTS.read_text(encoding="utf-8") + "\n[variant.old.train]\naccumulate = 4\n"
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    cases: dict[str, tuple[list[str], list[str]]] = {
        "^the override 'train.accumulate=4' sets train.accumulate, .*: set train.micro_batch": (
            [],
            ["train.accumulate=4"],
        ),
        "^variant 'old' of .* sets train.accumulate, .*: set train.micro_batch": (["old"], []),
    }
    for message, (variants, overrides) in cases.items():
        with pytest.raises(InputError, match=message):
            recipe.load(tmp_path / "recipe.toml", variants, overrides)
    assert recipe.load(tmp_path / "recipe.toml", [], ["train.micro_batch=4"])[0].train.micro_batch == 4


def former_recipe(folder: Path, batch_size: object, accumulate: object) -> Path:
    """Write a recipe from before 0.3."""
    train = {**TINY.train.model_dump(), "batch_size": batch_size, "accumulate": accumulate}
    new = ("micro_batch", "flip", "rates", "ema", "matmul")
    tables = {**TINY.model_dump(), "train": {key: value for key, value in train.items() if key not in new}}
    (folder / "recipe.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    return folder / "recipe.toml"


@pytest.mark.parametrize(("batch_size", "accumulate", "micro_batch"), [(32, 1, 32), (32, 4, 8), (18, 4, 4), (1, 2, 1)])
def test_a_former_recipe_is_read_with_the_micro_batches_it_had(
    tmp_path: Path, batch_size: int, accumulate: int, micro_batch: int
) -> None:
    file = former_recipe(tmp_path, batch_size, accumulate)
    settings = recipe.validate(recipe.read(file), "here")
    assert settings == recipe.load(file)[0]
    assert (settings.train.batch_size, settings.train.micro_batch) == (batch_size, micro_batch)
    assert recipe.load(file, [], ["train.micro_batch=2"])[0].train.micro_batch == 2


@pytest.mark.parametrize(("batch_size", "accumulate"), [(32, 0), (32, -1), (32, "4"), (32, True), ("32", 4), (32, 1.5)])
def test_a_damaged_former_recipe_is_one_sentence(tmp_path: Path, batch_size: object, accumulate: object) -> None:
    file = former_recipe(tmp_path, batch_size, accumulate)
    for read in (lambda: recipe.load(file), lambda: recipe.validate(recipe.read(file), str(file))):
        with pytest.raises(InputError, match="train"):
            read()


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


@pytest.mark.parametrize(
    "override", ["train.flip=0.5", "train.ema=0.9", 'train.matmul="high"', "train.rates={a = 2.0}"]
)
def test_keys_that_a_former_recipe_lacks_may_be_set(tmp_path: Path, override: str) -> None:
    file = former_recipe(tmp_path, 32, 1)
    key = override.partition("=")[0].removeprefix("train.")
    assert getattr(recipe.load(file, [], [override])[0].train, key) != getattr(recipe.load(file)[0].train, key)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.rates=0.1", r"must be a dict like \{\"network.text.\" = 0.1\}"),
        ("train.rates={network.text=0.1}", r"rates\[\"network\"\] = \{'text': 0.1\} is wrong: .* the prefix in quotes"),
        ('train.rates={"network." = 0}', r"rates\[\"network.\"\] = 0 is wrong: .* greater than 0"),
        ("train.pretraining=COCO", r"must be a list like \[\"COCO\"\]"),
    ],
)
def test_a_wrong_list_or_mapping_is_shown_how_it_is_written(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe.load(LTS, [], [override])
