"""The lease has at most one holder, and is free once the holder has ended."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio

from airy_trio.capture.lease import SESSION_TIMEOUTS, FileLease, LogLease, OwnLease, PostgresLease, lock_file
from airy_trio.database import DatabaseRefused, DatabaseUnavailable, DedicatedConnection, Names, postgres_engine
from tests.application import Application
from tests.descriptors import no_descriptor_left

HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


def session(application: Application) -> DedicatedConnection:
    return DedicatedConnection(postgres_engine(application.url, connect_timeout_s=5, settings=SESSION_TIMEOUTS))


async def test_one_of_two_sessions_holds_the_lease_until_release(postgres_application: Application) -> None:
    postgres_application.migrate()
    first = PostgresLease(session(postgres_application), postgres_application.names)
    second = PostgresLease(session(postgres_application), postgres_application.names)
    assert await first.try_acquire()
    assert await first.try_acquire()
    assert not await second.try_acquire()
    await first.release()
    await first.release()
    assert await second.try_acquire()
    assert not await first.try_acquire()
    await second.release()
    await first.release()


async def test_lease_is_locked_once_and_unlocked_by_release(postgres_application: Application) -> None:
    postgres_application.migrate()
    engine = postgres_engine(postgres_application.url, connect_timeout_s=5)
    lease, statements = PostgresLease(DedicatedConnection(engine), postgres_application.names), list[str]()
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    for _ in range(3):
        assert await lease.try_acquire()
    await lease.release()
    assert [statement.split("(")[0] for statement in statements if "advisory" in statement] == [
        "select pg_try_advisory_lock",
        "select pg_advisory_unlock_all",
    ]


async def test_a_holder_loses_the_lease_with_its_session(postgres_application: Application) -> None:
    postgres_application.migrate()
    sessions = session(postgres_application), session(postgres_application)
    first, second = (PostgresLease(own, postgres_application.names) for own in sessions)
    assert await first.try_acquire()
    holder = "select pid from pg_locks where locktype = 'advisory' and granted"
    postgres_application.execute(f"select pg_terminate_backend(({holder}), 5000)")
    assert await second.try_acquire()
    with pytest.raises(DatabaseUnavailable):
        await sessions[0].run(lambda connection: connection.exec_driver_sql("select 1"))
    assert not await first.try_acquire()
    await first.release()
    await second.release()


async def test_a_frozen_holder_loses_the_lease_within_a_second(postgres_application: Application) -> None:
    postgres_application.migrate()
    first = PostgresLease(session(postgres_application), postgres_application.names)
    second = PostgresLease(session(postgres_application), postgres_application.names)
    assert await first.try_acquire()
    with trio.fail_after(5):
        while not await second.try_acquire():  # noqa: ASYNC110 - as the recorder does
            await trio.sleep(0.05)
    await first.release()
    await second.release()


async def test_dead_holder_waiting_for_a_table_loses_the_lease(postgres_application: Application) -> None:
    postgres_application.migrate()
    sessions = session(postgres_application), session(postgres_application)
    first, second = (PostgresLease(own, postgres_application.names) for own in sessions)
    assert await first.try_acquire()
    waiting = "select count(*) from pg_locks where not granted"
    with postgres_application.engine.connect() as other, trio.fail_after(20):
        other.exec_driver_sql("lock table messages")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sessions[0].run, lambda connection: connection.exec_driver_sql("select from messages"))
            while not postgres_application.scalar(waiting):  # noqa: ASYNC110 - Postgres does not notify of it
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        await sessions[0].aclose()
        while not await second.try_acquire():  # noqa: ASYNC110 - as the recorder does
            await trio.sleep(0.05)
    await second.release()


async def test_each_change_log_in_a_database_has_its_own_lease(postgres_application: Application) -> None:
    postgres_application.migrate()
    postgres_application.migrate('schema = "other"')
    first = PostgresLease(session(postgres_application), postgres_application.names)
    second = PostgresLease(session(postgres_application), Names("postgresql", "other"))
    assert await first.try_acquire()
    assert await second.try_acquire()
    await first.release()
    await second.release()


async def test_a_missing_change_log_has_no_lease(postgres_application: Application) -> None:
    lease = PostgresLease(session(postgres_application), postgres_application.names)
    assert not await lease.try_acquire()
    await lease.release()


async def test_servers_share_a_lease_by_the_epoch_of_their_log(postgres_application: Application) -> None:
    epoch = "k7f3q9"
    ours = [LogLease(session(postgres_application), lambda: epoch) for _ in range(2)]
    another = LogLease(session(postgres_application), lambda: "other0")
    assert await ours[0].try_acquire()
    assert await another.try_acquire()
    assert not await ours[1].try_acquire()
    epoch = "newer0"
    assert await ours[1].try_acquire()  # the first server to try in the new epoch
    assert not await ours[0].try_acquire()
    await ours[1].release()
    with trio.fail_after(10):
        while not await ours[0].try_acquire():
            pass  # the server releases the lock once it has noticed the end of the session
    await ours[0].release()
    await ours[0].release()
    await another.release()


async def test_the_lease_of_a_log_in_memory_is_always_held() -> None:
    leases = OwnLease(), OwnLease()
    assert [await lease.try_acquire() for lease in leases] == [True, True]
    for lease in leases:
        await lease.release()


async def test_only_one_lease_on_a_file_is_acquired(tmp_path: Path) -> None:
    first, second = FileLease(tmp_path / "app.db"), FileLease(tmp_path / "app.db")
    assert await first.try_acquire()
    assert await first.try_acquire()
    assert not await second.try_acquire()
    assert lock_file(tmp_path / "app.db").stat().st_mode & 0o777 == 0o600
    await first.release()
    await first.release()
    assert await second.try_acquire()
    assert not await first.try_acquire()
    await second.release()


@pytest.mark.slow
async def test_a_killed_process_releases_the_lock_file(tmp_path: Path) -> None:
    database = tmp_path / "app.db"
    lease = FileLease(database)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", HOLDER, str(lock_file(database))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with trio.fail_after(30):
        try:
            assert (await process.stdout.receive_some()).startswith(b"held")
            assert not await lease.try_acquire()
        finally:
            process.kill()
        await process.wait()
        assert await lease.try_acquire()
    await lease.release()
    await process.stdout.aclose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a file for another user")
async def test_files_created_by_root_belong_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    """Otherwise a server that runs as this owner could not open them."""
    os.chown(tmp_path, 65534, 65534)
    application = Application(f"sqlite:///{tmp_path}/app.db")
    application.run_migration(with_tables=True)
    lease = FileLease(tmp_path / "app.db")
    assert await lease.try_acquire()
    await lease.release()
    names = {"app.db", "app.db.airy-trio.db", "app.db.airy-trio.lock"}
    assert {name: (tmp_path / name).stat().st_uid for name in names} == dict.fromkeys(names, 65534)
    application.engine.dispose()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create a file for another user")
async def test_files_created_by_root_belong_to_the_owner_of_the_database(tmp_path: Path) -> None:
    """Its folder may belong to root, and be writable for a group."""
    application = Application(f"sqlite:///{tmp_path}/app.db", create=True)
    application.execute("create table theirs (id text)")
    os.chown(tmp_path / "app.db", 65534, 65534)
    application.run_migration(with_tables=True)
    lease = FileLease(tmp_path / "app.db")
    assert await lease.try_acquire()
    await lease.release()
    for name in ("app.db.airy-trio.db", "app.db.airy-trio.lock"):
        assert ((tmp_path / name).stat().st_uid, (tmp_path / name).stat().st_gid) == (65534, 65534)
    application.engine.dispose()


async def test_a_lock_file_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseRefused, match="cannot be opened: No such file or directory"):
        await FileLease(tmp_path / "no" / "app.db").try_acquire()


async def test_a_shortage_of_descriptors_is_an_outage(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "app.db")
    with no_descriptor_left(), pytest.raises(DatabaseUnavailable, match="cannot be opened: Too many open files"):
        await lease.try_acquire()
    assert await lease.try_acquire()
    await lease.release()
