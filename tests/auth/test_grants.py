"""The grants in the claims of a token; SUBSCRIBE delivers nothing beyond them."""

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from airy_trio.auth.authenticator import Authenticator
from airy_trio.auth.users import ALL, NOTHING, AuthOptions, Grant, User, grant_in
from airy_trio.delivery.client import ReplayOptions
from airy_trio.delivery.disconnects import GONE
from airy_trio.events.destinations import (
    EVERYTHING,
    Destination,
    OfChannel,
    OfConversation,
    OfType,
    UnknownDestinationError,
    Within,
    parse,
)
from airy_trio.log.memory import MemoryStore
from airy_trio.log.options import LogOptions
from airy_trio.log.store import Position, StoredEvent, StoreUnavailable
from tests.auth.signing import SECRET, connect_with, issuer
from tests.sessions.serving import event, open_log, serving

AUTH = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
MESSAGES, CH1, C1 = OfType("message.updated"), OfChannel("ch1"), OfConversation("c1")
AB = frozenset({"a", "b"})
RENAMED = evolve(AUTH, jwt_channels_claim="https://id.example/channels", jwt_destinations_claim="topics")
REQUIRED = evolve(AUTH, jwt_require_grants=True)
NEWEST = {
    "granted": event(2, channel="ch1"),
    "foreign": event(2, channel="ch2"),
    "deleted": event(2, channel="ch2", kind="message.deleted"),
    "metadata": event(2, channel="ch2", kind="metadata.updated"),
    "no channel": event(2, channel=None),
    "none": event(2, channel="ch2", conversation="c2"),
}
"""The newest events of conversation c1, by case. The first event of c1, if any, is a different one."""
OUT_OF_TAIL = [event(1, channel="ch2"), event(2, conversation="c3"), event(3, conversation="c3")]
"""After these events, a tail of one event no longer has the event of conversation c1."""


class Store(MemoryStore):
    """Counts queries for newest events, and is unavailable on demand."""

    calls = 0
    away = False

    async def newest(self, until: Position, destination: Destination) -> StoredEvent | None:
        self.calls += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().newest(until, destination)


def passcode(claims: Mapping[str, object]) -> list[tuple[str, str]]:
    return [("passcode", issuer("HS256").token(**dict[str, Any](claims)))]


@pytest.mark.parametrize(
    "claims, grant",
    [
        ({}, ALL),
        ({"airy_destinations": []}, Grant(frozenset(), None)),
        ({"airy_destinations": ["/events/channel/ch1"]}, Grant(frozenset({CH1}), None)),
        ({"airy_destinations": ["/topic/x", "/events/", "", "/events/channel/"]}, Grant(frozenset(), None)),
        ({"airy_channels": []}, Grant(None, frozenset())),
        ({"airy_channels": ["a", "b", "a"]}, Grant(None, AB)),
        ({"airy_destinations": ["/events"], "airy_channels": ["a"]}, Grant(frozenset({EVERYTHING}), frozenset({"a"}))),
    ],
)
def test_the_claims(claims: dict[str, object], grant: Grant) -> None:
    assert grant_in({"sub": "agent", **claims}, AUTH) == grant


def test_the_claims_under_other_names() -> None:
    assert grant_in({"https://id.example/channels": ["a", "b"]}, RENAMED) == Grant(None, AB)
    assert grant_in({"topics": ["/events/channel/ch1"]}, RENAMED) == Grant(frozenset({CH1}), None)
    assert grant_in({"airy_channels": ["a"], "airy_destinations": []}, RENAMED) == ALL
    assert grant_in({"https://id": {"example/channels": ["a"]}}, RENAMED) == ALL


@pytest.mark.parametrize(
    "claims, grant",
    [
        ({}, NOTHING),
        ({"airy_channels": ["a", "b"]}, Grant(None, AB)),
        ({"airy_destinations": ["/events"]}, Grant(frozenset({EVERYTHING}), None)),
    ],
)
def test_the_claims_if_grants_are_required(claims: dict[str, object], grant: Grant) -> None:
    assert grant_in(claims, REQUIRED) == grant


@pytest.mark.parametrize(
    "destination", ["/events", "/events/tag.updated", "/events/channel/ch1", "/events/conversation/c"]
)
async def test_token_without_a_required_grant_reads_nothing(destination: str, autojump_clock: MockClock) -> None:
    async with serving(auth=REQUIRED, listen=False) as server:
        plugged = await server.plug_connected(headers=passcode({}))
        assert (await plugged.client.subscribe(destination)).get("message") == "403-destination"
        granted = await server.plug_connected(headers=passcode({"airy_destinations": [destination]}))
        assert (await granted.client.subscribe(destination)).command == "RECEIPT"


