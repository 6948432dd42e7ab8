"""Compare the log after a drill with the application's tables, and check each position in it."""

from itertools import pairwise

import coredis
import sqlalchemy as sa
from attrs import frozen

from airy_trio.log.options import LogOptions
from airy_trio.verify.writers import Ledger, change_of
from tests.application import Application
from tests.application import application as store_of
from tests.e2e.route import END, Event

ENTRIES_MAX = 1000
"""How many entries of a Redis stream are read at once."""


@frozen(kw_only=True)
class Findings:
    """The faults of the log.

    ``lost``: objects with a last event that differs from their last committed state. ``repeated``: events without a new
    version. ``reordered``: events with an older version than an earlier event. ``holes``: offsets that are missing or
    occur twice, and a first or last offset in the log's state that differs from the events.
    """

    events: int
    objects: int
    repeated: int
    lost: list[str]
    reordered: list[str]
    holes: list[str]


@frozen
class Log:
    """Every event in a store, by offset, read without a server; ``first`` and ``last`` are those of its state."""

    events: list[Event]
    first: int
    last: int


def log_of(application: Application) -> list[Event]:
    """Return every event in the default store of this application, by offset."""
    return sql_log(LogOptions().location(application.url)).events


def sql_log(url: str) -> Log:
    """Read an ``sql`` store in the database of this URL."""
    with store_of(url) as store, store.engine.begin() as connection:
        state, events = store.log_table("log_state"), store.log_table("event_log")
        epoch, first, last = connection.execute(sa.text(f"select epoch, first, last from {state}")).one()
        kept = f"select e.offset, body from {events} e where e.offset >= :first order by e.offset"
        # Rows before ``first`` belong to an earlier epoch and are not deleted yet.
        found = connection.execute(sa.text(kept), {"first": first})
        return Log([Event(f"{epoch}-{offset}", bytes(body).decode()) for offset, body in found], first, last)


async def redis_log(url: str) -> Log:
    """Read a ``redis`` store."""
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
    ledger, objects = Ledger(), set()
    for event in log.events:
        if not event.is_end:
            change = change_of(event.body)
            objects.add(change[0])
            ledger.received(event.offset, change, 0.0)
    with application.engine.begin() as connection:
        rows = connection.execute(sa.text("select id, name from tags where id != :end"), {"end": END}).all()
    certificate = ledger.certificate({row.id: int(row.name) for row in rows})
    return Findings(
        events=len(log.events),
        objects=len(objects),
        repeated=len(certificate.duplicated),
        lost=list(certificate.lost),
        reordered=list(certificate.reordered),
        holes=_holes([event.offset for event in log.events], log.first, log.last),
    )


def _holes(offsets: list[int], first: int, last: int) -> list[str]:
    holes = [f"{after} after {before}" for before, after in pairwise(offsets) if after != before + 1]
    if offsets and (offsets[0], offsets[-1]) != (first, last):
        holes.append(f"{first} to {last} in the state, {offsets[0]} to {offsets[-1]} in the events")
    return holes


def has_long(findings: Findings) -> bool:
    """Return whether no object of the long transaction is lost."""
    return not any(id_.startswith("long ") for id_ in findings.lost)
