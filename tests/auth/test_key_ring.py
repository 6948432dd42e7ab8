"""Keys of web tokens: when they are loaded, how often at most, and which keys are valid during a load."""

import math
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from attrs import define, evolve, field
from structlog.testing import capture_logs
from trio.testing import MockClock

from airy_trio.auth.authenticator import Authenticator, load_file_keys
from airy_trio.auth.keys import KEYS_BYTES_MAX, WAIT_S, Key, KeyRing, KeyServer, KeysFault, read_jwks, source_of
from airy_trio.auth.users import AuthOptions, Refusal, User
from airy_trio.errors import SettingsError
from tests.auth.signing import Issuer, authenticator_of, connect_with, issuer, jwk, jwks, pem
from tests.hanging_file import make_hang, open_writer

FIRST, SECOND = issuer("ES256", 0, "first"), issuer("ES256", 1, "second")


def published(*issuers: Issuer) -> bytes:
    return jwks(*(jwk(one.key, kid=one.kid) for one in issuers if not isinstance(one.key, str)))


def keys_of(*issuers: Issuer) -> tuple[Key, ...]:
    return read_jwks(published(*issuers), ["ES256"])


@define
class Source:
    """Returns its keys after a delay, and records the times of the loads."""

    keys: tuple[Key, ...] | None
    delay_s: float = 0.0
    pause_s: float = 30.0
    refresh_s: float = 300.0
    asked_at: list[float] = field(factory=list)

    async def load(self) -> tuple[Key, ...]:
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.delay_s)
        if self.keys is None:
            raise KeysFault("away")
        return self.keys


def ring_of(source: Source, keys: tuple[Key, ...] = ()) -> KeyRing:
    return KeyRing(keys, cast("KeyServer", source))


@asynccontextmanager
async def refreshed(ring: KeyRing) -> AsyncGenerator[None]:
    async def follow() -> None:
        while True:
            await ring.refresh()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        yield
        nursery.cancel_scope.cancel()


async def test_keys_are_loaded_at_once_and_at_each_interval(autojump_clock: MockClock) -> None:
    source = Source(keys_of(FIRST))
    ring = ring_of(source)
    begun_at = trio.current_time()
    async with refreshed(ring):
        assert not ring.keys
        await trio.sleep(950)
    assert [at - begun_at for at in source.asked_at] == [0, 300, 600, 900]
    assert ring.keys == keys_of(FIRST)


async def test_unexpected_error_leaves_the_keys(autojump_clock: MockClock) -> None:
    class Broken(Source):
        async def load(self) -> tuple[Key, ...]:
            await super().load()
            raise RuntimeError("never-shown")

    source = Broken(keys_of(FIRST))
    ring = ring_of(source, keys_of(SECOND))
    with capture_logs() as lines:
        async with refreshed(ring):
            await trio.sleep(10)
    assert ring.keys == keys_of(SECOND)
    assert len(source.asked_at) == 4
    assert [line["reason"] for line in lines] == ["an error of the program: RuntimeError"]


async def test_source_is_loaded_once_in_its_pause(autojump_clock: MockClock) -> None:
    source = Source(keys_of(FIRST), delay_s=0.5)
    ring = ring_of(source)
    answers: list[bool] = []

    async def ask(after_s: float) -> None:
        await trio.sleep(after_s)
        answers.append(await ring.wait_newer())

    async with refreshed(ring):
        await trio.sleep(40)
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number / 400)
        assert answers == [True] * 200
        assert len(source.asked_at) == 2
        for _ in range(10):
            assert not await ring.wait_newer()
        await trio.sleep(30)
        assert await ring.wait_newer()
        assert len(source.asked_at) == 3


async def test_unavailable_source_leaves_the_keys_and_backs_off(autojump_clock: MockClock) -> None:
    source = Source(keys_of(FIRST))
    ring = ring_of(source)
    async with refreshed(ring):
        await trio.sleep(1)
        source.keys = None
        with capture_logs() as logs:
            await trio.sleep(300 + 110)
        assert ring.keys == keys_of(FIRST)
        assert [log["log_level"] for log in logs] == ["warning"]
        first, *others = source.asked_at[1:]
        assert [at - first for at in others] == [1, 3, 7, 15, 31, 61, 91]
        source.keys = keys_of(SECOND)
        await trio.sleep(31)
        assert ring.keys == keys_of(SECOND)


