"""What is guessed to have changed is read in one round trip, and is what the long way finds, whatever it really was."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from airy_trio.changes import doorbell
from airy_trio.changes.feed import Batch
from airy_trio.changes.postgres import PostgresFeed
from airy_trio.changes.rows import Channel, Message, Metadata, Tag, TagGone
from airy_trio.changes.short_reads import CHANGES_MAX
from airy_trio.pipeline import Pipeline, Statement
from tests.application import Application
from tests.changes.feeds import AnyFeed, feed_of

MANY = 10 * CHANGES_MAX
PATIENCE_S = 20.0
TRANSACTION = ["airy_begin", "airy_difference"], ["airy_unlock", "airy_commit"]

Trips = list[list[str]]


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Trips:
    """The names of the statements of each round trip."""
    seen: Trips = []
    run = Pipeline.run

    async def noting(pipeline: Pipeline, *asked: tuple[Statement, Sequence[bytes | None]]) -> list[list[Any]]:
        seen.append([statement.name for statement, _ in asked])
        return await run(pipeline, *asked)

    monkeypatch.setattr(Pipeline, "run", noting)
    return seen


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "HURRY_S", 1000.0)


def at_once(*kinds: str) -> Trips:
    begun, ended = TRANSACTION
    return [[*begun, *(f"airy_guess_{kind}" for kind in kinds), *ended]]


async def woken(feed: AnyFeed, after: str, application: Application, *statements: str) -> Batch:
    """Sleep until the bell is armed, as a recorder does, execute something, be woken by it, and read."""
    assert isinstance(feed, PostgresFeed)
    with trio.fail_after(PATIENCE_S):
        while not feed.bell.armed:
            await feed.wait()
            after = (await feed.read(after, MANY)).resume_point
        application.execute(*statements)
        while not feed.bell.rung:
            await feed.wait()
    return await feed.read(after, MANY)


def is_asleep(feed: AnyFeed) -> bool:
    assert isinstance(feed, PostgresFeed)
    return feed.bell.armed


async def check(feed: AnyFeed, before: str, batch: Batch) -> None:
    """It is what the long way finds."""
    long = await feed.read(before, CHANGES_MAX)
    assert (batch.objects, batch.changes) == (long.objects, long.changes)
    assert batch.objects


async def test_before_anything_has_changed_nothing_is_guessed(postgres_application: Application, trips: Trips) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        await woken(feed, await feed.origin(), postgres_application, "insert into tags values ('t1', 'x', 'red')")
    begun, ended = TRANSACTION
    assert trips[-2] == begun
    assert trips[-1][1:] == ended


@pytest.mark.parametrize("type_", ["text", "varchar(40)", "uuid", "smallint", "integer", "bigint"])
async def test_what_changes_again_is_read_at_once(postgres_application: Application, trips: Trips, type_: str) -> None:
    ids = [f"{n:08}-0000-0000-0000-00000000000f" if type_ == "uuid" else f"{n}" for n in (1, 2, 3)]
    settings = postgres_application.migrate()
    postgres_application.execute(f"alter table tags alter id type {type_} using id::{type_}")
    async with feed_of(postgres_application, settings) as feed:
        first = await woken(
            feed,
            await feed.origin(),
            postgres_application,
            f"insert into tags values ('{ids[0]}', 'x', 'red'), ('{ids[1]}', 'y', 'red')",
        )
        batch = await woken(
            feed,
            first.resume_point,
            postgres_application,
            f"update tags set name = 'z' where id = '{ids[0]}'",
            f"delete from tags where id = '{ids[1]}'",
            f"insert into tags values ('{ids[2]}', 'it''s', 'blue')",
            f"update tags set color = 'green' where id = '{ids[2]}'",
        )
        assert trips[-1:] == at_once("tags")
        assert not is_asleep(feed)
        assert [(type(one), one.id) for one in batch.objects] == [(Tag, ids[0]), (TagGone, ids[1]), (Tag, ids[2])]  # type: ignore[union-attr]
        await check(feed, first.resume_point, batch)


async def test_several_kinds_are_read_at_once(postgres_application: Application, trips: Trips) -> None:
    message = "insert into messages values ('m{}', 'c1', 'ch1', 'ü', 'pending', true, now(), 'facebook', 'x')"
    channel = "insert into channels values ('ch{}', 'facebook', '1', true)"
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        statements = message.format(1), channel.format(1)
        first = await woken(feed, await feed.origin(), postgres_application, *statements)
        statements = channel.format(2), message.format(2)
        second = await woken(feed, first.resume_point, postgres_application, *statements)
        assert trips[-1:] == at_once("messages", "channels")
        await check(feed, first.resume_point, second)
        third = await woken(feed, second.resume_point, postgres_application, message.format(3))
        assert trips[-1:] == at_once("messages", "channels")
        await check(feed, second.resume_point, third)
    assert [type(one) for one in second.objects] == [Channel, Message]


async def test_what_was_not_guessed_is_read_again(postgres_application: Application, trips: Trips) -> None:
    tag = "insert into tags values ('{}', 'x', 'red')"
    fact = "insert into metadata values ('channel', 'ch1', '{}', 'x')"
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        first = await woken(feed, await feed.origin(), postgres_application, tag.format(1))
        second = await woken(feed, first.resume_point, postgres_application, tag.format(2), fact.format("a"))
        assert [type(one) for one in second.objects] == [Tag, Metadata]
        await check(feed, first.resume_point, second)
        trips.clear()
        third = await woken(feed, second.resume_point, postgres_application, fact.format("b"))
        assert not any("guess" in name for trip in trips for name in trip)  # metadata are not guessed at
        await check(feed, second.resume_point, third)


async def test_a_key_that_might_not_fit_is_read_again(postgres_application: Application, trips: Trips) -> None:
    settings = postgres_application.migrate()
    postgres_application.execute("alter table tags alter id type integer using id::integer")
    async with feed_of(postgres_application, settings) as feed:
        tag = "insert into tags values ({}, 'x', 'red')"
        first = await woken(feed, await feed.origin(), postgres_application, tag.format(-1))
        trips.clear()
        second = await woken(feed, first.resume_point, postgres_application, tag.format(2**31 - 1))
        assert at_once("tags")[0] in trips
        await check(feed, first.resume_point, second)


async def test_what_no_key_can_be_does_not_harm(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    async with feed_of(postgres_application, settings) as feed:
        start = await feed.origin()
        first = await woken(feed, start, postgres_application, "insert into tags values ('1', 'x', 'red')")
    postgres_application.execute("alter table tags alter id type integer using id::integer")
    async with feed_of(postgres_application, settings) as feed:
        point = first.resume_point
        first = await woken(feed, point, postgres_application, "insert into tags values (2, 'x', 'red')")
        odd = "insert into airy_trio.change_log (kind, operation, key_1) values ('tags', 'U', '{}')"
        statements = odd.format("no number"), odd.format("9" * 40), "insert into tags values (3, 'x', 'red')"
        batch = await woken(feed, first.resume_point, postgres_application, *statements)
        await check(feed, first.resume_point, batch)


@pytest.mark.parametrize("more", [0, 1])
async def test_more_than_few_go_the_long_way(postgres_application: Application, trips: Trips, more: int) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        first = await woken(
            feed, await feed.origin(), postgres_application, "insert into tags values ('x', 'x', 'red')"
        )
        tags = f"insert into tags select 't' || n, 'x', 'red' from generate_series(1, {CHANGES_MAX + more}) n"
        batch = await woken(feed, first.resume_point, postgres_application, tags)
        assert len(batch.objects) == batch.changes == CHANGES_MAX + more
        assert bool(trips[-1:] == at_once("tags")) is not bool(more)
        assert not is_asleep(feed)


async def test_a_ring_for_nothing_lets_go_of_the_bell(postgres_application: Application) -> None:
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        first = await woken(
            feed, await feed.origin(), postgres_application, "insert into tags values ('t1', 'x', 'red')"
        )
        nothing = await woken(feed, first.resume_point, postgres_application, "notify airy_trio_changes")
        assert nothing.changes == 0
        assert not is_asleep(feed)
        last = await woken(
            feed, nothing.resume_point, postgres_application, "insert into tags values ('t2', 'x', 'red')"
        )
        assert last.changes == 1


async def test_who_is_rung_now_and_then_stays_asleep(
    postgres_application: Application, trips: Trips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "HURRY_S", 0.0)
    tag = "insert into tags values ('{}', 'x', 'red')"
    async with feed_of(postgres_application, postgres_application.migrate()) as feed:
        assert isinstance(feed, PostgresFeed)
        batch = await woken(feed, await feed.origin(), postgres_application, tag.format("t1"))
        assert not is_asleep(feed)
        for id_ in ("t2", "t3"):
            before = batch.resume_point
            batch = await woken(feed, before, postgres_application, tag.format(id_))
            assert trips[-1] == ["airy_begin", "airy_difference", "airy_guess_tags", "airy_commit"]
            assert is_asleep(feed)
            await feed.bell.wait(0.01)
            assert not feed.bell.rung  # what it was woken by is answered
            assert [changed.id for changed in batch.objects] == [id_]  # type: ignore[union-attr]
        monkeypatch.setattr(doorbell, "HURRY_S", 1000.0)
        await woken(feed, batch.resume_point, postgres_application, tag.format("t4"))
        assert not is_asleep(feed)
