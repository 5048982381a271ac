"""CLIP's byte pairs (Radford et al., ICML 2021) from transformers: start, pieces of the lower-case text, end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from risbench import files
from risbench.data.text import Words, check_unicode, cut_positions, occurrences, word_spans
from risbench.errors import InputError, first_sentence

START, END = "<|startoftext|>", "<|endoftext|>"
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")  # that a vocabulary is read from
NEEDED = f"{FILES[0]} (or {FILES[2]} and {FILES[3]})"
_WORD_END = "</w>"
_SETTINGS = "byte_pairs.json"


def are_in(folder: Path) -> bool:
    """Whether a folder holds the files of a vocabulary."""
    return (folder / FILES[0]).is_file() or all((folder / name).is_file() for name in FILES[2:])


class BytePairTokenizer:
    """CLIP's tokens, padded with 0. A longer expression is cut, and its last token is the end, as in CLIP's own code.

    `positions` is how many tokens the network can read; more are never given, whatever max_tokens is.
    """

    def __init__(self, library: CLIPTokenizer, max_tokens: int, positions: int) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads do not survive the fork of loader processes
        self._library = library
        self.max_tokens = max_tokens
        self.positions = positions
        vocabulary = library.get_vocab()
        self.start, self.end = vocabulary[START], vocabulary[END]
        self._backend: Any = library.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    @classmethod
    def pretrained(cls, folder: Path, max_tokens: int, positions: int) -> Self:
        """Read the vocabulary of pretrained weights. Raises InputError for a folder without one, or another kind."""
        if not are_in(folder):  # the library would make an empty vocabulary
            raise InputError(f"{folder} holds no byte pairs: it lacks {NEEDED}. Copy the folder again.")
        try:
            library = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the library raises many classes
            raise InputError(
                f"The byte pairs in {folder} cannot be read ({first_sentence(error)}). Copy the folder again."
            ) from None
        vocabulary = library.get_vocab()
        missing = [token for token in (START, END) if token not in vocabulary]
        if missing or vocabulary[END] != max(vocabulary.values()):
            problem = f"lack {' and '.join(missing)}" if missing else f"do not have {END} as their last"
            raise InputError(f"The byte pairs in {folder} {problem}, so they are not CLIP's: give CLIP's folder.")
        return cls(library, max_tokens, positions)

    @classmethod
    def of_bytes(cls, max_tokens: int, positions: int) -> Self:
        """Make a vocabulary of single bytes without merges, for a network from scratch."""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = [*letters, *(letter + _WORD_END for letter in letters), START, END]
        library = CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
        return cls(library, max_tokens, positions)

    def __len__(self) -> int:
        return len(self._library)

    def __call__(self, expressions: Sequence[str]) -> Words:
        """Tokenise to (B, max_tokens)."""
        ids = torch.zeros(len(expressions), self.max_tokens, dtype=torch.int64)
        mask = torch.zeros(len(expressions), self.max_tokens, dtype=torch.bool)
        for row, encoded in enumerate(self._backend.encode_batch(check_unicode(expressions))):
            tokens = encoded.ids
            if len(tokens) > self._most:
                tokens = [*tokens[: self._most - 1], self.end]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return Words(ids, mask)

    def limited(self, max_tokens: int) -> Self:
        """Return a copy with another max_tokens."""
        return type(self)(self._library, max_tokens, self.positions)

    def places(self, expression: str, word: str) -> list[int]:
        """Return the positions in a row of ids of the pieces of every occurrence of a word; never start or end."""
        word_numbers, words = self._split(expression)
        chosen = occurrences(words, self._split(word)[1], word)
        positions = [position for position, number in enumerate(word_numbers) if number in chosen]
        return cut_positions(positions, min(self._most, len(word_numbers)) - 1, word)

    def save(self, folder: Path) -> None:
        """Write the library's files, and the number of tokens."""
        self._library.save_pretrained(folder)
        settings = json.dumps({"max_tokens": self.max_tokens, "positions": self.positions})
        (folder / _SETTINGS).write_text(f"{settings}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        path = folder / _SETTINGS
        try:
            settings = files.parse_json(files.read_bytes(path))
            return cls.pretrained(folder, int(settings["max_tokens"]), int(settings["positions"]))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}). Copy the checkpoint again.") from None

    @property
    def _most(self) -> int:
        """How many tokens a row has at most."""
        return min(self.max_tokens, self.positions)

    def _split(self, text: str) -> tuple[list[int | None], list[str]]:
        """Return the number of each token's word, and the words in lower case."""
        [encoded] = self._backend.encode_batch(check_unicode([text]))
        return encoded.word_ids, [text[start:end].lower() for start, end in word_spans(encoded).values()]
