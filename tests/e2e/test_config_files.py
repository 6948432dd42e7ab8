"""The published settings files, used as documented: migrate, then serve."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.application import Application, application
from tests.capture.example_tables import AIRY, CHATWOOT, CHATWOOT_MESSAGE
from tests.e2e.route import listening
from tests.processes import AIRY_TRIO, Server, run, running, server

TIMEOUT_S = 40.0
CONFIG = Path(__file__).parents[2] / "config"
PASSWORD = "correct-horse-battery"
BODY = '{"type":"tag.updated","payload":{"id":"t1","name":"flag","color":"tag-red"}}'


def copied(name: str, folder: Path) -> Path:
    """Copy a file with other ports, because its own may be in use here."""
    text = (CONFIG / name).read_text().replace('port = "${PORT:-8080}"\n', "")
    assert "port =" not in text
    for section in ("[listener]\n", "[admin]\n"):
        text = text if section in text else f"{text}\n{section}"
        text = text.replace(section, f"{section}port = 0\n")
    copy = folder / name
    copy.write_text(text)
    return copy


async def port_on_console(serving: Server) -> int:
    """Return the port from the console log."""
    for number in itertools.count():
        line = await serving.err.line(number)
        assert line is not None, serving.err.all
        if "listening" in line and (found := re.search(r"port=(\d+)", line)):
            return int(found[1])
    raise AssertionError


async def test_dev_settings(tmp_path: Path) -> None:
    config = str(copied("dev.toml", tmp_path))
    with trio.fail_after(TIMEOUT_S):
        done = await run("migrate", "--with-tables", "--config", config, folder=tmp_path)
        assert done.code == 0, done.err
        async with running(Server, [*AIRY_TRIO, "--config", config], folder=tmp_path) as serving:
            serving.port = await port_on_console(serving)
            with application(f"sqlite:///{tmp_path}/airy-trio-dev.db") as writing:
                async with listening(serving) as ours:
                    writing.tag()
                    assert (await ours.next()).body == BODY
            assert await serving.terminate() == 0


async def test_prod_settings(postgres_application: Application, tmp_path: Path) -> None:
    config = copied("prod.toml", tmp_path)
    url = postgres_application.url.replace("postgres@", f"postgres:{PASSWORD}@")
    environ = {"DATABASE_URL": url.replace("+psycopg", "")}
    with trio.fail_after(TIMEOUT_S):
        done = await run("migrate", "--with-tables", "--config", str(config), environ=environ)
        assert done.code == 0, done.err
        async with server(config, environ=environ) as serving:
            async with listening(serving) as ours:
                postgres_application.tag()
                assert (await ours.next()).body == BODY
            assert await serving.terminate() == 0
    assert url != postgres_application.url
    assert not any(PASSWORD in text for text in (done.out, done.err, *serving.err.all))


async def assert_events(
    writing: Application, config: Path, statements: Sequence[str], expected: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Migrate and serve with an example, and assert the events of these statements."""
    environ = {"DATABASE_URL": writing.url}
    with trio.fail_after(TIMEOUT_S):
        done = await run("migrate", "--config", str(config), environ=environ)
        assert done.code == 0, done.err
        async with server(config, environ=environ) as serving, listening(serving) as ours:
            writing.execute(*statements)
            assert [(event.type, event.payload) for event in await ours.take(len(expected))] == expected
            assert await serving.terminate() == 0


@pytest.mark.slow
async def test_airy_settings(any_application: Application, tmp_path: Path) -> None:
    any_application.execute(*AIRY)
    await assert_events(
        any_application,
        copied("airy.toml", tmp_path),
        [
            "insert into messages values ('m1', 'c1', 'ch1', 'Hi', 'DELIVERED', true, 1603661094560, 'facebook', 's')",
            "insert into metadata values ('conversation:c1', 'contact.displayName', 'Grace', 'text', 1603661094560)",
            "insert into channels values ('ch1', 'facebook', 'page-1', 'CONNECTED')",
            "insert into tags values ('t1', 'flag', 'RED')",
        ],
        [
            (
                "message.updated",
                message(id="m1", conversation_id="c1", channel_id="ch1", source="facebook", sender="s"),
            ),
            (
                "metadata.updated",
                {"subject": "conversation", "identifier": "c1", "metadata": {"contact": {"displayName": "Grace"}}},
            ),
            ("channel.updated", {"id": "ch1", "source": "facebook", "source_channel_id": "page-1", "connected": True}),
            ("tag.updated", {"id": "t1", "name": "flag", "color": "tag-red"}),
        ],
    )


@pytest.mark.slow
async def test_chatwoot_settings(postgres_application: Application, tmp_path: Path) -> None:
    """A private note counts as deleted, and text that looks like JSON stays text."""
    postgres_application.execute(*CHATWOOT)
    await assert_events(
        postgres_application,
        copied("chatwoot.toml", tmp_path),
        [
            CHATWOOT_MESSAGE.format("between us", 1, "true", 0, 9),
            CHATWOOT_MESSAGE.format("Hi", 0, "false", 0, 5),
            CHATWOOT_MESSAGE.format('{"type": "text"}', 0, "false", 0, 5),
            "insert into inboxes (channel_id, account_id, name, channel_type) values (4, 1, 'W', 'Channel::WebWidget')",
            "insert into labels (title) values ('urgent')",
        ],
        [
            ("message.deleted", {"conversation_id": "7", "channel_id": "3", "message": {"id": "1"}}),
            ("message.updated", message(id="2", conversation_id="7", channel_id="3", source="chatwoot", sender="5")),
            (
                "message.updated",
                message(
                    id="3",
                    conversation_id="7",
                    channel_id="3",
                    source="chatwoot",
                    sender="5",
                    content='{"type": "text"}',
                ),
            ),
            ("channel.updated", {"id": "1", "source": "chatplugin", "source_channel_id": "4", "connected": True}),
            ("tag.updated", {"id": "1", "name": "urgent", "color": "#1f93ff"}),
        ],
    )


def message(
    *,
    id: str,  # noqa: A002 - the names of the columns
    conversation_id: str,
    channel_id: str,
    source: str,
    sender: str,
    content: str = "Hi",
) -> dict[str, Any]:
    """Return the payload of the message that both examples have, in different columns."""
    fields = {
        "id": id,
        "content": content,
        "delivery_state": "delivered",
        "from_contact": True,
        "sent_at": "2020-10-25T21:24:54.560Z",
        "source": source,
        "sender": {"id": sender},
    }
    return {"conversation_id": conversation_id, "channel_id": channel_id, "message": fields}
