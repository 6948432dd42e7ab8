"""An application's database for the tests: real SQLite or real Postgres, with the default tables and our triggers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airy_trio.capture import mapping
from airy_trio.database import SQLITE, Database, DedicatedConnection, Names, postgres_engine, sqlite_engine, sqlite_path
from airy_trio.migrate import migrate
from airy_trio.settings import Settings, parse
from tests.migrated import migrate_empty

MESSAGE: Mapping[str, Any] = {
    "id": "m1",
    "conversation_id": "c1",
    "channel_id": "ch1",
    "content": '{"text": "Hello World"}',
    "delivery_state": "pending",
    "from_contact": True,
    "sent_at": "2020-10-25T21:24:54.560Z",
    "source": "facebook",
    "sender_id": "github:12345",
}


def only(**mapped: str) -> str:
    """Return settings that map only these kinds of objects, each with the lines of its section ("" for none)."""
    sections = {kind: mapped.get(kind, 'name = ""') for kind in mapping.KINDS}
    return "".join(f"[database.tables.{kind}]\n{lines}\n" for kind, lines in sections.items() if lines)


class Application:
    """Writes into the tables of an application as the application does, each call in one transaction."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.url = url
        self.dialect = sa.make_url(url).get_backend_name()
        self.engine = self._engine(create=create)

    def settings(self, more: str = "") -> Settings:
        """Return settings for a server on this database. ``more`` is TOML that follows ``[database]`` and its url.

        There is no admin port unless ``more`` has one, because servers of several tests run at the same time.
        """
        admin = "" if "[admin]" in more else "\n[admin]\nport = 0\n"
        return parse(f'[database]\nurl = "{self.url}"\n{more}{admin}', {})

    def migrate(self, more: str = "", *, with_tables: bool = True) -> Settings:
        """Migrate the database, fast if it is empty. A test of the migration itself uses ``run_migration``."""
        if not with_tables:
            return self.run_migration(more, with_tables=False)
        settings = self.settings(more)
        migrate_empty(settings, self.engine)
        return settings

    def run_migration(self, more: str = "", *, with_tables: bool = True) -> Settings:
        settings = self.settings(more)
        migrate(settings, with_tables=with_tables)
        return settings

    def execute(self, *statements: str, **parameters: object) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement), parameters)

    def scalar(self, statement: str) -> Any:  # noqa: ANN401 - the value of any column
        with self.engine.begin() as connection:
            return connection.execute(sa.text(statement)).scalar()

    def insert(self, table: sa.Table, *rows: Mapping[str, Any]) -> None:
        with self.engine.begin() as connection:
            for row in rows:
                names = ", ".join(f'"{name}"' for name in row)
                values = ", ".join(self._bound(table, name) for name in row)
                connection.execute(sa.text(f"insert into {table.name} ({names}) values ({values})"), dict(row))

    def message(self, **changed: object) -> None:
        self.insert(mapping.MESSAGES, {**MESSAGE, **changed})

    def metadata(self, subject: str, identifier: str, key: str, value: str | None, value_type: str = "text") -> None:
        row = {"subject": subject, "identifier": identifier, "key": key, "value": value, "value_type": value_type}
        self.insert(mapping.METADATA, row)

    def channel(self, id_: str = "ch1", *, connected: bool = True) -> None:
        row = {"id": id_, "source": "facebook", "source_channel_id": "fb-page-id-1", "connected": connected}
        self.insert(mapping.CHANNELS, row)

    def tag(self, id_: str = "t1", name: str = "flag", color: str = "tag-red") -> None:
        self.insert(mapping.TAGS, {"id": id_, "name": name, "color": color})

    def tags(self, numbers: range) -> None:
        """Insert the tags with these numbers, such as t0."""
        for number in numbers:
            self.tag(f"t{number}")

    @property
    def names(self) -> Names:
        return Names(self.dialect, "airy_trio")

    def log_table(self, name: str) -> str:
        return self.names.quoted(name)

    @property
    def log_order(self) -> str:
        """The columns that order the change log."""
        return "seq" if self.dialect == SQLITE else "txid, at, ctid"

    def reading(self) -> DedicatedConnection:
        return DedicatedConnection(self._engine(lenient=True, isolation_level="REPEATABLE READ"))

    def writing(self) -> Database:
        return Database(self._engine())

    def _bound(self, table: sa.Table, name: str) -> str:
        times = isinstance(table.c[name].type, sa.TIMESTAMP)
        return f"cast(:{name} as timestamptz)" if times and self.dialect != SQLITE else f":{name}"

    def _engine(self, *, create: bool = False, lenient: bool = False, isolation_level: str = "") -> sa.Engine:
        if self.dialect == SQLITE:
            return sqlite_engine(sqlite_path(self.url), mode="rwc" if create else "rw", lenient=lenient)
        engine = postgres_engine(self.url, connect_timeout_s=5)
        return engine.execution_options(isolation_level=isolation_level) if isolation_level else engine


@contextmanager
def application(url: str, *, create: bool = False) -> Iterator[Application]:
    made = Application(url, create=create)
    try:
        yield made
    finally:
        made.engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def any_application(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Application]:
    """An empty database of each dialect."""
    url = f"sqlite:///{tmp_path}/app.db" if request.param == "sqlite" else request.getfixturevalue("postgres_database")
    with application(url, create=True) as made:
        yield made


@pytest.fixture
def sqlite_application(tmp_path: Path) -> Iterator[Application]:
    with application(f"sqlite:///{tmp_path}/app.db", create=True) as made:
        yield made


@pytest.fixture
def postgres_application(postgres_database: str) -> Iterator[Application]:
    with application(postgres_database) as made:
        yield made
