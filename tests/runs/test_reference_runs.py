"""Runs of references: their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from risbench.errors import InputError
from risbench.runs import reference_runs


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [reference_runs._make_folder(tmp_path / "runs", "reference-first") for _ in range(3)]
    assert [folder.name for folder in folders] == ["reference-first", "reference-first-2", "reference-first-3"]
    assert all(folder.is_dir() for folder in folders)


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("kept")
    with pytest.raises(InputError, match=r"runs/reference-first cannot be written: .*Give a path that can be written"):
        reference_runs._make_folder(tmp_path / "runs", "reference-first")
    assert (tmp_path / "runs").read_text() == "kept"
