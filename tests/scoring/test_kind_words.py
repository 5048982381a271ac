"""Kind words: expressions labelled by hand, and the lists themselves."""

from __future__ import annotations

import pytest

from risbench.scoring import kind_words
from risbench.scoring.kind_words import WORDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zebra", []),
        ("left", ["place"]),
        ("second lady from right", ["place", "ordinal"]),
        ("2nd guy", ["ordinal"]),
        ("two girls", []),
        ("Big RED bus!", ["colour", "size"]),
        ("the biggest thing, not the small square in the corner", ["place", "size", "negation"]),
        ("woman in front", ["place"]),
        ("man in front of the car", ["relation"]),
        ("zebra in front of us", ["place"]),
        ("closest to the camera", ["place"]),
        ("chair closest to the wall", ["relation"]),
        ("far left of the picture", ["place"]),
        ("suitcase to left of kid", ["relation"]),
        ("left cup right of the plate", ["place", "relation"]),
        ("cat on top of the tv", ["relation"]),
        ("top cat", ["place"]),
        ("boy between two girls", ["relation"]),
        ("man without hat", ["negation"]),
        ("the one that isn't blue", ["colour", "negation"]),
        ("the one that isn’t blue", ["colour", "negation"]),
        ("blackboard with a note", []),  # parts of words are no words
        ("white-haired/tall", ["colour", "size"]),
        ("", []),
    ],
)
def test_kinds_of_an_expression_are_those_assigned_by_hand(text: str, expected: list[str]) -> None:
    assert kind_words.kinds(text) == expected


def test_words_are_runs_of_letters_and_digits_without_apostrophes() -> None:
    assert kind_words.words(" The 2nd kid's  bat/ball...") == ["the", "2nd", "kids", "bat", "ball"]
    assert kind_words.words("...") == []


def test_a_phrase_stands_in_one_list_once_and_is_found_as_it_is_written() -> None:
    phrases = [phrase for listed in WORDS.values() for phrase in listed.split(", ")]
    assert len(set(phrases)) == len(phrases)
    for kind, listed in WORDS.items():
        for phrase in listed.split(", "):
            assert " ".join(kind_words.words(phrase)) == phrase
            assert kind in kind_words.kinds(f"cup {phrase} cup")


def test_lists_of_single_words_agree_with_a_search_word_by_word(real_expressions: list[str]) -> None:
    single = {kind: set(listed.split(", ")) for kind, listed in WORDS.items() if kind not in ("place", "relation")}
    for text in real_expressions:
        expected = [kind for kind, listed in single.items() if listed.intersection(text.split())]
        assert [kind for kind in kind_words.kinds(text) if kind in single] == expected, text
