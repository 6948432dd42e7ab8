"""SIGHUP renews some settings of a running server and leaves others unchanged. ``e2e`` tests the signal itself."""

import json
import os
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
import trio
from attrs import define, field
from structlog.testing import LogCapture
from structlog.types import EventDict

from airy_trio import app
from airy_trio.app.server import Renewal, serve_process
from airy_trio.errors import SettingsError, StartError
from airy_trio.settings import Settings
from airy_trio.testing.client import Closed, StompClient, connect
from tests.application import Application
from tests.auth.signing import SECRET, issuer, jwk, jwks, key_pair
from tests.certificates import Files, issue, trusting
from tests.hanging_file import make_hang, open_writer

TIMEOUT_S = 20.0


class LogLines(LogCapture):
    """The captured log lines. A test can wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self._more = trio.Event()

    def __call__(self, logger: object, method_name: str, event_dict: EventDict) -> NoReturn:
        more, self._more = self._more, trio.Event()
        more.set()
        super().__call__(logger, method_name, event_dict)

    async def line(self, *events: str, after: int = 0) -> EventDict:
        """Wait for the first line with one of these events after the first ``after`` lines."""
        while True:
            for line in self.entries[after:]:
                if line["event"] in events:
                    return line
            await self._more.wait()


@contextmanager
def captured() -> Generator[LogLines]:
    """Capture all log lines."""
    log, usual = LogLines(), structlog.get_config()["processors"]
    structlog.configure(processors=[log])
    try:
        yield log
    finally:
        structlog.configure(processors=usual)


@define
class Running:
    """A server that a test renews. ``text``: the settings from ``[listener]`` on, as they are in the file.

    ``fault``: the error of reading the file, if any.
    """

    application: Application
    text: str
    log: LogLines
    address: app.Address = field(init=False)
    renewal: Renewal = field(init=False)
    fault: Exception | None = None

    def read(self) -> Settings:
        if self.fault is not None:
            raise self.fault
        return self.application.settings(self.text)

    async def renew(self, text: str) -> EventDict:
        """Change the file, request a renewal, and return the log line of the result."""
        self.text = text
        before = len(self.log.entries)
        self.renewal.request()
        return await self.log.line("settings renewed", "settings not renewed", after=before)

    async def client(self, token: str | None = None) -> StompClient:
        headers = () if token is None else (("passcode", token),)
        tls = trusting() if self.address.tls else None
        client = await connect("localhost" if tls else "127.0.0.1", self.address.port, headers=headers, tls=tls)
        assert (await client.subscribe()).command == "RECEIPT"
        return client


@asynccontextmanager
async def running(application: Application, text: str) -> AsyncGenerator[Running]:
    settings = application.migrate(text)
    with captured() as log, trio.fail_after(TIMEOUT_S):
        server = Running(application, text, log)
        server.renewal = Renewal(server.read)
        async with trio.open_nursery() as nursery:
            server.address = await nursery.start(partial(serve_process, settings, renewal=server.renewal))
            yield server
            nursery.cancel_scope.cancel()


def tokens(**of: str) -> str:
    pairs = ", ".join(f'{name} = "{token}"' for name, token in of.items())
    return f'[listener]\nport = 0\n[auth]\nmode = "tokens"\ntokens = {{ {pairs} }}\n'


def with_tls(files: Files) -> str:
    return f"[listener]\nport = 0\n{files.listener}"


def serial(client: StompClient) -> object:
    """Return the serial number of the certificate that the client received."""
    stream = client.stream
    assert isinstance(stream, trio.SSLStream)
    return stream.getpeercert()["serialNumber"]


async def test_removed_token_ends_its_sessions_only(sqlite_application: Application) -> None:
    async with (
        running(sqlite_application, tokens(kept="a1", removed="b2", changed="c3")) as server,
        await server.client("a1") as kept,
        await server.client("b2") as removed,
        await server.client("c3") as changed,
    ):
        assert (await server.renew(tokens(kept="a1", changed="d4", new="e5")))["event"] == "settings renewed"
        for client in (removed, changed):
            assert (await client.receive()).get("message") == "401-unauthorized"
            with pytest.raises(Closed) as closed:
                await client.receive()
            assert closed.value.code == 4401
        for token in ("b2", "c3"):
            with pytest.raises(Closed, match="401-unauthorized"):
                await server.client(token)
        async with await server.client("d4"), await server.client("e5") as new:
            sqlite_application.tag()
            assert [(await client.receive()).command for client in (kept, new)] == ["MESSAGE"] * 2


async def test_hanging_renewal_does_not_block_shutdown(sqlite_application: Application, tmp_path: Path) -> None:
    files = issue(tmp_path)
    async with running(sqlite_application, with_tls(files)) as server:
        make_hang(files.certificate)
        server.renewal.request()
        writing = await open_writer(files.certificate)
    os.close(writing)  # the blocked reader continues only now


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(jwk(key_pair("ES256", 1))))
    return path


def with_keys(path: Path) -> str:
    return f'[listener]\nport = 0\n[auth]\nmode = "jwt"\njwt_key = "{path}"\njwt_algorithms = ["ES256"]\n'


async def test_server_works_while_a_key_file_hangs(
    sqlite_application: Application, key_file: Path, tmp_path: Path
) -> None:
    hanging = tmp_path / "hanging.json"
    make_hang(hanging)
    async with running(sqlite_application, with_keys(key_file)) as server:
        server.text = with_keys(hanging)
        server.renewal.request()
        writing = await open_writer(hanging)
        async with await server.client(issuer("ES256", 1).token()) as client:
            sqlite_application.tag()
            assert (await client.receive()).command == "MESSAGE"
    os.close(writing)


async def test_start_with_hanging_key_file_can_be_cancelled(sqlite_application: Application, tmp_path: Path) -> None:
    hanging = tmp_path / "keys.json"
    make_hang(hanging)
    settings = sqlite_application.migrate(with_keys(hanging))
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(app.serve, settings)
            writing = await open_writer(hanging)
            nursery.cancel_scope.cancel()
    os.close(writing)


async def test_only_new_connections_get_the_new_certificate(sqlite_application: Application, tmp_path: Path) -> None:
    text = with_tls(issue(tmp_path))
    async with running(sqlite_application, text) as server, await server.client() as old:
        issue(tmp_path)
        assert (await server.renew(text))["event"] == "settings renewed"
        async with await server.client() as new:
            assert serial(old) != serial(new)
            sqlite_application.tag()
            assert [(await client.receive()).command for client in (old, new)] == ["MESSAGE"] * 2


async def test_the_certificate_may_come_from_other_files(sqlite_application: Application, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with running(sqlite_application, with_tls(issue(tmp_path / "one"))) as server, await server.client() as old:
        renewed = await server.renew(with_tls(issue(tmp_path / "two")))
        assert renewed["only_after_a_restart"] == []
        async with await server.client() as new:
            assert serial(old) != serial(new)


async def test_expired_certificate_is_logged_and_used(sqlite_application: Application, tmp_path: Path) -> None:
    text = with_tls(issue(tmp_path))
    async with running(sqlite_application, text) as server:
        issue(tmp_path, expires=datetime.now(UTC) - timedelta(days=2))
        assert (await server.renew(text))["event"] == "settings renewed"
        [warning] = [
            line["event"] for line in server.log.entries if line["log_level"] == "warning" and "tls" in line["event"]
        ]
        assert "the certificate expired" in warning
        with pytest.raises(trio.BrokenResourceError) as refused:
            await server.client()
        assert isinstance(refused.value.__cause__, ssl.SSLCertVerificationError)


async def test_faulty_certificate_is_one_line_and_changes_nothing(
    sqlite_application: Application, tmp_path: Path
) -> None:
    files = issue(tmp_path)
    text = with_tls(files) + '[auth]\nmode = "tokens"\ntokens = { one = "a1" }\n'
    async with running(sqlite_application, text) as server, await server.client("a1") as old:
        files.certificate.write_text("junk")
        line = await server.renew(text.replace("a1", "b2"))
        assert line["event"] == "settings not renewed"
        assert line["log_level"] == "error"
        [fault] = line["faults"]
        assert fault.startswith(f"listener.tls_certificate: {files.certificate}: no readable certificate in the file")
        async with await server.client("a1") as new:  # neither the token nor the certificate
            assert serial(old) == serial(new)


async def test_faulty_key_file_also_keeps_the_old_certificate(sqlite_application: Application, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    one, two = issuer("ES256", 1, "one"), issuer("ES256", 2, "two")
    keys.write_bytes(jwks(jwk(key_pair("ES256", 1), kid="one")))
    text = with_tls(issue(tmp_path)) + f'[auth]\nmode = "jwt"\njwt_key = "{keys}"\njwt_algorithms = ["ES256"]\n'
    async with running(sqlite_application, text) as server, await server.client(one.token(sub="u")) as old:
        issue(tmp_path)
        keys.write_text("junk")
        line = await server.renew(text)
        assert (line["event"], line["log_level"]) == ("settings not renewed", "error")
        [fault] = line["faults"]
        assert fault.startswith("auth.jwt_key: ")
        async with await server.client(one.token(sub="u")) as new:  # neither the keys nor the certificate
            assert serial(old) == serial(new)
        keys.write_bytes(jwks(jwk(key_pair("ES256", 2), kid="two")))
        assert (await server.renew(text))["event"] == "settings renewed"
        async with await server.client(two.token(sub="u")) as new:  # and now both
            assert serial(old) != serial(new)


@pytest.mark.parametrize("line", ["jwt_require_grants = true", 'jwt_channels_claim = "inboxes"'])
async def test_sessions_with_changed_grants_end(sqlite_application: Application, line: str) -> None:
    text = f'[listener]\nport = 0\n[auth]\nmode = "jwt"\njwt_key = "{SECRET}"\njwt_algorithms = ["HS256"]\n'
    free, granted = issuer("HS256").token(), issuer("HS256").token(inboxes=["ch1"], airy_destinations=["/events"])
    async with (
        running(sqlite_application, text) as server,
        await server.client(free) as first,
        await server.client(granted) as second,
    ):
        assert (await server.renew(text + line))["event"] == "settings renewed"
        assert (await first.receive()).get("message") == "401-unauthorized"
        if "require" in line:
            headers = [("passcode", free)]
            async with await connect("127.0.0.1", server.address.port, headers=headers) as third:
                assert (await third.subscribe()).get("message") == "403-destination"
            sqlite_application.message(id="m2", channel_id="ch2")
            assert (await second.receive()).command == "MESSAGE"
        else:
            assert (await second.receive()).get("message") == "401-unauthorized"
            async with await server.client(granted) as third:
                sqlite_application.message(id="m1", channel_id="ch2")
                sqlite_application.message(id="m2", channel_id="ch1")
                assert json.loads((await third.receive()).body)["payload"]["channel_id"] == "ch1"


async def test_faulty_settings_are_one_line_and_change_nothing(sqlite_application: Application) -> None:
    async with running(sqlite_application, tokens(one="a1")) as server, await server.client("a1") as old:
        line = await server.renew(tokens(one="never-shown").replace("port = 0", "port = -5\nprot = 1"))
        assert (line["event"], len(line["faults"])) == ("settings not renewed", 2)
        assert "never-shown" not in str(server.log.entries)
        async with await server.client("a1") as new:
            sqlite_application.tag()
            assert [(await client.receive()).command for client in (old, new)] == ["MESSAGE"] * 2


@pytest.mark.parametrize("begins_with", [True, False])
async def test_tls_is_not_turned_on_or_off(
    sqlite_application: Application, tmp_path: Path, *, begins_with: bool
) -> None:
    texts = [with_tls(issue(tmp_path)), "[listener]\nport = 0\n"]
    first, second = texts if begins_with else texts[::-1]
    async with running(sqlite_application, first) as server:
        line = await server.renew(second)
        assert line["faults"] == ("listener.tls_certificate: TLS can be turned on and off only by a restart",)
        async with await server.client():
            pass


async def test_settings_that_need_a_restart_are_named(sqlite_application: Application) -> None:
    text = "[listener]\nport = 0\n"
    async with running(sqlite_application, text) as server:
        assert (await server.renew(text))["only_after_a_restart"] == []
        line = await server.renew(text + 'drain_s = 3\n[log]\nretain_events = 5\n[auth]\nmode = "none"\n')
        assert line["only_after_a_restart"] == ["log", "listener"]


async def test_cookie_is_not_accepted_while_every_origin_is_allowed(sqlite_application: Application) -> None:
    every = tokens(one="a1").replace("port = 0", 'port = 0\nallowed_origins = ["*"]')
    listed = tokens(one="a1").replace("port = 0", 'port = 0\nallowed_origins = ["https://chat.example.org"]')
    async with running(sqlite_application, every) as server:
        line = await server.renew(f'{listed}cookie = "session"\n')
        [fault] = line["faults"]
        assert fault.startswith("auth.cookie, listener.allowed_origins: ")
        assert fault.endswith("; other sections than auth change only at a restart")


async def test_renewal_that_admits_every_client_is_a_warning(sqlite_application: Application) -> None:
    everywhere = '[listener]\nport = 0\nhost = "0.0.0.0"\n'
    async with running(sqlite_application, tokens(one="a1").replace("[listener]\nport = 0\n", everywhere)) as server:
        await server.renew(everywhere)
        assert 'auth.mode is "none" and listener.host is "0.0.0.0"' in str(server.log.entries)


async def test_early_and_repeated_requests_are_one_renewal(sqlite_application: Application) -> None:
    reads = []

    def read() -> Settings:
        reads.append(1)
        return sqlite_application.settings("[listener]\nport = 0\n")

    renewal = Renewal(read)
    renewal.request()
    renewal.request()
    settings = sqlite_application.migrate("[listener]\nport = 0\n")
    with captured() as log, trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_process, settings, renewal=renewal))
            await log.line("settings renewed")
            nursery.cancel_scope.cancel()
    assert len(reads) == 1


async def test_server_does_not_start_with_a_faulty_certificate(sqlite_application: Application, tmp_path: Path) -> None:
    files = issue(tmp_path)
    files.key.unlink()
    settings = sqlite_application.migrate(with_tls(files))
    with pytest.raises(StartError, match=r"listener\.tls_key: .*No such file"):
        await app.serve(settings)


@pytest.mark.parametrize(
    "fault, reason",
    [
        (SettingsError(["airy-trio.toml: there is no such file"]), "airy-trio.toml: there is no such file"),
        (RuntimeError("never-shown"), "unexpected RuntimeError at test_app_renewal.py:"),
    ],
    ids=["expected", "unexpected"],
)
async def test_unreadable_settings_do_not_end_the_server(
    sqlite_application: Application, fault: Exception, reason: str
) -> None:
    async with running(sqlite_application, tokens(one="a1")) as server, await server.client("a1") as old:
        server.fault = fault
        line = await server.renew(tokens(one="b2"))
        assert (line["event"], line["log_level"]) == ("settings not renewed", "error")
        [only] = line["faults"]
        assert only.startswith(reason)
        assert "never-shown" not in str(server.log.entries)
        server.fault = None
        async with await server.client("a1") as new:
            sqlite_application.tag()
            assert [(await client.receive()).command for client in (old, new)] == ["MESSAGE"] * 2
        assert (await server.renew(tokens(one="b2")))["event"] == "settings renewed"
