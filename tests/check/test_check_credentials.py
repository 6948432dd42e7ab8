"""Checks of the keys of web tokens, without which the server does not start."""

from pathlib import Path

import pytest
import trio

from airy_trio import app
from airy_trio.check import check
from airy_trio.errors import SettingsError
from tests.application import Application
from tests.auth.signing import jwk, jwks, key_pair, pem


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("hunter2.pem", None, "PEM file.*there is no such file"),
        ("hunter2.json", None, "JWK Set.*there is no such file"),
        ("hunter2", b"hunter2", "PEM file.*not one public key"),
        ("hunter2.json", b"hunter2", "JWK Set.*not JSON"),
        ("hunter2.json", jwks(jwk(key_pair("ES256"))), "JWK Set.*no public key for RS256"),
    ],
    ids=["no PEM", "no set", "another PEM", "no JSON", "another set"],
)
def test_file_without_a_key_is_a_problem(
    name: str, data: bytes | None, words: str, sqlite_application: Application, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    settings = sqlite_application.migrate(f'[auth]\nmode = "jwt"\njwt_key = "{path}"')
    (finding,) = check(settings).of("problem")
    assert finding.startswith("auth.jwt_key: understood as the name of a ")
    assert "hunter2" not in finding
    with pytest.raises(SettingsError, match=words) as caught:
        trio.run(app.serve, settings)
    assert (caught.value.exit_code, caught.value.faults) == (2, (finding,))


def test_usable_keys_have_no_findings(sqlite_application: Application, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(key_pair("RS256")))
    for key in (f'jwt_key = "{tmp_path}/key.pem"', f'jwt_key = "{"x" * 32}"\njwt_algorithms = ["HS256"]'):
        report = check(sqlite_application.migrate(f'[auth]\nmode = "jwt"\njwt_require_grants = true\n{key}'))
        assert (report.of("problem"), report.of("warning")) == ((), ())


def test_unavailable_key_server_is_a_warning(sqlite_application: Application) -> None:
    text = '[auth]\nmode = "jwt"\njwt_require_grants = true\njwt_key = "https://localhost:1/hunter2"'
    settings = sqlite_application.migrate(text)
    report = check(settings)
    assert report.of("problem") == ()
    (finding,) = report.of("warning")
    assert finding.startswith("auth.jwt_key: the keys cannot be fetched: ")
    assert finding.endswith("Connection refused; until this is resolved no client can connect")
    assert "hunter2" not in finding


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "chat.example.org"])  # noqa: S104 - nothing listens
def test_all_events_for_every_client_is_a_warning(sqlite_application: Application, host: str) -> None:
    (finding,) = check(sqlite_application.migrate(f'[listener]\nhost = "{host}"')).of("warning")
    assert finding == (
        f'auth.mode is "none" and listener.host is "{host}", not a loopback address: every client that reaches '
        "the port receives all events"
    )


def test_tokens_that_can_be_guessed_are_a_warning(sqlite_application: Application) -> None:
    auth = f'[auth]\nmode = "tokens"\ntokens = {{ a = "1", b = "{"x" * 16}", c = "{"y" * 15}" }}\n'
    report = check(sqlite_application.migrate(f'[listener]\nhost = "::"\n{auth}'))
    assert report.of("warning") == ("auth.tokens: tokens of fewer than 16 characters may be guessed: a, c",)


def test_tokens_without_grants_are_a_warning(sqlite_application: Application) -> None:
    text = f'[auth]\nmode = "jwt"\njwt_key = "{"x" * 32}"\njwt_algorithms = ["HS256"]\njwt_channels_claim = "inboxes"\n'
    (finding,) = check(sqlite_application.migrate(text)).of("warning")
    assert finding.startswith(
        "auth.jwt_require_grants: a token without inboxes may read all events, unless airy_destinations"
    )
    assert check(sqlite_application.migrate(f"{text}jwt_require_grants = true")).of("warning") == ()
    assert check(sqlite_application.migrate("[log]")).of("warning") == ()
