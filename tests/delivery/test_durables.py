"""Durable subscriptions: the acknowledged position is stored by user and name, and the next SUBSCRIBE resumes there."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.auth.users import AuthOptions
from airy_trio.delivery import disconnects
from airy_trio.delivery.client import ReplayOptions, Subscription
from airy_trio.delivery.durables import (
    CLAIMS_PER_ADDRESS_AND_PERIOD_MAX,
    CLAIMS_PERIOD_S,
    NAME_CHARS_MAX,
    RECLAIM_WITHIN_S,
    SCAN_EVERY_S,
    WRITE_AFTER_S,
)
from airy_trio.events.destinations import EVERYTHING
from airy_trio.events.models import STATE_TYPES
from airy_trio.log.current import Marks
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import Acknowledgement, Claim, Position, StateChange, StoreUnavailable
from airy_trio.retry import MAX_S
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, Headers, StompClient
from tests.log.places import fold
from tests.sessions.serving import Plugged, Server, event, open_log, serving

TOKENS = AuthOptions(mode="tokens", tokens={"ann": "s3cret", "bob": "t0ken"})
WINDOW = ReplayOptions(window_s=3600, events_max=3)
SOON_S = 0.05


class Store(MemoryStore):
    """A store that counts acknowledgements, and that can be unavailable or broken."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.fault: Exception | None = None
        self.refused: str | None = None  # the name with the fault; None: all
        self.delay_s = 0.0
        self.calls: list[Sequence[Acknowledgement]] = []
        self.claims: list[Sequence[Claim]] = []

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Position | None]:
        self._fail(claims)
        self.claims.append(claims)
        await trio.sleep(self.delay_s)
        return await super().claim(claims)

    async def acknowledge(self, acknowledgements: Sequence[Acknowledgement]) -> Sequence[Claim]:
        self._fail([one.claim for one in acknowledgements])
        self.calls.append(acknowledgements)
        return await super().acknowledge(acknowledgements)

    def _fail(self, claims: Sequence[Claim]) -> None:
        if self.fault is not None and (self.refused is None or self.refused in {claim.name for claim in claims}):
            raise self.fault

    async def offset(self, name: str = "inbox", owner: str = "ann") -> int | None:
        position = await self.acknowledged(owner, name)
        return None if position is None else position.offset


@pytest.fixture
async def store() -> AsyncGenerator[Store]:  # noqa: ASYNC124 - runs in Trio, whose clock it uses
    yield Store()  # noqa: PT022 - the same


@asynccontextmanager
async def node(
    store: Store, *, tail_events: int = 20_000, retain_s: float = 86_400, listener: ListenerOptions | None = None
) -> AsyncGenerator[Server]:
    """Run one of several servers over a store."""
    log = await open_log(store, LogOptions(store="memory", tail_events=tail_events, retain_s=retain_s))
    async with serving(log, listener, auth=TOKENS, replay=WINDOW, listen=False) as server:
        yield server


@pytest.fixture
async def server(store: Store) -> AsyncGenerator[Server]:
    async with node(store) as server:
        yield server


async def log_in(server: Server, passcode: str = "s3cret") -> Plugged:
    return await server.plug_connected(headers=[("passcode", passcode)])


async def claim(
    client: StompClient,
    *headers: tuple[str, str],
    name: str = "inbox",
    ack: str = "client-individual",
    destination: str = "/events",
    subscription: str = "0",
) -> Frame:
    all_headers: Headers = [("durable", name), ("ack", ack), *headers]
    return await client.subscribe(destination, subscription=subscription, headers=all_headers)


async def connect_and_claim(
    server: Server, *headers: tuple[str, str], name: str = "inbox", ack: str = "client-individual"
) -> Plugged:
    """Connect a client of user ann, and claim a durable subscription."""
    plugged = await log_in(server)
    assert (await claim(plugged.client, *headers, name=name, ack=ack)).command == "RECEIPT"
    return plugged


async def take(client: StompClient, count: int) -> list[Frame]:
    frames: list[Frame] = []
    with trio.fail_after(100):
        while len(frames) < count:
            frames.append(await client.receive())
    assert {frame.command for frame in frames} <= {"MESSAGE"}
    return frames


def offsets(frames: Sequence[Frame]) -> list[int]:
    return [int((frame.get("message-id") or "").partition("-")[2]) for frame in frames]


async def leave(plugged: Plugged) -> None:
    """Close the socket, and wait until the server has written the acknowledgements."""
    await plugged.client.stream.aclose()
    await plugged.ending.wait()
    await wait_all_tasks_blocked()


async def error_and_code(plugged: Plugged) -> tuple[str | None, int | None]:
    """Return the token of the ERROR and the close code; events may come before them."""
    while (frame := await plugged.client.receive()).command != "ERROR":
        pass
    with pytest.raises(Closed) as closed:
        await plugged.client.receive()
    await plugged.client.stream.aclose()
    return frame.get("message"), closed.value.code


