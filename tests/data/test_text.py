from __future__ import annotations

import gzip
import importlib
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from risbench.data import text
from risbench.data.text import WordPieceTokenizer, WordTokenizer
from risbench.errors import InputError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "man", "cup", "red", "##dish", "cafe", "'", "s", ",", "\u2028"]
TRAINING = ["the red cup", "a cup of tea", "red-ish teacup, left", "der große Hund", "cups on the left"] * 3


def test_words_are_lower_case_without_punctuation() -> None:
    assert text.split_words("The man's RED hat, left-most (2nd)!") == [
        "the",
        "man's",
        "red",
        "hat",
        "left",
        "most",
        "2nd",
    ]


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


def test_a_copy_cuts_at_another_length_and_leaves_the_tokenizer_as_it_is() -> None:
    tokenizer = WordTokenizer.build(["a b c d"], max_tokens=3)
    assert tokenizer.limited(2)(["a b c d"]).ids.tolist() == [[2, 3]]
    assert tokenizer(["a b c d"]).ids.shape == (1, 3)


def test_word_pieces_stand_between_cls_and_sep_and_are_padded_with_zero() -> None:
    tokenizer = WordPieceTokenizer(PIECES, max_tokens=8)
    words = tokenizer(["The MAN's reddish café", "dog", "", "cup\u2028"])
    ids = [[2, 4, 5, 10, 11, 7, 8, 9], [2, 1, 3, 0, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0], [2, 6, 3, 0, 0, 0, 0, 0]]
    assert words.ids.tolist() == ids  # the first lost its [SEP]
    assert words.mask.tolist() == [[number > 0 for number in row] for row in ids]
    assert len(tokenizer) == len(PIECES)
    assert tokenizer.limited(3)(["the red cup"]).ids.tolist() == [[2, 4, 7]]


def test_the_places_of_a_word_are_those_of_all_its_occurrences() -> None:
    tokenizer = WordTokenizer.build(["red cup"], max_tokens=5)
    expression = "The red-ish CUP, not the Red man's"
    assert words_at(tokenizer, expression, "RED") == ([1], [3])  # the other one is cut off
    assert words_at(tokenizer, expression, "the")[0] == [0]  # unknown words have places too
    assert words_at(tokenizer, expression, "red-ish")[0] == [1, 2]
    assert words_at(tokenizer.limited(9), expression, "man's")[0] == [7]
    assert tokenizer.places("left left left", "left left") == [0, 1, 2]


def test_the_places_of_a_word_are_those_of_all_its_pieces() -> None:
    tokenizer = WordPieceTokenizer(PIECES, max_tokens=12)
    expression = "The MAN's reddish cafe\u0301, dog"  # [CLS] the man ' s red ##dish cafe , [UNK] [SEP]
    assert words_at(tokenizer, expression, "Reddish") == ([5, 6], [7, 8])
    assert words_at(tokenizer, expression, "man's") == ([2, 3, 4], [5, 10, 11])
    assert words_at(tokenizer, expression, "CAF\u00c9") == ([7], [9])
    assert words_at(tokenizer, "dog, cat", "cat") == ([3], [1])  # one of two words that are both [UNK]
    assert words_at(tokenizer, "cup, cup", "cup")[0] == [1, 3]
    assert tokenizer.limited(6).places(expression, "reddish") == [5]  # what is left of it


def words_at(tokenizer: WordTokenizer | WordPieceTokenizer, expression: str, word: str) -> tuple[list[int], list[int]]:
    """The places of a word, and what stands there in ids."""
    places = tokenizer.places(expression, word)
    return places, tokenizer([expression]).ids[0, places].tolist()


@pytest.mark.parametrize("tokenizer", [WordTokenizer(["red", "cup"], 4), WordPieceTokenizer(PIECES, 5)])
@pytest.mark.parametrize(
    ("expression", "word", "says"),
    [
        ("The RED cup", "hat", "no word 'hat'. Choose one of its words: the red cup."),
        ("the red cup", "re", "no word 're'"),
        ("the red cup", "", "no word ''"),
        ("the red cup", " ", "no word ' '"),
        ("the red cup", "[SEP]", "no word '[SEP]'"),
        ("the red cup", "red red", "no word 'red red'"),
        ("", "red", "Choose one of its words: none."),
        ("the the the the Cup", "cup", "'cup' is cut off: only the first"),
    ],
)
def test_a_word_that_is_not_read_is_refused(
    tokenizer: WordTokenizer | WordPieceTokenizer, expression: str, word: str, says: str
) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        tokenizer.places(expression, word)


