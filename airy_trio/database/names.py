"""Where a database is (settings, URLs), and the names of our own objects in it; quoting for SQL text."""

from pathlib import Path
from typing import Final, Self

import sqlalchemy as sa
from attrs import field, frozen

from airy_trio.options import matching, more_than


def canonical_url(url: str) -> str:
    """Replace ``postgres://``, which hosting providers use, by ``postgresql://``, which SQLAlchemy requires."""
    return url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url


@frozen(kw_only=True)
class DatabaseOptions:
    """The application's database (settings, ``[database]`` without its tables)."""

    url: str = field(converter=canonical_url)
    direct_url: str = field(default="", converter=canonical_url)
    schema: str = field(
        default="airy_trio",
        validator=matching(r"[a-z_][a-z0-9_]{0,40}", "a plain name: a-z, 0-9 and _, at most 41 characters"),
    )
    migrate: bool = False
    connect_timeout_s: float = field(default=5, validator=more_than(0))


def shown(url: str) -> str:
    """Return a URL for people: without its password, and without options, in which libpq accepts a password too."""
    return sa.make_url(url).set(query={}).render_as_string(hide_password=True)


def sqlite_path(url: str) -> Path:
    """Return the file of an SQLite URL; a relative path is relative to the working directory."""
    return Path(sa.make_url(url).database or "").absolute()


POSTGRES: Final = "postgresql"
SQLITE: Final = "sqlite"
POSTGRES_DRIVERS: Final = ("postgresql", "postgresql+psycopg", "postgres")
SQLITE_DRIVERS: Final = ("sqlite", "sqlite+pysqlite")
"""The schemes of the URLs that the settings accept."""

LOCK_CLASS: Final = 0x41697279
"""The first half of all our advisory locks, plus a small number for each kind: "Airy" in ASCII."""


@frozen
class Names:
    """Names of our own tables and triggers: in a schema of ours on Postgres, with a prefix on SQLite."""

    dialect: str
    schema: str

    @classmethod
    def of(cls, url: str, schema: str) -> Self:
        """Return the names in the database at a URL."""
        return cls(sa.make_url(url).get_backend_name(), schema)

    @property
    def table_schema(self) -> str | None:
        """The schema for SQLAlchemy's ``Table``: None on SQLite."""
        return self.schema if self.dialect == POSTGRES else None

    def bare(self, name: str) -> str:
        """Return a table's name without its schema."""
        return name if self.dialect == POSTGRES else f"{self.schema}_{name}"

    def trigger(self, kind: str, event: str) -> str:
        """Return the name of one of our triggers on a table of the application."""
        return f"{self.schema}_{kind}_{event}"

    def quoted(self, name: str) -> str:
        """Return a table's name for SQL text."""
        if self.dialect == POSTGRES:
            return f"{quote_identifier(self.schema)}.{quote_identifier(name)}"
        return quote_identifier(self.bare(name))


def quote_identifier(name: str) -> str:
    """Quote a name for SQL text; both dialects double the quote."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Quote a text constant for SQL text, as both dialects read it."""
    return "'" + text.replace("'", "''") + "'"
