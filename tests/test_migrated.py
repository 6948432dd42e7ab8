"""The fast migration of empty databases in tests."""

import re

from airy_trio.database import SQLITE, sqlite_path
from tests.application import Application
from tests.test_migrate import contents, event_file

DRAWN = re.compile(r"[0-9a-f]{16}|\d+$")
"""The identity, which is a default too, and the transaction that created a function or trigger."""


def definitions(application: Application) -> list[tuple[str, ...]]:
    found = [row for row in contents(application) if all(isinstance(part, str | None) for part in row)]
    return [tuple(DRAWN.sub("", str(part)) for part in row) for row in found]


def identity(application: Application) -> set[str]:
    """Return the texts that differ in each database: its identity and the epoch of its events."""
    source = application.scalar(f"select source from {application.log_table('change_state')}")
    events = Application(f"sqlite:///{event_file(application)}") if application.dialect == SQLITE else application
    epoch = events.scalar(f"select epoch from {application.log_table('log_state')}")
    if events is not application:
        events.engine.dispose()
    return {source, epoch}


def empty(application: Application) -> None:
    if application.dialect == SQLITE:
        application.engine.dispose()
        sqlite_path(application.url).unlink()
        event_file(application).unlink()
    else:
        application.execute("drop schema airy_trio cascade", "drop table channels, messages, metadata, tags")


def test_fast_migration_differs_only_in_identity(any_application: Application) -> None:
    any_application.run_migration()
    expected, identities = definitions(any_application), identity(any_application)
    assert len(expected) > 20
    for number in (2, 3):  # on SQLite the second may be the first that is copied
        empty(any_application)
        any_application.migrate()
        assert definitions(any_application) == expected
        identities |= identity(any_application)
        assert len(identities) == 2 * number
    any_application.tag()
    assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1


def test_database_that_is_not_empty_is_migrated_as_it_is(any_application: Application) -> None:
    any_application.migrate()
    empty(any_application)
    any_application.execute("create table tags (id text primary key, name text, color text, mine text)")
    any_application.migrate()
    any_application.execute("insert into tags (id, mine) values ('t1', 'x')")
    assert any_application.scalar(f"select count(*) from {any_application.log_table('change_log')}") == 1