# Users with durable subscriptions


@pytest.mark.parametrize(
    "headers, token, code",
    [
        ([("durable", "d"), ("ack", "auto")], "400-durable-needs-ack", 1002),
        ([("durable", "d")], "400-durable-needs-ack", 1002),
        ([("durable", ""), ("ack", "client")], "400-bad-durable", 1002),
        ([("durable", "a\tb"), ("ack", "client")], "400-bad-durable", 1002),
        ([("durable", "d" * (NAME_CHARS_MAX + 1)), ("ack", "client")], "400-bad-durable", 1002),
    ],
)
async def test_an_invalid_durable_subscribe_is_refused(
    server: Server, headers: Headers, token: str, code: int, autojump_clock: MockClock
) -> None:
    plugged = await log_in(server)
    await plugged.client.send(Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("receipt", "r"), *headers)))
    assert await error_and_code(plugged) == (token, code)
    await server.ended()


@pytest.mark.parametrize("ack", ["client", "auto"])
async def test_a_client_without_a_user_has_no_durable_subscription(ack: str, autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        plugged = await server.plug_connected(headers=[("login", "ann")])
        error = await plugged.client.subscribe(headers=[("durable", "d"), ("ack", ack)])
        assert (error.get("message"), error.get("receipt-id")) == ("403-durable-needs-auth", "r1")
        assert (await plugged.ending.wait()).close_code == 4403


async def test_a_name_may_have_the_maximum_length(server: Server, store: Store, autojump_clock: MockClock) -> None:
    name = "ü" * NAME_CHARS_MAX
    await connect_and_claim(server, name=name)
    assert await store.offset(name) == 0


# The position at which delivery continues


async def test_names_of_a_user_at_the_limit_and_one_beyond(store: Store, autojump_clock: MockClock) -> None:
    async with node(store, listener=ListenerOptions(durables_per_user_max=2)) as server:
        for name in ("a", "b", "a"):
            await leave(await connect_and_claim(server, name=name))
        other = await log_in(server, "t0ken")
        assert (await claim(other.client, name="c")).command == "RECEIPT"
        plugged = await log_in(server)
        all_headers = (("id", "0"), ("destination", "/events"), ("durable", "c"), ("ack", "client"), ("receipt", "r"))
        with capture_logs() as logs:
            await plugged.client.send(Frame("SUBSCRIBE", all_headers))
            assert await error_and_code(plugged) == ("429-too-many-subscriptions", 1013)
            await plugged.ending.wait()
        assert [line["reason"] for line in logs] == ["listener.durables_per_user_max is reached"]
        assert await store.acknowledged("ann", "c") is None


async def test_the_first_claim_starts_like_a_plain_subscribe(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 5)
    client = (await log_in(server)).client
    receipt = await claim(client)
    assert (receipt.get("resume"), receipt.get("position")) == ("live", f"{server.log.epoch}-2")
    frames = await take(client, 3)
    assert offsets(frames) == [3, 4, 5]
    assert frames[0].get("resume") is None


async def test_the_next_claim_resumes_after_acknowledged_events(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    plugged = await connect_and_claim(server, ("replay", "all"))
    first, _ = await take(plugged.client, 2)
    await plugged.client.acknowledge(first)
    await leave(plugged)
    await server.append(3, 4)
    client = (await log_in(server)).client
    receipt = await claim(client, ("replay", "none"))
    assert (receipt.get("resume"), receipt.get("position")) == ("resumed", f"{server.log.epoch}-1")
    frames = await take(client, 3)
    assert offsets(frames) == [2, 3, 4]
    assert [frame.get("resume") for frame in frames] == ["resumed", None, None]


async def test_nothing_is_lost_before_the_first_ack(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    await leave(await connect_and_claim(server, ("replay", "none")))
    await server.append(3, 9)
    plugged = await connect_and_claim(server)
    assert offsets(await take(plugged.client, 7)) == [3, 4, 5, 6, 7, 8, 9]


async def test_unacknowledged_events_of_the_recent_window_return(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 9)
    plugged = await connect_and_claim(server)
    assert offsets(await take(plugged.client, 3)) == [7, 8, 9]
    await leave(plugged)
    assert offsets(await take((await connect_and_claim(server)).client, 3)) == [7, 8, 9]


@pytest.mark.parametrize(
    "ack, acknowledged, kept",
    [
        ("client-individual", [1, 2], 2),
        ("client-individual", [2, 4, 5], 0),
        ("client-individual", [1, 3], 1),
        ("client-individual", [3, 2, 1], 3),
        ("client", [3], 3),
        ("client", [2, 5], 5),
    ],
)
async def test_the_position_is_before_the_first_unacknowledged_event(
    store: Store, ack: str, acknowledged: list[int], kept: int, autojump_clock: MockClock
) -> None:
    async with node(store) as server:
        await server.append(1, 5)
        for command in ("ACK", "NACK"):
            plugged = await connect_and_claim(server, ("replay", "all"), ack=ack, name=command)
            frames = await take(plugged.client, 5)
            for offset in acknowledged:
                await plugged.client.acknowledge(frames[offset - 1], command=command)
        await trio.sleep(WRITE_AFTER_S + SOON_S)
        assert [await store.offset("ACK"), await store.offset("NACK")] == [kept, kept]


async def test_acks_in_a_transaction_count_at_its_commit(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 3)
    plugged = await connect_and_claim(server, ("replay", "all"))
    client = plugged.client
    frames = await take(client, 3)
    await client.send(Frame("BEGIN", (("transaction", "t"),)))
    for frame in frames:
        await client.acknowledge(frame, headers=[("transaction", "t")])
    await trio.sleep(2 * SCAN_EVERY_S)
    assert await store.offset() == 0
    await client.send(Frame("COMMIT", (("transaction", "t"), ("receipt", "committed"))))
    assert (await client.receive()).get("receipt-id") == "committed"
    assert await store.offset() == 3


async def test_an_open_transaction_acknowledges_nothing_at_the_end(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 2)
    plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
    frames = await take(plugged.client, 2)
    await plugged.client.send(Frame("BEGIN", (("transaction", "t"),)))
    await plugged.client.acknowledge(frames[1], headers=[("transaction", "t")])
    await plugged.client.disconnect()
    assert await store.offset() == 0


@pytest.mark.parametrize("trimmed, verdict", [(4, "resumed"), (5, "reset-expired")])
async def test_trimmed_events_reset_a_durable_subscription(
    store: Store, trimmed: int, verdict: str, autojump_clock: MockClock
) -> None:
    async with node(store, tail_events=3) as server:
        await server.append(1, 4)
        plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
        await plugged.client.acknowledge((await take(plugged.client, 4))[-1])
        await leave(plugged)
        await server.append(5, 20)
        await store.trim(age_s=10_000, keep=20 - trimmed, limit=100, unused_s=10**6)
        client = (await log_in(server)).client
        assert (await claim(client)).get("resume") == verdict
        frames = await take(client, 3)
        assert offsets(frames) == ([5, 6, 7] if verdict == "resumed" else [18, 19, 20])
        assert frames[0].get("resume") == verdict


async def test_an_ended_epoch_is_reported_once(server: Server, store: Store, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
    await plugged.client.acknowledge((await take(plugged.client, 2))[-1])
    await leave(plugged)
    await server.log.begin_epoch(server.log.head, "point")
    await server.append(1, 3)
    plugged = await log_in(server)
    assert (await claim(plugged.client)).get("resume") == "reset-epoch"
    await plugged.client.acknowledge((await take(plugged.client, 3))[0])
    await leave(plugged)
    assert await store.acknowledged("ann", "inbox") == server.log.head.at(1)
    client = (await log_in(server)).client
    assert (await claim(client)).get("resume") == "resumed"
    assert offsets(await take(client, 2)) == [2, 3]


async def test_an_ended_epoch_is_reported_after_a_full_trim(store: Store, autojump_clock: MockClock) -> None:
    async with node(store, tail_events=3) as server:
        await server.append(1, 9)
        plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
        await plugged.client.acknowledge((await take(plugged.client, 9))[3])
        await leave(plugged)
        await store.trim(age_s=0, keep=0, limit=100, unused_s=10**6)
        assert (await claim((await log_in(server)).client)).get("resume") == "reset-expired"
        await server.log.begin_epoch(server.log.head, "point")
        assert (await claim((await log_in(server)).client)).get("resume") == "reset-epoch"


async def test_a_quiet_destination_follows_the_log(store: Store, autojump_clock: MockClock) -> None:
    async with node(store, tail_events=3) as server:
        plugged = await log_in(server)
        await claim(plugged.client, destination="/events/conversation/quiet")
        await server.append(1, 20)
        await trio.sleep(SCAN_EVERY_S + SOON_S)
        assert await store.offset() == 20
        await store.trim(age_s=10_000, keep=0, limit=100, unused_s=10**6)
        await server.append(21, 30)
        await leave(plugged)
        client = (await log_in(server)).client
        assert (await claim(client, destination="/events/conversation/quiet")).get("resume") == "resumed"
        await server.log.append(server.log.head, [event(31, conversation="quiet")], "point")
        assert offsets(await take(client, 1)) == [31]


async def test_last_event_id_overrides_the_acknowledged_position(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 6)
    plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
    await plugged.client.acknowledge((await take(plugged.client, 6))[2])
    await leave(plugged)
    epoch = server.log.epoch
    plugged = await connect_and_claim(server, ("last-event-id", f"{epoch}-1"))
    frames = await take(plugged.client, 5)
    assert offsets(frames) == [2, 3, 4, 5, 6]
    await plugged.client.acknowledge(frames[0])
    await leave(plugged)
    assert await store.offset() == 3, "it never goes back"
    plugged = await connect_and_claim(server, ("last-event-id", f"{epoch}-5"))
    assert await store.offset() == 5, "and it is acknowledged up to what the client names"


@pytest.mark.parametrize("acknowledged", [0, 1])
async def test_interrupted_state_is_not_taken_for_an_earlier_position(
    server: Server, store: Store, autojump_clock: MockClock, acknowledged: int
) -> None:
    """One node still has in memory what the store has trimmed; another one, which has not, sends the current state."""
    state = StateChange(generation="first0", marks=str(Marks(kept=STATE_TYPES)))
    await server.log.append(server.log.head, [event(number) for number in range(1, 11)], "point", state=state)
    await fold(server.log.store)
    plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
    await plugged.client.acknowledge((await take(plugged.client, 10))[4])
    await leave(plugged)
    await store.trim(age_s=1000, keep=2, limit=100, unused_s=1000)
    current = ("replay", "current")
    async with node(store) as other:
        client = (await log_in(other)).client
        assert (await claim(client, current, ("prefetch-count", "2"))).get("resume") == "reset-expired"
        frames = await take(client, 2)
        assert offsets(frames) == [1, 2]
        for frame in frames[:acknowledged]:
            await client.acknowledge(frame)
            await trio.sleep(2 * WRITE_AFTER_S)
        await client.stream.aclose()
    plugged = await connect_and_claim(server, current)
    assert offsets(await take(plugged.client, 10 - acknowledged)) == list(range(acknowledged + 1, 11))


@pytest.mark.parametrize("replay", ["recent", "current"])
async def test_recent_window_at_the_begin_of_the_log_can_be_resumed(
    store: Store, autojump_clock: MockClock, replay: str
) -> None:
    """It is a position like any other, also if its node crashes before an event of it is acknowledged."""
    async with node(store) as server:
        await server.log.append(server.log.head, [event(1, obj="a"), event(2, obj="a")], "point")
        await connect_and_claim(server, ("replay", replay))
        assert await store.acknowledged("ann", "inbox") == server.log.head.at(0)


async def test_each_user_and_name_has_a_position_of_its_own(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 3)
    ann, bob = await connect_and_claim(server, ("replay", "all"), ack="client"), await log_in(server, "t0ken")
    await claim(bob.client, ("replay", "all"), ack="client")
    await ann.client.acknowledge((await take(ann.client, 3))[-1])
    await claim(ann.client, ("replay", "all"), ack="client", name="other", subscription="1")
    await ann.client.acknowledge((await take(ann.client, 3))[0])
    await take(bob.client, 3)
    for plugged in (ann, bob):
        await leave(plugged)
    assert [await store.offset(), await store.offset("other"), await store.offset(owner="bob")] == [3, 1, 0]


# One holder


async def test_a_second_claim_takes_over_at_once(server: Server, autojump_clock: MockClock) -> None:
    await server.append(1, 4)
    first = await connect_and_claim(server, ("replay", "all"))
    frames = await take(first.client, 4)
    for frame in frames[:3]:
        await first.client.acknowledge(frame)
    await wait_all_tasks_blocked()
    begun_at = trio.current_time()
    second = await connect_and_claim(server)  # before the acknowledgements of the first one would have been written
    assert offsets(await take(second.client, 1)) == [4]
    assert await error_and_code(first) == ("409-durable-taken", 4409)
    assert await first.ending.wait() is disconnects.TAKEN_OVER
    assert trio.current_time() - begun_at < SOON_S
    await server.append(5, 5)
    assert offsets(await take(second.client, 1)) == [5]
    assert server.sessions.client_faults["409-durable-taken"] == 1


async def test_claiming_a_name_twice_in_one_connection_disconnects_it(
    server: Server, autojump_clock: MockClock
) -> None:
    plugged = await connect_and_claim(server)
    await plugged.client.send(
        Frame("SUBSCRIBE", (("id", "1"), ("destination", "/events"), ("durable", "inbox"), ("ack", "client")))
    )
    assert await error_and_code(plugged) == ("409-durable-taken", 4409)
    await server.ended()
    await connect_and_claim(server)


async def test_one_of_many_simultaneous_claims_remains(server: Server, store: Store, autojump_clock: MockClock) -> None:
    await server.append(1, 2)
    plugged = [await log_in(server) for _ in range(10)]
    subscribe = Frame(
        "SUBSCRIBE",
        (("id", "0"), ("destination", "/events"), ("durable", "inbox"), ("ack", "client"), ("replay", "all")),
    )
    for one in plugged:
        await one.client.send(subscribe)
    await wait_all_tasks_blocked()
    left = [one for one in plugged if one.ending.reason is None and server.sessions.clients]
    frames = [await error_and_code(one) for one in plugged[:-1]]
    assert frames == [("409-durable-taken", 4409)] * 9
    assert plugged[-1] in left
    await plugged[-1].client.acknowledge((await take(plugged[-1].client, 2))[-1])
    await trio.sleep(WRITE_AFTER_S + SOON_S)
    assert await store.offset() == 2


async def test_a_claim_replaced_before_its_start_moves_nothing(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await leave(await connect_and_claim(server))
    await server.append(1, 3)
    clients = [(await log_in(server)).client for _ in range(2)]
    for client in clients:
        await client.subscribe()
    former, newer = (one for one in server.log.tail.attach(EVERYTHING, None).readers if isinstance(one, Subscription))
    durables = server.sessions.durables
    first = durables.claim(former, "ann", "inbox")
    await wait_all_tasks_blocked()
    durables.claim(newer, "ann", "inbox")
    durables.start(first)
    await wait_all_tasks_blocked()
    assert await store.offset() == 0
    assert (durables.claimed, durables.unwritten) == (1, 0)


async def test_a_holder_on_another_node_is_disconnected_when_it_acknowledges(
    store: Store, autojump_clock: MockClock
) -> None:
    async with node(store) as here, node(store) as there:
        await here.append(1, 3)
        first = await connect_and_claim(here, ("replay", "all"))
        frames = await take(first.client, 3)
        await first.client.acknowledge(frames[0])
        await trio.sleep(WRITE_AFTER_S + SOON_S)
        await trio.sleep(RECLAIM_WITHIN_S)
        second = await connect_and_claim(there)
        assert offsets(await take(second.client, 2)) == [2, 3]
        await first.client.acknowledge(frames[1])
        await first.client.acknowledge(frames[2])
        begun_at = trio.current_time()
        assert await error_and_code(first) == ("409-durable-taken", 4409)
        assert trio.current_time() - begun_at <= WRITE_AFTER_S + SOON_S
        await first.ending.wait()
        await wait_all_tasks_blocked()
        assert await store.offset() == 1, "nothing is stored for a former holder"
        await here.append(4, 4)
        assert offsets(await take(second.client, 1)) == [4]


async def test_a_silent_holder_on_another_node_is_disconnected_soon(store: Store, autojump_clock: MockClock) -> None:
    async with node(store) as here, node(store) as there:
        first = await connect_and_claim(here)
        await trio.sleep(RECLAIM_WITHIN_S)
        begun_at = trio.current_time()
        await connect_and_claim(there)
        assert await error_and_code(first) == ("409-durable-taken", 4409)
        assert trio.current_time() - begun_at <= SCAN_EVERY_S + SOON_S


async def test_a_delayed_claim_of_a_lost_client_disconnects_no_client(store: Store, autojump_clock: MockClock) -> None:
    async with node(store) as here, node(store) as there:
        lost = await log_in(here)
        store.delay_s = 2 * SCAN_EVERY_S
        headers = (("id", "0"), ("destination", "/events"), ("durable", "inbox"), ("ack", "client"))
        await lost.client.send(Frame("SUBSCRIBE", headers))
        await trio.sleep(SOON_S)
        await leave(lost)
        store.delay_s = 0
        second = await connect_and_claim(there, ("replay", "all"), ack="client")
        await trio.sleep(2 * SCAN_EVERY_S)
        assert [claims[0].token for claims in store.claims][1] != store.claims[0][0].token
        await here.append(1, 1)
        (frame,) = await take(second.client, 1)
        await second.client.acknowledge(frame, headers=[("receipt", "written")])
        assert (await second.client.receive()).get("receipt-id") == "written"
        assert await store.offset() == 1
        await trio.sleep(RECLAIM_WITHIN_S)
        assert not second.ending.event.is_set()


@pytest.mark.parametrize("pause_s", [0, SCAN_EVERY_S, RECLAIM_WITHIN_S - SCAN_EVERY_S])
async def test_last_of_two_live_clients_keeps_the_claim(
    store: Store, pause_s: float, autojump_clock: MockClock
) -> None:
    async with node(store) as here, node(store) as there:
        first = await connect_and_claim(here)
        await trio.sleep(pause_s)
        begun_at = trio.current_time()
        second = await connect_and_claim(there)
        assert await error_and_code(first) == ("409-durable-taken", 4409)
        assert trio.current_time() - begun_at <= 3 * SCAN_EVERY_S + SOON_S
        await trio.sleep(2 * RECLAIM_WITHIN_S)
        assert not second.ending.event.is_set()


OF_A_LOST_CONNECTION = Claim("ann", "inbox", "delayed")


@pytest.mark.parametrize("command", ["ACK", "UNSUBSCRIBE", "DISCONNECT"])
async def test_receipt_waits_for_a_second_claim(
    server: Server, store: Store, command: str, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    client = (await connect_and_claim(server, ("replay", "all"))).client
    (frame,) = await take(client, 1)
    await store.claim([OF_A_LOST_CONNECTION])
    store.delay_s = 3.0
    await client.acknowledge(frame)
    await trio.sleep(WRITE_AFTER_S + 1)
    assert len(store.claims) == 3, "the second claim is on its way"
    id_ = (frame.get("ack") or "") if command == "ACK" else "0"
    await client.send(Frame(command, (("id", id_), ("receipt", "r"))))
    assert (await client.receive()).get("receipt-id") == "r"
    assert await store.offset() == 1


async def test_ack_of_a_client_leaving_during_second_claim_is_stored(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    plugged = await connect_and_claim(server, ("replay", "all"))
    (frame,) = await take(plugged.client, 1)
    await store.claim([OF_A_LOST_CONNECTION])
    store.delay_s = 3.0
    await plugged.client.acknowledge(frame)
    await trio.sleep(WRITE_AFTER_S + 1)
    await leave(plugged)
    await trio.sleep(10)
    assert await store.offset() == 1


@pytest.mark.slow
async def test_second_claims_do_not_wait_behind_first_claims(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 2)
    (other,) = await from_addresses(server, "192.0.2.2")
    await claim(other, ("replay", "all"), name="mine")
    first, _ = await take(other, 2)
    young, *crowd = await from_addresses(server, *["192.0.2.1"] * 191)
    await claim(young, ("replay", "all"))
    frame, _ = await take(young, 2)
    await store.claim([OF_A_LOST_CONNECTION])
    await claim_each(crowd)
    await young.acknowledge(frame)
    await trio.sleep(CLAIMS_PERIOD_S + 0.01)
    begun_at = trio.current_time()
    await other.acknowledge(first, headers=[("receipt", "r")])
    assert (await other.receive()).get("receipt-id") == "r"
    assert trio.current_time() - begun_at < SOON_S


async def test_claim_is_young_after_an_outage(server: Server, store: Store, autojump_clock: MockClock) -> None:
    plugged = await log_in(server)
    store.fault = StoreUnavailable("away")
    headers = (("id", "0"), ("destination", "/events"), ("durable", "inbox"), ("ack", "client"), ("receipt", "r"))
    await plugged.client.send(Frame("SUBSCRIBE", headers))
    await trio.sleep(RECLAIM_WITHIN_S + 10)
    store.fault = None
    assert (await plugged.client.receive()).command == "RECEIPT"
    await store.claim([OF_A_LOST_CONNECTION])
    await trio.sleep(2 * SCAN_EVERY_S)
    assert not plugged.ending.event.is_set()


# The times at which acknowledgements are written


async def test_acknowledgements_are_written_together_and_soon(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 200)
    plugged = [await connect_and_claim(server, ("replay", "all"), name=f"n{number}") for number in range(5)]
    frames = [await take(one.client, 200) for one in plugged]
    store.calls.clear()
    begun_at = trio.current_time()
    for one, taken in zip(plugged, frames, strict=True):
        for frame in taken:
            await one.client.acknowledge(frame)
    while await store.offset("n4") != 200:  # noqa: ASYNC110 - the store has no event for this
        await trio.sleep(SOON_S)
    assert trio.current_time() - begun_at <= WRITE_AFTER_S + 2 * SOON_S
    assert [len(call) for call in store.calls] == [5]


async def test_many_returning_clients_are_claimed_together(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    clients = await from_addresses(server, *(f"192.0.2.{number}" for number in range(30)))
    store.delay_s = 1.0
    await claim_each(clients)
    for client in clients:
        assert (await client.receive()).command == "RECEIPT"
    assert len(store.claims) == 2
    assert sum(len(claim) for claim in store.claims) == 30


async def from_addresses(server: Server, *addresses: str) -> list[StompClient]:
    """Connect a client of user ann from each of these addresses."""
    clients: list[StompClient] = []
    for address in addresses:
        slot = server.sessions.admission.arrive(address, loopback=False)
        client = server.plug(slot=slot).client
        await client.upgrade()
        await client.connect(headers=[("passcode", "s3cret")])
        clients.append(client)
    return clients


async def claim_each(clients: Sequence[StompClient]) -> None:
    """Claim a durable subscription for each client: n0, n1 and so on."""
    headers = (("id", "0"), ("destination", "/events"), ("ack", "client"), ("receipt", "r"))
    for number, client in enumerate(clients):
        await client.send(Frame("SUBSCRIBE", (*headers, ("durable", f"n{number}"))))


async def test_claims_of_one_address_are_paced(server: Server, store: Store, autojump_clock: MockClock) -> None:
    clients = await from_addresses(server, *["192.0.2.1"] * 25, "192.0.2.2")
    begun_at = trio.current_time()
    await claim_each(clients)
    assert (await clients[-1].receive()).command == "RECEIPT"
    assert trio.current_time() == begun_at, "another address does not wait"
    assert sum(map(len, store.claims)) == CLAIMS_PER_ADDRESS_AND_PERIOD_MAX + 1
    for client in clients[:-1]:
        assert (await client.receive()).command == "RECEIPT"
    assert trio.current_time() - begun_at == pytest.approx(2 * CLAIMS_PERIOD_S)
    assert sum(map(len, store.claims)) == len(clients)


async def test_claims_of_addresses_take_turns(
    server: Server, store: Store, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is slower than the pace, and there are more addresses than a step can serve."""
    monkeypatch.setattr("airy_trio.delivery.durables.STEP_MAX", 1)
    store.delay_s = 2 * CLAIMS_PERIOD_S
    clients = await from_addresses(server, *["192.0.2.1"] * 5, "192.0.2.2")
    await claim_each(clients)
    assert (await clients[-1].receive()).command == "RECEIPT"
    claimed = [claim.name for claims in store.claims for claim in claims]
    assert claimed[:3] == ["n0", "n1", "n5"]


@pytest.mark.parametrize("command", ["ACK", "UNSUBSCRIBE", "DISCONNECT"])
async def test_a_receipt_follows_the_write(
    server: Server, store: Store, command: str, autojump_clock: MockClock
) -> None:
    await server.append(1, 2)
    client = (await connect_and_claim(server, ("replay", "all"))).client
    first, second = await take(client, 2)
    await client.acknowledge(first)
    begun_at = trio.current_time()
    headers = (("id", (second.get("ack") or "") if command == "ACK" else "0"), ("receipt", "r"))
    await client.send(Frame(command, headers))
    assert (await client.receive()).get("receipt-id") == "r"
    assert trio.current_time() - begun_at < SOON_S
    assert await store.offset() == (2 if command == "ACK" else 1)


async def test_acknowledgements_wait_for_an_unavailable_store(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 2)
    client = (await connect_and_claim(server, ("replay", "all"), ("prefetch-count", "1"))).client
    with capture_logs() as logs:
        store.fault = StoreUnavailable("away")
        await client.acknowledge(*(await take(client, 1)))
        await client.acknowledge(*(await take(client, 1)))
        await trio.sleep(3 * SCAN_EVERY_S)
        await server.append(3, 3)
        await client.send(Frame("ACK", (("id", (await client.receive()).get("ack") or ""), ("receipt", "written"))))
        await trio.sleep(SCAN_EVERY_S)
        assert server.sessions.durables.unwritten == 1
        store.fault = None
        assert (await client.receive()).get("receipt-id") == "written"
    assert await store.offset() == 3
    warned = [log["event"] for log in logs if "acknowledgements" in log["event"]]
    assert warned == [
        "event store unavailable; acknowledgements deferred",
        "event store available; acknowledgements are written again",
    ]


async def test_acknowledgements_are_written_soon_after_an_outage(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    client = (await connect_and_claim(server, ("replay", "all"))).client
    store.fault = StoreUnavailable("away")
    await client.acknowledge(*(await take(client, 1)))
    await trio.sleep(SCAN_EVERY_S / 4)
    store.fault = None
    await trio.sleep(MAX_S + SOON_S)
    assert await store.offset() == 1


async def test_without_durable_subscriptions_no_request_waits_for_the_store(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    holder, other = await connect_and_claim(server, ("replay", "all")), await log_in(server, "t0ken")
    await other.client.subscribe(headers=[("ack", "client"), ("replay", "all")])
    store.fault = StoreUnavailable("away")
    await holder.client.acknowledge(*(await take(holder.client, 1)))
    await trio.sleep(SCAN_EVERY_S)
    message = await other.client.receive()
    begun_at = trio.current_time()
    await other.client.send(Frame("ACK", (("id", message.get("ack") or ""), ("receipt", "r"))))
    assert (await other.client.receive()).get("receipt-id") == "r"
    assert trio.current_time() == begun_at


async def test_acks_of_a_client_lost_during_an_outage_are_stored(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 3)
    plugged = await connect_and_claim(server, ("replay", "all"), ack="client")
    frames = await take(plugged.client, 3)
    store.fault = StoreUnavailable("away")
    await plugged.client.acknowledge(frames[1])
    await leave(plugged)
    again = await log_in(server)
    with trio.move_on_after(SCAN_EVERY_S):
        await claim(again.client)  # waits for the store, and is served when it is available again
    store.fault = None
    assert (await again.client.receive()).get("position") == f"{server.log.epoch}-2"
    assert offsets(await take(again.client, 1)) == [3]


@pytest.mark.parametrize("flushed", [True, False])
async def test_flush_writes_or_reports_the_loss(
    server: Server, store: Store, flushed: bool, autojump_clock: MockClock
) -> None:
    await server.append(1, 2)
    plugged = await connect_and_claim(server, ("replay", "all"))
    await plugged.client.acknowledge((await take(plugged.client, 2))[0])
    await wait_all_tasks_blocked()
    if not flushed:
        store.fault = StoreUnavailable("away")
    begun_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(error_and_code, plugged)
        await server.sessions.disconnect_all(0)
    with capture_logs() as logs:
        await server.sessions.durables.flush(1.0)
    assert trio.current_time() - begun_at < (SOON_S if flushed else 1.0 + SOON_S)
    lost = [log["log_level"] for log in logs if "lost" in log["event"]]
    assert (await store.offset(), lost) == ((1, []) if flushed else (0, ["warning"]))


@pytest.mark.slow
async def test_a_rejected_acknowledgement_ends_its_session(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    holder, other = await connect_and_claim(server, ("replay", "all")), await log_in(server, "t0ken")
    await other.client.subscribe(headers=[("ack", "client"), ("replay", "all")])
    store.fault = ValueError("broken")
    await holder.client.acknowledge(*(await take(holder.client, 1)))
    assert await error_and_code(holder) == ("500-internal", 1011)
    newcomer = await log_in(server)
    await newcomer.client.send(
        Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("durable", "d"), ("ack", "client")))
    )
    assert await error_and_code(newcomer) == ("500-internal", 1011)
    store.fault = None
    assert offsets(await take(other.client, 1)) == [1]
    assert offsets(await take((await connect_and_claim(server)).client, 1)) == [1]


async def test_a_rejection_for_one_ends_no_other_session(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    await server.append(1, 1)
    held = {name: await connect_and_claim(server, ("replay", "all"), name=name) for name in "abcde"}
    frames = {name: await take(plugged.client, 1) for name, plugged in held.items()}
    newcomers = {name: await log_in(server, "t0ken") for name in "abcde"}
    store.fault, store.refused = ValueError("broken"), "c"
    with capture_logs() as logs:
        for name, plugged in held.items():
            await plugged.client.acknowledge(*frames[name])
        assert await error_and_code(held["c"]) == ("500-internal", 1011)
        await trio.sleep(1)
        assert [await store.offset(name) for name in "abcde"] == [1, 1, 0, 1, 1]
        store.delay_s = 1.0  # the first claim is under way when the others arrive
        for name, plugged in newcomers.items():
            all_headers = (
                ("id", "0"),
                ("destination", "/events"),
                ("durable", name),
                ("ack", "client"),
                ("receipt", name),
            )
            await plugged.client.send(Frame("SUBSCRIBE", all_headers))
        assert await error_and_code(newcomers.pop("c")) == ("500-internal", 1011)
    assert {log["event"] for log in logs if log["log_level"] == "error"} == {"session failed"}
    for name, plugged in newcomers.items():
        assert (await plugged.client.receive()).get("receipt-id") == name


async def test_a_claimed_subscription_counts_as_used(server: Server, store: Store, autojump_clock: MockClock) -> None:
    plugged = await connect_and_claim(server)
    await trio.sleep(10 * SCAN_EVERY_S)
    await store.trim(age_s=10**6, keep=100, limit=100, unused_s=SCAN_EVERY_S + SOON_S)
    assert await store.offset() == 0
    await leave(plugged)
    await trio.sleep(10 * SCAN_EVERY_S)
    calls = len(store.calls)
    await store.trim(age_s=10**6, keep=100, limit=100, unused_s=SCAN_EVERY_S + SOON_S)
    assert await store.offset() is None
    assert len(store.calls) == calls


async def test_claims_count_as_used_with_a_short_retention(store: Store, autojump_clock: MockClock) -> None:
    retain_s = 2.0
    async with node(store, retain_s=retain_s) as server:
        plugged = await connect_and_claim(server)
        for _ in range(17):
            await trio.sleep(retain_s / 2)
            await store.trim(age_s=retain_s, keep=100, limit=100, unused_s=retain_s)
        await leave(plugged)
        assert await store.offset() == 0
        await server.ended()


async def test_leaving_during_a_wait_for_the_store_is_noticed(
    server: Server, store: Store, autojump_clock: MockClock
) -> None:
    store.fault = StoreUnavailable("away")
    plugged = await log_in(server)
    await plugged.client.send(
        Frame("SUBSCRIBE", (("id", "0"), ("destination", "/events"), ("durable", "inbox"), ("ack", "client")))
    )
    await trio.sleep(SCAN_EVERY_S)
    begun_at = trio.current_time()
    await plugged.client.stream.aclose()
    assert await plugged.ending.wait() is disconnects.GONE
    assert plugged.ending.at - begun_at < SOON_S
    assert server.sessions.durables.claimed == 0
    await server.ended()
