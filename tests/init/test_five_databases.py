"""From an unknown database to events at a client: ``init``, ``migrate``, serve, plain SQL."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from tests.application import application
from tests.e2e.route import listening
from tests.init.schemas import create
from tests.processes import run, server

TIMEOUT_S = 120.0


Event = tuple[str, Mapping[str, Any]]
"""Type and payload."""


@frozen(kw_only=True)
class Unseen:
    """A database, what its application writes, and the events that clients should receive."""

    name: str
    writes: str
    events: Sequence[Event]


def message(conversation: str, channel: str, id_: str, content: object, sender: str, **rest: object) -> Event:
    fixed = {"delivery_state": "delivered", "sent_at": "2024-05-01T10:00:00.000Z"}
    fields = {"id": id_, "content": content, **fixed, **rest, "sender": {"id": sender}}
    return "message.updated", {"conversation_id": conversation, "channel_id": channel, "message": fields}


def metadata(subject: str, identifier: str, **found: object) -> Event:
    return "metadata.updated", {"subject": subject, "identifier": identifier, "metadata": found}


def channel(id_: str, source: str, theirs: str, *, connected: bool) -> Event:
    return "channel.updated", {"id": id_, "source": source, "source_channel_id": theirs, "connected": connected}


def tag(id_: str, name: str, color: str) -> Event:
    return "tag.updated", {"id": id_, "name": name, "color": color}


FIVE = (
    Unseen(
        name="airy",
        writes="""
            insert into messages values
                ('m3', 'c1', 'ch1', '{"text" : "Hi"}', 'DELIVERED', false, 1714557600000, null, 'facebook', 's', 'u1');
            insert into metadata values ('conversation:c1', 'contact.city', 'Accra', 'text', 1714557600000);
            update channels set "connectionState" = 'CONNECTED' where id = 'ch2';
            insert into tags values ('t2', 'vip', 'BLUE')
        """,
        events=[
            message("c1", "ch1", "m3", {"text": "Hi"}, from_contact=False, source="facebook", sender="u1"),
            metadata("conversation", "c1", contact={"displayName": "Grace", "city": "Accra"}),
            channel("ch2", "chatplugin", "website", connected=True),
            tag("t2", "vip", "tag-blue"),
        ],
    ),
    Unseen(
        name="chatwoot",
        writes="""
            insert into messages (content, account_id, inbox_id, conversation_id, message_type, created_at, updated_at,
                private, status, sender_type, sender_id)
                values ('Hi', 1, 1, 7, 1, '2024-05-01 10:00:00', now(), false, 1, 'User', 2);
            update messages set private = true where id = 2;
            update inboxes set name = 'Web' where id = 1;
            insert into labels (title, color, created_at, updated_at) values ('vip', '#ff0000', now(), now())
        """,
        events=[
            message("7", "1", "5", "Hi", from_contact=False, source="chatwoot", sender="2"),
            ("message.deleted", {"conversation_id": "7", "channel_id": "1", "message": {"id": "2"}}),
            channel("1", "chatplugin", "4", connected=True),
            tag("2", "vip", "#ff0000"),
        ],
    ),
    Unseen(
        name="django_chat",
        writes="""
            insert into chat_message (content, timestamp, author_id, room_id)
                values ('Hi', '2024-05-01 10:00:00+00', 2, 1)
        """,
        events=[message("1", "app", "3", "Hi", from_contact=True, source="app", sender="2")],
    ),
    Unseen(
        name="rails_helpdesk",
        writes="""
            insert into comments (ticket_id, author_type, author_id, body, internal, created_at, updated_at) values
                (1, 'User', 1, 'between us', true, '2024-05-01 10:00:00', now()),
                (1, 'Customer', 1, 'Hi', false, '2024-05-01 10:00:00', now());
            insert into custom_field_values (ticket_id, name, value, created_at, updated_at)
                values (1, 'plan', 'pro', now(), now());
            update mailboxes set active = false where id = 1;
            insert into tags (name, created_at) values ('vip', now())
        """,
        events=[
            ("message.deleted", {"conversation_id": "1", "channel_id": "app", "message": {"id": "4"}}),
            message("1", "app", "5", "Hi", from_contact=True, source="app", sender="1"),
            metadata("conversation", "1", product="Toaster", plan="pro"),
            channel("1", "app", "support@example.org", connected=False),
            tag("2", "vip", "tag-blue"),
        ],
    ),
    Unseen(
        name="todo",
        writes="""
            insert into todos (list_id, title, created_at, done) values (2, 'Call Grace', '2024-05-01 10:00:00', 1);
            insert into tags (name) values ('later')
        """,
        events=[
            message("2", "app", "4", "Call Grace", from_contact=True, source="app", sender="airy-core-anonymous"),
            tag("2", "later", "tag-blue"),
        ],
    ),
)


@pytest.mark.slow
@pytest.mark.timeout(int(TIMEOUT_S) + 10)
@pytest.mark.parametrize("unseen", FIVE, ids=lambda unseen: unseen.name)
async def test_events_arrive_without_an_edited_line(
    unseen: Unseen, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """No line of the mapping is edited. Only ports are added, because the defaults may be in use here."""
    url = f"sqlite:///{tmp_path}/app.db"
    if unseen.name != "todo":
        url = request.getfixturevalue("postgres_database")
    config = tmp_path / "airy-trio.toml"
    begin = time.monotonic()
    with trio.fail_after(TIMEOUT_S), application(url, create=True) as made:
        create(made, unseen.name)
        done = await run("init", url, str(config))
        assert done.code == 0, done.err
        config.write_text(f"{config.read_text()}\n[listener]\nport = 0\n[admin]\nport = 0\n")
        done = await run("migrate", "--config", str(config))
        assert done.code == 0, done.err
        async with server(config) as serving, listening(serving) as ours:
            made.execute(*unseen.writes.split(";\n"))
            received = [(event.type, event.payload) for event in await ours.take(len(unseen.events))]
            assert await serving.terminate() == 0
    # The name of the database is the constant for fields without a column: the channel and the source.
    database = url.rpartition("/")[2].removesuffix(".db")
    assert by_text(received) == sorted(text.replace('"app"', f'"{database}"') for text in by_text(unseen.events))
    assert time.monotonic() - begin < TIMEOUT_S


def by_text(events: Sequence[Event]) -> list[str]:
    """Return the events as text, sorted, because different tables have no common order."""
    return sorted(json.dumps(event, sort_keys=True) for event in events)
