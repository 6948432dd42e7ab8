"""Owners of metadata, such as the newest message of a conversation, found with and without an index."""

import random
import time

import pytest
import sqlalchemy as sa

from airy_trio.capture.feed import Metadata
from airy_trio.capture.inspection import inspect
from airy_trio.capture.mapping import Key, Tables
from airy_trio.capture.objects import Change, Objects
from airy_trio.capture.queries import TEXT_CHARS_MAX
from tests.application import Application

CONVERSATIONS, MESSAGES = 1500, 100_000
PATIENCE_S = 10.0  # for a busy machine; usually the read takes less than a second, and once it took half a minute
WHERE = "[database.tables.messages]\nwhere = \"source <> 'secret'\"\n"
MANY = {
    "sqlite": "with recursive n(n) as (select 1 union all select n + 1 from n where n < {messages}) {insert} from n",
    "postgresql": "{insert} from generate_series(1, {messages}) n",
}
INSERT = (
    "insert into messages (id, conversation_id, channel_id, delivery_state, from_contact, sent_at, source) "
    "select 'm' || n, 'c' || (n % {conversations}), 'ch' || n, 'pending', true, '2020-01-01', 's'"
)


def owners(application: Application, tables: Tables, conversations: list[str]) -> dict[Key, Key]:
    with application.engine.connect() as connection:
        changes = [Change("metadata", "U", ("conversation", id_), (None, None)) for id_ in conversations]
        found = Objects(application.dialect, tables, TEXT_CHARS_MAX).read(connection, changes)
    return {
        (one.subject, one.identifier): (one.conversation_id, one.channel_id)
        for one in found
        if isinstance(one, Metadata)
    }


def inspected(application: Application, more: str = "") -> Tables:
    with application.engine.begin() as connection:
        return inspect(connection, application.settings(more).tables)


def test_owners_of_many_conversations_need_no_index(any_application: Application) -> None:
    any_application.migrate()
    insert = INSERT.format(conversations=CONVERSATIONS)
    any_application.execute(
        "drop index messages_conversation", MANY[any_application.dialect].format(insert=insert, messages=MESSAGES)
    )
    tables = inspected(any_application)
    began_at = time.monotonic()
    found = owners(any_application, tables, [f"c{n}" for n in range(CONVERSATIONS)])
    assert time.monotonic() - began_at < PATIENCE_S
    assert len(found) == CONVERSATIONS
    assert all(owner[1] is not None for owner in found.values())


@pytest.mark.parametrize("type_", ["text", "integer", "numeric", "varchar(9)"])
@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_owners_are_the_same_with_an_index_and_without(
    any_application: Application, type_: str, seed: int, *, timed: bool
) -> None:
    chance = random.Random(seed)
    any_application.migrate()
    any_application.execute(
        "drop table messages",
        f"create table messages (id text, conversation_id {type_}, channel_id text, content text, delivery_state text, "
        "from_contact boolean, sent_at integer, source text, sender_id text)",
    )
    times = chance.sample(range(10**6), 200)
    rows = [
        {
            "id": f"m{number}",
            "conversation": chance.choice([None, *range(30)]),
            "channel": chance.choice([None, f"ch{number if timed else 1}"]),
            "time": None if chance.random() < 0.3 else moment,
            "source": chance.choice(["s", "secret", None]),
        }
        for number, moment in enumerate(times)
    ]
    with any_application.engine.begin() as connection:
        insert = "insert into messages (id, conversation_id, channel_id, sent_at, source) "
        cast = f"cast(:conversation as {type_})"
        connection.execute(sa.text(f"{insert} values (:id, {cast}, :channel, :time, :source)"), rows)
    more = WHERE if timed else WHERE + "constants = { sent_at = 0, channel_id = 'web' }\n"
    wanted = [*map(str, range(35)), "x", "", "1.0", "07", "1e1"]
    without = inspected(any_application, more)
    any_application.execute("create index by_conversation on messages (conversation_id, sent_at)")
    with_index = inspected(any_application, more)
    assert not without["messages"].by_conversation
    assert with_index["messages"].by_conversation
    found = owners(any_application, without, wanted)
    assert found == owners(any_application, with_index, wanted)
    assert len([owner for owner in found.values() if owner[0]]) > 10


@pytest.mark.parametrize("index", ["(sent_at, conversation_id)", "(conversation_id) where sent_at is null"])
def test_index_that_helps_no_conversation_is_not_counted(any_application: Application, index: str) -> None:
    any_application.migrate()
    any_application.execute("drop index messages_conversation", f"create index other on messages {index}")
    assert not inspected(any_application)["messages"].by_conversation
