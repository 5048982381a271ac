"""The word embedding of LTS: random vectors, or vectors from a GloVe file (Pennington et al., EMNLP 2014)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from risbench import files
from risbench.api import Pretrained
from risbench.errors import InputError
from risbench.nn.weights import of_file

_RANDOM_STD = 0.4  # of random vectors, close to the standard deviation of GloVe's
_COVERAGE = 0.5  # least share of the vocabulary that a file must have; our reading, the paper names none
_LIMIT = 32 * 2**30  # bytes of a file; GloVe's largest has 5.3 GiB
_LINE_LIMIT = 2**16  # characters; 300 numbers take about 3,000
_CURE = "Give a GloVe .txt as model.glove: a word and its numbers on each line."


def random_vectors(words: int, width: int) -> nn.Embedding:
    """Return an embedding of padding (0, a zero vector), unknown words (1) and the vocabulary (from 2)."""
    table = nn.Embedding(words, width, padding_idx=0)
    nn.init.normal_(table.weight, std=_RANDOM_STD)
    with torch.no_grad():
        table.weight[0].zero_()
    return table


def load_glove(table: nn.Embedding, vocabulary: Sequence[str], glove: str) -> Pretrained:
    """Copy the vectors of a GloVe file into the embedding; return the file and the number of words it has."""
    vectors = read_vectors(Path(glove), vocabulary, table.embedding_dim)
    with torch.no_grad():
        for number, word in enumerate(vocabulary, start=2):
            if word in vectors:
                table.weight[number] = vectors[word]
    return of_file("word vectors", Path(glove), _LIMIT, f"for {len(vectors)} of {len(vocabulary)} words")


def read_vectors(path: Path, vocabulary: Sequence[str], width: int) -> dict[str, Tensor]:
    """Read the vectors (width,) of the vocabulary's words from a GloVe text file.

    Raises InputError for another file, and for one with vectors for less than half of the words.
    """
    words = set(vocabulary)
    vectors: dict[str, Tensor] = {}
    for number, line in enumerate(_lines(path), start=1):
        word, *numbers = line.rstrip().split(" ")
        if word in words:
            vectors[word] = _vector(numbers, width, f"{path}, line {number}: {word!r}")
    if len(vectors) < _COVERAGE * len(words):
        raise InputError(
            f"{path} has vectors for {len(vectors)} of the {len(words)} words of the expressions, fewer than "
            f"{_COVERAGE:.0%}: it is of another language, spelling or text, or cut off. {_CURE} An empty model.glove "
            "stands for random vectors."
        )
    return vectors


def _lines(path: Path) -> Iterator[str]:
    try:
        files.check_regular(path, _LIMIT)
        files.refuse_foreign(path, text=True)
        with path.open(encoding="utf-8") as file:
            while line := file.readline(_LINE_LIMIT):
                if len(line) == _LINE_LIMIT:
                    raise InputError(f"{path} has a line of more than {_LINE_LIMIT:,} characters. {_CURE}")
                yield line
    except FileNotFoundError:
        raise InputError(
            f"There is no GloVe file at {path}. Give another model.glove, or an empty one for random vectors."
        ) from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise InputError(f"{path} is no GloVe text file. Unpack the archive and give the .txt.") from None


def _vector(numbers: Sequence[str], width: int, where: str) -> Tensor:
    if len(numbers) != width:
        raise InputError(
            f"{where} has {len(numbers)} numbers, but model.word_width is {width}. Give the GloVe file of that width."
        )
    try:
        vector = torch.tensor([float(number) for number in numbers])
    except ValueError as error:
        raise InputError(f"{where}: {error}. Give the unpacked GloVe .txt.") from None
    if not vector.isfinite().all():
        raise InputError(f"{where} has numbers that are not finite. Give another GloVe file.")
    return vector
