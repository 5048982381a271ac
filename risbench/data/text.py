"""The contract of a tokenizer, and the tokenizers that two methods or more may use."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from risbench import files
from risbench.errors import InputError, defect, first_sentence

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # letters and digits, with inner apostrophes
_WORDS_FILE = "words.json"
_PIECES_FILE, _PIECES_SETTINGS_FILE = "vocab.txt", "wordpiece.json"
_UNKNOWN_PIECE = "[UNK]"
_SPECIAL_PIECES = ["[PAD]", _UNKNOWN_PIECE, "[CLS]", "[SEP]"]


class Words(NamedTuple):
    """Tokenised expressions."""

    ids: Tensor  # (B, T) int64, 0 for a position without a word
    mask: Tensor  # (B, T) bool: True for a word, at least one in every row


class Tokenizer(Protocol):
    """Turns expressions into Words; it pickles, because loader processes get a copy."""

    max_tokens: int  # the tokens behind are cut off

    def __call__(self, expressions: Sequence[str]) -> Words: ...

    def limited(self, max_tokens: int) -> Tokenizer:
        """Return a copy with another max_tokens, which a protocol may set."""
        ...

    def places(self, expression: str, word: str) -> list[int]:
        """Return the positions in a row of ids of the tokens of every occurrence of a word.

        Raises InputError if the expression does not hold the word, or if every token of it is cut off.
        """
        ...

    def save(self, folder: Path) -> None:
        """Save to the text/ folder of a checkpoint."""
        ...


@runtime_checkable
class Vocabulary(Protocol):
    """A tokenizer that can say which words it knows; `risbench segment` then names the others."""

    def known_words(self, expression: str) -> dict[str, bool]:
        """Return for each word of an expression whether the vocabulary holds it."""
        ...


def split_words(expression: str) -> list[str]:
    """Split into lower-case words: "The man's RED hat, left" gives the man's red hat left."""
    return _WORD.findall(expression.lower())


class _WordsFile(BaseModel):
    model_config = ConfigDict(strict=True)

    vocabulary: list[str]
    max_tokens: int = Field(gt=0)


