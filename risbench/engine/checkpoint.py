"""Checkpoints: a folder that holds all that a prediction needs, and in `last` the training state.

weights.safetensors, recipe.toml (resolved), text/ (vocabulary), checkpoint.json; state.pt only in `last`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from risbench import __version__, methods, recipe
from risbench.api import Method, Tokenizer
from risbench.errors import InputError, defect
from risbench.recipe import Recipe

_WEIGHTS, _RECIPE, _FACTS, _TEXT, _STATE = "weights.safetensors", "recipe.toml", "checkpoint.json", "text", "state.pt"


class Facts(BaseModel):
    """The content of checkpoint.json: the origin of the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    risbench: str = __version__
    method: str
    variants: list[str]
    training_data: list[str]
    weights: str  # the weights that training started from
    seed: int | None
    epoch: int | None  # None: not known, as for some converted weights
    training_seconds: float | None
    sha256: str = ""  # of weights.safetensors
    files: dict[str, str] = {}  # sha256 of recipe.toml and of each file in text/


class Checkpoint:
    """An opened checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = recover(folder)
        self.weights = self.folder / _WEIGHTS
        for name in (_WEIGHTS, _RECIPE, _FACTS):
            if not (self.folder / name).is_file():
                raise InputError(
                    f"{folder} is not a checkpoint: it holds no {name}. Give a folder such as runs/ID/checkpoints/best."
                )
        self.facts = _read_facts(self.folder / _FACTS)
        for name, sha256 in {**self.facts.files, _WEIGHTS: self.facts.sha256}.items():
            path = self.folder / name
            if not path.is_file() or sha256 != file_sha256(path):
                raise InputError(
                    f"{path} is not the file that {_FACTS} describes (sha256 {sha256}). It was damaged or exchanged: "
                    "copy the checkpoint again."
                )
        self.recipe: Recipe = recipe.validate(recipe.read(self.folder / _RECIPE), str(self.folder / _RECIPE))

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        return methods.load(self.facts.method).load_tokenizer(self.folder / _TEXT)

    def model(self) -> tuple[Method, Tokenizer]:
        """Build the method and load its weights."""
        tokenizer = self.tokenizer()
        model = methods.load(self.facts.method).build(self.recipe, tokenizer)
        load_weights(model, self.weights)
        model.weights = self.facts.weights
        return model, tokenizer

    def state(self) -> dict[str, Any]:
        """Load the training state."""
        path = self.folder / _STATE
        if not path.is_file():
            raise InputError(
                f"{self.folder} holds no {_STATE}, so training cannot go on from it. Use checkpoints/last."
            )
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} cannot be read ({reason}). Resume another run, or start from --init.") from None
        return state


def _read_facts(path: Path) -> Facts:
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.get("format", 1) != 1:
            raise InputError(f"{path} has format {content['format']}, this risbench reads 1: use a newer risbench.")
        return Facts.model_validate(content)
    except ValidationError as error:
        reason = defect(error)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = str(error)
    raise InputError(f"{path} cannot be read ({reason}). Copy the checkpoint again.")


def save(
    folder: Path,
    model: Method,
    tokenizer: Tokenizer,
    settings: Recipe,
    facts: Facts,
    state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder. A crash at any moment leaves the old or the new checkpoint whole."""
    new = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    (new / _TEXT).mkdir(parents=True)
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, new / _WEIGHTS)
        (new / _RECIPE).write_text(recipe.dumps(settings), encoding="utf-8")
        tokenizer.save(new / _TEXT)
        files = [new / _RECIPE, *sorted(path for path in (new / _TEXT).rglob("*") if path.is_file())]
        hashes = {path.relative_to(new).as_posix(): file_sha256(path) for path in files}
        complete = facts.model_copy(update={"sha256": file_sha256(new / _WEIGHTS), "files": hashes})
        (new / _FACTS).write_text(complete.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if state is not None:
            torch.save(state, new / _STATE)
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def recover(folder: Path) -> Path:
    """Finish a replacement that was killed between its two renames, and return the folder."""
    if not folder.exists() and _old_folder(folder).exists():
        _old_folder(folder).rename(folder)
    return folder


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights into a model. Raises InputError, naming the first keys, if keys or shapes differ."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}). Copy the checkpoint again.") from None
    state = model.state_dict()
    common = state.keys() & tensors.keys()
    wrong = sorted(
        {*(state.keys() ^ tensors.keys()), *(key for key in common if state[key].shape != tensors[key].shape)}
    )
    if wrong:
        raise InputError(
            f"{path} does not fit the model: {len(wrong)} of {len(state)} keys are missing, left over or of another "
            f"shape, first {', '.join(wrong[:3])}. Build the model with the recipe and vocabulary of the checkpoint."
        )
    model.load_state_dict(tensors)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(folder: Path, new: Path) -> None:
    recover(folder)
    old = _old_folder(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-old")
