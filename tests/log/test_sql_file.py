"""The file of the event log is removed, replaced or out of reach while a store has it open."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from airy_trio.database import DatabaseOptions
from airy_trio.log.sql import SqliteStore
from airy_trio.log.store import EventStore, StoreReplaced, StoreUnavailable
from tests.log.places import event, migrate_new_file, open_sql


def remove(file: Path) -> None:
    file.unlink()


def remove_all(file: Path) -> None:
    for one in file.parent.glob(f"{file.name}*"):
        one.unlink()


def put_back(file: Path) -> None:
    copy = file.with_name("copy.db")
    shutil.copy(file, copy)
    copy.replace(file)


def replace_by_text(file: Path) -> None:
    text = file.with_name("text.db")
    text.write_text("this is no database, but a text that is longer than the header of one" * 9)
    text.replace(file)


CHANGES: dict[Callable[[Path], None], str] = {
    remove: "removed",
    remove_all: "removed",
    put_back: "replaced",
    replace_by_text: "replaced",
}


async def wait(store: EventStore) -> None:
    await store.wait((await store.bounds()).head)


async def append(store: EventStore) -> None:
    await store.append((await store.bounds()).head, [event(2)], "later")


async def look_with_a_new_connection(store: EventStore) -> None:
    assert isinstance(store, SqliteStore)
    await store.aclose()
    await store.bounds()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("use", [wait, append, look_with_a_new_connection], ids=lambda use: use.__name__)
async def test_every_verb_notices_a_replaced_file(
    change: Callable[[Path], None], use: Callable[[EventStore], Awaitable[None]], tmp_path: Path
) -> None:
    file = tmp_path / "events.db"
    options = DatabaseOptions(url=f"sqlite:///{file}")
    await trio.to_thread.run_sync(migrate_new_file, options)
    async with open_sql(options) as store:
        await store.append((await store.bounds()).head, [event(1)], "point")
        change(file)
        with trio.fail_after(20), pytest.raises(StoreReplaced, match=rf"log\.url: .*{file} was {CHANGES[change]}"):
            await use(store)


async def test_file_that_cannot_be_reached_is_an_outage(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    options = DatabaseOptions(url=f"sqlite:///{folder}/events.db")
    await trio.to_thread.run_sync(migrate_new_file, options)
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        folder.rename(elsewhere)
        folder.touch()
        with pytest.raises(StoreUnavailable, match="cannot be reached: Not a directory"):
            await store.append(head, [event(1)], "point")
        folder.unlink()
        elsewhere.rename(folder)
        await store.append(head, [event(1)], "point")


async def test_append_to_a_replaced_file_is_not_reported_as_done(tmp_path: Path) -> None:
    """Its result would be about the file that is gone."""
    file = tmp_path / "events.db"
    options = DatabaseOptions(url=f"sqlite:///{file}")
    await trio.to_thread.run_sync(migrate_new_file, options)
    async with open_sql(options) as store:
        head = (await store.bounds()).head
        await store.append(head, [event(1)], "point")
        put_back(file)
        with pytest.raises(StoreReplaced):
            await store.append(head.at(1), [event(2)], "later")
    async with open_sql(options) as store:
        assert (await store.bounds()).last <= 1
