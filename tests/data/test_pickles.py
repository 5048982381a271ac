"""The unpickler runs nothing, reads what Python 2 wrote, and says in one sentence what it refuses."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from risbench.data import pickles
from risbench.errors import InputError


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def load(folder: Path, content: bytes) -> Any:
    path = folder / "refs(unc).p"
    path.write_bytes(content)
    return pickles.load(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    data = [{"sent_ids": [1, 2**40], "raw": "café", "box": (1.5, -2), "none": None, "yes": True}]
    assert load(tmp_path, pickle.dumps(data, protocol)) == data


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("depth", [0, 3])
def test_call_of_the_system_is_refused_and_nothing_runs(tmp_path: Path, protocol: int, depth: int) -> None:
    marker = tmp_path / "it_ran"
    attack: Any = Calls(os.system, f"touch '{marker}'")
    for _ in range(depth):
        attack = [{"sentences": attack}]
    with pytest.raises(
        InputError, match=r"refs\(unc\)\.p was refused: it wants to import \w+\.system.*Nothing was run"
    ):
        load(tmp_path, pickle.dumps(attack, protocol))
    assert not marker.exists()


def test_eval_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    with pytest.raises(InputError, match=r"builtins\.eval"):
        load(tmp_path, pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w')")))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"cos\nsystem\n.", r"os\.system"),  # named, not even called
        (b"(S'true'\nios\nsystem\n.", r"os\.system"),  # INST, of the oldest protocol
        (b"c__builtin__\neval\n(S'1'\ntR.", r"__builtin__\.eval|builtins\.eval"),
        (b"ccopy_reg\n_reconstructor\n.", r"copy_?reg\._reconstructor"),
        (b"\x80\x02\x82\xf0.", "damaged"),  # EXT1, from a registry of extensions
        (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93.", r"os\.system"),  # STACK_GLOBAL
        (b"P1\n.", "outside the file"),  # PERSID
        (b"I1\nQ.", "outside the file"),  # BINPERSID
    ],
)
def test_every_way_to_something_outside_is_refused(tmp_path: Path, content: bytes, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        load(tmp_path, content)


def test_numpy_numbers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"wants to import numpy\."):
        load(tmp_path, pickle.dumps([{"ref_id": np.int64(1)}]))


def test_python_2_byte_strings_are_read_as_utf8_or_else_latin1(tmp_path: Path) -> None:
    utf8 = "café".encode()
    written = b"\x80\x02]q\x00}q\x01(U\x03rawq\x02U\x05" + utf8 + b"U\x04sentU\x04caf\xe9U\x02idK\x07ua."
    assert load(tmp_path, written) == [{"raw": "café", "sent": "café", "id": 7}]


def test_python_2_text_protocol_is_read(tmp_path: Path) -> None:
    written = (
        b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xe9'\np3\nsS'ref_id'\np4\nL1234567890123L\nsS'sent'\nVna\\u00efve\np5\nsa."
    )
    assert load(tmp_path, written) == [{"raw": "café", "ref_id": 1234567890123, "sent": "naïve"}]


def test_one_file_may_hold_both_encodings(tmp_path: Path) -> None:
    written = b"\x80\x02}q\x00U\x04caf\xe9]q\x01(U\x05caf\xc3\xa9U\x09caf\xc3\xa9 \xfcbees."
    assert load(tmp_path, written) == {"café": ["café", "café übe"]}


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", b"[]", b"<html>404</html>", b"PK\x03\x04zip", b"\xff\xd8\xff\xe0"]
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"was refused: it is damaged or no pickle \(.*Fetch the file again"):
        load(tmp_path, content)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps([{"ref_id": 1, "sentences": [{"raw": "a cup", "sent_id": 300}]}], protocol=2)
    for length in range(len(whole)):
        with pytest.raises(InputError, match="damaged"):
            load(tmp_path, whole[:length])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40).filter(lambda b: not {*b"rp"} & {*b}))  # these may ask for gigabytes
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    try:
        load(tmp_path, content)
    except InputError as error:
        assert "refs(unc).p was refused" in str(error)