class WordTokenizer:
    """A vocabulary of whole words: 0 is padding, 1 an unknown word."""

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        self.vocabulary = list(vocabulary)
        self.max_tokens = max_tokens
        self._ids = {word: word_id for word_id, word in enumerate(self.vocabulary, start=2)}

    @classmethod
    def build(cls, expressions: Iterable[str], max_tokens: int) -> Self:
        """Build the vocabulary of every word of the expressions, the most frequent first."""
        counts = Counter(word for expression in expressions for word in split_words(expression))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), max_tokens)

    def __len__(self) -> int:
        return len(self.vocabulary) + 2

    def __call__(self, expressions: Sequence[str]) -> Words:
        """Tokenise to (B, max_tokens); a longer expression is cut, one without words becomes one unknown word."""
        ids = torch.zeros(len(expressions), self.max_tokens, dtype=torch.int64)
        for row, expression in enumerate(expressions):
            word_ids = [self._ids.get(word, 1) for word in split_words(expression)[: self.max_tokens]] or [1]
            ids[row, : len(word_ids)] = torch.tensor(word_ids)
        return Words(ids, ids > 0)

    def limited(self, max_tokens: int) -> Self:
        """Return a copy with another max_tokens."""
        return type(self)(self.vocabulary, max_tokens)

    def places(self, expression: str, word: str) -> list[int]:
        """Return the positions of every occurrence of a word in a row of ids."""
        return cut_positions(occurrences(split_words(expression), split_words(word), word), self.max_tokens, word)

    def known_words(self, expression: str) -> dict[str, bool]:
        """Return for each word of an expression whether the vocabulary holds it."""
        return {word: word in self._ids for word in split_words(expression)}

    def save(self, folder: Path) -> None:
        """Write words.json."""
        content = {"max_tokens": self.max_tokens, "vocabulary": self.vocabulary}
        (folder / _WORDS_FILE).write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read words.json."""
        path = folder / _WORDS_FILE
        try:
            content = _WordsFile.model_validate(files.parse_json(files.read_bytes(path)))
        except ValidationError as error:
            raise InputError(f"{path} cannot be read ({defect(error)}). Copy the checkpoint again.") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}). Copy the checkpoint again.") from None
        return cls(content.vocabulary, content.max_tokens)


class WordPieceTokenizer:
    """BERT's word pieces: [CLS], the pieces of the lower-cased words, [SEP], cut at max_tokens, padded with [PAD] (0).

    The cut comes last, as in the released code of LAVT: a long expression loses its [SEP].
    """

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        self.vocabulary = list(vocabulary)
        self.max_tokens = max_tokens
        self._library = _bert_tokenizer(self.vocabulary)

    @classmethod
    def train(cls, expressions: Iterable[str], max_tokens: int, size: int) -> Self:
        """Build a vocabulary of `size` pieces at most, or of every character if these are more, from the training text.

        The pieces of one character are passed in, sorted. The library would number them in another order each time, and
        it breaks ties between merges of pieces by these numbers.
        """
        texts, library = check_unicode(expressions), _bert_tokenizer(_SPECIAL_PIECES)
        split_texts = (library.pre_tokenizer.pre_tokenize_str(library.normalizer.normalize_str(text)) for text in texts)
        characters = sorted({character for words in split_texts for word, _ in words for character in word})
        library.train_from_iterator(
            iter(texts),
            vocab_size=size,
            show_progress=False,
            special_tokens=[*_SPECIAL_PIECES, *characters, *(f"##{character}" for character in characters)],
        )
        ids = library.get_vocab()
        return cls(sorted(ids, key=ids.__getitem__), max_tokens)

    @classmethod
    def pretrained(cls, name_or_path: str, max_tokens: int) -> Self:
        """Read the vocabulary of pretrained weights: a vocab.txt, a folder that holds it, or a name on Hugging Face."""
        path = Path(name_or_path)
        if path.is_dir():
            path = path / _PIECES_FILE
        elif path.suffix != ".txt" and not path.is_file():
            path = _download(name_or_path)
        return cls(_read_pieces(path), max_tokens)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __call__(self, expressions: Sequence[str]) -> Words:
        """Tokenise to (B, max_tokens)."""
        ids = torch.zeros(len(expressions), self.max_tokens, dtype=torch.int64)
        mask = torch.zeros(len(expressions), self.max_tokens, dtype=torch.bool)
        for row, encoded in enumerate(self._library.encode_batch(check_unicode(expressions))):
            piece_ids = encoded.ids[: self.max_tokens]
            ids[row, : len(piece_ids)] = torch.tensor(piece_ids)
            mask[row, : len(piece_ids)] = True
        return Words(ids, mask)

    def limited(self, max_tokens: int) -> Self:
        """Return a copy with another max_tokens."""
        return type(self)(self.vocabulary, max_tokens)

    def places(self, expression: str, word: str) -> list[int]:
        """Return the positions in a row of ids of the pieces of every occurrence of a word; never [CLS] or [SEP]."""
        word_numbers, words = self._split(expression)
        chosen = occurrences(words, self._split(word)[1], word)
        positions = [position for position, number in enumerate(word_numbers) if number in chosen]
        return cut_positions(positions, self.max_tokens, word)

    def known_words(self, expression: str) -> dict[str, bool]:
        """Return for each word of an expression whether the vocabulary holds its pieces; otherwise it becomes [UNK]."""
        [encoded] = self._library.encode_batch(check_unicode([expression]))
        numbered = zip(encoded.word_ids, encoded.tokens, strict=True)
        unknown = {number for number, piece in numbered if piece == _UNKNOWN_PIECE}
        words = {number: expression[start:end].lower() for number, (start, end) in word_spans(encoded).items()}
        return {word: number not in unknown for number, word in words.items() if any(map(str.isalnum, word))}

    def _split(self, text: str) -> tuple[list[int | None], list[str]]:
        """Return the number of each token's word, and the words, lower-case and without accents as BERT reads them."""
        [encoded] = self._library.encode_batch(check_unicode([text]))
        spans = word_spans(encoded).values()
        return encoded.word_ids, [self._library.normalize(text[start:end]) for start, end in spans]

    def save(self, folder: Path) -> None:
        """Write vocab.txt, one piece per line, and wordpiece.json."""
        (folder / _PIECES_FILE).write_text("".join(f"{piece}\n" for piece in self.vocabulary), encoding="utf-8")
        settings = json.dumps({"max_tokens": self.max_tokens})
        (folder / _PIECES_SETTINGS_FILE).write_text(f"{settings}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read vocab.txt and wordpiece.json."""
        path = folder / _PIECES_SETTINGS_FILE
        try:
            max_tokens = int(files.parse_json(files.read_bytes(path))["max_tokens"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}). Copy the checkpoint again.") from None
        return cls(_read_pieces(folder / _PIECES_FILE), max_tokens)


def load(folder: Path) -> Tokenizer:
    """Load the tokenizer that was saved to a checkpoint's text/ folder."""
    if (folder / _WORDS_FILE).is_file():
        return WordTokenizer.load(folder)
    if (folder / _PIECES_FILE).is_file():
        return WordPieceTokenizer.load(folder)
    raise InputError(
        f"{folder} holds no {_WORDS_FILE} and no {_PIECES_FILE}. The checkpoint is incomplete: copy its folder again, "
        "or train."
    )


def word_spans(encoded: Any) -> dict[int, tuple[int, int]]:
    """Return begin and end in the text of each word, by its number, from its pieces."""
    spans: dict[int, tuple[int, int]] = {}
    for number, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
        if number is not None:
            spans[number] = (spans.get(number, (start, end))[0], end)
    return spans


def occurrences(words: Sequence[str], parts: Sequence[str], word: str) -> list[int]:
    """Return the positions among `words` of every occurrence of a word that was split into `parts` (man's: man ' s)."""
    length = len(parts)
    starts = [n for n in range(len(words) - length + 1) if length and words[n : n + length] == parts]
    if not starts:
        known = " ".join(dict.fromkeys(words)) or "none"
        raise InputError(f"The expression holds no word {word!r}. Choose one of its words: {known}.")
    return sorted({start + n for start in starts for n in range(length)})


def cut_positions(positions: Sequence[int], max_tokens: int, word: str) -> list[int]:
    """Drop the positions of tokens that are cut off; raises InputError if none is left."""
    kept = [position for position in positions if position < max_tokens]
    if not kept:
        raise InputError(
            f"The word {word!r} is cut off: only the first {max_tokens} tokens of an expression are read. "
            "Choose an earlier word, or shorten the expression."
        )
    return kept


def check_unicode(expressions: Iterable[str]) -> list[str]:
    """Refuse half a pair of surrogates, which a terminal passes on for bytes that are not UTF-8."""
    texts = list(expressions)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"The expression {text!r} is not Unicode text. Write it in UTF-8.") from None
    return texts