@pytest.mark.parametrize(
    "claims, options, accepted",
    [
        ({}, REQUIRED, False),
        ({"airy_channels": ["a"]}, REQUIRED, True),
        ({"airy_destinations": []}, REQUIRED, True),
        ({}, evolve(AUTH, jwt_channels_claim="channels"), False),
        ({"airy_channels": ["a"]}, evolve(AUTH, jwt_channels_claim="channels"), False),
        ({"airy_channels": ["a"]}, evolve(AUTH, jwt_destinations_claim="topics"), False),
        ({}, evolve(AUTH, cookie="airy"), True),
    ],
)
async def test_renewed_settings_end_sessions_with_another_grant(
    claims: dict[str, Any], options: AuthOptions, *, accepted: bool, autojump_clock: MockClock
) -> None:
    authenticator = Authenticator(AUTH)
    token = issuer("HS256").token(**claims)
    user = await authenticator.authenticate(connect_with(token))
    assert isinstance(user, User)
    authenticator.renew(options)
    assert authenticator.accepts(user) is accepted
    again = await authenticator.authenticate(connect_with(token))
    assert isinstance(again, User)
    assert authenticator.accepts(again) is not (options is REQUIRED and again.grant == ALL)


@pytest.mark.parametrize("name", ["airy_destinations", "airy_channels"])
@pytest.mark.parametrize("value", [None, "/events", 7, {}, [7], ["a", None], [["a"]], True, ["a", "\ud800"]])
async def test_malformed_claim_refuses_the_token(name: str, value: object, autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade()
        answer = await plugged.client.connect(headers=passcode({name: value}))
        assert answer.get("message") == "401-unauthorized"


@pytest.mark.parametrize(
    "grant, destination, left",
    [
        (ALL, CH1, CH1),
        (Grant(frozenset(), None), EVERYTHING, None),
        (Grant(frozenset({CH1}), None), CH1, CH1),
        (Grant(frozenset({CH1}), None), OfChannel("ch2"), None),
        (Grant(frozenset({CH1}), None), EVERYTHING, None),
        (Grant(frozenset({MESSAGES}), None), EVERYTHING, None),
        (Grant(frozenset({EVERYTHING}), None), C1, C1),
        (Grant(None, frozenset()), EVERYTHING, None),
        (Grant(None, AB), CH1, None),
        (Grant(None, AB), OfChannel("a"), OfChannel("a")),
        (Grant(None, AB), EVERYTHING, Within(EVERYTHING, AB)),
        (Grant(None, AB), MESSAGES, Within(MESSAGES, AB)),
        (Grant(None, AB), C1, Within(C1, AB)),
        (Grant(None, frozenset({"a"})), EVERYTHING, OfChannel("a")),
        (Grant(None, frozenset({"a"})), C1, Within(C1, frozenset({"a"}))),
        (Grant(frozenset({CH1}), AB), CH1, None),
        (Grant(frozenset({C1}), AB), C1, Within(C1, AB)),
    ],
)
def test_granted_part_of_a_destination(grant: Grant, destination: Destination, left: Destination | None) -> None:
    assert grant.of(destination) == left


def test_client_cannot_name_the_granted_part() -> None:
    for text in ("/events/within/a", "/events/channels/a,b"):
        with pytest.raises(UnknownDestinationError):
            parse(text)


@pytest.mark.parametrize(
    "claims, destination, token",
    [
        ({"airy_destinations": ["/events/channel/ch1"]}, "/events", "403-destination"),
        ({"airy_destinations": ["/events/channel/ch1"]}, "/events/channel/ch2", "403-destination"),
        ({"airy_destinations": []}, "/events", "403-destination"),
        ({"airy_channels": ["ch1"]}, "/events/channel/ch2", "403-destination"),
        ({"airy_channels": []}, "/events/tag.updated", "403-destination"),
        ({"airy_channels": []}, "/nowhere", "404-unknown-destination"),
    ],
)
async def test_a_destination_that_is_not_granted_ends_the_session(
    claims: dict[str, object], destination: str, token: str, autojump_clock: MockClock
) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        await server.append(1, 3)
        plugged = await server.plug_connected(headers=passcode(claims))
        error = await plugged.client.subscribe(destination, headers=[("replay", "all")])
        assert (error.command, error.get("message"), error.get("receipt-id")) == ("ERROR", token, "r1")
        assert (await plugged.ending.wait()).token == token
        await server.ended()


@pytest.mark.parametrize(
    "claims, destination, reason",
    [
        (
            {"airy_destinations": ["/events/channel/ch1"]},
            "/events/channel/ch2",
            "the claim of auth.jwt_destinations_claim does not list this destination",
        ),
        (
            {"airy_channels": ["ch1"]},
            "/events/channel/ch2",
            "the claim of auth.jwt_channels_claim lists no channel of this destination",
        ),
        (
            {"airy_channels": ["ch1"]},
            "/events/conversation/c2",
            "the claim of auth.jwt_channels_claim does not list the channel of this conversation's newest event",
        ),
        ({}, "/events", "the token has neither claim of grants, and auth.jwt_require_grants is set"),
        (
            {"airy_channels": [], "airy_destinations": []},
            "/events",
            "the claim of auth.jwt_destinations_claim does not list this destination",
        ),
    ],
    ids=["destinations", "channels", "conversation", "required", "both empty"],
)
async def test_log_names_the_claim_that_refuses_a_destination(
    claims: dict[str, object], destination: str, reason: str, autojump_clock: MockClock
) -> None:
    answer = b"The credentials of this client do not grant this destination."
    async with serving(auth=REQUIRED, listen=False) as server:
        await server.log.append(server.log.head, [event(1, channel="ch2", conversation="c2")], "point")
        plugged = await server.plug_connected(headers=passcode(claims))
        with capture_logs() as logs:
            assert (await plugged.client.subscribe(destination)).body == answer
            await plugged.ending.wait()
        assert [(line["error"], line["reason"]) for line in logs] == [("403-destination", reason)]
        assert "ch1" not in str(logs)


@pytest.mark.parametrize("replay", ["live", "all", "recent", "resumed"])
@pytest.mark.parametrize("destination", ["/events", "/events/message.updated", "/events/conversation/c1"])
async def test_client_receives_only_its_channels(destination: str, replay: str, autojump_clock: MockClock) -> None:
    """Also deletions and events without a channel, each only over the one destination that could deliver it."""
    channels = ["ch1", "ch2", None, "ch3", "ch1", "ch4", "ch3", "ch1"]
    kinds = ["message.updated", "message.deleted", "metadata.updated", "channel.updated"]
    made = [event(number, channel=channel) for number, channel in enumerate(channels)]
    made += [event(number, channel="ch1", kind=kind) for number, kind in enumerate(kinds, 20)]
    made += [event(number, channel="ch2", kind=kind) for number, kind in enumerate(kinds, 30)]
    made.append(event(40, channel=None, conversation=None, kind="tag.updated"))
    made.append(event(41, channel="ch1"))
    types = {"message.updated"} if destination == "/events/message.updated" else set(kinds)
    wanted = [place for place, one in enumerate(made, 1) if one.channel_id in {"ch1", "ch3"} and one.type in types]
    async with serving(auth=AUTH, listen=False, replay=ReplayOptions(events_max=100)) as server:
        log = server.log
        first = log.head
        client = (await server.plug_connected(headers=passcode({"airy_channels": ["ch3", "ch1", "ch9"]}))).client
        if replay != "live":
            await log.append(first, made, "point")
        headers = {"live": [("replay", "none")], "all": [("replay", "all")], "resumed": [("last-event-id", str(first))]}
        await client.subscribe(destination, headers=headers.get(replay, []))
        if replay == "live":
            for place, one in enumerate(made):
                await log.append(first.at(place), [one], "point")
        got = [(await client.receive()).get("message-id") for _ in wanted]
        assert got == [str(first.at(place)) for place in wanted]
        await client.disconnect()
        assert server.sessions.services.batches.deliveries == len(wanted)


@pytest.mark.parametrize("place", ["tail", "store"])
@pytest.mark.parametrize("newest", NEWEST)
async def test_a_conversation_of_another_channel_is_refused(newest: str, place: str, autojump_clock: MockClock) -> None:
    """Only if the channel of the conversation is known from its newest event, wherever this event is stored."""
    made = [event(1, channel="ch1" if newest != "none" else "ch2", conversation="c1" if newest != "none" else "c2")]
    made += [NEWEST[newest], event(3, conversation="c3"), event(4, conversation="c3")]
    tail_events = 100 if place == "tail" else 1
    log = await open_log(Store(), LogOptions(store="memory", tail_events=tail_events))
    async with serving(log, auth=AUTH, listen=False) as server:
        await log.append(log.head, made, "point")
        plugged = await server.plug_connected(headers=passcode({"airy_channels": ["ch1", "ch3"]}))
        answer = await plugged.client.subscribe("/events/conversation/c1", headers=[("replay", "none")])
        if newest in {"foreign", "deleted", "metadata"}:
            assert answer.get("message") == "403-destination"
            assert (await plugged.ending.wait()).token == "403-destination"
            await server.ended()
            return
        assert answer.command == "RECEIPT"
        await log.append(log.head, [event(5, channel="ch2"), event(6, channel="ch3")], "point")
        assert (await plugged.client.receive()).body == event(6).body
        await plugged.client.disconnect()
        assert server.sessions.services.batches.deliveries == 1


async def test_a_refused_conversation_reads_like_a_refused_channel(autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        await server.append(1, 1)
        frames = []
        for destination in ("/events/channel/ch1", "/events/conversation/c1"):
            plugged = await server.plug_connected(headers=passcode({"airy_channels": ["ch2"]}))
            answer = await plugged.client.subscribe(destination)
            frames.append((answer.command, answer.headers, answer.body, await plugged.ending.wait()))
        assert frames[0] == frames[1]


@pytest.mark.parametrize(
    "claims, answer",
    [
        ({}, "RECEIPT"),
        ({"airy_destinations": ["/events/conversation/c1"]}, "RECEIPT"),
        ({"airy_destinations": ["/events/conversation/c2"], "airy_channels": ["ch2"]}, "ERROR"),
        ({"airy_channels": []}, "ERROR"),
    ],
)
async def test_channel_is_looked_up_only_for_limited_users(
    claims: dict[str, object], answer: str, autojump_clock: MockClock
) -> None:
    """The look-up is made only for a user with limited channels who may subscribe to that conversation."""
    store = Store()
    log = await open_log(store, LogOptions(store="memory", tail_events=1))
    async with serving(log, auth=AUTH, listen=False) as server:
        await log.append(log.head, OUT_OF_TAIL, "point")
        plugged = await server.plug_connected(headers=passcode(claims))
        reply = await plugged.client.subscribe("/events/conversation/c1", headers=[("replay", "none")])
        assert (reply.command, store.calls) == (answer, 0)


@pytest.mark.parametrize("id_, answer", [("unknown", "RECEIPT"), ("c1", "ERROR")])
async def test_the_channel_of_a_conversation_is_looked_up_once(
    id_: str, answer: str, autojump_clock: MockClock
) -> None:
    """In a store without an index, each look-up would scan the whole log."""
    store = Store()
    log = await open_log(store, LogOptions(store="memory", tail_events=1))
    async with serving(log, auth=AUTH, listen=False) as server:
        await log.append(log.head, OUT_OF_TAIL, "point")
        for number in range(3):
            plugged = await server.plug_connected(headers=passcode({"airy_channels": ["ch1", f"ch{number + 3}"]}))
            reply = await plugged.client.subscribe(f"/events/conversation/{id_}", headers=[("replay", "none")])
            assert reply.command == answer
        assert store.calls == 1


async def test_a_refusal_waits_for_an_unavailable_store(autojump_clock: MockClock) -> None:
    store = Store()
    store.away = True
    log = await open_log(store, LogOptions(store="memory", tail_events=1))
    async with serving(log, auth=AUTH, listen=False) as server, trio.open_nursery() as nursery:
        await log.append(log.head, OUT_OF_TAIL, "point")
        plugged = await server.plug_connected(headers=passcode({"airy_channels": ["ch1"]}))

        async def come_back() -> None:
            await trio.sleep(5)
            store.away = False

        nursery.start_soon(come_back)
        answer = await plugged.client.subscribe("/events/conversation/c1", headers=[("replay", "none")])
        assert (answer.get("message"), trio.current_time() >= 5) == ("403-destination", True)


async def test_client_may_leave_during_the_channel_look_up(autojump_clock: MockClock) -> None:
    store = Store()
    store.away = True
    log = await open_log(store, LogOptions(store="memory", tail_events=1))
    async with serving(log, auth=AUTH, listen=False) as server:
        await log.append(log.head, OUT_OF_TAIL, "point")
        plugged = await server.plug_connected(headers=passcode({"airy_channels": ["ch1"]}))
        await plugged.client.send_text("SUBSCRIBE\nid:0\ndestination:/events/conversation/c1\n\n\0")
        await wait_all_tasks_blocked()
        assert store.calls
        await plugged.client.stream.aclose()
        assert await plugged.ending.wait() is GONE
        await server.ended()
