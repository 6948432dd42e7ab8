"""The event store that the settings name, opened, and what is left of it where that fails."""

import pytest
import trio

from airy_trio.app.stores import opened_store
from airy_trio.errors import StartError
from airy_trio.settings import parse
from tests.application import Application
from tests.postgres import PASSWORD_ROLE, Postgres

TIMEOUT_S = 20.0


async def test_a_store_that_may_not_be_used_leaves_no_connection(
    postgres: Postgres, postgres_application: Application
) -> None:
    postgres_application.migrate()
    url = postgres.password_url(postgres_application.url.rpartition("/")[2])
    with pytest.raises(StartError, match="permission denied") as caught:
        async with opened_store(parse(f'[database]\nurl = "{url}"\n', {})):
            raise AssertionError
    count = f"select count(*) from pg_stat_activity where usename = '{PASSWORD_ROLE}'"
    with trio.fail_after(TIMEOUT_S):
        while postgres_application.scalar(count):  # noqa: ASYNC110 - its process ends after the connection
            await trio.sleep(0.01)
    assert caught.value.faults  # which has kept alive all that was made, so that no collector has closed it
