"""Tokenizers that two methods or more may use, and the word vectors of GloVe files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from risbench.api import Tokenizer, Words
from risbench.errors import InputError, defect

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")  # letters and digits, with inner apostrophes
_FILE = "words.json"


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


def load(folder: Path) -> Tokenizer:
    """Load the tokenizer that was saved to a checkpoint's text/ folder."""
    if not (folder / _FILE).is_file():
        raise InputError(f"{folder} holds no {_FILE}. The checkpoint is incomplete: copy its folder again, or train.")
    return WordTokenizer.load(folder)


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
