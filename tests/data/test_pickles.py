"""The unpickler runs nothing, reads what Python 2 wrote, and says in one sentence what it refuses."""

from __future__ import annotations

import os
import pickle
import re
import resource
from collections.abc import Callable
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
    data = [{"sent_ids": [1, 2**40], "raw": "café", "box": [1.5, -2], "none": None, "yes": True}]
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
    ("content", "message"),
    [
        (b"not a pickle", r"was refused: it is damaged or no pickle \(.*Fetch the file again"),
        (b"[]", r"was refused: it is damaged or no pickle \(.*Fetch the file again"),
        (b"", "is no pickle but empty: .* Fetch it again"),
        (b"<html>404</html>", "is no pickle but a web page.* download the file itself"),
        (b"PK\x03\x04zip", "is no pickle but a zip archive. Unpack it"),
        (b"\xff\xd8\xff\xe0", "is no pickle but a JPEG picture"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, content)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_truncation_is_refused(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps([{"ref_id": 1, "sentences": [{"raw": "a cup", "sent_id": 300}]}], protocol)
    for length in range(len(whole)):
        with pytest.raises(InputError, match="damaged" if length else "empty"):
            load(tmp_path, whole[:length])


def nested(depth: int, make: Callable[[Any], Any]) -> Any:
    """An object that holds itself 2 ** depth times, in few bytes."""
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("value", [[()], [(1,)], [(1, 2)], [(1, 2, 3)], [(1, 2, 3, 4)], {(1, 2): 3}])
def test_tuples_are_refused_with_a_cure(tmp_path: Path, value: Any, protocol: int) -> None:
    with pytest.raises(InputError, match="was refused: it holds a tuple. Write lists and dictionaries only, or JSON"):
        load(tmp_path, pickle.dumps(value, protocol))


def test_a_key_whose_hash_takes_for_ever_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it holds a tuple"):
        load(tmp_path, b"}K\x01" + b"2\x86" * 60 + b"K\x01s.")  # 2 ** 60 numbers


@pytest.mark.parametrize("content", [b"\x80\x04\x8f.", b"\x80\x04(\x91.", b"\x80\x04\x8f(K\x01\x90."])
def test_sets_are_refused_with_a_cure(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="was refused: it holds a set. Write lists and dictionaries only, or JSON"):
        load(tmp_path, content)


def test_a_list_that_holds_itself_many_times_is_read_as_it_is(tmp_path: Path) -> None:
    value = nested(60, lambda value: [value, value])
    read = load(tmp_path, pickle.dumps(value))
    assert len(read) == 2 and read[0] is read[1]


def test_lists_nested_deeply_are_read(tmp_path: Path) -> None:
    value, depth = load(tmp_path, b"]" * 100_000 + b"a" * 99_999 + b"."), 1
    while value:
        (value,) = value
        depth += 1
    assert depth == 100_000


@pytest.mark.parametrize(
    "content",
    [
        b"]r\xff\xff\xff\xff.",  # the place 2 ** 32 - 1 of the unpickler's memory
        b"]r\x00\x00\x00\x10.",
        b"]p9999999999\n.",
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",  # BINBYTES8
        b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",  # BINUNICODE8
        b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b"x.",  # BYTEARRAY8
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"].",  # FRAME
        b"\x80\x02X\xff\xff\xff\xffx.",  # BINUNICODE
        b"\x80\x02T\xff\xff\xff\x7fx.",  # BINSTRING
        b"\x80\x02\x8b\xff\xff\xff\x7fx.",  # LONG4
        b"I" + b"9" * 5000 + b"\n.",
        b"L" + b"9" * 5000 + b"L\n.",
    ],
)
def test_a_length_that_the_file_does_not_have_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="was refused: it is damaged"):
        load(tmp_path, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    try:
        load(tmp_path, content)
    except InputError as error:
        assert re.search(r"refs\(unc\)\.p (was refused|is no pickle but)", str(error))
