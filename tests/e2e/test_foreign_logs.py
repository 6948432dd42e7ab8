"""Two applications whose settings name one event log: the second server is refused, and the first one goes on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from airy_trio import app
from airy_trio.app.stores import adopt_log
from airy_trio.check import check
from airy_trio.log.consumption import ForeignLogError
from airy_trio.settings import Settings
from airy_trio.testing.client import StompClient, connect
from tests.application import Application, application
from tests.e2e.route import configure
from tests.postgres import Postgres
from tests.processes import run

TIMEOUT_S = 55.0
REFUSED = "holds the events of another database"


@pytest.fixture(params=["redis", "sql"])
def log(request: pytest.FixtureRequest) -> str:
    """The settings of an event log that any application could name."""
    if request.param == "redis":
        return f'[log]\nstore = "redis"\nurl = "{request.getfixturevalue("own_redis").url}"\n'
    postgres: Postgres = request.getfixturevalue("postgres")
    return f'[log]\nurl = "{postgres.url(postgres.create_database())}"\n'


async def test_log_of_another_application_is_refused_until_it_is_adopted(
    any_application: Application, tmp_path: Path, log: str
) -> None:
    more = f"{log}[listener]\nport = 0\n"
    with application(f"sqlite:///{tmp_path}/other.db", create=True) as other, trio.fail_after(TIMEOUT_S):
        settings, others = any_application.migrate(more), other.migrate(more)
        async with serving(settings) as ours:
            with pytest.raises(ForeignLogError, match=REFUSED):
                await app.serve(others)
            report = await trio.to_thread.run_sync(check, others)
            assert any(REFUSED in problem for problem in report.of("problem"))
            any_application.tag("first")
            first = await ours.receive()
            assert (first.get("message-id") or "").endswith("-1")
        await adopt_log(others)
        async with serving(others) as theirs:
            other.tag("second")
            assert b"second" in (await theirs.receive()).body
        with pytest.raises(ForeignLogError, match=REFUSED):
            await app.serve(settings)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[StompClient]:
    """Run a server in this process, and give a client that is subscribed to all events."""
    async with trio.open_nursery() as nursery:
        stopping = trio.Event()
        address: app.Address = await nursery.start(partial(app.serve, settings, stopping=stopping))
        async with await connect(address.host, address.port, address.path) as client:
            assert (await client.subscribe()).command == "RECEIPT"
            yield client
        stopping.set()


async def test_refused_server_ends_with_one_line(
    sqlite_application: Application, tmp_path: Path, postgres_database: str
) -> None:
    more = f'[log]\nurl = "{postgres_database}"\n'
    with application(f"sqlite:///{tmp_path}/other.db", create=True) as other, trio.fail_after(TIMEOUT_S):
        async with serving(sqlite_application.migrate(f"{more}[listener]\nport = 0\n")):
            config = configure(other, tmp_path, more)
            refused = await run("--config", str(config))
        assert refused.code == 1
        assert [line for line in refused.err.splitlines() if REFUSED in line] == refused.err.splitlines()[-1:]
        adopted = await run("migrate", "--adopt-log", "--config", str(config))
        assert (adopted.code, adopted.out.count("began a new epoch in the event log at postgresql")) == (0, 1)


async def test_one_of_two_applications_gets_an_empty_log(
    sqlite_application: Application, tmp_path: Path, log: str
) -> None:
    refused: list[Settings] = []
    stopping = trio.Event()

    async def serve(settings: Settings) -> None:
        try:
            await app.serve(settings, stopping=stopping)
        except ForeignLogError:
            refused.append(settings)
            stopping.set()

    with application(f"sqlite:///{tmp_path}/other.db", create=True) as other, trio.fail_after(TIMEOUT_S):
        more = f"{log}[listener]\nport = 0\n"
        settings = [one.migrate(more) for one in (sqlite_application, other)]
        async with trio.open_nursery() as nursery:
            for one in settings:
                nursery.start_soon(serve, one)
    assert len(refused) == 1
