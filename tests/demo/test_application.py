"""The demo's application: its writes, and its end with the process that started it."""

import json
import sys

import sqlalchemy as sa
import trio

from airy_trio.database import sqlite_path
from airy_trio.demo.application import CHANNELS, TAGS, InboxApplication
from tests.application import Application
from tests.processes import Program, running

TIMEOUT_S = 30.0
CONVERSATIONS = 20
STARTS_IT_AND_WAITS_FOR_ITS_FIRST_WRITE = """
import sqlite3, subprocess, sys
connection = sqlite3.connect(sys.argv[1])
subprocess.Popen([sys.executable, "-m", "airy_trio.demo.application", sys.argv[1]])
while not connection.execute("select count(*) from metadata").fetchone()[0]:
    pass
"""


def test_writes_conversations_into_all_four_tables(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    inbox = InboxApplication(str(sqlite_path(sqlite_application.url)))
    inbox.open()
    pauses = [pause_s for _ in range(CONVERSATIONS) for pause_s in inbox.conversation()]
    with sqlite_application.engine.connect() as connection:
        messages = connection.execute(sa.text("select * from messages")).all()
        metadata = connection.execute(sa.text("select * from metadata")).all()
    assert sqlite_application.scalar("select count(*) from channels where connected") == len(CHANNELS)
    assert sqlite_application.scalar("select count(*) from tags") == len(TAGS)
    assert {message.delivery_state for message in messages} == {"delivered"}
    assert all(json.loads(message.content).keys() == {"text"} for message in messages)
    conversations = {message.conversation_id for message in messages}
    assert len(conversations) == CONVERSATIONS
    assert {row.identifier for row in metadata} == conversations
    assert all(0 < pause <= 1 for pause in pauses)


async def test_ends_with_the_process_that_started_it(sqlite_application: Application) -> None:
    sqlite_application.migrate()
    path = str(sqlite_path(sqlite_application.url))
    InboxApplication(path).open()
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [sys.executable, "-c", STARTS_IT_AND_WAITS_FOR_ITS_FIRST_WRITE, path]) as starting:
            assert await starting.wait() == 0  # also waits for the pipes, which the application holds
    assert starting.err.all == []
