"""Fixed tokens: accepted and refused CONNECTs, first without a session, then over one."""

import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.auth.authenticator import Authenticator
from airy_trio.auth.users import ANONYMOUS, TOKEN_BYTES_MAX, AuthOptions, Refusal, RefusalKind, User
from airy_trio.delivery.disconnects import UNAUTHORIZED
from airy_trio.options import NotAllowedError
from airy_trio.retry import LOG_EVERY_S
from airy_trio.stomp.frames import Connect, Frame, HeartBeat, Version
from airy_trio.testing.client import Closed
from tests.sessions.serving import serving

TOKENS = AuthOptions(mode="tokens", tokens={"agent": "s3cret", "app": "t0ken"})
GOOD = {
    "as Airy's client sends it": (("Authorization", "Bearer s3cret"),),
    "in lower case": (("authorization", "bearer s3cret"),),
    "with a space after the colon": (("Authorization", " Bearer  s3cret "),),
    "as the passcode": (("login", "anyone"), ("passcode", "s3cret")),
    "with an empty passcode": (("Authorization", "Bearer s3cret"), ("passcode", "")),
    "as the passcode, with another scheme": (("Authorization", "Basic czNjcmV0"), ("passcode", "s3cret")),
}
BAD: dict[str, tuple[tuple[str, str], ...]] = {
    "none": (),
    "an empty passcode": (("passcode", ""),),
    "an empty token": (("Authorization", "Bearer "),),
    "another": (("passcode", "wrong"),),
    "a part": (("passcode", "s3cre"),),
    "more": (("passcode", "s3crets"),),
    "in capitals": (("passcode", "S3CRET"),),
    "a name": (("passcode", "agent"),),
    "as the login": (("login", "s3cret"),),
    "without its scheme": (("Authorization", "s3cret"),),
    "in another scheme": (("Authorization", "Basic s3cret"),),
    "two in one": (("Authorization", "Bearer s3cret t0ken"),),
    "a wrong one before a good passcode": (("Authorization", "Bearer wrong"), ("passcode", "s3cret")),
}

NO_CREDENTIALS = Connect(version=Version.V1_2, login=None, passcode=None, authorization=None, heartbeat=HeartBeat())


def is_unauthorized(answer: User | Refusal) -> bool:
    return isinstance(answer, Refusal) and answer.kind is RefusalKind.UNAUTHORIZED


