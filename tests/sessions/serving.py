"""Run a listener on loopback, or sessions over streams in memory, over a log in memory; and make events for it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing
from attrs import define, field

from airy_trio.auth.authenticator import Authenticator
from airy_trio.auth.users import AuthOptions
from airy_trio.delivery.client import Client, ReplayOptions
from airy_trio.delivery.disconnects import DisconnectReason
from airy_trio.events.destinations import EVERYTHING
from airy_trio.log.event_log import EventLog
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import EventStore, NewEvent
from airy_trio.sessions.conversation import Services
from airy_trio.sessions.listener import ListenerOptions, accept, open_listening_socket
from airy_trio.sessions.session import Sessions
from airy_trio.testing.client import Headers, StompClient, connect
from airy_trio.websocket.admission import ConnectionSlot
from airy_trio.websocket.transport import Transport
from tests.memory_transport import StreamTransport

HOST = "127.0.0.1"


def event(
    number: int,
    *,
    conversation: str | None = "c1",
    channel: str | None = "ch1",
    kind: str = "message.updated",
    obj: str | None = None,
    size: int = 0,
) -> NewEvent:
    return NewEvent(
        type=kind,
        object=obj or f"message:{number}",
        conversation_id=conversation,
        channel_id=channel,
        body=b'{"n": %d, "pad": "%s"}' % (number, b"x" * size),
    )


def events(first: int, last: int, *, size: int = 0) -> Sequence[NewEvent]:
    return [event(number, size=size) for number in range(first, last + 1)]


async def open_log(store: EventStore | None = None, options: LogOptions | None = None) -> EventLog:
    log = EventLog(store or MemoryStore(), options or LogOptions(store="memory"))
    await log.open()
    return log


@define(eq=False)
class Server:
    """Running sessions. ``port`` 0: there is no listener."""

    log: EventLog
    sessions: Sessions
    connections: trio.Nursery
    port: int = 0
    endings: list["Ending"] = field(factory=list)

    @property
    def clients(self) -> list[Client]:
        """The connected clients, the oldest first."""
        return list(self.sessions.clients)

    async def append(self, first: int, last: int, *, size: int = 0) -> None:
        await self.log.append(self.log.head, events(first, last, size=size), "point")

    async def dial(self, headers: Headers = (), subprotocols: Sequence[str] = ()) -> StompClient:
        """Connect a client through the listener."""
        return await connect(HOST, self.port, headers=headers, subprotocols=subprotocols)

    async def dial_raw(self) -> StompClient:
        """Open a socket to the listener, without an upgrade."""
        return StompClient(await trio.open_tcp_stream(HOST, self.port))

    def slot(self) -> ConnectionSlot:
        """Return a slot for a connection from this machine."""
        return self.sessions.admission.arrive(HOST, loopback=True)

    def start(self, transport: Transport, slot: ConnectionSlot | None = None) -> "Ending":
        """Start a session over a transport. Without ``slot`` the connection is one from this machine."""
        ending = Ending()
        self.endings.append(ending)
        self.connections.start_soon(self._serve, transport, ending, slot or self.slot())
        return ending

    def plug(
        self,
        pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] | None = None,
        *,
        slot: ConnectionSlot | None = None,
    ) -> "Plugged":
        """Start a session over streams in memory."""
        ours, theirs = (pair or trio.testing.memory_stream_pair)()
        return Plugged(StompClient(theirs), self.start(StreamTransport(ours), slot))

    async def plug_connected(
        self,
        pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] | None = None,
        *,
        version: str = "1.2",
        headers: Headers = (),
    ) -> "Plugged":
        """Start a session over streams in memory, upgrade and connect."""
        plugged = self.plug(pair)
        await plugged.client.upgrade()
        await plugged.client.connect(accept_version=version, headers=headers)
        return plugged

    async def ended(self) -> None:
        """Wait until no session is left, and check that nothing refers to one."""
        for ending in self.endings:
            await ending.wait()
        with trio.fail_after(10):
            while self.connections.child_tasks:  # noqa: ASYNC110 - a nursery has no event for this
                await trio.lowlevel.checkpoint()
        assert not self.sessions.clients
        assert not self.sessions.wheel.clients
        view = self.log.tail.attach(EVERYTHING, self)
        assert list(view.readers) == [self]
        self.log.tail.detach(view, self)

    async def _serve(self, transport: Transport, ending: "Ending", slot: ConnectionSlot) -> None:
        ending.reason = await self.sessions.serve(transport, slot)
        ending.at = trio.current_time()
        ending.event.set()


class Ending:
    """How and when (in Trio's time) a session ended."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.reason: DisconnectReason | None = None
        self.at = 0.0

    async def wait(self) -> DisconnectReason:
        with trio.fail_after(1000):
            await self.event.wait()
        assert self.reason is not None
        return self.reason


@define
class Plugged:
    client: StompClient
    ending: Ending


@asynccontextmanager
async def serving(
    log: EventLog | None = None,
    options: ListenerOptions | None = None,
    replay: ReplayOptions | None = None,
    auth: AuthOptions | None = None,
    *,
    listen: bool = True,
    authenticator: Authenticator | None = None,
    for_send_tasks: Callable[[trio.Nursery], trio.Nursery] = lambda connections: connections,
) -> AsyncGenerator[Server]:
    """Serve until the block ends, then cancel everything.

    ``authenticator``: used instead of one made from ``auth``. ``for_send_tasks``: returns the nursery of send tasks.
    """
    log = log or await open_log()
    options = options or ListenerOptions(port=0)
    authenticator = authenticator or Authenticator(auth or AuthOptions())
    sessions = Sessions(Services(log, options, replay or ReplayOptions(), authenticator, server="airy-trio/test"))
    async with trio.open_nursery() as connections, trio.open_nursery() as intake:
        intake.start_soon(log.follow)
        intake.start_soon(sessions.fan_out, for_send_tasks(connections))
        intake.start_soon(sessions.wheel.run)
        intake.start_soon(sessions.durables.run)
        intake.start_soon(sessions.follow_keys)
        server = Server(log, sessions, connections)
        if listen:
            listening = await open_listening_socket(options)
            server.port = listening.getsockname()[1]
            intake.start_soon(accept, listening, sessions, connections)
            for _ in range(2):  # it must begin first, because a block that does not wait closes the socket
                await trio.lowlevel.checkpoint()
            with listening:
                yield server
        else:
            yield server
        intake.cancel_scope.cancel()
        connections.cancel_scope.cancel()
