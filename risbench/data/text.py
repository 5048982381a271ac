"""Tokenizers that two methods or more may use, and the word vectors of GloVe files."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from risbench.errors import InputError, defect

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # letters and digits, with inner apostrophes
_FILE = "words.json"
_PIECES, _LENGTH = "vocab.txt", "wordpiece.json"
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


class Words(NamedTuple):
    """Tokenised expressions."""

    ids: Tensor  # (B, T) int64; positions without a word hold 0
    mask: Tensor  # (B, T) bool: True where there is a word; at least one in every row


class Tokenizer(Protocol):
    """Turns expressions into Words; pickles (loader workers get a copy) and saves to a checkpoint's text/ folder."""

    max_tokens: int  # tokens beyond are cut

    def __call__(self, expressions: Sequence[str]) -> Words: ...

    def limited(self, max_tokens: int) -> Tokenizer:
        """A copy that cuts at another length: a protocol may name its own."""
        ...

    def places(self, expression: str, word: str) -> list[int]:
        """Where in a row of ids the tokens of a word are, of all its occurrences.

        Raises InputError where the expression does not hold the word, or all of it is cut off.
        """
        ...

    def save(self, folder: Path) -> None: ...


def words(expression: str) -> list[str]:
    """Split into lower-case words: "The man's RED hat, left" gives the man's red hat left."""
    return _WORD.findall(expression.lower())


class _Words(BaseModel):
    """words.json."""

    model_config = ConfigDict(strict=True)

    vocabulary: list[str]
    max_tokens: int = Field(gt=0)


