from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from risbench.data import text
from risbench.data.text import WordTokenizer
from risbench.errors import InputError


def test_words_are_lower_case_without_punctuation() -> None:
    assert text.words("The man's RED hat, left-most (2nd)!") == ["the", "man's", "red", "hat", "left", "most", "2nd"]


def test_padding_is_zero_and_unknown_words_are_one() -> None:
    tokenizer = WordTokenizer.build(["red cup", "red hat"], max_tokens=4)
    words = tokenizer(["red dog", "hat"])
    assert tokenizer.vocabulary == ["red", "cup", "hat"]
    assert words.ids.tolist() == [[2, 1, 0, 0], [4, 0, 0, 0]]
    assert words.mask.tolist() == [[True, True, False, False], [True, False, False, False]]


def test_long_expressions_are_cut_and_empty_ones_have_one_unknown_word() -> None:
    tokenizer = WordTokenizer.build(["a b c d"], max_tokens=3)
    assert tokenizer(["a b c d", "?!"]).ids.tolist() == [[2, 3, 4], [1, 0, 0]]


def test_a_tokenizer_survives_pickling_and_a_checkpoint(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.build(["der große Hund", "le café"], max_tokens=5)
    tokenizer.save(tmp_path)
    for copy in (pickle.loads(pickle.dumps(tokenizer)), text.load(tmp_path)):
        assert torch.equal(copy(["große café x"]).ids, tokenizer(["große café x"]).ids)


def test_a_checkpoint_without_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no words.json"):
        text.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"vocabulary": 3, "max_tokens": 5}',
        '{"vocabulary": "red", "max_tokens": 5}',
        '{"vocabulary": ["red", 3], "max_tokens": 5}',
        '{"vocabulary": ["red"], "max_tokens": 0}',
        '{"vocabulary": ["red"], "max_tokens": "5"}',
    ],
)
def test_a_broken_vocabulary_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "words.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="words.json cannot be read"):
        text.load(tmp_path)


def test_glove_vectors_are_read_for_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("red 1 2\nof 3 4\ncup -1 0.5\n", encoding="utf-8")
    vectors = text.glove(tmp_path / "glove.txt", ["cup", "red", "hat"], width=2)
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"red": [1, 2], "cup": [-1, 0.5]}


@pytest.mark.parametrize(
    ("content", "words"), [("red 1 2 3\n", "line 1: 'red' has 3 numbers"), ("cup 1 2\nred x y\n", "line 2")]
)
def test_a_wrong_glove_file_names_the_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "glove.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        text.glove(tmp_path / "glove.txt", ["red", "cup"], width=2)


def test_a_missing_glove_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no GloVe file at .*none.txt"):
        text.glove(tmp_path / "none.txt", ["red"], width=2)


def test_a_folder_is_no_glove_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no GloVe text file"):
        text.glove(tmp_path, ["red"], width=2)