def test_word_pieces_survive_pickling_and_a_checkpoint(tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(PIECES, max_tokens=7)
    tokenizer.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes().decode().split("\n") == [*PIECES, ""]
    for copy in (pickle.loads(pickle.dumps(tokenizer)), text.load(tmp_path)):
        assert isinstance(copy, WordPieceTokenizer)
        assert (copy.vocabulary, copy.max_tokens) == (PIECES, 7)
        assert torch.equal(copy(["the reddish cup"]).ids, tokenizer(["the reddish cup"]).ids)


def test_trainings_on_one_text_give_one_vocabulary() -> None:
    first, *others = (WordPieceTokenizer.train(iter(TRAINING), 8, 60).vocabulary for _ in range(10))
    assert all(other == first for other in others)
    assert first[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ","]
    assert {"cup", "red", "left"} <= set(first)
    assert len(first) == 60 == len(set(first))


def test_a_trained_vocabulary_knows_every_word_of_its_text() -> None:
    tokenizer = WordPieceTokenizer.train(TRAINING, max_tokens=30, size=10)  # fewer than the characters
    words = tokenizer([*TRAINING, "??"])
    assert not (words.ids[:-1] == 1).any() and (words.ids[-1] == 1).any()


def test_word_pieces_are_those_of_bert_and_eight_real_expressions_lose_their_end(shared: Path) -> None:
    file = shared / "reference" / "bert-base-uncased-vocab.txt"
    ours, wide = (WordPieceTokenizer.pretrained(str(file), max_tokens) for max_tokens in (20, 64))
    theirs = _bert_in_python(file)
    cut = {}
    for split in ("val", "testA", "testB"):
        path = shared / "data" / "refcoco_sample" / "refcoco_unc_eval_full" / f"{split}.json.gz"
        expressions = [item["text"] for item in json.loads(gzip.decompress(path.read_bytes()))["items"]]
        ids = [theirs.encode(expression) for expression in expressions]
        assert _unpadded(ours, expressions) == [row[:20] for row in ids]
        assert _unpadded(wide, expressions) == ids
        cut[split] = (len(ids), sum(len(row) > 20 for row in ids))
    assert cut == {"val": (10834, 2), "testA": (5657, 2), "testB": (5095, 4)}
    odd = ["Naïve CAFÉ, the man's <b>?", "中文 🙂 ﬁ\tß\u2028x", "a" * 120, "", "[SEP] [MASK] x", "don't-stop 2nd/3rd"]
    assert _unpadded(wide, odd) == [theirs.encode(expression) for expression in odd]


def _bert_in_python(file: Path) -> Any:
    """BERT's tokenizer in Python, which shares no code with the library tokenizers."""
    if transformers.__version__.startswith("4"):
        return transformers.BertTokenizer(str(file))
    return importlib.import_module("transformers.models.bert.tokenization_bert_legacy").BertTokenizerLegacy(str(file))


def _unpadded(tokenizer: WordPieceTokenizer, expressions: list[str]) -> list[list[int]]:
    words = tokenizer(expressions)
    return [ids[mask].tolist() for ids, mask in zip(words.ids, words.mask, strict=True)]


def test_an_expression_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="'the .udcff cup' is not Unicode text"):
        WordPieceTokenizer(PIECES, 8)(["red", "the \udcff cup"])
    with pytest.raises(InputError, match="is not Unicode text"):
        WordPieceTokenizer.train(["\ud83d"], 8, 20)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[PAD]\n[UNK]\nred\n", "vocab.txt lacks \\[CLS\\], \\[SEP\\]"),
        (b"red\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "does not begin with \\[PAD\\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\nred\n", "holds 'red' more than once"),
        (b"[PAD]\n\xff\n", "vocab.txt is not UTF-8"),
        (b"", "is empty"),
        (b"<html>404</html>", "vocab.txt is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "vocab.txt is a pointer of git-lfs"),
    ],
)
def test_a_wrong_vocabulary_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    for name in (tmp_path, tmp_path / "vocab.txt"):
        with pytest.raises(InputError, match=says):
            WordPieceTokenizer.pretrained(str(name), 20)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "gone.txt"):
        with pytest.raises(InputError, match=r"\.txt cannot be read \(No such file"):
            WordPieceTokenizer.pretrained(str(name), 20)


@pytest.mark.parametrize("name", ["bert-base-uncased", "./bert", "a/b/c"])
def test_without_network_and_cache_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=f"'{name}' is no vocabulary file.*path of a vocab.txt: --vocabulary FILE"):
        WordPieceTokenizer.pretrained(name, 20)


def test_a_vocabulary_of_words_says_which_words_it_knows() -> None:
    known = WordTokenizer(["red", "man's"], 4).known_words("The man's RED hat, left?")
    assert known == {"the": False, "man's": True, "red": True, "hat": False, "left": False}
    assert WordTokenizer(["red"], 4).known_words(" ?! ") == {}


def test_word_pieces_say_which_words_become_unknown() -> None:
    """A word of which one character is unknown becomes [UNK] as a whole; marks are no words."""
    tokenizer = WordPieceTokenizer([*PIECES[:4], "red", "##d", "man", "s", "lef", "##t"], 4)
    known = tokenizer.known_words("RED redd, man's zebra l\u00e9ft left \u4e2d!!")
    assert known == {
        "red": True,
        "redd": True,
        "man": True,
        "s": True,
        "zebra": False,
        "l\u00e9ft": True,
        "left": True,
        "\u4e2d": False,
    }
    assert tokenizer.known_words("?!") == {}


def test_the_vocabulary_of_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(InputError, match="is a device or a pipe"):
        WordPieceTokenizer.pretrained(str(tmp_path), 20)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"max_tokens": null}'])
def test_a_broken_length_of_word_pieces_is_named(tmp_path: Path, content: str) -> None:
    WordPieceTokenizer(PIECES, max_tokens=7).save(tmp_path)
    (tmp_path / "wordpiece.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="wordpiece.json cannot be read"):
        text.load(tmp_path)


def test_a_checkpoint_without_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no words.json and no vocab.txt"):
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
