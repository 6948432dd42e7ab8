"""Checks for writes of a replica role, for which our triggers do not fire."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from airy_trio import migrate
from airy_trio.check import check
from airy_trio.settings import Settings
from tests.application import Application, application
from tests.capture.test_triggers_postgres import PARTITIONED
from tests.postgres import PASSWORD_ROLE, Postgres

ADVICE = "if clients are to receive them: airy-trio migrate --config FILE --triggers always"
REPLICA = "set session_replication_role = replica"


def warned(settings: Settings) -> list[str]:
    return [line for line in check(settings).of("warning") if ADVICE in line]


@pytest.fixture
def subscriber(postgres_application: Application) -> Iterator[Application]:
    """A database that may subscribe. Its subscriptions are never enabled and end with the test."""
    yield postgres_application
    with postgres_application.engine.begin() as connection:
        database = connection.exec_driver_sql("select current_database()").scalar_one()
        mine = "select s.subname from pg_subscription s join pg_database d on d.oid = s.subdbid where d.datname = %s"
        for name in connection.exec_driver_sql(mine, (database,)).scalars().all():
            connection.exec_driver_sql(f"alter subscription {name} set (slot_name = none)")
            connection.exec_driver_sql(f"drop subscription {name}")


def subscribe(application: Application, table: str) -> None:
    """Make a table the target of a subscription, without contacting its publisher."""
    application.execute(
        "create subscription theirs connection 'dbname=nowhere' publication p with (connect = false)",
        "insert into pg_subscription_rel (srsubid, srrelid, srsubstate) "
        f"select oid, '{table}'::regclass, 'r' from pg_subscription where subname = 'theirs'",
    )


@pytest.mark.parametrize("target", ["messages", "messages_a"])
def test_subscription_to_a_mapped_table_is_a_warning(subscriber: Application, target: str) -> None:
    subscriber.execute(*PARTITIONED)
    settings = subscriber.migrate()
    assert warned(settings) == []
    subscribe(subscriber, target)
    what = 'the subscription "theirs" writes to "messages", and our triggers do not fire for it'
    assert warned(settings) == [f"database.tables.messages: {what}; {ADVICE}"]
    assert check(settings).of("problem") == ()
    migrate.migrate(settings, firing="always")
    assert warned(settings) == []


def test_mapped_partition_of_the_target_is_a_warning(subscriber: Application) -> None:
    subscriber.execute(*PARTITIONED)
    settings = subscriber.migrate('[database.tables.messages]\nname = "messages_a"')
    subscribe(subscriber, "messages")
    assert len(warned(settings)) == 1


def test_database_or_role_in_replica_mode_is_a_warning(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    name = sa.make_url(postgres_application.url).database
    postgres_application.execute(f'alter database "{name}" {REPLICA}')
    postgres_application.execute(f'alter role "{PASSWORD_ROLE}" in database "{name}" {REPLICA}')
    writes = "and our triggers on messages, metadata, channels, tags do not fire for it"
    assert warned(settings) == [
        f'database: session_replication_role is replica for role "{PASSWORD_ROLE}", {writes}; {ADVICE}',
        f"database: session_replication_role is replica for this database, {writes}; {ADVICE}",
    ]
    migrate.migrate(settings, firing="always")
    assert warned(settings) == []


def test_server_in_replica_mode_is_a_warning(own_postgres: Postgres) -> None:
    with application(own_postgres.url(own_postgres.create_database())) as made:
        settings = made.migrate()
        with made.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("alter system set session_replication_role = replica")
        made.engine.dispose()
        own_postgres.stop()
        own_postgres.start()
        (finding,) = warned(settings)
        assert finding.startswith("database: session_replication_role is replica for the server's configuration file, ")


def test_unreadable_catalogue_is_a_note(postgres_application: Application) -> None:
    settings = postgres_application.migrate()
    role = "replication_role"
    postgres_application.execute(f"create role {role} login")
    try:
        migrate.migrate(settings, grant=role)
        postgres_application.execute(
            f"grant execute on function pg_control_system() to {role}",
            "revoke select on pg_subscription_rel from public",
        )
        url = sa.make_url(postgres_application.url).set(username=role)
        report = check(Application(url.render_as_string(hide_password=False)).settings())
        assert "database: pg_subscription_rel cannot be read, so replica writes cannot be checked" in report.of("note")
        assert report.of("problem") == ()
    finally:
        postgres_application.execute(f"drop owned by {role}", f"drop role {role}")