async def test_wait_for_keys_is_bounded(autojump_clock: MockClock) -> None:
    ring = ring_of(Source(keys_of(FIRST), delay_s=1000))
    async with refreshed(ring):
        begun_at = trio.current_time()
        assert not await ring.wait_newer()
        assert trio.current_time() - begun_at == WAIT_S


@pytest.mark.parametrize("keys", [keys_of(SECOND), None])
async def test_load_does_not_change_a_retired_ring(keys: tuple[Key, ...] | None, autojump_clock: MockClock) -> None:
    ring = ring_of(Source(keys, delay_s=4), keys_of(FIRST))
    async with refreshed(ring):
        await trio.sleep(1)  # a second signal arrives while a key server is slow
        ring.retire()
        await trio.sleep(4)
    assert ring.keys == keys_of(FIRST)


async def test_retiring_a_ring_cancels_its_load(autojump_clock: MockClock) -> None:
    ring = ring_of(Source(keys_of(FIRST), delay_s=math.inf))
    newer: list[bool] = []

    async def wait_newer() -> None:
        newer.append(await ring.wait_newer())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ring.refresh)
        nursery.start_soon(wait_newer)
        await trio.testing.wait_all_tasks_blocked()
        retired_at = trio.current_time()
        ring.retire()
    assert trio.current_time() == retired_at
    assert newer == [True]
    assert not ring.keys


async def test_keys_without_a_source_stay(autojump_clock: MockClock) -> None:
    ring = KeyRing(keys_of(FIRST))
    async with refreshed(ring):
        assert not await ring.wait_newer()
        await trio.sleep(10_000)
    assert ring.keys == keys_of(FIRST)


@asynccontextmanager
async def following(authenticator: Authenticator) -> AsyncGenerator[None]:
    async def follow() -> None:
        while True:
            await authenticator.refresh_keys()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        yield
        nursery.cancel_scope.cancel()


async def accepted(authenticator: Authenticator, signer: Issuer) -> User:
    """Retry until the token is accepted. This takes real time, because a thread reads the file."""
    with trio.fail_after(40):
        while True:
            user = await authenticator.authenticate(connect_with(signer.token()))
            if isinstance(user, User):
                return user
            await trio.sleep(0.05)


@pytest.mark.slow
async def test_keys_added_to_and_removed_from_a_file_take_effect(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(published(FIRST))
    authenticator = authenticator_of(AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path)))
    async with following(authenticator):
        first = await authenticator.authenticate(connect_with(FIRST.token()))
        assert isinstance(first, User)
        assert isinstance(await authenticator.authenticate(connect_with(SECOND.token())), Refusal)
        path.write_bytes(published(SECOND, FIRST))
        await accepted(authenticator, SECOND)
        assert authenticator.accepts(first)
        path.write_bytes(published(SECOND))
        await accepted(authenticator, SECOND)
        options = AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path))
        authenticator.renew(options, load_file_keys(options))  # as SIGHUP does
        assert not authenticator.accepts(first)


async def test_replaced_pem_file_takes_effect(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    assert not isinstance(FIRST.key, str)
    assert not isinstance(SECOND.key, str)
    path.write_bytes(pem(FIRST.key))
    authenticator = authenticator_of(AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path)))
    async with following(authenticator):
        await accepted(authenticator, FIRST)
        path.write_bytes(pem(SECOND.key))
        await accepted(authenticator, SECOND)


async def test_file_is_read_at_each_load(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    source = source_of(AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path)))
    for data, words in (
        (None, "there is no such file"),
        (b"not yet written", "not JSON"),
        (b" " * (KEYS_BYTES_MAX + 1), f"larger than {KEYS_BYTES_MAX} bytes"),
    ):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(KeysFault, match=words):
            await source.load()
    path.write_bytes(published(FIRST) + b" " * (KEYS_BYTES_MAX - len(published(FIRST))))
    assert await source.load() == keys_of(FIRST)
    path.unlink()
    path.mkdir()
    with pytest.raises(KeysFault, match="Is a directory"):
        await source.load()


