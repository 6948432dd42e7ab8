"""Keys of web tokens that check finds, and that the server does not start without."""

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
def test_a_file_without_a_key(
    name: str, data: bytes | None, words: str, sqlite_application: Application, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    settings = sqlite_application.migrate(f'[auth]\nmode = "jwt"\njwt_key = "{path}"')
    (told,) = check(settings).of("problem")
    assert told.startswith("auth.jwt_key: understood as the name of a ")
    assert "hunter2" not in told
    with pytest.raises(SettingsError, match=words) as caught:
        trio.run(app.serve, settings)
    assert (caught.value.exit_code, caught.value.faults) == (2, (told,))


def test_keys_that_are_there(sqlite_application: Application, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(key_pair("RS256")))
    for key in (f'jwt_key = "{tmp_path}/key.pem"', f'jwt_key = "{"x" * 32}"\njwt_algorithms = ["HS256"]'):
        report = check(sqlite_application.migrate(f'[auth]\nmode = "jwt"\njwt_require_grants = true\n{key}'))
        assert (report.of("problem"), report.of("warning")) == ((), ())


def test_a_server_of_keys_that_is_away_is_a_warning(sqlite_application: Application) -> None:
    text = '[auth]\nmode = "jwt"\njwt_require_grants = true\njwt_key = "https://localhost:1/hunter2"'
    settings = sqlite_application.migrate(text)
    report = check(settings)
    assert report.of("problem") == ()
    (told,) = report.of("warning")
    assert told.startswith("auth.jwt_key: the keys cannot be fetched: ")
    assert told.endswith("Connection refused; as long as that is so nobody can connect")
    assert "hunter2" not in told


def test_tokens_that_read_everything_are_a_warning(sqlite_application: Application) -> None:
    text = f'[auth]\nmode = "jwt"\njwt_key = "{"x" * 32}"\njwt_algorithms = ["HS256"]\njwt_channels_claim = "inboxes"\n'
    (told,) = check(sqlite_application.migrate(text)).of("warning")
    assert told.startswith(
        "auth.jwt_require_grants: a token without inboxes reads everything, unless airy_destinations"
    )
    assert check(sqlite_application.migrate(f"{text}jwt_require_grants = true")).of("warning") == ()
    assert check(sqlite_application.migrate("[log]")).of("warning") == ()
