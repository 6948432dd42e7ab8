"""Each of our event stores keeps the promises of the port."""

import pytest

from airy_trio.testing.event_store import check_event_store
from tests.log.places import memory_place, postgres_places, redis_places, sqlite_place
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)  # the whole suite in one test: a quarter of a minute, where nothing else runs


async def test_memory_keeps_its_promises() -> None:
    await check_event_store(memory_place)


async def test_sql_on_sqlite_keeps_its_promises() -> None:
    await check_event_store(sqlite_place)


@pytest.mark.slow
async def test_sql_on_postgres_keeps_its_promises(postgres_database: str) -> None:
    await check_event_store(postgres_places(postgres_database))


@pytest.mark.slow
async def test_redis_keeps_its_promises(redis_server: RedisServer) -> None:
    await check_event_store(redis_places(redis_server.url))
