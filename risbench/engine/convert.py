"""Turn a checkpoint file that a method's authors released into a checkpoint folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from risbench import datasets, methods, recipe
from risbench.api import Converted, Method
from risbench.data.text import WordPieceTokenizer
from risbench.engine import checkpoint
from risbench.engine.checkpoint import Facts
from risbench.errors import InputError
from risbench.nn import weights
from risbench.recipe import Recipe

_ALLOWED = [Namespace]  # training scripts keep their arguments in their files; no other class is read


def convert(method: str, source: Path, target: Path, vocabulary: Path | None = None, dataset: str = "") -> list[str]:
    """Write the checkpoint folder `target`; return lines that say what it is, and what of the file was not used.

    The word pieces come from `vocabulary`, or else from Hugging Face or its cache; `dataset` is what the weights were
    trained on, where the file does not say. Nothing in the file is run. Raises InputError, and writes nothing, where
    the file is none of the method's, damaged or incomplete, or the target is not free.
    """
    _check_free(target)
    asked = datasets.load(dataset).name if dataset else ""
    cls = methods.load(method)
    content = weights.read(source, _ALLOWED)
    with _about(source):
        converted = cls.convert(content)
        trained_on = _trained_on(converted, asked)
    settings, variants = _settings(methods.recipe_file(method), converted)
    tokenizer = _tokenizer(source, converted, vocabulary, settings.text.max_tokens)
    with _about(source):
        model = _empty(cls, settings, tokenizer)
        unused = [*converted.left, *_fill(model, converted)]
    facts = Facts(
        method=methods.folder(method).name,
        variants=variants,
        training_data=[trained_on or "unknown", *settings.train.pretraining],
        weights=f"released {methods.folder(method).name}, {source.name} sha256 {checkpoint.file_sha256(source)[:12]}",
        seed=None,
        epoch=converted.epoch,
        training_seconds=None,
    )
    checkpoint.save(target.resolve(), model, tokenizer, settings, facts)
    return [f"{target}: {_description(model, facts)}", *_remarks(trained_on, converted, unused)]


@contextmanager
def _about(source: Path) -> Iterator[None]:
    """Say in an error which file it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check_free(target: Path) -> None:
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken or target.resolve() == Path.cwd():
        raise InputError(f"{target} is no place for a checkpoint: give the path of a new folder, or of an empty one.")


def _trained_on(converted: Converted, asked: str) -> str:
    if asked and converted.dataset not in ("", asked):
        raise InputError(f"it says that it was trained on {converted.dataset}, not on {asked}. Leave --dataset out.")
    return converted.dataset or asked


def _settings(path: Path, converted: Converted) -> tuple[Recipe, list[str]]:
    """The recipe of the variant that has the sizes of the weights; where none has, the recipe with these sizes."""
    for sized in ([], *([name] for name in recipe.variants(path))):
        settings, variants = recipe.load(path, [*sized, *converted.variants])
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


def _empty(cls: type[Method], settings: Recipe, tokenizer: WordPieceTokenizer) -> Method:
    """Build the network without memory: the tensors of the file become its own."""
    try:
        with torch.device("meta"):
            return cls.build(settings, tokenizer)
    except RuntimeError as error:
        raise InputError(f"no network has the sizes of its weights ({error}). Give another file.") from None


def _fill(model: Method, converted: Converted) -> list[str]:
    """Put the tensors of the file into the model; return the authors' names of those that it has no place for."""
    own, tensors = model.state_dict(), converted.tensors
    released = {name: converted.released(name) for name in own}
    weights_of_ours = [name for name, tensor in own.items() if tensor.is_floating_point()]
    missing = [released[name] for name in weights_of_ours if released[name] not in tensors]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(weights_of_ours)} weights are missing: {', '.join(missing)}. Give a whole file."
        )
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, place in own.items():
        tensor = tensors.get(released[name])
        if tensor is None:  # a counter of training steps
            tensor = torch.zeros(place.shape, dtype=place.dtype)
        if tensor.shape != place.shape or tensor.is_floating_point() != place.is_floating_point():
            raise InputError(
                f"{released[name]} is {_said(tensor)}, where a network of the file's sizes has {_said(place)}. Give "
                "a file that the authors' own training code wrote."
            )
        shared = tensor.untyped_storage().data_ptr() in memory  # which safetensors cannot write
        found[name] = tensor.detach().to(place.dtype, copy=shared)
        memory.add(tensor.untyped_storage().data_ptr())
    model.load_state_dict(found, assign=True)
    return sorted(tensors.keys() - set(released.values()))


def _said(tensor: Tensor) -> str:
    """Shape and type: 96 x 3 x 4 x 4 float32."""
    return f"{' x '.join(map(str, tensor.shape)) or 'one'} {str(tensor.dtype).removeprefix('torch.')}"


def _description(model: Method, facts: Facts) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    name = " ".join([facts.method, *facts.variants])
    return f"{name}, {size:,} parameters, trained on {', '.join(facts.training_data)}"


def _remarks(trained_on: str, converted: Converted, unused: list[str]) -> list[str]:
    lines = [] if trained_on else ["The file does not say what it was trained on. If you know, give --dataset NAME."]
    if converted.needless:
        counts = ", ".join(f"{count} {kind}" for kind, count in converted.needless.items())
        lines.append(f"Left out, for nothing here needs it: {counts}")
    return [*lines, *(f"Unexpected, and not used: {name}" for name in unused)]
