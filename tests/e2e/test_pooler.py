"""A real PgBouncer in transaction mode, whose server connections an application of the same role uses too."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import trio

from airy_trio.testing.client import connect
from tests.application import Application
from tests.e2e.route import HOST, Listening
from tests.pgbouncer import SERVER_CONNECTIONS, through
from tests.processes import server

TIMEOUT_S = 50.0
IDLE_S = 2.0
"""Longer than a recorder's session may idle in a transaction."""
SESSION = """
select current_setting('idle_in_transaction_session_timeout'), current_setting('timezone'),
    current_setting('bytea_output'), current_setting('row_security'),
    (select count(*) from pg_listening_channels()), (select count(*) from pg_prepared_statements)
"""


def conninfo(url: str) -> str:
    return url.replace("postgresql+psycopg", "postgresql")


def state_of_each(pooled: list[psycopg.Connection[Any]]) -> list[tuple[Any, ...]]:
    """Return the session settings that the application finds in each server connection, in open transactions."""
    return [connection.execute(SESSION).fetchall()[0] for connection in pooled]


async def test_application_on_the_same_pool_is_not_disturbed(
    postgres_application: Application, pgbouncer: int, tmp_path: Path
) -> None:
    direct, url = postgres_application.url, through(postgres_application.url, pgbouncer)
    postgres_application.migrate()
    config = tmp_path / "airy-trio.toml"
    config.write_text(
        f'[database]\nurl = "{url}"\ndirect_url = "{direct}"\n[listener]\nport = 0\n[admin]\nport = 0\n'
        '[logging]\nformat = "json"\n'
    )
    with psycopg.connect(conninfo(direct)) as plain:
        [unchanged] = state_of_each([plain])
    with trio.fail_after(TIMEOUT_S), ExitStack() as stack:
        pooled = [
            stack.enter_context(psycopg.connect(conninfo(url), prepare_threshold=None))
            for _ in range(SERVER_CONNECTIONS)
        ]
        async with server(config) as serving, await connect(HOST, serving.port) as client:
            ours = Listening(client, await client.subscribe())
            for number in range(3):
                pooled[0].execute("insert into tags values (%s, 'flag', 'red')", [f"t{number}"])
                pooled[0].commit()
                assert (await ours.next()).object == ("tag", f"t{number}")
            async with await connect(HOST, serving.port) as late:  # receives events from the store
                again = Listening(late, await late.subscribe(headers=[("last-event-id", f"{ours.events[0].epoch}-0")]))
                assert await again.take(3) == ours.events
            assert state_of_each(pooled) == [unchanged] * SERVER_CONNECTIONS
            await trio.sleep(IDLE_S)
            pooled[0].execute("insert into tags values ('last', 'flag', 'red')")
            for connection in pooled:
                connection.commit()
            assert (await ours.next()).object == ("tag", "last")
            for connection in pooled:
                assert list(connection.notifies(timeout=0.1)) == []
            assert await serving.terminate() == 0
