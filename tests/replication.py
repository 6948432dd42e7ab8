"""Logical replication between two databases of one Postgres. The subscription ends with the test."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa
from attrs import frozen

from tests.application import Application, application
from tests.postgres import Postgres

SLOT = "airy_slot"
SUBSCRIPTION = "airy_subscription"


@frozen
class Publisher:
    """A database that publishes its table of tags, in a Postgres with logical replication."""

    postgres: Postgres
    database: Application

    @classmethod
    @contextmanager
    def of(cls, postgres: Postgres) -> Iterator["Publisher"]:
        """Restart this Postgres with logical replication, and publish the tags of a new database."""
        with psycopg.connect(_plain(postgres.url("postgres")), autocommit=True) as connection:
            connection.execute("alter system set wal_level = logical")
        postgres.stop()
        postgres.start()
        with application(postgres.url(postgres.create_database())) as database:
            database.execute(
                "create table tags (id text primary key, name text, color text)",
                "create publication airy for all tables",
            )
            database.execute(f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
            yield cls(postgres, database)

    def execute(self, *statements: str) -> None:
        """Write into the published table, each statement in a transaction of its own."""
        for statement in statements:
            self.database.execute(statement)


@contextmanager
def subscribed(replica: Application, publisher: Publisher) -> Iterator[None]:
    """Apply everything that is published during the block to a database of the same Postgres.

    The slot is created separately. If the subscription created it, Postgres would wait for the end of the transaction
    that creates the subscription, which never ends.
    """
    source = _plain(publisher.database.url)
    with psycopg.connect(_plain(replica.url), autocommit=True) as connection:
        connection.execute(
            f"create subscription {SUBSCRIPTION} connection '{source}' publication airy "
            f"with (create_slot = false, slot_name = '{SLOT}', copy_data = false)"
        )
        try:
            yield
        finally:
            connection.execute(f"alter subscription {SUBSCRIPTION} disable")
            connection.execute(f"alter subscription {SUBSCRIPTION} set (slot_name = none)")
            connection.execute(f"drop subscription {SUBSCRIPTION}")


def _plain(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
