"""The arrangements of the capture drill: the application's database, the event store, and the disturbances.

No disturbance may lose anything that was committed or appended to the log. A crash loses no data of a Postgres with
``synchronous_commit``, of a Redis after its writes have reached the operating system, or of any other process.
Therefore a new epoch is a failure in every arrangement.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from random import Random

import pytest
import trio
from attrs import field, frozen
from psycopg import sql

from airy_trio.database import LEASE_CLASS, sqlite_path
from airy_trio.log.options import LogOptions
from tests.application import Application, application
from tests.drill.clients import AUTH
from tests.drill.log_check import Log, redis_log, sql_log
from tests.drill.nodes import ROOT, Node
from tests.postgres import NoPostgresError, Postgres, running_postgres
from tests.redis_server import RedisServer, running_redis

PAGE = 200
"""A batch size with which a backlog is read in pages."""
WHOLE = 100_000
"""The largest batch size. The default would make a slow machine read a backlog in pages, which may repeat events."""
FROZEN_S = 1.6
RECORDING_S = 0.2
"""About the time in which a burst is read, translated and appended."""
DOWN_MAX_S = 1.0
"""How long a Postgres or a Redis stays down after a crash."""
BUSY_MAX_S = 10.0

_TERMINATE_RECORDER = sql.SQL(
    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and classid = {} and granted"
).format(LEASE_CLASS)
_TERMINATE_ALL = sql.SQL("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'airy-trio'")

_BURST = """
with recursive numbers (number) as (select 1 union all select number + 1 from numbers where number < 2000)
insert into tags (id, name, color) select :burst || number, '1', 'red' from numbers
"""

Disturbance = Callable[[Node, Random], Awaitable[None]]
"""Disturbs the recording node, or a process that it needs, and returns when that is over. Details are random."""


@frozen(kw_only=True)
class Arrangement:
    """An application, settings for its servers (TOML that follows ``[database] url``), and the disturbances.

    ``disturbances``: each with its weight. ``recorded`` reads the log, once no server runs. ``repeats``: whether an
    event may be sent again without a change. ``loses_connections``: whether a crash ends connections of the writers.
    """

    application: Application
    disturbances: Mapping[str, tuple[int, Disturbance]]
    recorded: Callable[[], Awaitable[Log]]
    settings: str = ""
    batch_rows_max: int = WHOLE
    nodes: int = 2
    workers: int = 1
    repeats: bool = False
    loses_connections: bool = True
    delay_max_s: float = 0.01
    long_max_s: float = 4.0
    rest_max_s: float = 0.0
    committed_per_s_min: float = 10.0
    more: str = field(init=False)

    @more.default
    def _more(self) -> str:
        changes = f"[changes]\nbatch_rows_max = {self.batch_rows_max}\n[events]\ndeletes = true\n"
        return f"connect_timeout_s = 20\n{changes}{AUTH}{self.settings}"


Made = Callable[[ExitStack, Path], Arrangement]
"""Makes an arrangement in a folder. The stack stops everything that it starts."""


async def kill(node: Node, chance: Random) -> None:
    """Kill a process of the node, as the out-of-memory killer does."""
    await trio.lowlevel.checkpoint()
    node.send(signal.SIGKILL, node.victim(chance))


def freezing(writing: Application) -> Disturbance:
    """Stop the recording process while it records a burst, and continue it after it has lost the lease.

    Without a burst the process would usually be idle at that moment, and a stale recorder would have nothing to append.
    """

    async def freeze(node: Node, chance: Random) -> None:
        await trio.to_thread.run_sync(partial(writing.execute, _BURST, burst=f"burst {chance.random()} "))
        frozen = node.recorder  # another process records meanwhile
        await trio.sleep(chance.uniform(0, RECORDING_S))
        node.send(signal.SIGSTOP, frozen)
        try:
            await trio.sleep(FROZEN_S)
        finally:
            node.send(signal.SIGCONT, frozen)

    return freeze


def terminating(postgres: Postgres, which: sql.Composed | sql.SQL) -> Disturbance:
    """Terminate sessions of a Postgres."""

    async def terminate(_node: Node, _chance: Random) -> None:
        await trio.to_thread.run_sync(postgres.execute, which)

    return terminate


def crashing(crash: Callable[[], None], start: Callable[[], None]) -> Disturbance:
    """Crash a server, and restart it some time later. Both happen even if the disturbance is cancelled."""

    def crash_and_start(down_s: float) -> None:
        crash()
        time.sleep(down_s)
        start()

    async def disturb(_node: Node, chance: Random) -> None:
        await trio.to_thread.run_sync(crash_and_start, chance.uniform(0, DOWN_MAX_S))

    return disturb


def in_the_same_postgres(
    stack: ExitStack, _folder: Path, *, batch_rows_max: int = WHOLE, nodes: int = 2, workers: int = 1
) -> Arrangement:
    """Put the log into the application's Postgres."""
    postgres = _postgres(stack)
    url = postgres.url(postgres.create_database())
    writing = stack.enter_context(application(url))
    return Arrangement(
        application=writing,
        disturbances=_on(postgres, writing),
        recorded=_reading(url),
        batch_rows_max=batch_rows_max,
        nodes=nodes,
        workers=workers,
        repeats=batch_rows_max == PAGE,  # a row that changes between two pages is in both
    )


