from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
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
    refused(cut, "cannot be read .* It is damaged: download it again|is empty|is cut off: ")


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return content.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "is a web page, sent in place of the file. Open its address"),
        (b"\xef\xbb\xbf\n<HTML>404</HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs.* Run git lfs pull"),
        (b'{"message": "Not Found"}', "is JSON that begins with .*Not Found.* Give another file"),
        (b"hello, world", "is text that begins with 'hello, world'"),
        (b"x", "is text that begins with 'x'"),
        (zipped(readme=b"hello"), "is a zip archive. Unpack it and give the file in it"),
        (tarred(), "is a tar archive. Unpack it"),
        (gzip.compress(b"hello", mtime=0), "is a gzip archive. Unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "is an HDF5 file"),
        (b"\xff\xd8\xff\xe0" + bytes(500), "is a JPEG picture"),
        (bytes(2000), "is a file of zeros: its download or copy did not end"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path: Path, suffix: str, content: bytes, says: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(tmp_path / f"a{suffix}", says)


def test_a_torchscript_archive_holds_code_and_is_refused(tmp_path: Path) -> None:
    content = {"a/data.pkl": b"", "a/constants.pkl": b"", "a/code/a.py": b""}
    (tmp_path / "script.pt").write_bytes(zipped(**content))
    refused(tmp_path / "script.pt", "is a TorchScript archive, which holds code. Save its state_dict")


def test_a_pipe_and_a_device_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "is a device or a pipe")
    refused(Path("/dev/zero"), "is a device or a pipe")


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(weights.LIMIT + 1)
    refused(tmp_path / "large.pth", "at most 68,719,476,736 are read")


def test_the_content_and_not_the_name_tells_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.bin")
    assert weights.read(tmp_path / "a.bin").keys() == TENSORS.keys()
    torch.save(TENSORS, tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "is a file of torch.save. Rename it to end in .pth.")
    (tmp_path / "b.safetensors").rename(tmp_path / "b.pth")
    assert weights.read(tmp_path / "b.pth").keys() == TENSORS.keys()


NUMBERS = [
    np.float64(2.5),
    np.int32(-3),
    np.bool_(True),
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
    np.array([1.5, -2], ">f4"),
    np.array(7),
    np.zeros((0, 3)),
    np.array([True, False]),
]


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers_and_arrays_of_numpy_are_read(tmp_path: Path, value: Any, as_zip: bool) -> None:
    torch.save({"a": value}, tmp_path / "a.pth", _use_new_zipfile_serialization=as_zip)
    read = weights.read(tmp_path / "a.pth")["a"]
    assert np.array_equal(read, value) and np.shape(read) == np.shape(value)
    assert isinstance(read, np.ndarray | bool | int | float)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.array(["left"]), "'U4', no numbers"),
        (np.str_("left"), "'U4', no numbers"),
        (np.array([{}], object), "'O8', no numbers"),
        (np.zeros(2, [("a", "i4")]), "'V4', no numbers"),
        (np.datetime64("2020"), "'M8', no numbers"),
        (np.random.default_rng(0), "it holds numpy.random"),
        (np.ma.array([1.0]), "it holds numpy.ma"),
        (Path("a"), "it holds pathlib"),
        (torch.nn.Linear(1, 1), "it holds torch.nn.modules.linear.Linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_else_is_refused_by_its_name(tmp_path: Path, value: object, name: str) -> None:
    torch.save({"a": value}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", f"a.pth is refused: .*{name}.* nothing in it was run: give a file of weights")


def wrapped(prefix: str, tensors: dict[str, torch.Tensor] = TENSORS) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("container", ["", "model", "state_dict", "network"])
@pytest.mark.parametrize(
    ("prefix", "removed"),
    [
        ("", ""),
        ("module.", "module."),
        ("_orig_mod.", "_orig_mod."),
        ("module._orig_mod.", "_orig_mod. module."),
        ("model.", "model."),
        ("network.module.", "network. module."),
        ("_orig_mod.net.", "_orig_mod. net."),
    ],
)
def test_what_wrappers_add_to_the_names_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, container: str, prefix: str, removed: str
) -> None:
    content: dict[str, Any] = {container: wrapped(prefix), "epoch": 3} if container else dict(wrapped(prefix))
    torch.save(content, tmp_path / "a.pth")
    read = weights.read_tensors(tmp_path / "a.pth")
    assert read.keys() == TENSORS.keys() and all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)
    lines = [f"{tmp_path / 'a.pth'}: left out of the names of the weights: {removed}"] if removed else []
    assert [record.message for record in caplog.records] == lines


def test_a_compiled_part_of_a_network_keeps_its_place(tmp_path: Path) -> None:
    torch.save({"a._orig_mod.weight": TENSORS["a.weight"], "b": TENSORS["b"]}, tmp_path / "a.pth")
    assert weights.read_tensors(tmp_path / "a.pth").keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({**TENSORS, **wrapped("_orig_mod.")}, "a.weight is there with and without _orig_mod"),
        ({**TENSORS, **wrapped("module.")}, "2 of 4 names begin with module., and the others do not"),
        ({"model": TENSORS, "state_dict": TENSORS}, "holds weights in model and in state_dict"),
        ({"state_dict": {"a": 3}}, "a is a int, no weight"),
    ],
)
def test_weights_that_are_not_clear_are_refused(tmp_path: Path, content: dict[str, Any], says: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=says):
        weights.read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e5m2])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, number: float, dtype: torch.dtype) -> None:
    torch.save({"fine": torch.ones(2, dtype=dtype), "count": torch.tensor(3)}, tmp_path / "fine.pth")
    weights.read_tensors(tmp_path / "fine.pth")
    tensor = torch.tensor([1.0, number]).to(dtype)
    torch.save({"fine": torch.ones(2), "wrong": tensor, "worse": tensor}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="2 of 3 weights hold NaN or infinite numbers, first wrong. The training"):
        weights.read_tensors(tmp_path / "a.pth")


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"a": Harmful(trace)}, tmp_path / "harmful.pth")
    refused(tmp_path / "harmful.pth", "nothing in it was run")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": Harmful(trace)}, protocol=2))
    refused(tmp_path / "plain.pth", "nothing in it was run|cannot be read")
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
    refused(tmp_path, "is a folder, no weights file. Give the path of the file in it")


def test_whatever_the_hub_raises_is_one_sentence() -> None:
    for error in (OSError("a\nb"), ValueError("x"), RuntimeError("y")):
        with pytest.raises(InputError, match=f"some/name cannot be loaded .{type(error).__name__}") as raised:  # noqa: SIM117
            with weights.explain_hub_errors("some/name"):
                raise error
        assert "\n" not in str(raised.value)
