"""One server process: its parts are started in order, and the nursery tree is in one function.

``serve`` is for other programs, ``run`` for the command line. Both run ``serve_process``, which has this tree::

    serve_process()
      port                         outermost: the admin port, which reports what the start waits for, and the shutdown
      connections                  sessions and their send tasks, with a deadline at shutdown; the task that stores
                                   acknowledgements of durable subscriptions, until the end
      intake                       innermost: recorder and its read-ahead, tail of the store, retention, readiness;
                                   in a process that serves also fan-out, wheel, accept loop, renewal. Cancelled first
                                   at shutdown. A failure here ends the server, and is reported

Three subjects follow in this order: serving, renewal on SIGHUP, and the limits of the process.
"""

import contextlib
import gc
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio
from attrs import evolve, fields, frozen

from airy_trio import __version__, migrate
from airy_trio.admin import endpoints
from airy_trio.admin import server as admin
from airy_trio.admin.readiness import Starting
from airy_trio.app.build import Parts, make_parts, open_back_ends, opened_store, wait_until_available
from airy_trio.auth.authenticator import Authenticator, load_file_keys
from airy_trio.auth.keys import Key
from airy_trio.database import DatabaseError, DatabaseRefused
from airy_trio.delivery.disconnects import INTERNAL
from airy_trio.errors import FaultsError, SettingsError, StartError, single_error
from airy_trio.log.recorder import Recorder
from airy_trio.log.store import StoreReplaced
from airy_trio.sessions.listener import Address, ListenerOptions, accept, open_listening_socket, within_files
from airy_trio.sessions.session import Sessions
from airy_trio.settings import Settings, contradictions
from airy_trio.websocket import tls
from airy_trio.websocket.tls import Certificate, Encryption

T = TypeVar("T")

logger = structlog.get_logger(__name__)

FLUSH_TIMEOUT_S: Final = 5.0
"""Time at shutdown to store the acknowledgements of durable subscriptions."""
_UNDEFINED_TABLE: Final = "42P01"
"""The SQLSTATE of a missing table. It is compared because Postgres may write its message in any language."""