class WordTokenizer:
    """A vocabulary of whole words: 0 is padding, 1 an unknown word."""

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        self.vocabulary = list(vocabulary)
        self.max_tokens = max_tokens
        self._ids = {word: number for number, word in enumerate(self.vocabulary, start=2)}

    @classmethod
    def build(cls, expressions: Iterable[str], max_tokens: int) -> Self:
        """Take every word of the expressions, the most frequent first."""
        counts = Counter(word for expression in expressions for word in words(expression))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), max_tokens)

    def __len__(self) -> int:
        return len(self.vocabulary) + 2

    def __call__(self, expressions: Sequence[str]) -> Words:
        """Tokenise to (B, max_tokens); longer expressions are cut, one without any word becomes one unknown word."""
        ids = torch.zeros(len(expressions), self.max_tokens, dtype=torch.int64)
        for row, expression in enumerate(expressions):
            found = [self._ids.get(word, 1) for word in words(expression)[: self.max_tokens]] or [1]
            ids[row, : len(found)] = torch.tensor(found)
        return Words(ids, ids > 0)

    def limited(self, max_tokens: int) -> Self:
        """A copy that cuts at another length."""
        return type(self)(self.vocabulary, max_tokens)

    def places(self, expression: str, word: str) -> list[int]:
        """Where in a row of ids a word stands, once for each occurrence."""
        return _uncut(_occurrences(words(expression), words(word), word), self.max_tokens, word)

    def save(self, folder: Path) -> None:
        """Write words.json."""
        content = {"max_tokens": self.max_tokens, "vocabulary": self.vocabulary}
        (folder / _FILE).write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read words.json."""
        try:
            content = _Words.model_validate_json((folder / _FILE).read_bytes())
        except ValidationError as error:
            raise InputError(f"{folder / _FILE} cannot be read ({defect(error)}). Copy the checkpoint again.") from None
        return cls(content.vocabulary, content.max_tokens)


class WordPieceTokenizer:
    """BERT's pieces of lower-cased words: [CLS], the pieces, [SEP], cut at max_tokens, padded with [PAD], which is 0.

    The cut comes last, as in the released code of LAVT: a long expression loses its [SEP]. The pieces are found by the
    library tokenizers.
    """

    def __init__(self, vocabulary: Sequence[str], max_tokens: int) -> None:
        self.vocabulary = list(vocabulary)
        self.max_tokens = max_tokens
        self._library = _bert(self.vocabulary)

    @classmethod
    def train(cls, expressions: Iterable[str], max_tokens: int, size: int) -> Self:
        """Make a vocabulary of up to `size` pieces (more where the characters alone are more) from the training text.

        Every piece of one character is given, sorted: the library numbers those it finds itself in another order each
        time, and breaks ties between the merges of pieces by these numbers.
        """
        texts, library = _unicode(expressions), _bert(_SPECIAL)
        words = (library.pre_tokenizer.pre_tokenize_str(library.normalizer.normalize_str(text)) for text in texts)
        characters = sorted({character for found in words for word, _ in found for character in word})
        library.train_from_iterator(
            iter(texts),
            vocab_size=size,
            show_progress=False,
            special_tokens=[*_SPECIAL, *characters, *(f"##{character}" for character in characters)],
        )
        ids = library.get_vocab()
        return cls(sorted(ids, key=ids.__getitem__), max_tokens)

    @classmethod
    def pretrained(cls, name_or_path: str, max_tokens: int) -> Self:
        """Read the vocabulary of pretrained weights: a vocab.txt, a folder with one, or a name on Hugging Face."""
        path = Path(name_or_path)
        if path.is_dir():
            path = path / _PIECES
        elif path.suffix != ".txt" and not path.is_file():
            path = _downloaded(name_or_path)
        return cls(_pieces(path), max_tokens)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __call__(self, expressions: Sequence[str]) -> Words:
        """Tokenise to (B, max_tokens)."""
        ids = torch.zeros(len(expressions), self.max_tokens, dtype=torch.int64)
        mask = torch.zeros(len(expressions), self.max_tokens, dtype=torch.bool)
        for row, encoded in enumerate(self._library.encode_batch(_unicode(expressions))):
            found = encoded.ids[: self.max_tokens]
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = True
        return Words(ids, mask)

    def limited(self, max_tokens: int) -> Self:
        """A copy that cuts at another length."""
        return type(self)(self.vocabulary, max_tokens)

    def places(self, expression: str, word: str) -> list[int]:
        """Where in a row of ids the pieces of a word stand, of all its occurrences; never [CLS] or [SEP]."""
        pieces, found = self._split(expression)
        numbers = _occurrences(found, self._split(word)[1], word)
        return _uncut([place for place, number in enumerate(pieces) if number in numbers], self.max_tokens, word)

    def _split(self, text: str) -> tuple[list[int | None], list[str]]:
        """For each token the number of its word, and these words, lower-case and without accents as BERT reads them."""
        [encoded] = self._library.encode_batch(_unicode([text]))
        spans: dict[int, tuple[int, int]] = {}
        for number, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
            if number is not None:
                spans[number] = (spans.get(number, (start, end))[0], end)
        return encoded.word_ids, [self._library.normalize(text[start:end]) for start, end in spans.values()]

    def save(self, folder: Path) -> None:
        """Write vocab.txt, one piece per line, and wordpiece.json."""
        (folder / _PIECES).write_text("".join(f"{piece}\n" for piece in self.vocabulary), encoding="utf-8")
        (folder / _LENGTH).write_text(json.dumps({"max_tokens": self.max_tokens}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read vocab.txt and wordpiece.json."""
        try:
            max_tokens = int(json.loads((folder / _LENGTH).read_text(encoding="utf-8"))["max_tokens"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / _LENGTH} cannot be read ({error}). Copy the checkpoint again.") from None
        return cls(_pieces(folder / _PIECES), max_tokens)


def load(folder: Path) -> Tokenizer:
    """Load the tokenizer that was saved to a checkpoint's text/ folder."""
    if (folder / _FILE).is_file():
        return WordTokenizer.load(folder)
    if (folder / _PIECES).is_file():
        return WordPieceTokenizer.load(folder)
    raise InputError(
        f"{folder} holds no {_FILE} and no {_PIECES}. The checkpoint is incomplete: copy its folder again, or train."
    )


def _occurrences(found: Sequence[str], wanted: Sequence[str], word: str) -> list[int]:
    """The places of a word among those found; where it is split into several (man's: man ' s), of all of them."""
    length = len(wanted)
    starts = [n for n in range(len(found) - length + 1) if length and found[n : n + length] == wanted]
    if not starts:
        known = " ".join(dict.fromkeys(found)) or "none"
        raise InputError(f"The expression holds no word {word!r}. Choose one of its words: {known}.")
    return sorted({start + n for start in starts for n in range(length)})


def _uncut(places: Sequence[int], max_tokens: int, word: str) -> list[int]:
    kept = [place for place in places if place < max_tokens]
    if not kept:
        raise InputError(
            f"The word {word!r} is cut off: only the first {max_tokens} tokens of an expression are read. "
            "Choose an earlier word, or shorten the expression."
        )
    return kept


def _unicode(expressions: Iterable[str]) -> list[str]:
    """Refuse what is no Unicode: half a pair of surrogates, which a terminal passes on for bytes that are no UTF-8."""
    texts = list(expressions)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"The expression {text!r} is not Unicode text. Write it in UTF-8.") from None
    return texts


