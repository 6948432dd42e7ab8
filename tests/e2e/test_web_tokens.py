"""Web tokens through the whole server: a key file that is rotated, and claims that limit the events."""

import json
from pathlib import Path

import trio

from airy_trio import app
from airy_trio.testing.client import Closed, StompClient, connect
from tests.application import Application
from tests.auth.signing import Issuer, issuer, jwk, jwks

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
