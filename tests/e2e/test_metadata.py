"""Metadata through the complete server: always the full object of one pair, never the object of another pair."""

from pathlib import Path

import trio

from tests.application import Application
from tests.e2e.route import configure, listening, writing
from tests.processes import server

TIMEOUT_S = 30.0


def row(subject: str, key: str, value: str | None, value_type: str = "text", *, at_s: int = 0, id_: str = "1") -> str:
    quoted = "null" if value is None else "'" + value.replace("'", "''") + "'"
    return (
        "insert into metadata (subject, identifier, key, value, value_type, updated_at) values "
        f"('{subject}', '{id_}', '{key}', {quoted}, '{value_type}', '2024-01-01T00:00:{at_s:02}Z')"
    )


def body(subject: str, metadata: str, id_: str = "1") -> str:
    return (
        f'{{"type":"metadata.updated","payload":{{"subject":"{subject}","identifier":"{id_}","metadata":{metadata}}}}}'
    )


EVERY_TYPE = (
    row("conversation", "contact.displayName", 'Grace "Amazing" Hopper', at_s=1),
    row("conversation", "contact.address.city", "Zürich", at_s=2),
    row("conversation", "unread", "-12.50", "number", at_s=3),
    row("conversation", "isUserTyping", "true", "bool", at_s=4),
    row("conversation", "assignee", None, "nullValue", at_s=5),
    row("conversation", "labels", '["a", {"b": [1, null]}]', "array", at_s=6),
    row("conversation", "custom", '{"x": 1.0, "y": {}}', "object", at_s=7),
)
EVERY_TYPE_SHOWN = (
    '{"contact":{"displayName":"Grace \\"Amazing\\" Hopper","address":{"city":"Zürich"}},"unread":-12.50,'
    '"isUserTyping":true,"assignee":null,"labels":["a", {"b": [1, null]}],"custom":{"x": 1.0, "y": {}}}'
)


ONE_BY_ONE = (  # the events after each transaction
    (EVERY_TYPE, [body("conversation", EVERY_TYPE_SHOWN)]),
    (  # the same identifier of other subjects, and a pair that looks the same when joined
        (
            row("message", "labels", "of the message"),
            row("channel", "unread", "0", "number"),
            row("conversation", "a", "b", id_="1:a"),
        ),
        [
            body("message", '{"labels":"of the message"}'),
            body("channel", '{"unread":0}'),
            body("conversation", '{"a":"b"}', id_="1:a"),
        ],
    ),
    (["delete from metadata where subject = 'conversation' and identifier = '1'"], [body("conversation", "{}")]),
    ([row("message", "seen", "false", "bool")], [body("message", '{"labels":"of the message","seen":false}')]),
    # a later row replaces a conflicting value
    ([row("channel", "a.b", "deep", at_s=1)], [body("channel", '{"unread":0,"a":{"b":"deep"}}')]),
    ([row("channel", "a", "scalar", at_s=2)], [body("channel", '{"unread":0,"a":"scalar"}')]),
    ([row("channel", "a.c", "again", at_s=3)], [body("channel", '{"unread":0,"a":{"c":"again"}}')]),
    (["delete from metadata where key = 'a.c'"], [body("channel", '{"unread":0,"a":"scalar"}')]),
    # a value that does not fit its type is a string
    (["update metadata set value = 'many' where key = 'unread'"], [body("channel", '{"unread":"many","a":"scalar"}')]),
    # a changed key is a delete of the old and an update of the new
    (
        ["update metadata set identifier = '2' where subject = 'channel' and key = 'a'"],
        [body("channel", '{"unread":"many","a":{"b":"deep"}}'), body("channel", '{"a":"scalar"}', id_="2")],
    ),
)


async def test_each_event_has_the_state_of_its_pair(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as application, listening(serving) as ours:
            for statements, bodies in ONE_BY_ONE:
                await application.apply("begin", *statements, "commit")
                assert [event.body for event in await ours.take(len(bodies))] == bodies
            await application.end()
            assert await ours.upto_end() == []