def _bert(vocabulary: Sequence[str]) -> BertWordPieceTokenizer:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader processes
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer({piece: number for number, piece in enumerate(vocabulary)}, lowercase=True)


def _pieces(path: Path) -> list[str]:
    """Read the pieces of a vocab.txt: one per line, [PAD] first."""
    try:
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise InputError(f"The vocabulary {path} cannot be read ({error.strerror}). Give a BERT vocab.txt.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text. Give a BERT vocab.txt, one piece per line.") from None
    missing = [piece for piece in _SPECIAL if piece not in pieces]
    if missing or pieces[0] != _SPECIAL[0]:
        what = f"lacks {', '.join(missing)}" if missing else f"does not begin with {_SPECIAL[0]}, whose id must be 0"
        raise InputError(f"{path} {what}. Give a BERT vocab.txt, one piece per line.")
    twice = [piece for piece, times in Counter(pieces).items() if times > 1]
    if twice:
        raise InputError(f"{path} holds {twice[0]!r} more than once. Give a BERT vocab.txt, each piece on one line.")
    return pieces


def _downloaded(name: str) -> Path:
    """The vocab.txt of a model on the Hugging Face hub, from its cache where it lies there."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, _PIECES))
    except (OSError, ValueError, errors.EntryNotFoundError) as error:
        reason = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")
        raise InputError(
            f"{name!r} is no vocabulary file here, and could not be had from Hugging Face ({reason}). Give the path of "
            "a vocab.txt (convert: --vocabulary FILE), or do without pretrained weights: model.pretrained=false."
        ) from None


def glove(path: Path, vocabulary: Sequence[str], width: int) -> dict[str, Tensor]:
    """Read the vectors (width,) of the vocabulary's words from a GloVe text file."""
    wanted = set(vocabulary)
    vectors: dict[str, Tensor] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                word, *numbers = line.rstrip().split(" ")
                if word in wanted:
                    vectors[word] = _vector(numbers, width, f"{path}, line {number}: {word!r}")
    except FileNotFoundError:
        raise InputError(
            f"There is no GloVe file at {path}. Give another model.glove, or an empty one for random vectors."
        ) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise InputError(f"{path} is no GloVe text file. Unpack the archive and give the .txt.") from None
    return vectors


def _vector(numbers: Sequence[str], width: int, where: str) -> Tensor:
    if len(numbers) != width:
        raise InputError(
            f"{where} has {len(numbers)} numbers, but model.word_width is {width}. Give the GloVe file of that width."
        )
    try:
        return torch.tensor([float(number) for number in numbers])
    except ValueError as error:
        raise InputError(f"{where}: {error}. Give the unpacked GloVe .txt.") from None
