"""Checks of an SQLite file, its folder and its library."""

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from airy_trio.check import check, servers
from tests.application import Application


@pytest.mark.parametrize("synchronous, lines", [(0, 1), (1, 1), (2, 0), (3, 0)])
def test_synchronous_below_full_is_reported(synchronous: int, lines: int) -> None:
    assert len(list(servers.file_durability(synchronous))) == lines


def test_old_sqlite_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(servers.file_refusals()) == []
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    assert next(servers.file_refusals()).endswith("3.35 or newer is needed")


def test_folder_without_write_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "app.db"
    path.touch()
    assert list(servers.missing_file_rights(path)) == []
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # tests may run as root, which can write anything
    assert list(servers.missing_file_rights(path)) == [
        f"the file {path} cannot be written by this user",
        f"this user cannot create files in {tmp_path}",
    ]


def test_file_that_is_being_written_is_not_a_problem(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate()
    path = str(sqlite_application.engine.url.database)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as application:
        application.execute("pragma journal_mode = wal")
        application.execute("begin immediate")
        application.execute("insert into tags values ('t1', 'flag', 'red')")
        commit = threading.Timer(1.0, application.execute, ("commit",))
        commit.start()
        report = check(settings)
        commit.join()
    assert report.of("problem") == ()
