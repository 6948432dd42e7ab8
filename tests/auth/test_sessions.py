"""Web tokens over complete sessions: their places in requests, and the end of a session with its token."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.auth.authenticator import load_file_keys
from airy_trio.auth.keys import WAIT_S
from airy_trio.auth.users import AuthOptions
from airy_trio.delivery.disconnects import TOKEN_EXPIRED, UNAUTHORIZED
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from tests.auth.signing import SECRET, authenticator_of, issuer, jwk, jwks, key_pair
from tests.hanging_file import make_hang
from tests.sessions.serving import serving

AUTH = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"], cookie="airy")
SIGNER = issuer("HS256")
GOOD, BAD = SIGNER.token(), SIGNER.token()[:-4] + "AAAA"

Headers = Sequence[tuple[str, str]]


@pytest.mark.parametrize(
    "upgrade, connect",
    [
        ([("Authorization", f"Bearer {GOOD}")], []),
        ([("Cookie", f"other=1; airy={GOOD}")], []),
        ([("Authorization", f"Bearer {GOOD}"), ("Cookie", f"airy={BAD}")], []),
        ([("Authorization", "Basic cDpw"), ("Cookie", f"airy={GOOD}")], []),
        ([("Authorization", f"Bearer {BAD}")], [("passcode", GOOD)]),
        ([], [("Authorization", f"Bearer {GOOD}"), ("passcode", BAD)]),
        ([("Cookie", f"airy={GOOD}")], [("Authorization", "Bearer "), ("passcode", "")]),
    ],
)
async def test_first_token_present_is_used(upgrade: Headers, connect: Headers, autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade(headers=upgrade)
        assert (await plugged.client.connect(headers=connect)).command == "CONNECTED"


@pytest.mark.parametrize(
    "upgrade, connect",
    [
        ([], []),
        ([("Authorization", f"Bearer {BAD}")], []),
        ([("Authorization", f"Bearer {BAD}"), ("Cookie", f"airy={GOOD}")], []),
        ([("Cookie", f"airy={BAD}")], []),
        ([("Cookie", f"airy={GOOD}; airy={BAD}")], []),
        ([("Cookie", f"other={GOOD}")], []),
        ([("Authorization", f"Bearer {GOOD}")], [("passcode", BAD)]),
        ([("Cookie", f"airy={GOOD}")], [("Authorization", f"Bearer {BAD}")]),
        ([("Cookie", f"airy={'x' * 5000}")], []),
    ],
)
async def test_wrong_token_of_the_upgrade_refuses_the_client(
    upgrade: Headers, connect: Headers, autojump_clock: MockClock
) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade(headers=upgrade)
        assert (await plugged.client.connect(headers=connect)).get("message") == "401-unauthorized"
        assert await plugged.ending.wait() is UNAUTHORIZED


async def test_the_user_is_the_subject(autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        with capture_logs() as logs:
            plugged = await server.plug_connected(headers=[("passcode", SIGNER.token(sub="grace"))])
            await plugged.client.disconnect()
            await plugged.ending.wait()
    assert [log["user"] for log in logs if log["event"] == "connection closed"] == ["grace"]


async def test_wait_for_keys_outlasts_connect_timeout(tmp_path: Path, autojump_clock: MockClock) -> None:
    past, path = tmp_path / "past.json", tmp_path / "keys.json"
    past.write_bytes(jwks(jwk(key_pair("ES256", 0), kid="first")))
    path.write_bytes(jwks(jwk(key_pair("ES256", 1), kid="second")))
    auth = AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(past))
    authenticator = authenticator_of(auth)
    make_hang(past)
    writing = os.open(past, os.O_RDWR)  # a load of the keys waits until this is closed
    options, token = ListenerOptions(port=0, connect_timeout_s=WAIT_S / 4), issuer("ES256", 1, "second").token()
    async with serving(authenticator=authenticator, options=options, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade()
        await plugged.client.send(Frame("CONNECT", (("accept-version", "1.2"), ("passcode", token))))
        await trio.sleep(WAIT_S / 2)
        renewed = evolve(auth, jwt_key=str(path))
        server.sessions.renew(renewed, load_file_keys(renewed))
        assert (await plugged.client.receive()).command == "CONNECTED"
    os.close(writing)


async def test_expired_token_is_reported(autojump_clock: MockClock) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade()
        error = await plugged.client.connect(headers=[("passcode", SIGNER.token(exp=1))])
        assert error.get("message") == "401-token-expired"
        assert await plugged.ending.wait() is TOKEN_EXPIRED


@pytest.mark.parametrize("lasts_s, heart_beat", [(20, "0,0"), (1000, "0,0"), (20, "0,1000"), (200, "0,1000")])
async def test_a_session_ends_with_its_token_and_the_leeway(
    lasts_s: int, heart_beat: str, autojump_clock: MockClock
) -> None:
    async with serving(auth=AUTH, listen=False) as server:
        expires_at = int(time.time()) + lasts_s
        ends_at = trio.current_time() + expires_at - time.time() + AUTH.jwt_leeway_s
        headers = [("passcode", SIGNER.token(exp=expires_at)), ("heart-beat", heart_beat)]
        plugged = await server.plug_connected(headers=headers)
        assert (await plugged.client.receive()).get("message") == "401-token-expired"
        assert -1 < trio.current_time() - ends_at < 1  # the machine's clock continued; Trio's did not
        assert await plugged.ending.wait() is TOKEN_EXPIRED


async def test_nothing_of_a_token_is_logged(autojump_clock: MockClock) -> None:
    with capture_logs() as logs:
        async with serving(auth=AUTH, listen=False) as server:
            for token in (GOOD, BAD):
                for upgrade, connect in (
                    ([("Authorization", f"Bearer {token}")], []),
                    ([("Cookie", f"airy={token}")], []),
                    ([], [("passcode", token)]),
                ):
                    plugged = server.plug()
                    await plugged.client.upgrade(headers=upgrade)
                    await plugged.client.connect(headers=connect)
    assert GOOD[-12:] not in str(logs)
    assert BAD[-12:] not in str(logs)
    assert SECRET not in str(logs)
