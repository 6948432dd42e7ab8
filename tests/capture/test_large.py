"""Contents and metadata values of any length: only the beginning of a long one is fetched, and marked as cut."""

import json
import tracemalloc

import pytest

from airy_trio.capture.feed import Message, Metadata
from airy_trio.capture.queries import OCTETS_A_CHARACTER_MAX, TEXT_CHARS_MAX
from airy_trio.database import SQLITE
from airy_trio.events.translate import EventsOptions, encode, translate
from tests.application import Application
from tests.capture.feeds import feed_of, read_all

TRUNCATED = b'"content":{"truncated":true}'


def with_content_type(application: Application, type_: str) -> str:
    """Create the default tables with another type of content; return SQL for a JSON string of n characters."""
    application.migrate()
    if application.dialect == SQLITE:
        application.execute(
            "create table chats (id text primary key, conversation_id text, channel_id text, "
            f"content {type_}, delivery_state text, from_contact boolean, sent_at text, source text, sender_id text)"
        )
        return """'"' || replace(hex(zeroblob({} / 2 - 1)), '00', 'ää') || '"'"""
    application.execute(
        "create table chats (like messages)", f"alter table chats alter content type {type_} using content::{type_}"
    )
    return f"""('"' || repeat('ä', {{}} - 2) || '"')::{type_}"""


def insert(content: str) -> str:
    return (
        f"insert into chats select 'm1', 'c1', 'ch1', {content}, 'pending', true, '2020-10-25T21:24:54.560Z', "
        "'facebook', null"
    )


@pytest.mark.parametrize("type_", ["text", "json", "jsonb"])
@pytest.mark.parametrize("length, whole", [(TEXT_CHARS_MAX, True), (TEXT_CHARS_MAX + 2, False)])
async def test_content_is_whole_up_to_the_limit(
    any_application: Application, type_: str, length: int, *, whole: bool
) -> None:
    content = with_content_type(any_application, type_)
    settings = any_application.migrate('[database.tables.messages]\nname = "chats"\n')
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        any_application.execute(insert(content.format(length)))
        [message] = (await read_all(feed, start))[0]
    assert isinstance(message, Message)
    assert isinstance(message.content, str)
    assert len(message.content) == length if whole else TEXT_CHARS_MAX < len(message.content) <= length
    assert message.content_form == ("text" if not whole else "auto" if type_ == "text" else "json")
    translation = translate([message], EventsOptions())
    assert translation.faults == ()
    body, truncated = encode(translation.events[0], 10 * TEXT_CHARS_MAX if whole else TEXT_CHARS_MAX)
    assert truncated == (not whole)
    assert (TRUNCATED in body) == (not whole)


@pytest.mark.parametrize("limit", [2**29 - 1, 2**31 - 1, 2**63 - 1])
async def test_content_is_whole_with_the_largest_limits(any_application: Application, limit: int) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings, limit) as feed:
        start = await feed.origin()
        any_application.message(content="a\näöü")
        [message] = (await read_all(feed, start))[0]
    assert isinstance(message, Message)
    assert message.content == "a\näöü"


@pytest.mark.parametrize("content", ["", "a\0b", "\0", "🙂" * TEXT_CHARS_MAX, "\0" + "ä" * (TEXT_CHARS_MAX - 1)])
async def test_text_does_not_end_at_a_nul(sqlite_application: Application, content: str) -> None:
    settings = sqlite_application.migrate()
    async with feed_of(sqlite_application, settings) as feed:
        start = await feed.origin()
        sqlite_application.message(content=content)
        [message] = (await read_all(feed, start))[0]
    assert isinstance(message, Message)
    assert message.content == content


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
async def test_text_that_is_cut_within_a_character_is_truncated(sqlite_application: Application, before: str) -> None:
    settings = sqlite_application.migrate()
    async with feed_of(sqlite_application, settings) as feed:
        start = await feed.origin()
        sqlite_application.message(content=before + "🙂" * 2 * TEXT_CHARS_MAX)
        [message] = (await read_all(feed, start))[0]
    translation = translate([message], EventsOptions())
    assert translation.faults == ()
    body, truncated = encode(translation.events[0], TEXT_CHARS_MAX)
    assert truncated
    assert TRUNCATED in body


async def test_number_in_a_json_column_remains_a_number(sqlite_application: Application) -> None:
    with_content_type(sqlite_application, "json")
    settings = sqlite_application.migrate('[database.tables.messages]\nname = "chats"\n')
    async with feed_of(sqlite_application, settings) as feed:
        start = await feed.origin()
        sqlite_application.execute(insert("1e20"))
        [message] = (await read_all(feed, start))[0]
    assert isinstance(message, Message)
    assert message.content == pytest.approx(1e20)


@pytest.mark.parametrize("value_type", ["text", "object"])
async def test_long_metadata_value_is_no_fault(any_application: Application, value_type: str) -> None:
    settings = any_application.migrate()
    async with feed_of(any_application, settings) as feed:
        start = await feed.origin()
        any_application.metadata("conversation", "c1", "k", json.dumps({"k": "x" * 1_000_000}), value_type)
        [metadata] = (await read_all(feed, start))[0]
    assert isinstance(metadata, Metadata)
    [entry] = metadata.entries
    assert TEXT_CHARS_MAX < len(str(entry.value)) <= OCTETS_A_CHARACTER_MAX * (TEXT_CHARS_MAX + 1)
    translation = translate([metadata], EventsOptions())
    assert (translation.value_faults, translation.faults) == (0, ())
    body, truncated = encode(translation.events[0], TEXT_CHARS_MAX)
    assert truncated
    assert b'"metadata":{"truncated":true}' in body


async def test_huge_content_is_not_held_in_memory(any_application: Application) -> None:
    settings = any_application.migrate()
    length = 20_000_000
    huge = f"hex(zeroblob({length // 2}))" if any_application.dialect == SQLITE else f"repeat('0', {length})"
    any_application.message()
    async with feed_of(any_application, settings) as feed:
        start = (await read_all(feed, await feed.origin()))[1]
        any_application.execute(f"update messages set content = {huge}")
        tracemalloc.start()
        try:
            objects = (await read_all(feed, start))[0]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(objects) == 1
    assert peak < 2_000_000