def in_another_postgres(stack: ExitStack, _folder: Path) -> Arrangement:
    """Put the log into a Postgres of its own, which crashes too."""
    postgres, logging = _postgres(stack), _postgres(stack)
    url = logging.url(logging.create_database())
    writing = stack.enter_context(application(postgres.url(postgres.create_database())))
    return Arrangement(
        application=writing,
        disturbances={
            **_on(postgres, writing),
            "log terminated": (2, terminating(logging, _TERMINATE_ALL)),
            "log crashed": (2, crashing(logging.crash, logging.start)),
        },
        recorded=_reading(url),
        settings=f'[log]\nurl = "{url}"\n',
    )


def in_redis(stack: ExitStack, _folder: Path, *, fsync: str) -> Arrangement:
    """Put the log into a Redis with ``appendonly yes`` and this ``appendfsync``, which is killed too."""
    redis, postgres = stack.enter_context(running_redis(fsync)), _postgres(stack)
    end = redis.kill if fsync == "always" else partial(_kill_when_written, redis)
    writing = stack.enter_context(application(postgres.url(postgres.create_database())))
    return Arrangement(
        application=writing,
        disturbances={**_on(postgres, writing), "log killed": (4, crashing(end, redis.start))},
        recorded=partial(redis_log, redis.url),
        settings=f'[log]\nstore = "redis"\nurl = "{redis.url}"\n',
    )


def on_sqlite(stack: ExitStack, folder: Path) -> Arrangement:
    """Put the application into an SQLite file, and the log into a file of its own."""
    url = f"sqlite:///{folder}/app.db"
    writing = stack.enter_context(application(url, create=True))
    return Arrangement(
        application=writing,
        disturbances={
            "killed": (5, kill),
            "frozen": (3, freezing(writing)),
            "writer killed": (2, partial(_kill_writer, url)),
        },
        recorded=_reading(LogOptions().location(url)),
        loses_connections=False,
        delay_max_s=0.003,
        long_max_s=1.0,  # other writers wait for it
        rest_max_s=0.2,  # without rests some writers wait too long, because locks of SQLite are not fair
        committed_per_s_min=3.0,
    )


ARRANGEMENTS: Mapping[str, Made] = {
    "in the same Postgres": in_the_same_postgres,
    "in the same Postgres, in pages": partial(in_the_same_postgres, batch_rows_max=PAGE),
    "in another Postgres": in_another_postgres,
    "in Redis": partial(in_redis, fsync="always"),
    "in Redis, everysec": partial(in_redis, fsync="everysec"),
    "workers": partial(in_the_same_postgres, nodes=1, workers=2),
    "SQLite": on_sqlite,
}


def _postgres(stack: ExitStack) -> Postgres:
    try:
        return stack.enter_context(running_postgres())
    except NoPostgresError as missing:
        pytest.skip(str(missing))


def _on(postgres: Postgres, writing: Application) -> dict[str, tuple[int, Disturbance]]:
    return {
        "killed": (5, kill),
        "terminated": (3, terminating(postgres, _TERMINATE_RECORDER)),
        "frozen": (3, freezing(writing)),
        "crashed": (1, crashing(postgres.crash, postgres.start)),
    }


def _reading(url: str) -> Callable[[], Awaitable[Log]]:
    return partial(trio.to_thread.run_sync, sql_log, url)


def _kill_when_written(redis: RedisServer) -> None:
    """Kill Redis once it has written everything that it has accepted to the operating system, if not to the disk.

    While an fsync of ``everysec`` is in progress, Redis defers writing for up to two seconds, but answers already. A
    kill in that time loses events, as a power failure does.
    """
    give_up_at = time.monotonic() + BUSY_MAX_S
    with (
        closing(socket.create_connection(("127.0.0.1", redis.port))) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(b"CLIENT PAUSE %d WRITE\r\n" % (BUSY_MAX_S * 1000))
        answers.readline()
        while time.monotonic() < give_up_at:
            connection.sendall(b"INFO persistence\r\n")
            size = int(answers.readline()[1:])
            fields = answers.read(size + 2).split()
            if b"aof_buffer_length:0" in fields and b"aof_pending_bio_fsync:0" in fields:
                break
        redis.kill()


async def _kill_writer(url: str, _node: Node, _chance: Random) -> None:
    """Kill an application in the middle of a transaction that has already written to the file."""
    await trio.to_thread.run_sync(_write_and_die, sqlite_path(url))


def _write_and_die(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.drill.killed_writer", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half written\n"
        writer.kill()
