"""A database with a pool over it, of each dialect in turn."""

from collections.abc import Iterator

import pytest

from airy_trio.database import Database
from tests.application import Application


@pytest.fixture
def application(any_application: Application) -> Application:
    any_application.execute("select 1")  # makes the SQLite file
    return any_application


@pytest.fixture
def database(application: Application) -> Iterator[Database]:
    database = application.writing()
    yield database
    database.engine.dispose()
