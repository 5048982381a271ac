"""Convert a checkpoint file that a method's authors released to a checkpoint folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risbench import datasets, methods, recipe
from risbench.api import Converted, Method, Pretrained
from risbench.data.pretrained import UNKNOWN, training_data
from risbench.data.text import WordPieceTokenizer
from risbench.engine import checkpoint
from risbench.engine.checkpoint import Facts
from risbench.errors import InputError, first_line
from risbench.nn import weights
from risbench.recipe import Recipe

_SHOWN = 3  # names in a message
_ALLOWED_CLASSES = [Namespace]  # training scripts store their arguments; no other class is read


def convert_checkpoint(
    method: str, source: Path, target: Path, vocabulary: Path | None = None, dataset: str = ""
) -> list[str]:
    """Write the checkpoint folder `target`; return lines that describe it and name the unused entries of the file.

    The word pieces come from `vocabulary`, or else from Hugging Face or its cache. `dataset` names the training data if
    the file does not. No code in the file is run. Raises InputError, and writes nothing, if the file is not one of the
    method's, damaged or incomplete, or if the target is taken.
    """
    method = methods.register(method)
    _check_free(target)
    dataset = datasets.load(dataset).name if dataset else ""
    cls = methods.load(method)
    _check_converts(cls, method)
    content, wrappers = _without_wrappers(weights.read(source, _ALLOWED_CLASSES), source)
    with _prefix_errors(source):
        converted = cls.convert(content)
        training_dataset = _training_dataset(converted, dataset)
    settings, variants = _settings(methods.recipe_file(method), converted)
    tokenizer = _tokenizer(source, converted, vocabulary, settings.text.max_tokens)
    with _prefix_errors(source):
        model = _build_without_memory(cls, settings, tokenizer)
        unused = [*converted.left, *_load_tensors(model, converted)]
    weights.check_finite(
        {name: tensor for name, tensor in converted.tensors.items() if name not in unused}, str(source)
    )
    released = _describe_released(source, training_dataset, converted)
    facts = Facts(
        method=method,
        origin=methods.origin(method),
        code=methods.code_hash(method),
        variants=variants,
        training_data=training_data([released]),
        pretrained=(released,),
        seed=None,
        epoch=converted.epoch,
        training_seconds=None,
    )
    checkpoint.save(target.resolve(), model, tokenizer, settings, facts)
    lines = [*converted.notes, f"{target}: {_description(model, facts)}", *wrappers]
    return [*lines, *_remarks(training_dataset, converted, unused)]


def _check_converts(cls: type[Method], method: str) -> None:
    if not any("convert" in vars(base) for base in cls.__mro__ if base is not Method):
        raise InputError(
            f"{method} has no converter: it reads no checkpoint files of its authors. Train it: risbench run --method "
            f"{method}."
        )


def _without_wrappers(content: dict[str, Any], source: Path) -> tuple[dict[str, Any], list[str]]:
    """Leave out what DataParallel, torch.compile and the like add to names of weights; return lines that say so."""
    if _holds_weights(content):
        bare, line = weights.without_wrappers(content, str(source))
        return bare, [line] if line else []
    lines = []
    content = dict(content)
    for key, value in content.items():
        if isinstance(value, dict) and _holds_weights(value):
            content[key], line = weights.without_wrappers(value, f"{source}, {key}")
            lines += [line] if line else []
    return content, lines


def _holds_weights(values: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor | np.ndarray) for value in values.values())


@contextmanager
def _prefix_errors(source: Path) -> Iterator[None]:
    """Put the name of the file before an error message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check_free(target: Path) -> None:
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken or target.resolve() == Path.cwd():
        raise InputError(f"{target} is no place for a checkpoint: give the path of a new folder, or of an empty one.")


def _training_dataset(converted: Converted, dataset: str) -> str:
    """Return the data set that the file or else the option names; "" if neither does."""
    if dataset and converted.dataset not in ("", dataset):
        raise InputError(f"it says that it was trained on {converted.dataset}, not on {dataset}. Leave --dataset out.")
    return converted.dataset or dataset


