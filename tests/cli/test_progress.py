"""Progress bars, as written to a terminal."""

import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa

from tests.application import Application
from tests.processes import AIRY_TRIO

END_S = 50


class Terminal:
    """The terminal that is the stderr of a command, and its stdin if the command reads answers."""

    def __init__(self, file: int) -> None:
        self._file = file
        self.text = ""

    def write(self, text: str) -> None:
        """Type these characters."""
        os.write(self._file, text.encode())

    def until(self, words: str) -> None:
        """Read until these words have been written."""
        while words not in self.text:
            read = self._read()
            assert read, self.text

    def rest(self) -> str:
        """Read to the end."""
        while self._read():
            pass
        return self.text

    def _read(self) -> bool:
        try:
            read = os.read(self._file, 4096)
        except OSError:  # raised by Linux at the end of a terminal
            return False
        self.text += read.decode()
        return bool(read)


@contextmanager
def running(*arguments: str, stdin: bool = False) -> Iterator[tuple[Terminal, "subprocess.Popen[str]"]]:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*AIRY_TRIO, *arguments], stdin=theirs if stdin else None, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        late = threading.Timer(END_S, process.kill)
        late.start()
        try:
            yield Terminal(ours), process
        finally:
            late.cancel()
            process.kill()
            os.close(ours)


def config_of(application: Application, folder: Path) -> str:
    config = folder / "airy-trio.toml"
    config.write_text(f'[database]\nurl = "{application.url}"\n[listener]\nport = 0\n[admin]\nport = 0\n')
    return str(config)


def test_migration_shows_that_it_waits_for_a_lock(postgres_application: Application, tmp_path: Path) -> None:
    postgres_application.migrate()
    arguments = ("migrate", "--config", config_of(postgres_application, tmp_path), "--remove")
    with postgres_application.engine.connect() as other, ExitStack() as stack:
        with other.begin():
            other.execute(sa.text("lock table tags in access share mode"))
            terminal, process = stack.enter_context(running(*arguments))
            terminal.until("waiting for an open transaction")
        assert "Traceback" not in terminal.rest()
        assert process.stdout is not None
        assert process.stdout.read() == "removed\n"
        assert process.wait() == 0


def test_verify_shows_its_progress(sqlite_application: Application, tmp_path: Path) -> None:
    sqlite_application.migrate()
    config = config_of(sqlite_application, tmp_path)
    with running("verify", "--config", config, "--seconds", "3") as (terminal, process):
        terminal.until("verifying")
        terminal.until("66%")
        terminal.rest()
        assert process.stdout is not None
        assert "lost        0\n" in process.stdout.read()
        assert process.wait() == 0
