"""Refused CONNECTs are answered with a delay that grows for each address; accepted ones are not delayed."""

import pytest
import trio
from trio.testing import MockClock

from airy_trio.auth.authenticator import ADDRESSES_MAX, DECAY_S, DELAY_MAX_S, REFUSALS_MAX, Delays
from airy_trio.auth.users import AuthOptions
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.stomp.frames import Frame
from tests.auth.signing import SECRET, issuer
from tests.sessions.serving import Server, serving

TOKENS = AuthOptions(mode="tokens", tokens={"agent": "s3cret"})


def test_each_refusal_doubles_the_delay_up_to_a_maximum() -> None:
    delays = Delays()
    assert [delays.refused("a", 0) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2]
    assert delays.refused("b", 0) == 0.1


def test_refusals_expire_one_by_one() -> None:
    delays = Delays()
    for _ in range(20):
        delays.refused("a", 0)
    assert delays.refused("a", DECAY_S * 0.9) == DELAY_MAX_S
    assert delays.refused("a", DECAY_S * 2.9) == 1.6  # two of the six have expired: four make 1.6
    assert delays.refused("a", DECAY_S * (REFUSALS_MAX + 3)) == 0.1


def test_memory_is_bounded_and_drops_the_oldest() -> None:
    delays = Delays()
    for number in range(ADDRESSES_MAX):
        delays.refused(str(number), 0)
    delays.refused("0", 1)
    delays.refused("one more", 2)
    assert len(delays) == ADDRESSES_MAX
    assert delays.refused("0", 3) == 0.4
    assert delays.refused("1", 4) == 0.1


async def seconds_to_answer(server: Server, token: str) -> tuple[str, float]:
    plugged = server.plug()
    await plugged.client.upgrade()
    begun_at = trio.current_time()
    answer = await plugged.client.connect(headers=[("passcode", token)])
    return answer.get("message") or answer.command, trio.current_time() - begun_at


async def test_only_wrong_credentials_are_delayed(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        for expected in (0.1, 0.2, 0.4, 0.8, 1.6, 2, 2):
            answer, waited_s = await seconds_to_answer(server, "wrong")
            assert (answer, round(waited_s, 3)) == ("401-unauthorized", expected)
            assert await seconds_to_answer(server, "s3cret") == ("CONNECTED", 0)


async def test_an_expired_web_token_waits_too(autojump_clock: MockClock) -> None:
    auth = AuthOptions(mode="jwt", jwt_key=SECRET, jwt_algorithms=["HS256"])
    async with serving(auth=auth, listen=False) as server:
        for expected in (0.1, 0.2):
            answer, waited_s = await seconds_to_answer(server, issuer("HS256").token(exp=1))
            assert (answer, round(waited_s, 3)) == ("401-token-expired", expected)


async def test_delayed_refusal_outlasts_connect_timeout_but_not_shutdown(autojump_clock: MockClock) -> None:
    options = ListenerOptions(port=0, connect_timeout_s=0.05)
    async with serving(auth=TOKENS, options=options, listen=False) as server:
        assert (await seconds_to_answer(server, "wrong"))[0] == "401-unauthorized"
        waiting = server.plug()
        await waiting.client.upgrade()
        await waiting.client.send(Frame("CONNECT", (("accept-version", "1.2"), ("passcode", "wrong"))))
        await trio.testing.wait_all_tasks_blocked()
        assert waiting.ending.reason is None
        await server.sessions.disconnect_all(0)
        assert (await waiting.ending.wait()).token == "503-shutting-down"


@pytest.mark.parametrize("forwarded, other", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1")])
async def test_each_client_behind_a_proxy_has_its_own_delay(
    forwarded: str, other: str, autojump_clock: MockClock
) -> None:
    options = ListenerOptions(port=0, trusted_proxies=["10.0.0.1"])
    async with serving(auth=TOKENS, options=options, listen=False) as server:

        async def refused(address: str) -> float:
            plugged = server.plug(slot=server.sessions.admission.arrive("10.0.0.1", loopback=False))
            await plugged.client.upgrade(headers=[("X-Forwarded-For", address)])
            begun_at = trio.current_time()
            await plugged.client.connect(headers=[("passcode", "wrong")])
            return round(trio.current_time() - begun_at, 3)

        assert [await refused(forwarded) for _ in range(3)] == [0.1, 0.2, 0.4]
        assert await refused(other) == 0.1
