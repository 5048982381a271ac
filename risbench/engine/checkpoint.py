"""Checkpoints: a folder that holds all that a prediction needs, and in `last` the training state.

weights.safetensors, recipe.toml (resolved), text/ (vocabulary), checkpoint.json; state.pt only in `last`.

A save replaces the folder by two renames: NAME becomes .NAME-old, and .NAME-new becomes NAME. Who reads changes
nothing: it takes the old folder while there is no new one, and reads again when a save came between. What a killed save
left behind is put right by `repair`, which only the process that holds the run's lock calls.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from risbench import __version__, files, methods, recipe
from risbench.api import Method, Pretrained, Tokenizer
from risbench.data.pretrained import from_scratch, upgraded
from risbench.errors import InputError, defect, first_line
from risbench.nn.weights import LIMIT, check_finite, load_whole
from risbench.recipe import Recipe

_WEIGHTS, _RECIPE, _FACTS, _TEXT, _STATE = "weights.safetensors", "recipe.toml", "checkpoint.json", "text", "state.pt"
_ATTEMPTS = 100  # to read a checkpoint that a training keeps replacing

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Facts(BaseModel):
    """The content of checkpoint.json: the origin of the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    risbench: str = __version__
    method: str
    origin: str = ""  # where the method was: built-in, its folder or its entry point; for messages only
    code: str = ""  # methods.code_hash of the method that trained; "": not known, as for old checkpoints
    variants: list[str]
    training_data: list[str]
    limit: int = Field(default=0, ge=0)  # images of each split in training, the first ones; 0: all
    pretrained: tuple[Pretrained, ...] = ()  # the weights that training started from; (): from scratch
    seed: int | None
    epoch: int | None  # None: not known, as for some converted weights
    training_seconds: float | None
    sha256: str = ""  # of weights.safetensors
    state: str = ""  # sha256 of state.pt; "": there is none, or an old checkpoint
    files: dict[str, str] = {}  # sha256 of recipe.toml and of each file in text/

    @model_validator(mode="before")
    @classmethod
    def _prose_becomes_data(cls, values: Any) -> Any:
        """Read old checkpoints, which describe the weights that training started from in words."""
        return upgraded(values)

    @property
    def source(self) -> str:
        """The name of the method, and where it was when it trained."""
        return f"{self.method} (then: {self.origin})" if self.origin else self.method

    @property
    def content(self) -> str:
        """A hash of all that predicts: weights, recipe and vocabulary."""
        return hashlib.sha256(json.dumps([self.sha256, self.files], sort_keys=True).encode()).hexdigest()

    def as_pretrained(self) -> Pretrained:
        """Describe this checkpoint as the weights that another training begins with."""
        return Pretrained(
            part="network",
            source=f"checkpoint {self.sha256[:12]}",
            sha256=self.sha256,
            hashed="file",
            training_data=tuple(self.training_data),
            pretrained=self.pretrained or (from_scratch("network"),),
        )

    def is_of_one_run(self, other: Facts) -> bool:
        """Whether two checkpoints may be of one training."""
        names = {"method", "variants", "training_data", "limit", "pretrained", "seed"}
        return self.model_dump(include=names) == other.model_dump(include=names)


