"""Another process writes. Three different clients receive the same bodies, exactly as the wire contract specifies."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from airy_trio.database import SQLITE
from tests.application import Application
from tests.clients.client_processes import stompjs, stompman
from tests.e2e.route import (
    Listening,
    Writer,
    assert_in_order,
    configure,
    event_of,
    events_of,
    last_of_each,
    listening,
    writing,
)
from tests.processes import server

TIMEOUT_S = 40.0

INSERTS = {
    "insert into channels values ('ch1', 'facebook', 'fb-page-id-1', true)": (
        '{"type":"channel.updated","payload":{"id":"ch1","source":"facebook","source_channel_id":"fb-page-id-1",'
        '"connected":true}}'
    ),
    "insert into tags (id, name, color) values ('t1', 'flag', 'RED')": (
        '{"type":"tag.updated","payload":{"id":"t1","name":"flag","color":"tag-red"}}'
    ),
    "insert into messages values ('m1', 'c1', 'ch1', '{\"text\": \"Hello Wörld 👋\"}', 'pending', true, "
    "'2020-10-25T21:24:54.5609Z', 'facebook', 'github:12345')": (
        '{"type":"message.updated","payload":{"conversation_id":"c1","channel_id":"ch1","message":{"id":"m1",'
        '"content":{"text": "Hello Wörld 👋"},"delivery_state":"pending","from_contact":true,'
        '"sent_at":"2020-10-25T21:24:54.560Z","source":"facebook","sender":{"id":"github:12345"}}}}'
    ),
    "insert into messages values ('m2', 'c1', 'ch1', '123', 'DELIVERED', false, "
    "'2020-10-25T23:24:55+02:00', 'twilio.sms', null)": (
        '{"type":"message.updated","payload":{"conversation_id":"c1","channel_id":"ch1","message":{"id":"m2",'
        '"content":"123","delivery_state":"delivered","from_contact":false,'
        '"sent_at":"2020-10-25T21:24:55.000Z","source":"twilio.sms","sender":{"id":"airy-core-anonymous"}}}}'
    ),
    "insert into metadata (subject, identifier, key, value) "
    "values ('conversation', 'c1', 'contact.displayName', 'Grace')": (
        '{"type":"metadata.updated","payload":{"subject":"conversation","identifier":"c1",'
        '"metadata":{"contact":{"displayName":"Grace"}}}}'
    ),
}
UPDATES = {
    "update messages set delivery_state = 'failed', content = 'a \"quote\"' where id = 'm1'": (
        '{"type":"message.updated","payload":{"conversation_id":"c1","channel_id":"ch1","message":{"id":"m1",'
        '"content":"a \\"quote\\"","delivery_state":"failed","from_contact":true,'
        '"sent_at":"2020-10-25T21:24:54.560Z","source":"facebook","sender":{"id":"github:12345"}}}}'
    ),
    "update metadata set value = 'Ada' where identifier = 'c1'": (
        '{"type":"metadata.updated","payload":{"subject":"conversation","identifier":"c1",'
        '"metadata":{"contact":{"displayName":"Ada"}}}}'
    ),
    "update tags set name = 'important' where id = 't1'": (
        '{"type":"tag.updated","payload":{"id":"t1","name":"important","color":"tag-red"}}'
    ),
    "update channels set connected = false where id = 'ch1'": (
        '{"type":"channel.updated","payload":{"id":"ch1","source":"facebook","source_channel_id":"fb-page-id-1",'
        '"connected":false}}'
    ),
    "update channels set connected = true where id = 'ch1'": (
        '{"type":"channel.updated","payload":{"id":"ch1","source":"facebook","source_channel_id":"fb-page-id-1",'
        '"connected":true}}'
    ),
}
SILENT_DELETES = ("delete from messages where id = 'm1'", "delete from tags where id = 't1'")
DELETES = {
    "delete from metadata where identifier = 'c1'": (
        '{"type":"metadata.updated","payload":{"subject":"conversation","identifier":"c1","metadata":{}}}'
    ),
    "delete from channels where id = 'ch1'": (
        '{"type":"channel.updated","payload":{"id":"ch1","source":"facebook","source_channel_id":"fb-page-id-1",'
        '"connected":false}}'
    ),
}
TOLD_DELETES = {
    "delete from messages where id = 'm1'": (
        '{"type":"message.deleted","payload":{"conversation_id":"c1","channel_id":"ch1","message":{"id":"m1"}}}'
    ),
    "delete from tags where id = 't1'": '{"type":"tag.deleted","payload":{"id":"t1"}}',
}

SENT_AT = "2024-01-01T00:00:00Z"
OBJECTS = 12
HUGE = 20_000_000
VERSIONS = 15


def churn() -> list[str]:
    """Write to a few objects of each table, in various transactions; some are rolled back."""
    statements = [
        statement
        for number in range(OBJECTS)
        for statement in (
            f"insert into messages values ('x{number}', 'c2', 'ch2', '0', 'failed', true, '{SENT_AT}', 'sms', null)",
            f"insert into metadata values ('message', 'x{number}', 'version', '0', 'number', null)",
            f"insert into channels values ('x{number}', 's', '0', true)",
            f"insert into tags values ('x{number}', '0', 'blue')",
        )
    ]
    size = itertools.cycle((1, 3, 7))
    for version in range(1, VERSIONS + 1):
        for number in range(OBJECTS):
            writes = [
                f"update messages set content = '{version}' where id = 'x{number}'",
                f"update metadata set value = '{version}' where identifier = 'x{number}'",
                f"update channels set source_channel_id = '{version}' where id = 'x{number}'",
                f"update tags set name = '{version}' where id = 'x{number}'",
            ]
            if next(size) == 1:
                statements += writes
            else:
                statements += ["begin", *writes, "commit"]
        statements += ["begin", "update tags set name = '1000'", "delete from messages", "rollback"]
    return statements


def version_of(payload: Mapping[str, Any]) -> int:
    match payload:
        case {"message": {"content": version}} | {"metadata": {"version": version}}:
            return int(version)
        case {"source_channel_id": version} | {"name": version}:
            return int(version)
        case _:
            raise AssertionError(payload)


@pytest.mark.slow
async def test_three_clients_receive_what_another_process_writes(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with (
            server(config) as serving,
            writing(any_application) as application,
            stompjs(serving.url) as javascript,
            stompman(serving.url) as python,
            listening(serving) as ours,
        ):
            for others in (javascript, python):
                await others.record("connected")
            await assert_each_exactly(INSERTS, application, ours)
            for others in (javascript, python):  # now they are certainly subscribed
                await others.messages(1)
            await assert_each_exactly(UPDATES, application, ours)
            await application.apply(*SILENT_DELETES)
            await assert_each_exactly(DELETES, application, ours)

            await application.apply(*churn())
            await application.end()
            churned = await ours.upto_end()
            for others in (javascript, python):
                assert events_of(await others.messages(len(ours.events))) == ours.events
                assert await others.terminate() == 0
                assert len(others.out.all) == len(ours.events)

    assert_in_order(ours.events)
    assert {what: version_of(payload) for what, payload in last_of_each(churned).items()} == {
        (*kind, f"x{number}"): VERSIONS
        for kind in (("message",), ("metadata", "message"), ("channel",), ("tag",))
        for number in range(OBJECTS)
    }
    for what in last_of_each(churned):
        versions = [version_of(event.payload) for event in churned if event.object == what]
        assert versions == sorted(versions)


async def test_deletes_are_sent_if_configured(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path, "[events]\ndeletes = true\n")
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as application, listening(serving) as ours:
            await assert_each_exactly(INSERTS, application, ours)
            await assert_each_exactly(TOLD_DELETES | DELETES, application, ours)
            await application.apply("update messages set id = 'm3' where id = 'm2'")
            await application.end()
            left = await ours.upto_end()
    assert [(event.type, event.object) for event in left] == [
        ("message.deleted", ("message", "m2")),
        ("message.updated", ("message", "m3")),
    ]


async def assert_each_exactly(step: Mapping[str, str], application: Writer, ours: Listening) -> None:
    """Assert that each statement gives one event with exactly this body."""
    for statement, body in step.items():
        await application.apply(statement)
        assert (await ours.next()).body == body


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
async def test_content_of_20_mb_is_truncated(any_application: Application, tmp_path: Path, *, json: bool) -> None:
    any_application.migrate()
    if any_application.dialect != SQLITE:
        huge = f"'[\"' || repeat('x', {HUGE}) || '\"]'"
        if json:
            any_application.execute("alter table messages alter content type jsonb using content::jsonb")
            huge = f"({huge})::jsonb"
    else:
        huge = f"'[\"' || hex(zeroblob({HUGE // 2})) || '\"]'"
    config = configure(any_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, writing(any_application) as application, listening(serving) as ours:
            await application.apply(*INSERTS)
            await ours.take(len(INSERTS))
            await application.apply(f"update messages set content = {huge} where id = 'm2'")
            message = await ours.client.receive()
            assert message.get("truncated") == "true"
            assert event_of(message).payload["message"]["content"] == {"truncated": True}
            await application.end()
            assert await ours.upto_end() == []
            assert await serving.terminate() == 0
    assert not any("row fault" in line for line in serving.err.all)
