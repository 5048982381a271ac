"""Files are written whole or not at all, and only regular files of a bounded size are read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from risbench import files
from risbench.errors import InputError


def test_written_file_holds_the_text_and_nothing_else_stays(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new" / "a.txt", "ä\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ä\n".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), files.replacing(path) as new:
        new.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_appears_whole(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "run") as new:
        (new / "text").mkdir(parents=True)
        (new / "text" / "words.json").write_text("[]")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "text" / "words.json").read_text() == "[]"


def test_file_and_its_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync") or fsync(descriptor))  # type: ignore[func-returns-value]
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append("rename") or replace(old, new))  # type: ignore[func-returns-value]
    files.write_text(tmp_path / "a.txt", "text")
    assert calls == ["fsync", "rename", "fsync"]


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("target.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "new"


def test_next_write_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from risbench import files\n"
        "with files.replacing(pathlib.Path(sys.argv[1])) as new:\n"
        "    new.write_text('half'); os._exit(9)"
    )
    for name in ("[a].txt", "b.txt"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    left = sorted(path.name[:7] for path in tmp_path.iterdir())
    assert left == [".[a].tx", ".b.txt."]
    with files.replacing(tmp_path / "c.txt") as mine:
        mine.touch()
        files.write_text(tmp_path / "[a].txt", "whole")
        assert sorted(path.name[:7] for path in tmp_path.iterdir()) == [".b.txt.", ".c.txt.", "[a].txt"]
        files.sweep(tmp_path)
        assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[a].txt", "c.txt"]


def test_long_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    files.write_text(path, "text")
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match="a device or a pipe"):
        files.write_text(Path("/dev/full"), "text")
    error = files.unwritable(Path("a.txt"), OSError(28, "No space left on device"))
    assert str(error) == "a.txt cannot be written: No space left on device. Free space there, or give another place."


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(InputError, match=r"pipe is a device or a pipe, no regular file: give the path of a file\."):
        files.read_bytes(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"large has 11 bytes; at most 10 are read\."):
        files.read_bytes(tmp_path / "large", limit=10)
    with pytest.raises(IsADirectoryError):
        files.read_bytes(tmp_path)
    assert files.read_bytes(tmp_path / "large") == bytes(11)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice in one object"),
        ("[NaN]", "NaN is no number of JSON"),
        ("[" * 100_000, "it is nested too deeply"),
        ("1" * 5000, "a number of more than 4300 digits"),
    ],
)
def test_json_that_another_program_would_read_otherwise_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        files.parse_json(text)


def test_deep_toml_is_refused() -> None:
    with pytest.raises(ValueError, match="it is nested too deeply"):
        files.parse_toml("a = " + "[" * 100_000)


@pytest.mark.parametrize(
    ("content", "text", "says"),
    [
        (b"", True, "empty: its download or copy was cut off. Fetch it again."),
        (b"  <!DOCTYPE HTML>", True, "a web page, sent in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\n", True, "a pointer of git-lfs, not the file itself"),
        (b"PK\x03\x04abc", True, "a zip archive. Unpack it"),
        (b'{"a": 1}', False, "JSON that begins with '{\"a\": 1}'. Give another file."),
        (b"# Title\nmore", False, "text that begins with '# Title'. Give another file."),
        (b"\xc3\xa4" * 400, False, "text that begins with"),
        (bytes(600), False, "a file of zeros"),
        (b'{"a": 1}', True, ""),
        (b"the 0.1 0.2", True, ""),
        (b"</s> 0.1", True, ""),
        (b"\x80\x02\x8a\nl\xfc", False, ""),
        (b"\n\n", False, ""),
    ],
)
def test_a_file_that_is_none_of_data_is_called_what_it_is(
    tmp_path: Path, content: bytes, text: bool, says: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    kind = files.foreign_kind(tmp_path / "a", text)
    assert kind.startswith(says) if says else kind == ""
