"""Follow a page in a folder of its own: run its blocks unchanged, except that the ports are free ones."""

import itertools
import os
import signal
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa
import trio
from attrs import define, field

from airy_trio.settings import parse
from tests.admin.serving import free_port
from tests.docs.pages import FOLDER, Step, steps
from tests.processes import Program, running

READY_TIMEOUT_S: Final = 30.0
AGAIN_S: Final = 10.0
"""After this time Ctrl-C is sent again: Python drops a KeyboardInterrupt that is raised in a destructor."""
PORTS: Final = ("8080", "8081")
SHELL: Final = ("bash", "-euo", "pipefail", "-c")
SOME_URL: Final = 'url = "sqlite:///app.db"\n'


@define
class Runner:
    """Follows one page. ``postgres``: returns the URL of an empty database, for pages that need one."""

    folder: Path
    postgres: Callable[[], str]
    stack: AsyncExitStack
    environ: dict[str, str] = field(factory=dict)
    ports: Mapping[str, str] = field(factory=lambda: {port: str(free_port()) for port in PORTS})
    started: dict[str, Program] = field(factory=dict)
    printed: list[str] = field(factory=list)
    lines_read: dict[str, int] = field(factory=dict)

    async def do(self, step: Step) -> None:
        """Do one step of the page. Raises ``AssertionError`` with its line if the outcome is not as written."""
        text = step.text
        for port, free in self.ports.items():
            text = text.replace(port, free)
        match step.kind:
            case "file":
                (self.folder / step.words).write_text(self._with_ports(text) if step.language == "toml" else text)
            case "settings":
                accept(step.text)
            case "run":
                await self._run(text, step.line, int(step.words or 0))
            case "sql":
                self._sql(text)
            case "start":
                name, _, words = step.words.partition(", ")
                await self._start(name, words, text)
            case "stop":
                await self._stop(step.words)
            case "postgres":
                assert text.startswith("export DATABASE_URL=")
                url = sa.make_url(self.postgres())
                url = url.set(username=step.words) if step.words else url
                self.environ["DATABASE_URL"] = url.render_as_string(hide_password=False)
            case "shows":
                await self._shows(step.words, text.splitlines(), step.line)
            case other:
                raise AssertionError(other)

    def _with_ports(self, text: str) -> str:
        """Return settings without the default ports, which other programs may use."""
        for section, port in zip(("listener", "admin"), self.ports.values(), strict=True):
            if "[database]" in text and f"\n[{section}]" not in f"\n{text}":
                text += f"\n[{section}]\nport = {port}\n"
        return text

    async def _run(self, text: str, line: int, expected: int) -> None:
        async with self._program(text) as program:
            code = await program.wait()
        self.printed = [*program.out.all, *program.err.all]
        assert code == expected, f"line {line} ended with {code}:\n" + "\n".join(self.printed)

    def _sql(self, text: str) -> None:
        url = sa.make_url(self.postgres()).set(drivername="postgresql").render_as_string(hide_password=False)
        self.printed = []
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in filter(str.strip, text.split(";\n")):
                answer = connection.execute(statement.encode())
                if answer.description is not None:
                    self.printed += [" | ".join(map(str, row)) for row in answer]

    async def _start(self, name: str, words: str, text: str) -> None:
        for file in self.folder.glob("*.toml"):  # a command may have written it
            file.write_text(self._with_ports(file.read_text()))
        self.started[name] = program = await self.stack.enter_async_context(self._program(f"exec 2>&1\nexec {text}"))
        self.lines_read[name] = 0
        with trio.move_on_after(READY_TIMEOUT_S):
            for number in itertools.count():
                printed = await program.out.line(number)
                if printed is None or words in printed:
                    break
        assert any(words in printed for printed in program.out.all), f"{name}: no {words!r} in {program.out.all}"

    async def _stop(self, name: str) -> None:
        program = self.started.pop(name)
        program.process.send_signal(signal.SIGINT)
        with trio.move_on_after(AGAIN_S) as pause:
            await program.process.wait()
        if pause.cancelled_caught:
            sys.stdout.write(f"{name} did not end at the first SIGINT: {program.out.all}\n")
            program.process.send_signal(signal.SIGINT)
        code = await program.wait()
        assert code == 0, f"{name} ended with {code}:\n" + "\n".join(program.out.all)

    async def _shows(self, name: str, expected: list[str], line: int) -> None:
        if not name:
            rest = iter(self.printed)
            missing = [wanted for wanted in expected if wanted not in rest]
            assert not missing, f"line {line}: {missing} not in {self.printed}"
            return
        program = self.started[name]
        for wanted in expected:
            printed: str | None = ""
            with trio.move_on_after(READY_TIMEOUT_S):
                while printed is not None and printed != wanted:
                    printed = await program.out.line(self.lines_read[name])
                    self.lines_read[name] += 1
            assert printed == wanted, f"line {line}: no {wanted!r} in {program.out.all}"

    @asynccontextmanager
    async def _program(self, text: str) -> AsyncIterator[Program]:
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
        environ = {"PATH": path, "NO_COLOR": "1", "PYTHONSAFEPATH": "", **self.environ}
        async with running(Program, [*SHELL, text], environ=environ, folder=self.folder) as program:
            yield program


@asynccontextmanager
async def runner(folder: Path, postgres: Callable[[], str]) -> AsyncIterator[Runner]:
    """Yield a runner. The programs that it has started end with the block."""
    async with AsyncExitStack() as stack:
        yield Runner(folder, postgres, stack)


async def follow(page: str, folder: Path, postgres: Callable[[], str]) -> int:
    """Do all steps of a page; return their number."""
    done = 0
    async with runner(folder, postgres) as following:
        for step in steps((FOLDER / page).read_text()):
            if step.kind not in {"test", "not run"}:
                await following.do(step)
                done += 1
    return done


def accept(text: str) -> None:
    """Parse a part of a settings file as the program does. Raises ``SettingsError``."""
    if "[database]" not in text:
        text = f"[database]\n{SOME_URL}{text}"
    elif "url = " not in text.partition("[database]")[2].partition("\n[")[0]:
        text = text.replace("[database]\n", f"[database]\n{SOME_URL}", 1)
    environ = {name: f"a-value-of-{name.lower()}-that-is-long-enough" for name in VARIABLES}
    parse(text, environ | {"DATABASE_URL": "postgresql://airy@localhost/airy"})


VARIABLES: Final = ("ADMIN_TOKEN", "AGENT_TOKEN", "DASHBOARD_TOKEN", "JWT_SECRET", "LOG_URL")
"""The variables that the pages read from the environment."""
