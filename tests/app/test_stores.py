"""The event store is opened as the settings name it; if that fails, nothing stays open."""

import pytest
import sqlalchemy as sa
import trio

from airy_trio.app.build import opened_store
from airy_trio.errors import StartError
from airy_trio.events.destinations import OfChannel
from airy_trio.migrate import migrate
from airy_trio.settings import parse
from tests.application import Application, application
from tests.log.places import event
from tests.postgres import PASSWORD_ROLE, Postgres

TIMEOUT_S = 20.0


async def test_refused_store_leaves_no_connection(postgres: Postgres, postgres_application: Application) -> None:
    postgres_application.migrate()
    url = postgres.password_url(postgres_application.url.rpartition("/")[2])
    with pytest.raises(StartError, match="permission denied") as caught:
        async with opened_store(parse(f'[database]\nurl = "{url}"\n', {})):
            raise AssertionError
    count = f"select count(*) from pg_stat_activity where usename = '{PASSWORD_ROLE}'"
    with trio.fail_after(TIMEOUT_S):
        while postgres_application.scalar(count):  # noqa: ASYNC110 - its process ends after the connection
            await trio.sleep(0.01)
    assert caught.value.faults  # the error references all objects, so the garbage collector has closed none


async def test_log_database_with_unsuitable_encoding_is_refused(
    sqlite_application: Application, postgres: Postgres
) -> None:
    sqlite_application.migrate()
    settings = sqlite_application.settings(
        f'[log]\nurl = "{postgres.url(postgres.create_database(encoding="LATIN1"))}"\n'
    )
    refusal = r"log\.url: the encoding of this database is LATIN1, which cannot store every id"
    with pytest.raises(StartError, match=refusal):
        await trio.to_thread.run_sync(migrate, settings)
    with pytest.raises(StartError, match=refusal):
        async with opened_store(settings):
            raise AssertionError


async def test_application_database_of_any_encoding_can_store_its_log(postgres: Postgres) -> None:
    with application(postgres.url(postgres.create_database(encoding="LATIN1"))) as latin:
        async with opened_store(latin.migrate()) as store:
            head = (await store.bounds()).head
            await store.append(head, [event(1, channel_id="é")], "point")
            [stored] = await store.read(head, 10, OfChannel("é"), bytes_max=1000)
            assert stored.channel_id == "é"


async def test_session_that_listens_outlives_the_idle_timeout_of_the_database(
    postgres_application: Application,
) -> None:
    settings = postgres_application.migrate()
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f'alter database "{name}" set idle_session_timeout = 20')
    async with opened_store(settings) as store:
        head = (await store.bounds()).head
        with trio.move_on_after(0.5) as waiting:
            await store.wait(head)
        assert waiting.cancelled_caught