def _bert_tokenizer(vocabulary: Sequence[str]) -> BertWordPieceTokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader processes
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer({piece: number for number, piece in enumerate(vocabulary)}, lowercase=True)


def _read_pieces(path: Path) -> list[str]:
    """Read the pieces of a vocab.txt: one per line, [PAD] first."""
    try:
        content = files.read_bytes(path).decode("utf-8-sig")
        files.refuse_foreign(path, text=True)
    except OSError as error:
        raise InputError(f"The vocabulary {path} cannot be read ({error.strerror}). Give a BERT vocab.txt.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text. Give a BERT vocab.txt, one piece per line.") from None
    pieces = content.replace("\r\n", "\n").removesuffix("\n").split("\n")
    missing = [piece for piece in _SPECIAL_PIECES if piece not in pieces]
    padding = _SPECIAL_PIECES[0]
    if missing or pieces[0] != padding:
        problem = f"lacks {', '.join(missing)}" if missing else f"does not begin with {padding}, whose id must be 0"
        raise InputError(f"{path} {problem}. Give a BERT vocab.txt, one piece per line.")
    repeated = [piece for piece, times in Counter(pieces).items() if times > 1]
    if repeated:
        raise InputError(f"{path} holds {repeated[0]!r} more than once. Give a BERT vocab.txt, each piece on one line.")
    return pieces


def _download(name: str) -> Path:
    """Return the vocab.txt of a model on the Hugging Face hub, or of the hub's cache."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, _PIECES_FILE))
    except (OSError, ValueError, errors.EntryNotFoundError) as error:
        raise InputError(
            f"{name!r} is no vocabulary file here, and cannot be downloaded from Hugging Face "
            f"({first_sentence(error)}). Give the path of a vocab.txt: --vocabulary FILE of risbench convert, or "
            "model.text_weights of a run."
        ) from None
