"""Transactions that commit in another order than they wrote: an open one delays no other, and is not skipped."""

from pathlib import Path

import trio

from tests.application import Application
from tests.e2e.route import configure, listening, writing
from tests.processes import server

TIMEOUT_S = 30.0


def tag(id_: str) -> str:
    return f"insert into tags values ('{id_}', 'name', 'red')"


async def test_open_transaction_outlives_the_server(postgres_application: Application, tmp_path: Path) -> None:
    config = configure(postgres_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with writing(postgres_application) as application:
            async with server(config) as doomed, listening(doomed) as ours:
                await application.apply("begin", tag("of the first"), session="first")
                await application.apply(tag("of the second"), session="second")
                second = await ours.next()
                await doomed.kill()
            await application.apply("commit", session="first")
            async with server(config) as serving, listening(serving, after=second.position) as ours:
                first = await ours.next()
                assert first.offset == second.offset + 1
                assert first.payload["id"] == "of the first"
