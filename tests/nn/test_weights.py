from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from risbench.errors import InputError
from risbench.nn import weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def refused(path: Path, words: str) -> str:
    with pytest.raises(InputError, match=words) as error:
        weights.read(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_every_kind_of_file_gives_its_tensors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(TENSORS, path) if suffix == ".safetensors" else torch.save(OrderedDict(TENSORS), path)
    read = weights.read(path)
    assert read.keys() == TENSORS.keys() and all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)


def test_plain_values_may_stand_beside_tensors(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "epoch": 39, "name": "x"}, tmp_path / "a.pth")
    read = weights.read(tmp_path / "a.pth")
    assert read["epoch"] == 39 and torch.equal(read["model"]["b"], TENSORS["b"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("length", [0, 20, 0.5, 0.99])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, suffix: str, length: float) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(TENSORS, whole) if suffix == ".safetensors" else torch.save(TENSORS, whole)
    content = whole.read_bytes()
    cut.write_bytes(content[: int(length if length >= 1 else length * len(content))])
    refused(cut, "cannot be read|is refused")


def test_text_is_no_weights_file(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>404: not found</html>")
    refused(tmp_path / "page.pth", "cannot be read|is refused")


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"a": Harmful(trace)}, tmp_path / "harmful.pth")
    refused(tmp_path / "harmful.pth", "Nothing in it was run")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Harmful(trace)}, protocol=2))
    refused(tmp_path / "plain.pth", "Nothing in it was run|cannot be read")
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert trace.exists()  # unpickling it does run code


def test_a_class_is_refused_by_its_name_unless_it_is_allowed(tmp_path: Path) -> None:
    """As the checkpoints of LAVT hold their command line."""
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=5e-5)}, tmp_path / "lavt.pth")
    assert "argparse.Namespace" in refused(tmp_path / "lavt.pth", "is refused")
    assert weights.read(tmp_path / "lavt.pth", [argparse.Namespace])["args"].lr == 5e-5
    refused(tmp_path / "lavt.pth", "is refused")  # once more: what was allowed is so for one reading


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([TENSORS["b"]], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds a list, not a dictionary")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    refused(tmp_path / "missing.pth", "There is no weights file")
    refused(tmp_path, "There is no weights file")


def test_whatever_the_hub_raises_is_one_sentence() -> None:
    for error in (OSError("a\nb"), ValueError("x"), RuntimeError("y")):
        with pytest.raises(InputError, match=f"some/name cannot be loaded .{type(error).__name__}") as raised:  # noqa: SIM117
            with weights.explain_hub_errors("some/name"):
                raise error
        assert "\n" not in str(raised.value)
