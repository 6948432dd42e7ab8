"""Web tokens through the whole server: a key file that is rotated, and claims that limit the events."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from airy_trio import app
from airy_trio.testing.client import Closed, StompClient, connect
from tests.application import Application
from tests.auth.signing import SECRET, Issuer, issuer, jwk, jwks

FIRST, SECOND = issuer("RS256", 0, "first"), issuer("RS256", 1, "second")


def published(*issuers: Issuer) -> bytes:
    return jwks(*(jwk(one.key, kid=one.kid) for one in issuers if not isinstance(one.key, str)))


async def connect_until_accepted(address: app.Address, signer: Issuer) -> StompClient:
    """Connect until accepted, in real time, because the key file is read at most once a second."""
    while True:
        try:
            return await connect(address.host, address.port, headers=[("passcode", signer.token())])
        except Closed:
            await trio.sleep(0.1)


async def test_rotated_key_decides_and_claims_limit_the_channels(any_application: Application, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(published(FIRST))
    settings = any_application.migrate(
        f'[events]\ndeletes = true\n[listener]\nport = 0\n[auth]\nmode = "jwt"\njwt_key = "{keys}"'
    )
    token = FIRST.token(airy_channels=["ch1", "ch3"])
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            address = await nursery.start(app.serve, settings)
            async with await connect(address.host, address.port, headers=[("passcode", token)]) as first:
                await first.subscribe("/events", headers=[("replay", "none")])
                for id_, channel in (("m1", "ch2"), ("m2", "ch1"), ("m3", "ch3")):
                    any_application.message(id=id_, channel_id=channel)
                any_application.tag()
                for id_ in ("m1", "m2"):
                    any_application.execute("delete from messages where id = :id", id=id_)
                any_application.message(id="m4", channel_id="ch1")
                seen: list[tuple[str, str]] = []
                while ("message.updated", "m4") not in seen:
                    body = json.loads((await first.receive()).body)
                    seen.append((body["type"], body["payload"]["message"]["id"]))
                assert {id_ for _, id_ in seen} <= {"m2", "m3", "m4"}  # m2 may be deleted before it was read
                assert ("message.updated", "m3") in seen
                assert seen[-2:] == [("message.deleted", "m2"), ("message.updated", "m4")]

                keys.write_bytes(published(SECOND))
                async with await connect_until_accepted(address, SECOND) as second:
                    assert (await first.receive()).get("message") == "401-unauthorized"
                    assert (await second.subscribe("/events")).command == "RECEIPT"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("tail_events", [20_000, 1], ids=["in the tail", "in the store"])
async def test_conversation_of_another_channel_is_refused(any_application: Application, tail_events: int) -> None:
    """Also after its message is deleted, and after a restart. A conversation without events is accepted."""
    settings = any_application.migrate(
        f"[events]\ndeletes = true\n[log]\ntail_events = {tail_events}\n[listener]\nport = 0\n"
        f'[auth]\nmode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = ["HS256"]\njwt_channels_claim = "inboxes"'
    )

    async def answer(address: app.Address, conversation: str, **claims: list[str]) -> str | None:
        token = issuer("HS256").token(**dict[str, Any](claims))
        async with await connect(address.host, address.port, headers=[("passcode", token)]) as client:
            reply = await client.subscribe(f"/events/conversation/{conversation}", headers=[("replay", "none")])
            return reply.get("message") or reply.get("resume")

    with trio.fail_after(50):
        for started in range(2):
            async with trio.open_nursery() as nursery:
                address = await nursery.start(app.serve, settings)
                if not started:
                    headers = [("passcode", issuer("HS256").token())]
                    async with await connect(address.host, address.port, headers=headers) as everything:
                        await everything.subscribe("/events", headers=[("replay", "none")])
                        any_application.message(id="m1", conversation_id="c1", channel_id="ch1")
                        any_application.message(id="m2", conversation_id="c2", channel_id="ch2")
                        any_application.message(id="m3", conversation_id="c3", channel_id="ch2")
                        any_application.execute("delete from messages where id = 'm3'")
                        any_application.tag()
                        while json.loads((await everything.receive()).body)["type"] != "tag.updated":
                            pass
                assert await answer(address, "c1", inboxes=["ch1"]) == "live"
                assert await answer(address, "c2", inboxes=["ch1"]) == "403-destination"
                assert await answer(address, "c3", inboxes=["ch1"]) == "403-destination"
                assert await answer(address, "c4", inboxes=["ch1"]) == "live"
                assert await answer(address, "c2", inboxes=["ch1", "ch2"]) == "live"
                assert await answer(address, "c2", airy_channels=["ch1"]) == "live"  # this server has no event of it
                nursery.cancel_scope.cancel()