def _describe_released(source: Path, dataset: str, converted: Converted) -> Pretrained:
    """Describe the file and all that it was trained on, as far as it is known."""
    begun_with = [UNKNOWN] if converted.pretraining is None else converted.pretraining
    names = dict.fromkeys([dataset or UNKNOWN, *begun_with])
    return weights.of_file("network", source).model_copy(update={"training_data": tuple(names)})


def _settings(path: Path, converted: Converted) -> tuple[Recipe, list[str]]:
    """Return the recipe of the variant with the sizes of the weights, or else the recipe with these sizes put in."""
    for size_variant in ([], *([name] for name in recipe.variant_names(path))):
        settings, variants = recipe.load(path, [*size_variant, *converted.variants])
        if converted.model.items() <= settings.model.items():
            return settings, variants
    settings, variants = recipe.load(path, converted.variants)
    return settings.model_copy(update={"model": {**settings.model, **converted.model}}), variants


def _tokenizer(source: Path, converted: Converted, vocabulary: Path | None, max_tokens: int) -> WordPieceTokenizer:
    tokenizer = WordPieceTokenizer.pretrained(str(vocabulary or converted.vocabulary), max_tokens)
    if len(tokenizer) != converted.pieces:
        raise InputError(
            f"{vocabulary or converted.vocabulary} has {len(tokenizer)} word pieces, but {source} has embeddings of "
            f"{converted.pieces}. Give the vocab.txt it was trained with: --vocabulary FILE."
        )
    return tokenizer


def _build_without_memory(cls: type[Method], settings: Recipe, tokenizer: WordPieceTokenizer) -> Method:
    """Build the network without memory: the tensors of the file become its parameters."""
    try:
        with torch.device("meta"):
            return cls.build(settings, tokenizer)
    except RuntimeError as error:
        reason = first_line(error).rstrip(".")
        raise InputError(f"no network has the sizes of its weights ({reason}). Give another file.") from None


def _load_tensors(model: Method, converted: Converted) -> list[str]:
    """Load the tensors of the file into the model; return the authors' names of the unused ones."""
    state, tensors = model.state_dict(), converted.tensors
    released = {name: converted.released(name) for name in state}
    _check_complete(state, released, tensors)
    loaded: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, expected in state.items():
        tensor = tensors.get(released[name])
        if tensor is None:  # a counter of training steps
            tensor = torch.zeros(expected.shape, dtype=expected.dtype)
        if tensor.shape != expected.shape or tensor.is_floating_point() != expected.is_floating_point():
            raise InputError(
                f"{released[name]} is {weights.describe_tensor(tensor)}, where a network of the file's sizes has "
                f"{weights.describe_tensor(expected)}. Give a file that the authors' own training code wrote."
            )
        is_shared = tensor.untyped_storage().data_ptr() in addresses  # safetensors cannot write shared memory
        loaded[name] = tensor.detach().to(expected.dtype, copy=is_shared)
        addresses.add(tensor.untyped_storage().data_ptr())
    model.load_state_dict(loaded, assign=True)
    return sorted(tensors.keys() - set(released.values()))


def _check_complete(state: Mapping[str, Tensor], released: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file that lacks a weight of the model."""
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    missing = [released[name] for name in names if released[name] not in tensors]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        shown = f"{', '.join(missing[:_SHOWN])}{more}"
        raise InputError(f"{len(missing)} of {len(names)} weights are missing: {shown}. Give a whole file.")


def _description(model: Method, facts: Facts) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    name = " ".join([facts.method, *facts.variants])
    return f"{name}, {size:,} parameters, trained on {', '.join(facts.training_data)}"


def _remarks(dataset: str, converted: Converted, unused: list[str]) -> list[str]:
    lines = [] if dataset else ["The file does not say what it was trained on. If you know, give --dataset NAME."]
    if converted.pretraining is None:
        lines.append("The file does not say which weights its training began from: its training data count as unknown.")
    if converted.needless:
        counts = ", ".join(f"{count} {kind}" for kind, count in converted.needless.items())
        lines.append(f"Left out because it is not needed: {counts}")
    return [*lines, *(f"Unexpected, and not used: {name}" for name in unused)]
