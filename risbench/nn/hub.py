"""Whole networks of transformers with released weights, from the hub, its cache or a folder; no code of theirs is run.

The recipe holds the sizes, so that a checkpoint needs nothing else; weights of other sizes are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import snapshot_download

from risbench.api import Method, Pretrained
from risbench.data.pretrained import from_scratch
from risbench.errors import InputError, first_sentence
from risbench.nn import byte_pairs, weights
from risbench.nn.byte_pairs import BytePairTokenizer
from risbench.recipe import PositiveInt, Recipe, Section, validate_section

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
_SIZES = "config.json"
_NEEDED = f"a folder with {_SIZES}, {' or '.join(WEIGHTS)}, and {byte_pairs.NEEDED}"


class HubSettings(Section):
    """What [model] of every such method has; the recipes explain every key."""

    pretrained: bool
    weights: str
    text_positions: PositiveInt


class HubMethod(Method):
    """A method whose `network` is a whole network of transformers with CLIP's byte pairs."""

    schema: ClassVar[type[HubSettings]]  # of the method's [model]
    sizes: ClassVar[Mapping[str, str]]  # from names in config.json to the keys that set them; "": it cannot be set
    network: Any

    @classmethod
    def tokenizer(cls, recipe: Recipe, expressions: Sequence[str]) -> BytePairTokenizer:
        """Return the byte pairs of the pretrained network, or single bytes."""
        settings = validate_section(cls.schema, recipe.model, "model")
        lengths = (recipe.text.max_tokens, settings.text_positions)
        if settings.pretrained and settings.weights:
            folder = local_folder(settings.weights, recipe.train.gated)
            return BytePairTokenizer.pretrained(folder, *lengths)
        return BytePairTokenizer.of_bytes(*lengths)

    @classmethod
    def load_tokenizer(cls, folder: Path) -> BytePairTokenizer:
        """Load the byte pairs of a checkpoint."""
        return BytePairTokenizer.load(folder)

    def load_pretrained(self, recipe: Recipe, tokenizer: BytePairTokenizer) -> list[Pretrained]:
        """Load the whole network, as [model] names it."""
        settings = validate_section(self.schema, recipe.model, "model")
        if not settings.pretrained:
            return []
        if not settings.weights:
            return [from_scratch(type(self.network).__name__)]
        return [load_network(self.network, settings.weights, self.sizes, recipe.train.gated)]

    def check_square(self, image: torch.Tensor) -> None:
        """Raise InputError unless an input (I, 3, H, W) is square."""
        height, width = image.shape[2:]
        if height != width:
            raise InputError(
                f"{type(self.network).__name__} reads square images, and this one is {height} x {width}: set "
                "image.size, which makes every input square."
            )


def check_patches(key: str, side: int, patch: int) -> None:
    """Raise InputError unless patches fill a side of pixels, which a key of the recipe sets."""
    if side % patch:
        raise InputError(
            f"{key}={side} cannot be filled by patches of {patch} pixels (model.patch): give a multiple of {patch}."
        )


def local_folder(source: str, gated: bool = False) -> Path:
    """Return the folder of a network's sizes, weights and byte pairs: `source`, or that of its name in the hub's cache.

    Raises InputError, which names the file, when one of them is missing, or when the hub cannot be reached.
    """
    folder = Path(source)
    is_from_hub = weights.is_hub_name(source)
    if is_from_hub:
        folder = _download(source, WEIGHTS[0], gated)
        if not (folder / WEIGHTS[0]).is_file():
            folder = _download(source, WEIGHTS[1], gated)
    elif not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"model.weights={source} {problem}. Give {_NEEDED}, or a name of the hub.")
    missing = [] if (folder / _SIZES).is_file() else [_SIZES]
    missing += [] if any((folder / name).is_file() for name in WEIGHTS) else [" or ".join(WEIGHTS)]
    missing += [] if byte_pairs.are_in(folder) else [byte_pairs.NEEDED]
    if missing:
        raise InputError(f"model.weights={source} lacks {', '.join(missing)}. Give {_NEEDED}.")
    return folder


def _download(name: str, file: str, gated: bool) -> Path:
    """Return the folder of a name of the hub in its cache, after what is missing there has been fetched."""
    try:
        return Path(snapshot_download(name, allow_patterns=[_SIZES, file, *byte_pairs.FILES]))
    except Exception as error:  # the hub's client raises many classes
        account = f"accept the licence on the page of {name} and log in (hf auth login)"
        cure = f"They are gated: {account}" if gated else "Connect to the Hugging Face hub or a mirror (HF_ENDPOINT)"
        raise InputError(
            f"The pretrained weights {name} cannot be loaded ({type(error).__name__}). {cure} once, or give "
            f"model.weights=FOLDER ({_NEEDED})."
        ) from None


def load_network(network: Any, source: str, sizes: Mapping[str, str], gated: bool = False) -> Pretrained:
    """Load all weights of a network; return what was loaded, with the revision if it comes from the hub.

    Raises InputError when the weights cannot be had, are not whole, or are of another network.
    """
    folder = local_folder(source, gated)
    kind = type(network).__name__
    try:
        loaded, report = type(network).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # damaged files make the library raise many classes
        raise InputError(
            f"The weights {source} cannot be read as {kind} ({first_sentence(error)}). Copy or download them again."
        ) from None
    _check_sizes(network.config, loaded.config, sizes, source)
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"The weights {source} lack {len(missing)} of {kind}, first {missing[0]}. Copy or download them again."
        )
    state = loaded.state_dict()
    weights.check_finite(state, source)
    weights.load_whole(network, state, source, kind)
    path = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    revision = f"revision {folder.name}" if folder.parent.name == "snapshots" else ""
    return weights.of_file(kind, path, detail=revision).model_copy(update={"source": source})


def _check_sizes(config: Any, loaded: Any, sizes: Mapping[str, str], source: str) -> None:
    """Refuse weights of other sizes, also of those that no shape shows."""
    for name, key in sizes.items():
        ours, theirs = _value(config, name), _value(loaded, name)
        if ours != theirs:
            cure = f"give {key}={theirs}" if key else "give other weights"
            raise InputError(f"The weights {source} have {name}={theirs}, and the recipe builds {ours}: {cure}.")


def _value(config: Any, name: str) -> Any:
    """Return a value of a configuration by its name, such as vision_config.patch_size."""
    for part in name.split("."):
        config = getattr(config, part)
    return list(config) if isinstance(config, tuple) else config
