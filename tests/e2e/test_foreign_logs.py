"""Two applications whose settings name one event log: the second server does not start, the first continues."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import frozen

from airy_trio import app
from airy_trio.app.build import adopt_log
from airy_trio.check import check
from airy_trio.database import POSTGRES, SQLITE, sqlite_path
from airy_trio.log.leadership import ForeignLogError
from airy_trio.settings import Settings
from airy_trio.testing.client import StompClient, connect
from tests.application import Application, application
from tests.capture.watched import ONLY_TAGS
from tests.e2e.route import configure
from tests.postgres import Postgres
from tests.processes import run

TIMEOUT_S = 55.0
REFUSED = "holds the events of another database"
TAGS = (
    "create table tags (id text primary key, name text, color text, "
    "updated_at timestamp with time zone default current_timestamp)"
)
PAIRS: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "two files by triggers": ((SQLITE, "triggers"), (SQLITE, "triggers")),
    "a cluster and a file by triggers": ((POSTGRES, "triggers"), (SQLITE, "triggers")),
    "two files by updated_at": ((SQLITE, "updated_at"), (SQLITE, "updated_at")),
    "two databases of a cluster by updated_at": ((POSTGRES, "updated_at"), (POSTGRES, "updated_at")),
    "updated_at before triggers": ((POSTGRES, "updated_at"), (POSTGRES, "triggers")),
    "triggers before updated_at": ((SQLITE, "triggers"), (SQLITE, "updated_at")),
}


@frozen
class Watched:
    """An application and its capture mode."""

    application: Application
    capture: str

    def prepare(self, log: str) -> Settings:
        """Create its tables and what a server needs; return settings of a server."""
        more = f'{log}[listener]\nport = 0\n[changes]\ncapture = "{self.capture}"\n'
        if self.capture == "triggers":
            return self.application.migrate(more)
        self.application.execute(TAGS)
        return self.application.migrate(f"{ONLY_TAGS}{more}", with_tables=False)


@pytest.fixture(params=["redis", "sql"])
def log(request: pytest.FixtureRequest) -> str:
    """Settings of an event log that any application could name."""
    if request.param == "redis":
        return f'[log]\nstore = "redis"\nurl = "{request.getfixturevalue("own_redis").url}"\n'
    postgres: Postgres = request.getfixturevalue("postgres")
    return f'[log]\nurl = "{postgres.url(postgres.create_database())}"\n'


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Watched, Watched]]:
    """Two applications with empty databases and their ways of capture."""
    with ExitStack() as stack:
        first, second = (
            Watched(stack.enter_context(application(_url(request, dialect, tmp_path / name), create=True)), capture)
            for name, (dialect, capture) in zip(("one.db", "other.db"), PAIRS[request.param], strict=True)
        )
        yield first, second


def _url(request: pytest.FixtureRequest, dialect: str, path: Path) -> str:
    if dialect == SQLITE:
        return f"sqlite:///{path}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.url(postgres.create_database())


async def test_log_of_another_application_is_refused_until_it_is_adopted(
    pair: tuple[Watched, Watched], log: str
) -> None:
    one, other = pair
    with trio.fail_after(TIMEOUT_S):
        settings, others = one.prepare(log), other.prepare(log)
        async with serving(settings) as ours:
            with pytest.raises(ForeignLogError, match=REFUSED):
                await app.serve(others)
            report = await trio.to_thread.run_sync(check, others)
            assert any(REFUSED in problem for problem in report.of("problem"))
            one.application.tag("first")
            first = await ours.receive()
            assert (first.get("message-id") or "").endswith("-1")
        await adopt_log(others)
        async with serving(others) as theirs:
            other.application.tag("second")
            assert b"second" in (await theirs.receive()).body
        with pytest.raises(ForeignLogError, match=REFUSED):
            await app.serve(settings)


@pytest.mark.parametrize("pair", ["two files by updated_at", "two databases of a cluster by updated_at"], indirect=True)
async def test_read_only_application_keeps_its_log_over_a_restart(pair: tuple[Watched, Watched], log: str) -> None:
    one, _ = pair
    settings = one.prepare(log)
    epochs: list[str] = []
    with trio.fail_after(TIMEOUT_S):
        for name in ("before", "after"):
            epochs.append(await epoch_of(one.application, settings, name))
            report = await trio.to_thread.run_sync(check, settings)
            assert not [problem for problem in report.of("problem") if problem.startswith("log")]
    assert len(set(epochs)) == 1


@pytest.mark.parametrize("pair", ["two files by updated_at"], indirect=True)
async def test_file_replaced_by_another_begins_an_epoch(pair: tuple[Watched, Watched], log: str) -> None:
    one, other = pair
    settings = one.prepare(log)
    other.prepare(log)
    with trio.fail_after(TIMEOUT_S):
        before = await epoch_of(one.application, settings, "before")
        one.application.engine.dispose()
        other.application.engine.dispose()
        sqlite_path(other.application.url).replace(sqlite_path(one.application.url))
        assert await epoch_of(one.application, settings, "after") != before


async def epoch_of(application: Application, settings: Settings, name: str) -> str:
    """Serve until the event of a new tag is received; return its epoch."""
    async with serving(settings) as client:
        application.tag(name)
        message = await client.receive()
        assert message.command == "MESSAGE"
        return (message.get("message-id") or "").rpartition("-")[0]


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[StompClient]:
    """Run a server in this process; yield a client that is subscribed to all events."""
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