class Checkpoint:
    """An opened checkpoint folder, whose files are those that its checkpoint.json describes.

    `method` is the method that the user gives for it, by name or path; without it, the checkpoint's name is looked up
    among the known methods. Raises InputError if it is a checkpoint of another method.
    """

    facts: Facts
    recipe: Recipe

    def __init__(self, folder: Path, method: str = "") -> None:
        self.folder = folder
        self._method = methods.register(method) if method else ""
        self._opened: object = None  # the identity of the folder that was opened
        self._read(lambda content: None)

    def method(self) -> type[Method]:
        """Import the method; warn once if its code is not the code that trained."""
        name = self.facts.method
        if name not in methods.names():
            is_from_package = self.facts.origin.startswith("entry point")
            cure = (
                "--method PATH, or install its package" if is_from_package else "--method PATH or RISBENCH_METHODS=PATH"
            )
            raise InputError(
                f"{self.folder} is a checkpoint of the method {self.facts.source}, which is not known here. Give its "
                f"folder with {cure}. Known: {', '.join(methods.names())}."
            )
        model = methods.load(name)
        methods.warn_of_other_code(name, self.facts.code, self.folder)
        return model

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        return self._read(lambda content: self.method().load_tokenizer(content / _TEXT))

    def model(self) -> tuple[Method, Tokenizer]:
        """Build the method and load its weights."""
        return self._read(self._build)

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights into a model. Raises InputError if keys or shapes differ."""
        self._read(lambda content: load_weights(model, content / _WEIGHTS))

    def state(self) -> dict[str, Any]:
        """Load the training state: the tables `optimizer` and `position`, and perhaps `scaler`."""
        return self._read(self._load_state)

    def wrong_state(self, reason: object) -> InputError:
        """Return the error for a training state that cannot be used."""
        return InputError(
            f"{self.folder / _STATE} is no training state of this run ({first_line(reason)}). It was damaged or "
            "exchanged: restore the folder from a copy, or start a new run from its weights with --init."
        )

    def _read(self, read: Callable[[Path], T]) -> T:
        """Read from the folder, again if a save replaced it meanwhile; `facts` and `recipe` are of what was read."""
        for _ in range(_ATTEMPTS):
            before = _identity(self.folder)
            content = self.folder if self.folder.exists() else _beside(self.folder, "old")
            try:
                if before != self._opened:
                    self._open(content)
                result = read(content)
            except (InputError, OSError):
                if _identity(self.folder) == before:
                    raise
                continue
            if _identity(self.folder) == before:
                self._opened = before
                return result
        raise InputError(f"{self.folder} is replaced again and again: wait for the end of the training.")

    def _open(self, content: Path) -> None:
        for name in (_WEIGHTS, _RECIPE, _FACTS):
            if not (content / name).is_file():
                raise InputError(
                    f"{self.folder} is not a checkpoint: it holds no {name}. Give a folder such as "
                    "runs/ID/checkpoints/best."
                )
        facts = _read_facts(content / _FACTS)
        for name, sha256 in {**facts.files, _WEIGHTS: facts.sha256}.items():
            _check_hash(content / name, sha256)
        self.recipe = recipe.validate(recipe.read(content / _RECIPE), str(content / _RECIPE))
        self.facts = self._resolve_method(facts)

    def _resolve_method(self, facts: Facts) -> Facts:
        """Check the method that the user gives, which may have another name if its code is the same.

        An old checkpoint holds no hash of the code, and of an entry point the name of its folder.
        """
        if self._method in ("", facts.method):
            return facts
        identity = methods.code_hash(self._method) if facts.code else methods.folder(self._method).name
        if identity == (facts.code or facts.method):
            return facts.model_copy(update={"method": self._method})
        raise InputError(
            f"{self.folder} is a checkpoint of {facts.source}, not of {self._method}. Give the method that trained it, "
            "or another checkpoint."
        )

    def _build(self, content: Path) -> tuple[Method, Tokenizer]:
        method = self.method()
        tokenizer = method.load_tokenizer(content / _TEXT)
        model = method.build(self.recipe, tokenizer)
        load_weights(model, content / _WEIGHTS)
        model.pretrained = self.facts.pretrained
        return model, tokenizer

    def _load_state(self, content: Path) -> dict[str, Any]:
        path = content / _STATE
        if not path.is_file():
            raise InputError(
                f"{self.folder} holds no {_STATE}, so training cannot go on from it. Use checkpoints/last."
            )
        if self.facts.state and self.facts.state != _sha256(path):
            raise self.wrong_state(f"{_FACTS} describes another one, sha256 {self.facts.state}")
        if not self.facts.state:
            _log.warning("%s has no hash in %s (risbench 0.2), so that damage would go unnoticed.", path, _FACTS)
        try:
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch meets damage with errors of many kinds
            raise self.wrong_state(error) from None
        tables: dict[str, Any] = state if isinstance(state, dict) else {}
        if not all(isinstance(tables.get(key), dict) for key in ("optimizer", "position")):
            raise self.wrong_state("it lacks the tables optimizer and position")
        return tables


def _read_facts(path: Path) -> Facts:
    try:
        content = files.parse_json(files.read_bytes(path))
        if isinstance(content, dict) and content.get("format", 1) != 1:
            raise InputError(f"{path} has format {content['format']}, this risbench reads 1: use a newer risbench.")
        facts = Facts.model_validate(content)
    except ValidationError as error:
        reason = defect(error)
    except InputError:
        raise
    except ValueError as error:
        reason = str(error)
    else:
        return facts.model_copy(update={"method": methods.from_file(facts.method, path)})
    raise InputError(f"{path} cannot be read ({reason}). Copy the checkpoint again.")


def _check_hash(path: Path, sha256: str) -> None:
    if not path.is_file() or sha256 != _sha256(path):
        raise InputError(
            f"{path} is not the file that {_FACTS} describes (sha256 {sha256}). It was damaged or exchanged: "
            "copy the checkpoint again."
        )


def save(
    folder: Path,
    model: Method,
    tokenizer: Tokenizer,
    settings: Recipe,
    facts: Facts,
    state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder. A crash at any moment leaves the old or the new checkpoint whole."""
    folder = folder.resolve()
    new = _beside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)  # of a killed save
    with files.replacing(new) as content, _explaining_a_full_disk(folder):
        (content / _TEXT).mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        check_finite(
            tensors, f"The new checkpoint {folder}", "Training has diverged: lower train.lr, or set train.clip_norm."
        )
        save_file(tensors, content / _WEIGHTS)
        (content / _RECIPE).write_text(recipe.dumps(settings), encoding="utf-8")
        tokenizer.save(content / _TEXT)
        if state is not None:
            with (content / _STATE).open("wb") as file:  # torch.save with a path hides why it fails on a full disk
                torch.save(state, file)
        complete = facts.model_copy(update=_hashes(content))
        (content / _FACTS).write_text(complete.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _replace(folder, new)


def _hashes(content: Path) -> dict[str, Any]:
    """Return the hashes of a new checkpoint's files, as its facts hold them."""
    texts = [content / _RECIPE, *sorted(path for path in (content / _TEXT).rglob("*") if path.is_file())]
    state = content / _STATE
    return {
        "sha256": _sha256(content / _WEIGHTS),
        "state": _sha256(state) if state.exists() else "",
        "files": {path.relative_to(content).as_posix(): _sha256(path) for path in texts},
    }


@contextmanager
def _explaining_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn what Python, torch and safetensors raise when a file cannot be written into an InputError."""
    try:
        yield
    except OSError as error:
        raise files.unwritable(folder, error) from None
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)", str(error))
        cause = OSError(int(number[1]), os.strerror(int(number[1]))) if number else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise files.unwritable(folder, cause) from None


def repair(folder: Path) -> None:
    """Finish a save that was killed between its two renames; only for the process that holds the run's lock."""
    new, old = _beside(folder, "new"), _beside(folder, "old")
    if not folder.exists():
        for whole in (new, old):
            if whole.exists():
                whole.rename(folder)
                break
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights into a model. Raises InputError, naming the first keys, if keys, shapes or types differ."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}). Copy the checkpoint again.") from None
    check_finite(tensors, str(path))
    cure = "Build the model with the recipe and vocabulary of the checkpoint."
    load_whole(model, tensors, str(path), type(model).__name__, cure=cure)


def _sha256(path: Path) -> str:
    return files.sha256(path, LIMIT)


def _replace(folder: Path, new: Path) -> None:
    """Put a whole new folder in the place of another one."""
    old = _beside(folder, "old")
    try:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(new, folder)
    except OSError as error:
        raise files.unwritable(folder, error) from None
    files.sync_entries(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}-{suffix}")


def _identity(folder: Path) -> object:
    """Return what a save changes about a folder and the old one beside it."""
    identities = []
    for path in (folder, _beside(folder, "old")):
        try:
            status = path.stat()
            identities.append((status.st_dev, status.st_ino, status.st_ctime_ns))
        except OSError:
            identities.append((0, 0, 0))
    return identities
