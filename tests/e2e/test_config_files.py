"""The settings files that we ship, run as the documentation says: migrate, then serve."""

import itertools
import re
from pathlib import Path

import trio

from tests.application import Application, application
from tests.e2e.route import listening
from tests.processes import AIRY_TRIO, Server, run, running, server

TIMEOUT_S = 40.0
CONFIG = Path(__file__).parents[2] / "config"
PASSWORD = "correct-horse-battery"  # noqa: S105 - looked for where it must not be
BODY = '{"type":"tag.updated","payload":{"id":"t1","name":"flag","color":"tag-red"}}'


def copied(name: str, folder: Path) -> Path:
    """The file as it is but for the ports, which somebody else may have here."""
    text = (CONFIG / name).read_text()
    section = "[listener]\n"
    assert "port" not in text
    changed = text.replace(section, f"{section}port = 0\n") if section in text else f"{text}{section}port = 0\n"
    copy = folder / name
    copy.write_text(f"{changed}\n[admin]\nport = 0\n")
    return copy


async def port_on_console(serving: Server) -> int:
    """The port, from lines that are made for people."""
    for number in itertools.count():
        line = await serving.err.line(number)
        assert line is not None, serving.err.all
        if "listening" in line and (found := re.search(r"port=(\d+)", line)):
            return int(found[1])
    raise AssertionError


async def test_dev(tmp_path: Path) -> None:
    config = str(copied("dev.toml", tmp_path))
    with trio.fail_after(TIMEOUT_S):
        done = await run("migrate", "--with-tables", "--config", config, folder=tmp_path)
        assert done.code == 0, done.err
        async with running(Server, [*AIRY_TRIO, "--config", config], folder=tmp_path) as serving:
            serving.port = await port_on_console(serving)
            with application(f"sqlite:///{tmp_path}/airy-trio-dev.db") as writing:
                async with listening(serving) as ours:
                    writing.tag()
                    assert (await ours.next()).body == BODY
            assert await serving.terminate() == 0


async def test_prod(postgres_application: Application, tmp_path: Path) -> None:
    config = copied("prod.toml", tmp_path)
    url = postgres_application.url.replace("postgres@", f"postgres:{PASSWORD}@")
    environ = {"DATABASE_URL": url.replace("+psycopg", "")}
    with trio.fail_after(TIMEOUT_S):
        done = await run("migrate", "--with-tables", "--config", str(config), environ=environ)
        assert done.code == 0, done.err
        async with server(config, environ=environ) as serving:
            async with listening(serving) as ours:
                postgres_application.tag()
                assert (await ours.next()).body == BODY
            assert await serving.terminate() == 0
    assert url != postgres_application.url
    assert not any(PASSWORD in text for text in (done.out, done.err, *serving.err.all))
