"""The page about an existing schema: its mapping fits such a table, and its commands install the triggers for it."""

import shlex
from pathlib import Path
from typing import Final

import pytest

from airy_trio.capture.mapping import CHANNELS, METADATA
from tests.application import Application
from tests.command_line import CommandLine
from tests.docs.pages import parts
from tests.postgres import PASSWORD_ROLE

TABLES: Final = (
    "create schema chat",
    """create table chat.messages (
        id bigint primary key, thread_id bigint not null, channel_id bigint not null, inbound smallint not null,
        content text, sender_id bigint, private boolean not null, created_at timestamp not null
    )""",
    "insert into chat.messages values (1, 2, 3, 0, 'Hello', 4, false, '2026-11-01 12:00')",
)


def test_commands_install_the_mapping(
    postgres_application: Application, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [mapping] = parts("how-to/existing-schema.md", "toml")
    install, always = parts("how-to/existing-schema.md", "sh")
    postgres_application.execute(*TABLES)
    METADATA.metadata.create_all(postgres_application.engine, [METADATA, CHANNELS])
    monkeypatch.chdir(tmp_path)
    Path("inbox.toml").write_text(f'[database]\nurl = "{postgres_application.url}"\n{mapping}')
    lines = f"{install}{always}".replace("ROLE", PASSWORD_ROLE).splitlines()
    try:
        before, preview, migrated, after, switched = (
            command_line(*shlex.split(line, comments=True)[1:]) for line in lines
        )
    finally:
        postgres_application.execute(f"drop owned by {PASSWORD_ROLE}")
    assert before.code == 1
    assert "airy-trio: database: airy_trio has not been installed here" in before.err
    assert 'on "chat"."messages"' in preview.out
    assert [one.code for one in (preview, migrated, after, switched)] == [0] * 4
    assert "watching messages, metadata, channels\n" in after.out
    assert "warning: database.tables" not in after.err
    assert (
        postgres_application.scalar(
            "select string_agg(distinct tgenabled::text, '') from pg_trigger where not tgisinternal"
        )
        == "A"
    )
