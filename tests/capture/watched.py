"""An application whose tables have ``updated_at`` in one of its forms, and the feed that polls them.

The test controls the application's clock: ``TIMES`` converts microseconds since 1970 to a value of the column.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from airy_trio.capture.feed import ChangedObject, Kind, Tag
from airy_trio.capture.inspection import inspect
from airy_trio.capture.polling import UpdatedAtFeed
from airy_trio.capture.queries import TEXT_CHARS_MAX
from airy_trio.settings import Settings
from tests.application import Application, only

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START_US: Final = 1_603_661_094_560_000
SECOND_US: Final = 1_000_000
OVERLAP_S: Final = 5.0
ONLY_TAGS: Final = only(tags="")


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


TIMES: Final[Mapping[str, tuple[str, Callable[[int], str]]]] = {
    "timestamptz": ("timestamp with time zone", lambda us: f"'{moment(us).isoformat()}'"),
    "timestamp": ("timestamp", lambda us: f"'{moment(us).replace(tzinfo=None).isoformat(' ')}'"),
    "milliseconds": ("bigint", lambda us: str(us // 1000)),
    "float": ("double precision", lambda us: str(us / 1000)),
    "numeric": ("numeric", lambda us: str(us / 1000)),
    "digits": ("text", lambda us: f"'{us // 1000}'"),
    "iso": ("text", lambda us: f"'{moment(us).isoformat(timespec='milliseconds').replace('+00:00', 'Z')}'"),
    "spaced": ("text", lambda us: f"'{moment(us).replace(tzinfo=None).isoformat(' ', 'milliseconds')}'"),
    "offset": (
        "text",
        lambda us: f"'{moment(us).astimezone(timezone(timedelta(hours=-9))).isoformat(timespec='milliseconds')}'",
    ),
    "undeclared": ("", lambda us: str(us // 1000)),
}
ON_SQLITE_ONLY: Final = frozenset({"undeclared"})


class Watched:
    """An application with a table of tags."""

    def __init__(self, application: Application, form: str = "timestamptz") -> None:
        self.application = application
        type_, self._written = TIMES[form]
        application.execute(
            f"create table tags (id text primary key, name text, color text, updated_at {type_})",
            "create index tags_updated_at on tags (updated_at)",
        )

    def tag(self, id_: str, us: int, name: str = "flag") -> None:
        """Write a tag at a time."""
        self.application.execute(self.statement(id_, us, name))

    def statement(self, id_: str, us: int, name: str = "flag") -> str:
        return (
            f"insert into tags values ('{id_}', '{name}', 'red', {self._written(us)}) "
            "on conflict (id) do update set name = excluded.name, updated_at = excluded.updated_at"
        )


def settings_of(application: Application, more: str = ONLY_TAGS) -> Settings:
    return application.settings(f'{more}[changes]\ncapture = "updated_at"\n[log]\nstore = "memory"\n')


@asynccontextmanager
async def watching(
    application: Application,
    more: str = ONLY_TAGS,
    overlap_s: float = OVERLAP_S,
    from_the_beginning: frozenset[Kind] = frozenset(),
) -> AsyncIterator[UpdatedAtFeed]:
    feed = feed_by_updated_at(application, settings_of(application, more), overlap_s, from_the_beginning)
    try:
        yield feed
    finally:
        await feed.aclose()


def feed_by_updated_at(
    application: Application,
    settings: Settings,
    overlap_s: float = OVERLAP_S,
    from_the_beginning: frozenset[Kind] = frozenset(),
) -> UpdatedAtFeed:
    with application.engine.begin() as connection:
        tables = inspect(connection, settings.tables, watermarks=True)
    return UpdatedAtFeed(
        application.reading(),
        application.dialect,
        tables,
        overlap_s=overlap_s,
        text_chars_max=TEXT_CHARS_MAX,
        from_the_beginning=from_the_beginning,
    )


def names(objects: Sequence[ChangedObject]) -> list[tuple[str, str]]:
    return [(str(one.id), str(one.name)) for one in objects if isinstance(one, Tag)]
