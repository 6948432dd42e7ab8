"""What the claims grant, and that SUBSCRIBE gives no more."""

from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve
from trio.testing import MockClock

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
from airy_trio.websocket.auth import Authenticator, AuthOptions, User
from airy_trio.websocket.auth.grants import ALL, NOTHING, Grant, grant_in
from airy_trio.websocket.subscriptions import ReplayOptions
from tests.websocket.auth.signing import SECRET, connect_with, issuer
from tests.websocket.serving import event, serving

AUTH = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
MESSAGES, CH1, C1 = OfType("message.updated"), OfChannel("ch1"), OfConversation("c1")
AB = frozenset({"a", "b"})
RENAMED = evolve(AUTH, jwt_channels_claim="https://id.example/channels", jwt_destinations_claim="topics")
REQUIRED = evolve(AUTH, jwt_require_grants=True)


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
async def test_a_token_without_a_grant_reads_nothing_if_grants_are_required(
    destination: str, autojump_clock: MockClock
) -> None:
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
@pytest.mark.parametrize("value", [None, "/events", 7, {}, [7], ["a", None], [["a"]], True])
async def test_a_claim_that_is_no_list_of_texts_refuses_the_token(
    name: str, value: object, autojump_clock: MockClock
) -> None:
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
def test_what_is_left_of_a_destination(grant: Grant, destination: Destination, left: Destination | None) -> None:
    assert grant.of(destination) == left


def test_what_is_left_over_can_be_named_by_nobody() -> None:
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


@pytest.mark.parametrize("replay", ["live", "all", "recent", "resumed"])
@pytest.mark.parametrize("destination", ["/events", "/events/message.updated", "/events/conversation/c1"])
async def test_a_client_gets_what_its_channels_have_and_nothing_else(
    destination: str, replay: str, autojump_clock: MockClock
) -> None:
    """Deletes, and what has no channel, too; each over the one way by which it could come."""
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
        assert server.sessions.statistics()["deliveries"] == len(wanted)