async def test_load_of_a_hanging_file_can_be_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make_hang(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source_of(AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path))).load)
        writing = await open_writer(path)
        nursery.cancel_scope.cancel()
    os.close(writing)


async def test_renewal_does_not_wait_for_a_key_file_that_hangs(tmp_path: Path) -> None:
    past, path = tmp_path / "past.json", tmp_path / "keys.json"
    past.write_bytes(published(FIRST))
    path.write_bytes(published(SECOND))
    authenticator = authenticator_of(AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(past)))
    make_hang(past)
    async with following(authenticator):
        writing = await open_writer(past)  # the refresh is reading it now
        options = AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path))
        authenticator.renew(options, load_file_keys(options))
        path.write_bytes(published(FIRST, SECOND))  # only the refresh of the new source reads this file
        await accepted(authenticator, FIRST)
    os.close(writing)


async def test_keys_are_refreshed_without_a_request(autojump_clock: MockClock) -> None:
    source = Source(keys_of(FIRST), pause_s=1, refresh_s=10)
    ring = ring_of(source, keys_of(SECOND))
    assert ring.keys == keys_of(SECOND)
    async with refreshed(ring):
        await trio.testing.wait_all_tasks_blocked()
        assert ring.keys == keys_of(FIRST)
        source.keys = keys_of(SECOND)
        await trio.sleep(11)
        assert ring.keys == keys_of(SECOND)


def test_faulty_key_file_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    options = AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path))
    with pytest.raises(SettingsError, match=r"auth\.jwt_key: .*there is no such file") as caught:
        load_file_keys(evolve(options, jwt_key="/hunter2.json"))
    assert "hunter2" not in str(caught.value)
    path.write_bytes(b"{}")
    with pytest.raises(SettingsError, match=r"JWK Set.*no array"):
        load_file_keys(options)


async def test_renewed_settings_take_effect_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = issuer("RS256", 0, "first"), issuer("RS256", 1, "second")
    path.write_bytes(published(first))
    options = AuthOptions(mode="jwt", jwt_key=str(path))
    authenticator = authenticator_of(options)
    async with following(authenticator):
        user = await authenticator.authenticate(connect_with(first.token(iss="i", aud="a")))
        assert isinstance(user, User)
        for renewed, still in (
            (options, True),
            (evolve(options, jwt_issuer="i", jwt_audience="a"), True),
            (evolve(options, jwt_issuer="j"), False),
            (evolve(options, jwt_audience="b"), False),
            (evolve(options, jwt_algorithms=["RS512"]), False),
            (AuthOptions(mode="tokens", tokens={"agent": "t"}), False),
            (AuthOptions(), True),
        ):
            authenticator.renew(renewed, load_file_keys(renewed))
            assert authenticator.accepts(user) is still
        authenticator.renew(AuthOptions())
        await trio.testing.wait_all_tasks_blocked()
        authenticator.renew(options, load_file_keys(options))
        path.write_bytes(published(second))
        await accepted(authenticator, second)


async def test_client_that_waits_during_a_renewal_gets_the_new_keys(tmp_path: Path) -> None:
    past, path = tmp_path / "past.json", tmp_path / "keys.json"
    past.write_bytes(published(FIRST))
    path.write_bytes(published(SECOND))
    authenticator = authenticator_of(AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(past)))
    answers: list[User | Refusal] = []

    async def ask() -> None:
        answers.append(await authenticator.authenticate(connect_with(SECOND.token())))

    with trio.fail_after(WAIT_S / 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()  # no task refreshes, so it waits for newer keys
            options = AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path))
            authenticator.renew(options, load_file_keys(options))
    [user] = answers
    assert isinstance(user, User)


async def test_token_without_expiry_is_rejected_once_expiry_is_required(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(published(FIRST))
    options = AuthOptions(mode="jwt", jwt_algorithms=["ES256"], jwt_key=str(path), jwt_require_exp=False)
    authenticator = authenticator_of(options)
    user = await authenticator.authenticate(connect_with(FIRST.token(without=["exp"])))
    assert isinstance(user, User)
    assert authenticator.accepts(user)
    authenticator.renew(evolve(options, jwt_require_exp=True), load_file_keys(options))
    assert not authenticator.accepts(user)
