"""The recipients of an event: the verdict on each connected client."""

from collections.abc import Mapping
from typing import Any

import pytest
from trio.testing import MockClock

from airy_trio.admin.endpoints import recipients
from airy_trio.auth.users import AuthOptions
from tests.auth.signing import SECRET, issuer
from tests.sessions.serving import Plugged, Server, event, serving

AUTH = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])


async def client(
    server: Server, *destinations: str, ack: str = "auto", claims: Mapping[str, list[str]] | None = None
) -> Plugged:
    all_claims: dict[str, Any] = {"sub": "agent", **(claims or {})}
    plugged = await server.plug_connected(headers=[("passcode", issuer("HS256").token(**all_claims))])
    for number, destination in enumerate(destinations):
        headers = [("ack", ack), ("prefetch-count", "1")] if ack != "auto" else []
        await plugged.client.subscribe(destination, subscription=str(number), headers=headers)
    return plugged


def verdicts(server: Server, offset: int, number: int, channel: str | None = "ch1") -> dict[str, object]:
    received = dict(recipients(server.sessions.clients, server.log.head.at(offset), event(number, channel=channel)))
    assert received.pop("position") == str(server.log.head.at(offset))
    sessions = received.pop("sessions")
    assert isinstance(sessions, list)
    assert len(sessions) == received["clients"]
    return {name: count for name, count in received.items() if count}


@pytest.mark.parametrize(
    "destinations, claims, verdict",
    [
        (["/events"], {}, "passed"),
        (["/events/channel/ch9", "/events/conversation/c1"], {}, "passed"),
        (["/events/channel/ch9", "/events/tag.updated"], {}, "filtered"),
        ([], {}, "no_subscription"),
        (["/events"], {"airy_channels": ["ch1", "ch2"]}, "passed"),
        (["/events"], {"airy_channels": ["ch2"]}, "not_granted"),
        (["/events"], {"airy_channels": ["ch2", "ch3"]}, "not_granted"),
        (["/events/tag.updated"], {"airy_destinations": ["/events/tag.updated"]}, "not_granted"),
        (["/events/tag.updated"], {"airy_destinations": ["/events"]}, "filtered"),
    ],
)
async def test_each_client_has_one_verdict(
    destinations: list[str], claims: dict[str, list[str]], verdict: str, autojump_clock: MockClock
) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        plugged = await client(server, *destinations, claims=claims)
        await server.append(1, 1)
        if verdict == "passed":
            await plugged.client.receive()
        assert verdicts(server, 1, 1) == {"clients": 1, verdict: 1}


async def test_a_client_before_the_event_is_waiting(autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        plugged = await client(server, "/events", ack="client-individual")
        await server.append(1, 2)
        await plugged.client.receive()  # not acknowledged, so that the second one does not arrive
        assert verdicts(server, 1, 1) == {"clients": 1, "passed": 1}
        assert verdicts(server, 2, 2) == {"clients": 1, "waiting": 1}


async def test_events_without_a_channel_need_an_unrestricted_grant(autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        await client(server, "/events", claims={"airy_channels": ["ch1"]})
        await server.log.append(server.log.head, [event(1, channel=None)], "point")
        assert verdicts(server, 1, 1, channel=None) == {"clients": 1, "not_granted": 1}
