"""CLIP's byte pairs: what the library gives for a sentence, cut to whole sentences of a row, and stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from risbench.errors import InputError
from risbench.nn.byte_pairs import END, START, BytePairTokenizer

TEXTS = ["the RED box, left!", "", "  two   cups of the ", "größer 7", "<|endoftext|> x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of byte pairs as the library writes it, with some merges."""
    path = tmp_path_factory.mktemp("pairs")
    made = BytePairTokenizer.of_bytes(8, 8)
    letters = [piece for piece, _ in sorted(made._library.get_vocab().items(), key=lambda item: item[1])][:-2]
    merged: Any = [("t", "h"), ("th", "e</w>"), ("b", "o"), ("bo", "x</w>")]
    pieces = [*letters, *(left + right for left, right in merged), START, END]
    library = CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merged)
    library.save_pretrained(path)
    return path


def test_rows_are_the_library_s_with_0_behind_them(folder: Path) -> None:
    """Cut, too: then the library keeps the end as CLIP's own code does."""
    library = CLIPTokenizer.from_pretrained(folder)
    for length in (9, 30):
        expected = library(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids, mask = BytePairTokenizer.pretrained(folder, length, 77)(TEXTS)
        assert torch.equal(mask, expected["attention_mask"].bool())
        assert torch.equal(ids, expected["input_ids"] * expected["attention_mask"])


def test_merges_join_letters(folder: Path) -> None:
    pairs = BytePairTokenizer.pretrained(folder, 8, 77)
    assert pairs(["the box"]).ids[0].tolist() == [pairs.start, 513, 515, pairs.end, 0, 0, 0, 0]
    assert BytePairTokenizer.of_bytes(8, 77)(["the box"]).mask.all()  # start, six letters, end


def test_no_row_has_more_tokens_than_the_network_has_positions() -> None:
    pairs = BytePairTokenizer.of_bytes(32, positions=10).limited(40)
    ids, mask = pairs(["a very long sentence", "short"])
    assert ids.shape == (2, 40) and mask.sum(dim=1).tolist() == [10, 7]
    assert ids[0, 9] == ids[1, 6] == pairs.end and not ids[0, 10:].any()
    assert pairs.max_tokens == 40


def test_places_are_the_pieces_of_every_occurrence(folder: Path) -> None:
    pairs = BytePairTokenizer.pretrained(folder, 9, 77)
    assert pairs.places("the big box of the boy", "the") == [1]  # the second one is cut off
    assert pairs.limited(20).places("the big box of the boy", "The") == [1, 8]
    assert pairs.places("the big box", "big") == [2, 3, 4]
    with pytest.raises(InputError, match="'boy' is cut off"):
        pairs.places("the big box of the boy", "boy")
    with pytest.raises(InputError, match="holds no word 'cup'. Choose one of its words: the big box"):
        pairs.places("the big box", "cup")


def test_what_is_saved_is_loaded(folder: Path, tmp_path: Path) -> None:
    pairs = BytePairTokenizer.pretrained(folder, 9, 16)
    pairs.save(tmp_path)
    loaded = BytePairTokenizer.load(tmp_path)
    assert (loaded.max_tokens, loaded.positions, len(loaded)) == (9, 16, len(pairs))
    assert all(map(torch.equal, loaded(TEXTS), pairs(TEXTS)))


def test_a_vocabulary_of_two_files_is_read(folder: Path, tmp_path: Path) -> None:
    """As older models of the hub have it."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    pairs = BytePairTokenizer.pretrained(tmp_path, 12, 77)
    assert torch.equal(pairs(TEXTS).ids, BytePairTokenizer.pretrained(folder, 12, 77)(TEXTS).ids)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, r"holds no byte pairs: it lacks tokenizer.json \(or vocab.json and merges.txt\)"),
        ("tokenizer.json", "{", "cannot be read"),
        ("byte_pairs.json", None, "byte_pairs.json cannot be read"),
        ("byte_pairs.json", "[]", "byte_pairs.json cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    folder: Path, tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    BytePairTokenizer.pretrained(folder, 9, 16).save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        BytePairTokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_vocabulary_whose_end_is_not_the_last_is_refused(tmp_path: Path) -> None:
    """The network looks for the largest id."""
    pieces = [START, END, "a", "a</w>"]
    CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not have <.endoftext.> as their last, so they are not CLIP's"):
        BytePairTokenizer.pretrained(tmp_path, 9, 16)


def test_half_a_pair_of_surrogates_is_refused() -> None:
    with pytest.raises(InputError, match="is not Unicode text"):
        BytePairTokenizer.of_bytes(8, 8)(["\ud800"])
