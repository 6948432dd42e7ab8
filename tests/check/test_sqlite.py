"""What ``check`` says of an SQLite file, its folder and its library."""

import os
from pathlib import Path

import pytest

from airy_trio.check import sqlite


@pytest.mark.parametrize("synchronous, told", [(0, 1), (1, 1), (2, 0), (3, 0)])
def test_less_than_full_is_told(synchronous: int, told: int) -> None:
    assert len(list(sqlite.undurable(synchronous))) == told


def test_this_python_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(sqlite.file_refusals()) == []
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    assert next(sqlite.file_refusals()).endswith("3.35 or newer is needed")


def test_a_folder_in_which_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "app.db"
    path.touch()
    assert list(sqlite.missing_file_rights(path)) == []
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root, which tests may run as, may do all
    assert list(sqlite.missing_file_rights(path)) == [
        f"the file {path} cannot be written by this user",
        f"no files can be made in {tmp_path} by this user",
    ]
