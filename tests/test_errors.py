"""What an error for an unknown name proposes: equal letters first, several, and never another set of data."""

from __future__ import annotations

import pytest

from risbench.errors import unknown

SPLITS = ("train", "val", "testA", "testB", "testC")


def guess(what: str, name: str, known: tuple[str, ...]) -> str:
    """Return what the message proposes."""
    message = str(unknown(what, name, known))
    assert message.endswith(f"Known: {', '.join(known)}.")
    return message.partition("Did you mean ")[2].partition("?")[0]


@pytest.mark.parametrize("name", ["testa", "TESTA", "test_a", "test-A", "Test A"])
def test_a_name_of_equal_letters_is_proposed_alone(name: str) -> None:
    assert guess("split of refcoco", name, SPLITS) == "'testA'"


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("split of refcoco", "tests"),
        ("split of refcoco", "test"),
        ("split in a.p:", "testD"),
        ("split", "vall"),
        ("data set", "testD"),
    ],
)
def test_another_set_of_data_is_never_proposed(what: str, name: str) -> None:
    assert guess(what, name, SPLITS) == ""


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("RefCOCO", "'refcoco'"),
        ("RefCOCO+", "'refcoco+'"),
        ("refcocog_google", "'refcocog-google'"),
        ("refcoc", ""),
        ("refclef", ""),
    ],
)
def test_data_sets_differ_by_their_plus(name: str, proposed: str) -> None:
    assert guess("data set", name, ("refcoco", "refcoco+", "refcocog", "refcocog-google")) == proposed


def test_several_similar_names_are_proposed() -> None:
    protocols = ("original", "lavt", "lavt-train", "lavt-treino", "magnet")
    assert guess("protocol", "lavt-trein", protocols) == "'lavt-treino' or 'lavt-train'"
    assert guess("protocol", "orignal", protocols) == "'original'"
    assert guess("protocol", "LAVT", protocols) == "'lavt'"
    assert guess("recipe key", "train.epoch", ("train.lr", "train.epochs")) == "'train.epochs'"
    assert guess("recipe key", "zzz", ("train.lr", "train.epochs")) == ""
