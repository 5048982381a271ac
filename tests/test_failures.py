"""Exceptions of libraries and of the machine that become one sentence; a bug stays an exception."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from risbench import failures
from risbench.errors import InputError

LIMITS = ["train.micro_batch", "train.per_image", "predict.images_per_batch", "image.size"]
WORKER = "DataLoader worker (pid 8) is killed by signal: "


def error_of(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: B017, PT011
        call()
    return raised.value


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.empty(2**50),
        lambda: bytearray(2**60),
        lambda: np.zeros(2**50),
        lambda: torch.frombuffer(bytearray(8), dtype=torch.float64).repeat(2**50),
    ],
)
def test_memory_that_ran_out_names_every_setting_that_saves_some(call: Callable[[], object]) -> None:
    message = str(failures.translate(error_of(call)))
    assert message.startswith("Memory ran out") and all(name in message for name in LIMITS)


def test_the_missing_amount_is_in_gib() -> None:
    assert "(1048576.00 GiB more were needed)" in str(failures.translate(error_of(lambda: torch.empty(2**48))))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU ran out (2.00 GiB more"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "of the GPU ran out"),
        (OSError(12, "Cannot allocate memory"), "Memory ran out"),
        (RuntimeError(f"{WORKER}Killed. "), "(killed by signal: Killed), most often because memory ran out: lower"),
        (RuntimeError("DataLoader worker (pid(s) 8) exited unexpectedly"), "lower train.workers"),
        (RuntimeError(f"{WORKER}Bus error. It is possible that ..."), "/dev/shm"),
        (RuntimeError("unable to write to file </torch_8_1_0>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_8>: No space left"), "--shm-size"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "ulimit -n"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("can't start new thread"), "--pids-limit"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (KeyError("getpwuid(): uid not found: 12345"), "set HOME"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:8"), "Another process"),
        (ModuleNotFoundError("No module named 'nonesuch'", name="nonesuch.part"), "pip install nonesuch."),
        (ImportError("cannot import name 'x' from 'timm'", name="timm.layers"), "Run risbench doctor"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "(os error 28)). Free space"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "Free space"),
        (OSError(2, "No such file or directory", "a.txt"), "a.txt: No such file or directory. Give a path"),
    ],
)
def test_a_failure_of_the_machine_is_one_sentence_with_its_cure(error: Exception, words: str) -> None:
    failure = failures.translate(error)
    assert failure is not None and words in str(failure) and "\n" not in str(failure)


def test_text_of_another_encoding_is_shown() -> None:
    assert "b'\\xe9t\\xe9' at byte 1" in str(failures.translate(error_of(lambda: b"(\xe9t\xe9".decode())))
    assert "'d\\udce9'" in str(failures.translate(error_of(lambda: os.fsdecode(b"d\xe9").encode())))


def test_an_error_in_words_stays_as_it_is() -> None:
    error = InputError("so it is")
    assert failures.translate(error) is error


def test_a_library_that_fails_while_it_is_imported_is_named() -> None:
    source = compile("raise OSError('libcudart.so.12: cannot open shared object file')", "torch/__init__.py", "exec")
    message = str(failures.translate(error_of(lambda: exec(source, {"__name__": "torch"}))))
    assert message.startswith("import torch fails (OSError: libcudart.so.12") and "risbench doctor" in message


def recurse() -> None:
    recurse()


def test_nesting_of_the_input_is_told_from_a_bug() -> None:
    nested = "[" * 100_000
    assert "nested too deeply" in str(failures.translate(error_of(lambda: json.loads(nested))))
    assert failures.translate(error_of(recurse)) is None


@pytest.mark.parametrize(
    "error",
    [
        KeyError("counts"),
        RuntimeError("shape mismatch"),
        ImportError("cannot import name 'x'", name="risbench.api"),
        ModuleNotFoundError("No module named 'risbench.x'", name="risbench.x"),
        UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
    ],
)
def test_a_bug_is_no_failure(error: Exception) -> None:
    assert failures.translate(error) is None