def by_case(cases: dict[str, tuple[tuple[str, str], ...]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("headers", cases.values(), ids=cases.keys())


async def test_each_token_is_its_users() -> None:
    authenticator = Authenticator(TOKENS)
    for request, name in (
        (evolve(NO_CREDENTIALS, passcode="s3cret"), "agent"),
        (evolve(NO_CREDENTIALS, authorization="Bearer t0ken"), "app"),
    ):
        user = await authenticator.authenticate(request)
        assert isinstance(user, User)
        assert user.name == name
    assert is_unauthorized(await authenticator.authenticate(NO_CREDENTIALS))


async def test_every_client_is_anonymous_without_a_mode() -> None:
    authenticator = Authenticator(AuthOptions())
    assert await authenticator.authenticate(NO_CREDENTIALS) == ANONYMOUS
    assert await authenticator.authenticate(evolve(NO_CREDENTIALS, passcode="x", authorization="Bearer y")) == ANONYMOUS


async def test_mode_tokens_without_tokens_rejects_every_client() -> None:
    authenticator = Authenticator(AuthOptions(mode="tokens"))
    assert is_unauthorized(await authenticator.authenticate(NO_CREDENTIALS))
    assert is_unauthorized(await authenticator.authenticate(evolve(NO_CREDENTIALS, passcode="")))


async def test_a_token_of_any_text_is_compared() -> None:
    authenticator = Authenticator(TOKENS)
    for passcode in ("sécret", "s3cret\0", "\U0001f511", "s" * 10_000, "\ud800"):
        assert is_unauthorized(await authenticator.authenticate(evolve(NO_CREDENTIALS, passcode=passcode)))


@pytest.mark.parametrize("tokens", [{"a": ""}, {"": "x"}, {"a": "x", "b": "x"}, {"a": "x" * (TOKEN_BYTES_MAX + 1)}])
def test_useless_tokens_are_rejected_without_showing_them(tokens: dict[str, str]) -> None:
    with pytest.raises(NotAllowedError) as caught:
        AuthOptions(mode="tokens", tokens=tokens)
    assert "xx" not in str(caught.value)


async def test_nothing_shows_a_token() -> None:
    user = await Authenticator(TOKENS).authenticate(evolve(NO_CREDENTIALS, passcode="s3cret"))
    for thing in (TOKENS, Authenticator(TOKENS), vars(Authenticator(TOKENS)), user):
        assert "s3cret" not in repr(thing)


@by_case(GOOD)
async def test_a_good_token_connects(headers: tuple[tuple[str, str], ...], autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        client = (await server.plug_connected(headers=headers)).client
        assert client.version is Version.V1_2
        assert (await client.subscribe()).command == "RECEIPT"


async def test_the_longest_token_fits_into_connect(autojump_clock: MockClock) -> None:
    token = "x" * TOKEN_BYTES_MAX
    async with serving(auth=AuthOptions(mode="tokens", tokens={"agent": token}), listen=False) as server:
        client = (await server.plug_connected(headers=[("Authorization", f"Bearer {token}")])).client
        assert client.version is Version.V1_2


@by_case(BAD)
async def test_bad_credentials_get_an_error_with_401(
    headers: tuple[tuple[str, str], ...], autojump_clock: MockClock
) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade()
        error = await plugged.client.connect(headers=headers)
        assert (error.command, error.get("message")) == ("ERROR", "401-unauthorized")
        with pytest.raises(Closed) as closed:
            await plugged.client.receive()
        assert closed.value.code == 4401
        assert await plugged.ending.wait() is UNAUTHORIZED


@pytest.mark.parametrize("command", ["CONNECT", "STOMP"])
async def test_frames_after_a_refused_connect_are_not_answered(command: str, autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        await server.append(1, 3)
        plugged = server.plug()
        await plugged.client.upgrade()
        await plugged.client.send_text(
            f"{command}\naccept-version:1.2\npasscode:wrong\n\n\0"
            "SUBSCRIBE\nid:0\ndestination:/events\nreplay:all\nreceipt:r\n\n\0SEND\n\n\0"
        )
        await plugged.client.send(Frame("SUBSCRIBE", (("id", "1"), ("destination", "/events"), ("receipt", "s"))))
        assert (await plugged.client.receive()).get("message") == "401-unauthorized"
        with pytest.raises(Closed):
            await plugged.client.receive()
        await server.ended()
        assert (server.sessions.disconnects["unauthorized"], sum(server.sessions.disconnects.values())) == (1, 1)
        assert (server.sessions.client_faults["401-unauthorized"], sum(server.sessions.client_faults.values())) == (
            1,
            1,
        )


async def test_a_refused_client_still_has_its_deadline(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade()
        await plugged.client.send(Frame("CONNECT", (("accept-version", "1.2"),)))
        begun_at = trio.current_time()
        assert await plugged.ending.wait() is UNAUTHORIZED  # even if the client reads nothing
        assert plugged.ending.at - begun_at < 5


async def test_refusal_is_logged_without_the_credentials(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        plugged = server.plug()
        await plugged.client.upgrade()
        with capture_logs() as logs:
            await plugged.client.connect(headers=[("login", "hush"), ("passcode", "hush")])
            await plugged.ending.wait()
    assert [(log["log_level"], log["reason"]) for log in logs if log["event"] == "credentials refused"] == [
        ("info", "the token is not in auth.tokens")
    ]
    assert "hush" not in str(logs)


async def test_refused_credentials_do_not_flood_the_log(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:

        async def connect(times: int, *headers: tuple[str, str]) -> None:
            for _ in range(times):
                slot = server.sessions.admission.arrive("192.0.2.1", loopback=True)
                plugged = server.plug(slot=slot)
                await plugged.client.upgrade()
                await plugged.client.connect(headers=headers)
                await plugged.ending.wait()

        with capture_logs() as logs:
            await connect(4, ("passcode", "wrong"))
            await connect(1)
            await trio.sleep(LOG_EVERY_S)
            await connect(1, ("passcode", "wrong"))
    lines = [line for line in logs if line["event"] == "credentials refused"]
    assert [(line["reason"], line["not_logged"]) for line in lines if line["log_level"] == "info"] == [
        ("the token is not in auth.tokens", 0),
        ("the client sent no token", 0),
        ("the token is not in auth.tokens", 3),
    ]
    assert [line["address"] for line in lines] == ["192.0.2.1"] * 6


@pytest.mark.parametrize(
    "renewed, continues",
    [
        ({"agent": "s3cret", "app": "an0ther"}, True),
        ({"agent": "an0ther"}, False),
        ({"app": "s3cret"}, False),  # the same token belongs to another user now
        ({}, False),
    ],
    ids=["others changed", "another token", "another name", "gone"],
)
async def test_session_continues_while_its_token_names_the_same_user(
    renewed: dict[str, str], continues: bool, autojump_clock: MockClock
) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        plugged = await server.plug_connected(headers=[("passcode", "s3cret")])
        server.sessions.renew(AuthOptions(mode="tokens", tokens=renewed))
        if continues:
            assert (await plugged.client.subscribe()).command == "RECEIPT"
            return
        assert (await plugged.client.receive()).get("message") == "401-unauthorized"
        assert await plugged.ending.wait() is UNAUTHORIZED


async def test_renewed_tokens_apply_to_later_connects(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        waiting = server.plug()
        await waiting.client.upgrade()
        server.sessions.renew(AuthOptions(mode="tokens", tokens={"agent": "n3w"}))
        assert (await waiting.client.connect(headers=[("passcode", "n3w")])).command == "CONNECTED"
        late = server.plug()
        await late.client.upgrade()
        assert (await late.client.connect(headers=[("passcode", "s3cret")])).get("message") == "401-unauthorized"


async def test_anonymous_session_ends_when_tokens_become_required(autojump_clock: MockClock) -> None:
    async with serving(listen=False) as server:
        plugged = await server.plug_connected()
        server.sessions.renew(TOKENS)
        assert await plugged.ending.wait() is UNAUTHORIZED


async def test_sessions_continue_when_tokens_are_no_longer_needed(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        plugged = await server.plug_connected(headers=[("passcode", "s3cret")])
        server.sessions.renew(AuthOptions())
        assert (await plugged.client.subscribe()).command == "RECEIPT"


async def test_token_revoked_while_connected_is_sent_ends_the_session(autojump_clock: MockClock) -> None:
    async with serving(auth=TOKENS, listen=False) as server:
        plugged = server.plug(trio.testing.lockstep_stream_pair)  # nothing is written before it is read
        await plugged.client.upgrade()
        await plugged.client.send(Frame("CONNECT", (("accept-version", "1.2"), ("passcode", "s3cret"))))
        await trio.testing.wait_all_tasks_blocked()
        server.sessions.renew(AuthOptions(mode="tokens", tokens={"app": "t0ken"}))
        assert (await plugged.client.receive()).command == "CONNECTED"
        assert (await plugged.client.receive()).get("message") == "401-unauthorized"
        assert await plugged.ending.wait() is UNAUTHORIZED
