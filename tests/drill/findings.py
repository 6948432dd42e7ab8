"""What a drill has done to the log: each object's last state against the application's tables, and each position."""

import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import coredis
import sqlalchemy as sa
from attrs import frozen

from airy_trio.log.options import LogOptions
from tests.application import Application
from tests.application import application as store_of
from tests.drill.load import LONG
from tests.e2e.route import END, Event

GONE = 2**62
"""The version of what is deleted, which is for good."""
ENTRIES_MAX = 1000
"""Of a Redis stream in one answer."""


@frozen(kw_only=True)
class Findings:
    """``lost``: the last event of these is not their last committed state. ``backwards``: a version after a newer one.

    ``holes``: offsets that are missing or there twice, and what the log's state says other than its events.
    """

    events: int
    objects: int
    repeated: int
    lost: list[str]
    backwards: list[str]
    holes: list[str]


@frozen
class Log:
    """Every event in a store, by offset, read past the server; ``first`` and ``last`` as the store's state has them."""

    events: list[Event]
    first: int
    last: int


def log_of(application: Application) -> list[Event]:
    """Every event in the store that is used without ``[log] url``, by offset."""
    return sql_log(LogOptions().location(application.url)).events


def sql_log(url: str) -> Log:
    """What the ``sql`` store has in the database of this URL."""
    with store_of(url) as store, store.engine.begin() as connection:
        state, events = store.log_table("log_state"), store.log_table("event_log")
        epoch, first, last = connection.execute(sa.text(f"select epoch, first, last from {state}")).one()
        kept = f"select e.offset, body from {events} e where e.offset >= :first order by e.offset"
        # What lies before it are rows of an ended epoch that are not deleted yet.
        found = connection.execute(sa.text(kept), {"first": first})
        return Log([Event(f"{epoch}-{offset}", bytes(body).decode()) for offset, body in found], first, last)


async def redis_log(url: str) -> Log:
    """What the ``redis`` store has in this Redis."""
    client: coredis.Redis[str] = coredis.Redis.from_url(url, decode_responses=True)
    async with client:
        state = await client.hgetall("{airy_trio}:state")
        events: list[Event] = []
        after = "-"
        while entries := await client.xrange("{airy_trio}:events", after, "+", count=ENTRIES_MAX):
            for entry in entries:
                offset = str(entry.identifier).partition("-")[0]
                events.append(Event(f"{state['epoch']}-{offset}", str(entry.field_values["body"])))
            after = f"({entries[-1].identifier!s}"
        return Log(events, int(state["first"]), int(state["last"]))


def examine(application: Application, log: Log) -> Findings:
    """Compare the log with the tags that the load has left."""
    versions = _versions(log.events)
    with application.engine.begin() as connection:
        rows = connection.execute(sa.text("select id, name from tags where id != :end"), {"end": END}).all()
    committed = defaultdict(lambda: GONE, {row.id: int(row.name) for row in rows})
    return Findings(
        events=len(log.events),
        objects=len(versions),
        repeated=sum(a == b for found in versions.values() for a, b in pairwise(found)),
        lost=[id_ for id_ in {*committed, *versions} if versions.get(id_, [0])[-1] != committed[id_]],
        backwards=[id_ for id_, found in versions.items() if found != sorted(found)],
        holes=_holes([event.offset for event in log.events], log.first, log.last),
    )


def _versions(events: Iterable[Event]) -> dict[str, list[int]]:
    """The versions of each tag in the order of the log."""
    versions: dict[str, list[int]] = defaultdict(list)
    for event in events:
        told: dict[str, Any] = json.loads(event.body)
        if not event.is_end:
            gone = told["type"] == "tag.deleted"
            versions[told["payload"]["id"]].append(GONE if gone else int(told["payload"]["name"]))
    return dict(versions)


def _holes(offsets: list[int], first: int, last: int) -> list[str]:
    holes = [f"{after} after {before}" for before, after in pairwise(offsets) if after != before + 1]
    if offsets and (offsets[0], offsets[-1]) != (first, last):
        holes.append(f"{first} to {last} in the state, {offsets[0]} to {offsets[-1]} there")
    return holes


def has_long(findings: Findings) -> bool:
    """Whether nothing of the transaction that stayed open for long is lost."""
    return not any(id_.startswith(LONG) for id_ in findings.lost)
