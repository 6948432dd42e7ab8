"""Where a database is: the settings of the application's, and URLs as paths and as words."""

from pathlib import Path

import sqlalchemy as sa
from attrs import field, frozen

from airy_trio.options import matching, more_than


def canonical_url(url: str) -> str:
    """Write ``postgres://``, which hosting panels hand out, as ``postgresql://``, the one that SQLAlchemy knows."""
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
    """A database URL for a person: without password, and without options, where libpq takes a password too."""
    return sa.make_url(url).set(query={}).render_as_string(hide_password=True)


def sqlite_path(url: str) -> Path:
    """The file of an SQLite URL; a relative path is relative to the working directory."""
    return Path(sa.make_url(url).database or "").absolute()
