"""A fault at every await of a session: in its own task, in its send task, and before it begins.

The test drives each coroutine itself and throws a fault into it when it resumes from its n-th await.
"""

import itertools
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import h11
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.auth.authenticator import Authenticator
from airy_trio.auth.users import AuthOptions, Refusal, User
from airy_trio.delivery import disconnects
from airy_trio.delivery.client import Client
from airy_trio.events.destinations import parse
from airy_trio.log.store import StoreUnavailable
from airy_trio.stomp.frames import Connect, Frame
from airy_trio.testing.client import Closed, Rejected, StompClient
from tests.event_stream import EventStream
from tests.memory_transport import StreamTransport
from tests.sessions.life import PLACE, live
from tests.sessions.serving import Server, event, open_log, serving

AUTH = AuthOptions(mode="tokens", tokens={"ann": "s3cret", "bob": "t0ken"})
AWAITS_MIN = 20
"""Fewer awaits would mean that the client's life ended early."""
WAIT_OF_A_NURSERY = "_nested_child_finished"
"""These awaits never raise; a fault in them would break Trio itself."""
FAULTS: Sequence[Callable[[], Exception]] = (
    lambda: RuntimeError("bug"),
    lambda: trio.BrokenResourceError("gone"),
    lambda: StoreUnavailable("away"),
    lambda: StopAsyncIteration("bug"),
)
"""One of each kind: unexpected, of the connection, of the store, and one that Python itself uses."""


class Asking(Authenticator):
    """Waits, as for the keys of web tokens."""

    async def authenticate(self, request: Connect, upgrade_token: str | None = None) -> User | Refusal:
        await trio.sleep(0.1)
        return await super().authenticate(request, upgrade_token)


class Awaits:
    """Counts the awaits of some tasks, and throws a fault at one of them."""

    def __init__(self, number: int, fault: Callable[[], Exception]) -> None:
        self.left = number
        self._fault = fault
        self.where = ""

    async def drive(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run a function to its end, or to the fault."""
        await self._driven(cast("Coroutine[Any, Any, object]", function(*arguments)))

    @types.coroutine
    def _driven(self, coroutine: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        value: Any = None
        try:
            while True:
                trap = coroutine.send(value)
                value = yield trap
                self.left -= 1
                place = "" if self.left > 0 or self.where else _place(coroutine)
                if place and WAIT_OF_A_NURSERY not in place:
                    self.where = place
                    trap = coroutine.throw(self._fault())
                    value = yield trap
        except StopIteration:
            return
        finally:
            coroutine.close()


def _place(coroutine: Any) -> str:  # noqa: ANN401 - of any kind
    """Return where a coroutine waits, for the message of a failure."""
    at = []
    while getattr(coroutine, "cr_frame", None) is not None:
        at.append(f"{coroutine.cr_code.co_name}:{coroutine.cr_frame.f_lineno}")
        coroutine = coroutine.cr_await
    return " ".join(at)


class Nursery:
    """Replaces the nursery of all connections for send tasks, and drives these, except the bystander's."""

    awaits: Awaits
    bystander: Client

    def of(self, nursery: trio.Nursery) -> trio.Nursery:
        self._nursery = nursery
        return cast("trio.Nursery", self)

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: object, name: object = None) -> None:
        run = function if self.bystander in arguments else partial(self.awaits.drive, function)
        self._nursery.start_soon(run, *arguments, name=name)


async def behave(client: StompClient) -> None:
    """See ``live``."""
    await live(client, credentials=[("passcode", "s3cret")], durable=[("durable", "d")])


async def guess(client: StompClient) -> None:
    """Connect with wrong credentials."""
    await client.upgrade()
    await client.connect(headers=[("passcode", "wrong")])


async def forge(client: StompClient) -> None:
    """Send a SEND, which is forbidden, and read to the end."""
    await client.upgrade()
    await client.connect(headers=[("passcode", "s3cret")])
    await client.subscribe(PLACE, headers=[("replay", "all")])
    await client.send(Frame("SEND", (("destination", PLACE),)))
    while True:
        await client.receive()


async def follow(client: StompClient) -> None:
    """Read an event stream, then send something after the request and read to the end."""
    with suppress(EOFError, h11.RemoteProtocolError):
        stream = EventStream(client.stream)
        await stream.request(f"{PLACE}?replay=all", headers=[("Authorization", "Bearer s3cret")])
        while (await stream.receive()).type != "message":
            pass
        await trio.sleep(1.5)
        await client.stream.send_all(b"x")
        while True:
            await stream.receive()


async def serve_faultily(
    server: Server, awaits: Awaits, ended: trio.Event, life: Callable[[StompClient], Awaitable[None]]
) -> StompClient:
    """Serve one client, with a fault at one of the awaits, until its life ends."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def serve() -> None:
        await server.sessions.serve(StreamTransport(ours), server.slot())
        ended.set()

    server.connections.start_soon(awaits.drive, serve)
    client = StompClient(theirs)
    with trio.move_on_after(60), suppress(Closed, Rejected, trio.BrokenResourceError, trio.ClosedResourceError):
        await life(client)
    return client


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault()).__name__)
@pytest.mark.parametrize("life", [behave, guess, forge, follow], ids=lambda life: life.__name__)
async def test_fault_at_any_await_ends_at_most_that_session(
    life: Callable[[StompClient], Awaitable[None]], fault: Callable[[], Exception], autojump_clock: MockClock
) -> None:
    log, nursery = await open_log(), Nursery()
    async with serving(log, authenticator=Asking(AUTH), listen=False, for_send_tasks=nursery.of) as server:
        await log.append(log.head, [event(number, channel="ch9") for number in range(1, 21)], "point")
        bystander = (await server.plug_connected(headers=[("passcode", "t0ken"), ("heart-beat", "0,1000")])).client
        await bystander.subscribe(headers=[("replay", "none")])
        [nursery.bystander] = server.clients
        tasks = len(server.connections.child_tasks)
        for number in itertools.count(1):
            awaits, ended = Awaits(number, fault), trio.Event()
            nursery.awaits = awaits
            with capture_logs():
                client = await serve_faultily(server, awaits, ended, life)
                await client.stream.aclose()
                with trio.fail_after(100):
                    while len(server.connections.child_tasks) > tasks:  # noqa: ASYNC110 - a nursery has no event for this
                        await trio.sleep(0.01)
            assert ended.is_set(), awaits.where
            assert len(server.sessions.clients) == 1, awaits.where
            assert server.sessions.wheel.clients == 1, awaits.where
            assert server.sessions.durables.claimed == 0, awaits.where
            view = server.log.tail.attach(parse(PLACE), client)
            assert list(view.readers) == [client], awaits.where
            server.log.tail.detach(view, client)
            await server.append(number, number)
            assert (await bystander.receive()).body.startswith(b'{"n": %d,' % number), awaits.where
            if awaits.left > 0:
                break
        assert number > AWAITS_MIN
        async with bystander:
            await bystander.disconnect()


async def test_a_session_that_cannot_begin_ends_nothing_else(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        bystander = (await server.plug_connected()).client
        await bystander.subscribe()
        slot = server.sessions.admission.arrive("192.0.2.1", loopback=False)
        del slot.address  # the session needs it first
        with capture_logs() as logs:
            plugged = server.plug(slot=slot)
            assert await plugged.ending.wait() is disconnects.INTERNAL
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["session failed"]
        assert await plugged.client.stream.receive_some() == b""
        assert server.sessions.admission.connections == 1  # of the bystander
        await server.append(1, 1)
        assert (await bystander.receive()).command == "MESSAGE"
        await bystander.disconnect()
        await server.ended()
