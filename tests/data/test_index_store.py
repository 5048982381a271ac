"""The cache of indices: built once from the contents of the files, hashed before use, and built again where damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from risbench import datasets, files
from risbench.data import hashes, index, index_store, refer
from risbench.data.index import Index
from risbench.errors import InputError


@pytest.fixture
def root(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small data root that may be changed, with a cache of its own."""
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(small_root, tmp_path / "root"))


def load(root: Path) -> Index:
    return index.load(datasets.load(str(root / "small.toml")), root)


def fail_if_called(*_: Any) -> Any:
    raise AssertionError("the cache holds this")


def test_index_is_built_once_and_then_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load(root)
    monkeypatch.setattr(refer, "read", fail_if_called)
    opened = load(root)
    assert (opened.hash, opened.folder) == (built.hash, built.folder)


def test_index_belongs_to_the_contents_wherever_the_files_lie(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = load(root)
    monkeypatch.setattr(refer, "read", fail_if_called)
    assert load(Path(shutil.copytree(root, tmp_path / "elsewhere"))).hash == built.hash


def test_changed_file_of_the_same_size_makes_another_index(root: Path) -> None:
    before = load(root)
    path = root / "small" / "refs(unc).p"
    path.write_bytes(path.read_bytes().replace(b"The RED thing!!", b"The OLD thing!!"))
    after = load(root)
    assert before.hash != after.hash
    assert "The OLD thing!!" in after.split("train").raw


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an hour pass, after which the cache remembers the hashes of files that have not changed in it."""
    monkeypatch.setattr(index_store, "time", SimpleNamespace(time=lambda: time.time() + 3600))


def flip_a_bit(path: Path, place: float = 0.5) -> None:
    """Change one bit in place; size, time of change and inode stay."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def forget_verified_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process has hashed, as a new process does."""
    monkeypatch.setattr(hashes, "_verified", {})


@pytest.mark.usefixtures("later")
def test_unchanged_files_are_not_hashed_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load(root)
    monkeypatch.setattr("hashlib.file_digest", fail_if_called)
    assert load(root).hash == built.hash


@pytest.mark.usefixtures("later")
def test_a_file_changed_with_equal_size_time_and_inode_is_noticed(root: Path) -> None:
    before, path = load(root), root / "small" / "refs(unc).p"
    status = path.stat()
    with path.open("r+b") as file:
        content = path.read_bytes().replace(b"The RED thing!!", b"The OLD thing!!")
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = path.stat()
    kept = [(s.st_size, s.st_mtime_ns, s.st_ino) for s in (status, after)]
    assert kept[0] == kept[1]
    assert "The OLD thing!!" in load(root).split("train").raw
    assert load(root).hash != before.hash


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("place", [0.1, 0.9])
def test_a_damaged_memory_of_hashes_is_not_believed(root: Path, tmp_path: Path, place: float) -> None:
    built = load(root)
    memories = list((tmp_path / "cache" / "digests").iterdir())
    assert len(memories) == 2
    for memory in memories:
        flip_a_bit(memory, place)
    assert load(root).hash == built.hash


def test_a_file_that_changes_while_it_is_read_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_change(refs: Path, instances: Path) -> refer.Columns:
        columns = read(refs, instances)
        refs.write_bytes(refs.read_bytes() + b" ")
        return columns

    read = refer.read
    monkeypatch.setattr(refer, "read", read_and_change)
    with pytest.raises(InputError, match="changed while it was read"):
        load(root)


def test_another_format_makes_another_index_of_the_same_hash(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load(root)
    monkeypatch.setattr(index_store, "FORMAT", index_store.FORMAT + 1)
    again = load(root)
    assert again.folder != built.folder
    assert again.hash == built.hash  # records hold it


def test_nothing_is_written_to_the_data_root(root: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    load(root).split("val")
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


FILES = ["annotations.arrow", "expressions.arrow", "images.arrow", "index.json", "sha256.json"]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_the_cache_is_noticed_by_the_next_process(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, place: float
) -> None:
    built = load(root)
    before = contents(built)
    flip_a_bit(built.folder / name, place)
    forget_verified_files(monkeypatch)
    assert contents(load(root)) == before
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert f"{built.folder} is incomplete or damaged (" in lines[0]
    monkeypatch.setattr(refer, "read", fail_if_called)
    assert contents(load(root)) == before


def contents(opened: Index) -> list[Any]:
    splits = [opened.split(name) for name in opened.split_names()]
    rows = [(split.sent_id.tolist(), split.ann_id.tolist(), split.raw, split.kind) for split in splits]
    return [rows, [opened.ground_truth(ann_id, "once") for ann_id in (11, 51, 62)], opened.categories]


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": zero,
    "a list": lambda path: path.write_text("[]"),
    "deeply nested": lambda path: path.write_text("[" * 100_000),
    "missing": Path.unlink,
    "a pipe": pipe,
    "a folder": folder,
    "a link to itself": dangling_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES[1:])
def test_damaged_index_is_built_again(root: Path, name: str, damage: str) -> None:
    built = load(root)
    DAMAGES[damage](built.folder / name)
    assert len(load(root).split("train")) == 10
    assert sorted(path.name for path in built.folder.iterdir()) == FILES
    assert list(built.folder.parent.iterdir()) == [built.folder]


@pytest.mark.parametrize("place", ["an empty folder", "a file", "a dangling link"])
def test_what_stands_in_the_place_of_an_index_gives_way(root: Path, place: str) -> None:
    index_folder = load(root).folder
    shutil.rmtree(index_folder)
    if place == "an empty folder":
        index_folder.mkdir()
    elif place == "a file":
        index_folder.write_text("")
    else:
        index_folder.symlink_to("nowhere")
    assert len(load(root).split("train")) == 10


@pytest.mark.parametrize(("file", "after"), [*((file, False) for file in range(5)), (4, True)])
def test_a_build_killed_at_any_file_is_built_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int, after: bool
) -> None:
    """The process ends before or after a file takes its place, without tidying up."""
    code = f"""
import os, sys
from pathlib import Path
from risbench import datasets
from risbench.data import index
places = []
def replace(source, place, rename=os.replace):
    places.append(place)
    if len(places) > {file}:
        {after} and rename(source, place)
        os._exit(9)
    rename(source, place)
os.replace = replace
root = Path(sys.argv[1])
index.load(datasets.load(str(root / "small.toml")), root)
"""
    assert subprocess.run([sys.executable, "-c", code, str(root)]).returncode == 9
    assert load(root).split("val").sent_id.tolist() == [580, 581, 590, 591]
    assert sorted(path.name for path in load(root).folder.iterdir()) == FILES


def test_damage_to_an_opened_index_is_refused(root: Path) -> None:
    opened = load(root)
    flip_a_bit(opened.folder / "expressions.arrow")
    with pytest.raises(InputError, match=r"damaged while it was in use \(expressions.arrow\): run this again"):
        opened.split("train")
    assert len(load(root).split("train")) == 10


def test_processes_may_build_at_once(root: Path) -> None:
    code = "import sys; from pathlib import Path; from risbench import datasets; from risbench.data import index;"
    code += (
        "root = Path(sys.argv[1]); print(index.load(datasets.load(str(root / 'small.toml')), root).split('val').raw)"
    )
    command = [sys.executable, "-c", code, str(root)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert answers == {f"{load(root).split('val').raw}\n"}
    assert len(list((load(root).folder.parent).iterdir())) == 1


def test_cache_is_named_by_the_environment_or_lies_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISBENCH_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert index_store.cache_folder() == Path("/own")
    monkeypatch.delenv("RISBENCH_CACHE")
    assert index_store.cache_folder() == Path("/xdg/risbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert index_store.cache_folder() == Path("/home/somebody/.cache/risbench")


@pytest.mark.parametrize("home", [None, "~/.cache/risbench"])  # platformdirs refuses it, and older ones return ~
def test_a_user_without_a_home_is_told_to_name_the_cache(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    def without_home(*_: Any, **__: Any) -> Path:
        if home is None:
            raise RuntimeError("could not determine the home directory")
        return Path(home)

    monkeypatch.delenv("RISBENCH_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", without_home)
    with pytest.raises(InputError, match="no place for the cache: HOME is not set.*Set RISBENCH_CACHE"):
        index_store.cache_folder()


@pytest.mark.usefixtures("later")
def test_a_cache_that_can_only_be_read_serves_what_it_holds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load(root)

    def refuse(path: Path, content: bytes) -> None:
        raise InputError(f"{path} cannot be written")

    monkeypatch.setattr(files, "write_bytes", refuse)
    assert load(root).folder == built.folder


def test_cache_that_cannot_be_written_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RISBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file.*cannot be written: .*: set RISBENCH_CACHE to a folder of yours"):
        load(root)
