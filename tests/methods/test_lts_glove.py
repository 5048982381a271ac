"""GloVe files: the vectors of the vocabulary, and the line of a defect."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from risbench.errors import InputError

glove = importlib.import_module("risbench.methods.lts.glove")


def test_glove_vectors_are_read_for_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text("red 1 2\nof 3 4\ncup -1 0.5\n", encoding="utf-8")
    vectors = glove.read_vectors(tmp_path / "glove.txt", ["cup", "red", "hat"], width=2)
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"red": [1, 2], "cup": [-1, 0.5]}


@pytest.mark.parametrize(
    ("content", "words"), [("red 1 2 3\n", "line 1: 'red' has 3 numbers"), ("cup 1 2\nred x y\n", "line 2")]
)
def test_a_wrong_glove_file_names_the_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "glove.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        glove.read_vectors(tmp_path / "glove.txt", ["red", "cup"], width=2)


def test_a_missing_glove_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no GloVe file at .*none.txt"):
        glove.read_vectors(tmp_path / "none.txt", ["red"], width=2)


def test_a_folder_is_no_glove_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no GloVe text file"):
        glove.read_vectors(tmp_path, ["red"], width=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!doctype html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive. Unpack it and give the file in it"),
        (b"", "is empty"),
        (b"hat 1 2\n", "has vectors for 0 of the 2 words .*, fewer than 50%.* Give a GloVe .txt as model.glove"),
        (b"red nan 2\n", "line 1: 'red' has numbers that are not finite"),
        (b"red 1 1e400\n", "line 1: 'red' has numbers that are not finite"),
        (b"red 1 1e39\n", "line 1: 'red' has numbers that are not finite"),
        (b"1 " * 2**16, "has a line of more than 65,536 characters"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "glove.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"glove.txt.*{words}"):
        glove.read_vectors(tmp_path / "glove.txt", ["red", "cup"], width=2)


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(32 * 2**30 + 1)
    for path, words in (
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / "pipe", "a device or a pipe"),
        (tmp_path / "large", "at most 34,359,738,368 are read"),
    ):
        with pytest.raises(InputError, match=words):
            glove.read_vectors(path, ["red"], width=2)


def test_a_file_with_vectors_for_less_than_half_of_the_words_is_refused(tmp_path: Path) -> None:
    words = ["red", "cup", "left", "right"]
    (tmp_path / "glove.txt").write_text("red 1 2\nrouge 1 2\ntasse 3 4\n", encoding="utf-8")
    with pytest.raises(InputError, match="has vectors for 1 of the 4 words of the expressions, fewer than 50%: it"):
        glove.read_vectors(tmp_path / "glove.txt", words, width=2)
    assert len(glove.read_vectors(tmp_path / "glove.txt", words[:2], width=2)) == 1
    table = glove.random_vectors(2 + 2, 2)
    loaded = glove.load_glove(table, words[:2], str(tmp_path / "glove.txt"))
    assert loaded.detail == "for 1 of 2 words" and len(loaded.sha256) == 64 and loaded.training_data is None
