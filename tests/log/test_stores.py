"""Each of our event stores keeps the promises of the port."""

import pytest

from airy_trio.testing.event_store import check_event_store
from tests.log.places import memory_place, postgres_places, redis_places, sqlite_place
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)  # the whole suite in one test: 15 s on an idle machine


async def test_memory_store_conforms() -> None:
    await check_event_store(memory_place)


@pytest.mark.slow
async def test_sqlite_store_conforms() -> None:
    await check_event_store(sqlite_place)


@pytest.mark.slow
async def test_postgres_store_conforms(postgres_database: str) -> None:
    await check_event_store(postgres_places(postgres_database))


@pytest.mark.slow
async def test_redis_store_conforms(redis_server: RedisServer) -> None:
    await check_event_store(redis_places(redis_server.url))
