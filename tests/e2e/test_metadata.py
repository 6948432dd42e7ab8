"""Metadata through the whole server: the full object of one pair, whatever was written, and never that of another."""

from pathlib import Path

import trio

from tests.application import Application
from tests.e2e.route import Event, configure, listening, writing
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


STEPS = (
    (EVERY_TYPE, [body("conversation", EVERY_TYPE_SHOWN)]),
    (  # the same identifier of other subjects, and one that reads alike where the two are joined
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
    (
        ("delete from metadata where subject = 'conversation' and identifier = '1'",),
        [body("conversation", "{}")],
    ),
    (
        (row("message", "seen", "false", "bool"),),
        [body("message", '{"labels":"of the message","seen":false}')],
    ),
)


async def test_types_nest_and_pairs_never_mix(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as application, listening(serving) as ours:
            for statements, bodies in STEPS:
                await application.apply("begin", *statements, "commit")
                assert [event.body for event in await ours.take(len(bodies))] == bodies


async def test_later_row_replaces_what_is_in_its_way(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as application, listening(serving) as ours:
            shown: list[Event] = []
            for statement in (
                row("conversation", "a.b", "deep", at_s=1),
                row("conversation", "a", "scalar", at_s=2),
                row("conversation", "a.c", "deep again", at_s=3),
                row("conversation", "count", "many", "number", at_s=4),
                "delete from metadata where key = 'a.c'",
                "update metadata set identifier = '2' where key = 'a'",
            ):
                await application.apply(statement)
                shown.append(await ours.next())
            shown.append(await ours.next())
    assert [event.body for event in shown] == [
        body("conversation", '{"a":{"b":"deep"}}'),
        body("conversation", '{"a":"scalar"}'),
        body("conversation", '{"a":{"c":"deep again"}}'),
        body("conversation", '{"a":{"c":"deep again"},"count":"many"}'),
        body("conversation", '{"a":"scalar","count":"many"}'),
        body("conversation", '{"a":{"b":"deep"},"count":"many"}'),
        body("conversation", '{"a":"scalar"}', id_="2"),
    ]