async def serve(  # noqa: ASYNC128 - _serve reports that it has started
    settings: Settings,
    *,
    stopping: trio.Event | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the server: ``await nursery.start(serve, settings)`` returns its ``Address`` once it listens.

    For a graceful shutdown set ``stopping``: clients are notified and have ``drain_s`` to reconnect elsewhere.
    Cancelling ends the server at once. It is one process: ``[listener] workers`` must be 1.

    Resource handling: everything that it opened is closed on return. Raises ``AiryTrioError`` if it cannot start or
    cannot go on.
    """
    await serve_process(settings, stopping=stopping, task_status=task_status)


def trio_run(work: Callable[[], Awaitable[T]]) -> T:
    """Run ``run``, or another function that opens its own signal receiver, in Trio; then restore the signal handlers.

    SIGINT and SIGTERM are ignored before the receiver opens and after it closes. Otherwise the receiver would restore
    the command's handlers while Trio still runs. They raise an exception, which Trio would report as an internal error.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    async def ignoring() -> T:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        return await work()

    try:
        return trio.run(ignoring)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def run(
    settings: Settings,
    companion: Callable[[Address], Awaitable[None]] | None = None,
    *,
    reread: Callable[[], Settings] | None = None,
    worker: int | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down gracefully; a second signal, or one during the start, ends at once.

    ``companion`` starts once the server listens; when it returns, the server shuts down. ``reread`` reads the settings
    again on SIGHUP (``Renewal``). Without it SIGHUP, which a closing terminal sends, shuts down too. ``worker``:
    see ``serve_process``. Raises ``AiryTrioError`` if the server cannot start or cannot go on.
    """
    stopping, company = trio.Event(), trio.CancelScope()
    renewal = None if reread is None else Renewal(reread)
    listening = False
    prepare_process()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        try:
            # The task for signals is outside of the server's nursery, because it must receive a second signal while the
            # server shuts down.
            async with trio.open_nursery() as signalled:

                async def handle_signals() -> None:
                    async for number in signals:
                        if number == signal.SIGHUP and renewal is not None:
                            renewal.request()
                            continue
                        logger.info("stopping", signal=signal.Signals(number).name)
                        # During the start there are no clients yet that could be disconnected in order.
                        if stopping.is_set() or not listening:
                            signalled.cancel_scope.cancel()
                        stopping.set()
                        company.cancel()

                signalled.start_soon(handle_signals)
                async with trio.open_nursery() as serving:
                    server = partial(serve_process, settings, stopping=stopping, renewal=renewal, worker=worker)
                    address = await serving.start(server)
                    listening = True
                    freeze_heap()
                    if companion is not None:
                        with company:
                            await companion(address)
                        stopping.set()
                signalled.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise single_error(group) from None


async def serve_process(  # noqa: ASYNC114, ASYNC128 - as above; all that the command line passes
    settings: Settings,
    *,
    stopping: trio.Event | None = None,
    renewal: "Renewal | None" = None,
    worker: int | None = None,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run one of the server processes of a command; ``stopping``, ``task_status`` and errors: see ``serve``.

    ``renewal`` reads credentials and certificate again on request. ``worker`` is the number of this process among
    ``[listener] workers``, from 0; its admin port is ``[admin] port`` + ``worker``. The number after the last worker is
    the recorder process, which does not listen. None: this is the only process.
    """
    if worker is None and settings.listener.workers > 1:
        remedy = "set it to 1, or start the workers with the airy-trio command"
        raise SettingsError([f"listener.workers is {settings.listener.workers}, but serve() is one process; {remedy}"])
    worker = 0 if worker is None else worker
    # First, because the settings may name files that cannot be used.
    # The threads of the start are abandoned if it is cancelled: a mount may hang, or a migration may wait for a lock,
    # and neither may delay the end of the process.
    file_keys = await trio.to_thread.run_sync(load_file_keys, settings.auth, abandon_on_cancel=True)
    authenticator = Authenticator(settings.auth, file_keys)
    encryption = await open_encryption(settings.listener)
    starting = Starting()

    def epoch() -> str:
        return parts.log.epoch  # assigned below, before the lease is acquired

    pages = endpoints.starting_pages(starting.conditions)
    try:
        async with trio.open_nursery() as port:
            port.start_soon(
                admin.serve, await admin.open_listeners(settings.admin, worker), pages, settings.admin.token
            )
            port.start_soon(starting.run)
            if settings.database.migrate:
                with starting.waiting_for("the database (database.url) to be migrated"):
                    await trio.to_thread.run_sync(migrate.migrate, settings, abandon_on_cancel=True)
            async with (
                open_back_ends(settings, starting, epoch) as back_ends,
                opened_store(settings, starting=starting) as store,
            ):
                fitting = evolve(settings, listener=within_files(settings.listener))
                parts = make_parts(fitting, back_ends, store, authenticator, encryption, worker=worker)
                start = _Start(status=task_status, starting=starting, pages=pages)
                await _serve(settings, parts, renewal, trio.Event() if stopping is None else stopping, start)
            port.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _removal_error(group, settings.database.schema) or single_error(group) from None


def _removal_error(group: BaseExceptionGroup[Any], schema: str) -> StartError | None:
    """Return the error to report if a table of ours is missing: while a server runs, only a removal causes that."""

    def is_missing(error: BaseException) -> bool:
        if not isinstance(error, DatabaseRefused):
            return False
        text = str(error)
        return (error.sqlstate == _UNDEFINED_TABLE and schema in text) or f"no such table: {schema}_" in text

    if group.subgroup(is_missing) is None:
        return None
    remedy = "run airy-trio migrate --config FILE, and start the server again"
    return StartError([f"the tables of {schema} were removed while this server ran (migrate --remove); {remedy}"])


@frozen(kw_only=True)
class _Start:
    """What ``_serve`` notifies when the server has started."""

    status: trio.TaskStatus[Address]
    starting: Starting
    pages: admin.Pages


async def _serve(
    settings: Settings, parts: Parts, renewal: "Renewal | None", stopping: trio.Event, start: _Start
) -> None:
    # The start. The recorder is awaited until it has recorded a batch, or knows that another server records. So a start
    # that cannot succeed (a wrong mapping, a foreign log) fails before any client is accepted, and if a start needs a
    # new epoch, it has begun by then. Everything that serves a client is started before the accept loop.
    #
    # The shutdown goes the other way. Readiness fails first, then intake is cancelled as a whole: no connection is
    # accepted, and no event is recorded, followed or fanned out. Only clients that are behind still get what they lack.
    # The listening socket is closed next, because the kernel would go on completing connections that nothing accepts.
    # The clients are disconnected, spread over the drain time. Their sessions release the durable subscriptions, and
    # the flush waits until the store has what they acknowledged. Therefore the task that writes it is in `connections`,
    # which is cancelled last, together with the sessions that have not closed in time.
    #
    # After a failure in intake the same happens without the drain time: the clients get a reason before the error ends
    # the server, and connect elsewhere. A cancellation from outside is not an `ExceptionGroup`: it ends everything at
    # once.
    log, recorder, sessions, readiness = parts.log, parts.recorder, parts.sessions, parts.readiness
    await wait_until_available(log.open, settings.database, "log.url", start.starting)
    with contextlib.ExitStack() as sockets:
        broken: ExceptionGroup[Exception] | None = None
        async with trio.open_nursery() as connections:
            connections.start_soon(sessions.durables.run)
            try:
                async with trio.open_nursery() as intake:
                    intake.start_soon(recorder.ahead.run)
                    recording = partial(intake.start, recorder.run)
                    await wait_until_available(recording, settings.database, "database.url", start.starting)
                    intake.start_soon(log.follow)
                    intake.start_soon(log.watch_lag)
                    intake.start_soon(parts.retention.run)
                    intake.start_soon(readiness.run)
                    start.pages.pages, start.pages.other = endpoints.pages(parts), admin.not_found
                    start.starting.finish()
                    listening = None
                    if parts.serves:
                        intake.start_soon(sessions.fan_out, connections)
                        intake.start_soon(sessions.wheel.run)
                        intake.start_soon(sessions.follow_keys)
                        intake.start_soon(sessions.leave_unread_store, settings.listener.drain_s)
                        listening = sockets.enter_context(await open_listening_socket(settings.listener))
                        intake.start_soon(accept, listening, sessions, connections, parts.encryption)
                        if renewal is not None:
                            intake.start_soon(renewal.run, settings, sessions, parts.encryption)
                    start.status.started(_started(settings, parts, listening))
                    await stopping.wait()
                    readiness.stop()  # first, so that load balancers know before clients are disconnected
                    intake.cancel_scope.cancel()
            except ExceptionGroup as group:
                broken = group
            readiness.stop()
            sockets.close()  # new connections are refused at once, and go to another server
            if broken is not None:  # a server that cannot read changes must not look like one without changes
                await _disown_replaced_log(recorder, broken)
                await sessions.disconnect_all(0, INTERNAL)
                await sessions.durables.flush(FLUSH_TIMEOUT_S)
                raise broken
            await sessions.disconnect_all(settings.listener.drain_s)
            await sessions.durables.flush(FLUSH_TIMEOUT_S)
            connections.cancel_scope.cancel()
    logger.info("stopped", **recorder.counts)


async def _disown_replaced_log(recorder: Recorder, broken: ExceptionGroup[Exception]) -> None:
    """If the event log was replaced under this server, record that for the next start."""
    if broken.subgroup(StoreReplaced) is not None:
        try:
            await recorder.consumption.disown()
        except DatabaseError as error:
            logger.warning("the replaced event log could not be noted for the next start", reason=str(error))


def _started(settings: Settings, parts: Parts, listening: socket.socket | None) -> Address:
    """Report that the server listens, or that it only records; return the address, or that of its workers."""
    options = settings.listener
    host, port = (options.host, options.port) if listening is None else listening.getsockname()[:2]
    address = Address(host=host, port=port, path=options.path, tls=parts.encryption is not None)
    parts.endpoint.address = address
    if listening is None:
        parts.readiness.record_only()
    else:
        parts.readiness.listen()
        logger.info("listening", url=address.url, host=host, port=port, path=address.path, version=__version__)
        for warning in settings.exposures():
            logger.warning(warning)
    return address


TLS_FIXED: Final = "listener.tls_certificate: TLS can be turned on and off only by a restart"


class Renewal:
    """Reads the settings again on request, and applies new credentials and a new certificate to a running server.

    It is all or nothing: a file with a fault is reported in one line of the log, and the old settings stay in effect.
    All other settings take effect at the next start; the log names the sections that have changed.

    ``reread`` blocks, and raises ``AiryTrioError``. Any other exception of it is reported in the same way, and does not
    end the server.
    """

    def __init__(self, reread: Callable[[], Settings]) -> None:
        self._reread = reread
        self._requested = trio.Event()

    def request(self) -> None:
        """Have the settings read again soon. It may be called before ``run``; requests that come together are one."""
        self._requested.set()

    async def run(self, running: Settings, sessions: Sessions, encryption: Encryption | None) -> None:
        """Apply the requests to the server that was started with ``running``, until cancelled."""
        while True:
            await self._requested.wait()
            # Before the settings are read, so that a request that arrives meanwhile causes another reading.
            self._requested = trio.Event()
            try:
                await self._renew(running, sessions, encryption)
            except Exception as error:  # noqa: BLE001 - a failed renewal must not end the server
                faults = error.faults if isinstance(error, FaultsError) else (_unexpected(error),)
                logger.error("settings not renewed", faults=faults)  # noqa: TRY400 - a traceback may show a secret

    async def _renew(self, running: Settings, sessions: Sessions, encryption: Encryption | None) -> None:
        logger.info("reading settings")  # a mounted file system may hang: then this is the last line about them
        found, new, file_keys = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        if (new is None) != (encryption is None):
            raise StartError([TLS_FIXED])
        # The other sections stay as they were at the start, so the new credentials must fit those too.
        renewed = evolve(running, auth=found.auth)
        faults = [fault for fault in contradictions(renewed) if fault not in contradictions(running)]
        if faults:
            raise SettingsError([f"{fault}; other sections than auth change only at a restart" for fault in faults])
        # This is the last step that can fail, and it changes nothing if it does.
        sessions.renew(found.auth, file_keys)
        if encryption is not None and new is not None:
            encryption.context = new.context
            _log_certificate(new)
        known = frozenset(running.exposures())
        for warning in renewed.exposures():
            if warning not in known:
                logger.warning(warning)
        logger.info("settings renewed", only_after_a_restart=list(not_renewed(running, found)))

    def _read(self) -> tuple[Settings, Certificate | None, tuple[Key, ...]]:
        """Read the settings, and the certificate and the keys that they name. Blocks."""
        found = self._reread()
        return found, load_certificate(found.listener), load_file_keys(found.auth)


async def open_encryption(options: ListenerOptions) -> Encryption | None:
    """Load and log the certificate. None: connections are not encrypted. Raises ``StartError``."""
    found = await trio.to_thread.run_sync(load_certificate, options, abandon_on_cancel=True)
    if found is None:
        return None
    _log_certificate(found)
    return Encryption(found.context)


def load_certificate(options: ListenerOptions) -> Certificate | None:
    """Read the certificate if the settings name one. Blocks. Raises ``StartError``."""
    return tls.load(options.tls_certificate, options.tls_key) if options.tls_certificate else None


def _log_certificate(found: Certificate) -> None:
    now = datetime.now(UTC)
    logger.info("certificate", names=found.names, days_left=found.days_left(now))
    for warning in found.warnings(now):
        logger.warning(warning)


def _unexpected(error: Exception) -> str:
    """Name an unexpected error and its place. Its message is left out, because it may show a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"unexpected {type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def not_renewed(running: Settings, found: Settings) -> Iterator[str]:
    """Yield the sections in which a setting has changed that needs a restart."""
    listener = evolve(
        found.listener, tls_certificate=running.listener.tls_certificate, tls_key=running.listener.tls_key
    )
    found = evolve(found, listener=listener, auth=running.auth)
    return (each.name for each in fields(Settings) if getattr(found, each.name) != getattr(running, each.name))


GC_THRESHOLDS: Final = (5_000, 200, 100)
"""With Python's own thresholds the collector traverses all connections while clients connect: 1754 connections per
second instead of 2497.

5,000 new objects, of a few dozen connections, are still in the processor's cache when they are traversed, which takes a
millisecond or two. The objects of hundreds of connections took twenty milliseconds at once, in which no event is sent.
Older objects are traversed after a million new ones.
"""
SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread of the recorder waits for the interpreter each time it returns from the database, while clients
keep the interpreter busy. With Python's own 5 ms, many hostile clients double the p99 from commit to client."""
_OPEN_MAX: Final = 10_240
"""What macOS grants at least if its hard limit is "unlimited", which it does not grant."""


def prepare_process() -> None:
    """Raise the soft limit of open files, and set the collector's thresholds and the switch interval.

    Only ``run`` does this. ``serve``, inside another program, leaves the process unchanged.
    """
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (hard, max(soft, _OPEN_MAX)):
        if files == soft:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            break


def freeze_heap() -> None:
    """Exclude all objects of the start from garbage collection."""
    # They live as long as the process, so a full collection would only traverse them again.
    gc.collect()
    gc.freeze()
