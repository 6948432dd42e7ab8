"""Which token is used if a client sends several."""

import pytest

from airy_trio.auth.authenticator import NOT_A_TOKEN, token_of_connect, token_of_upgrade
from tests.auth.signing import connect_with

Headers = list[tuple[str, str]]


def by_name(headers: Headers) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize(
    "authorization, passcode, token",
    [
        (None, None, None),
        (None, "", None),
        (None, "p", "p"),
        ("Bearer t", None, "t"),
        ("Bearer t", "p", "t"),
        ("bearer  t ", "p", "t"),
        (" BEARER\tt", "p", "t"),
        ("Bearer", "p", "p"),
        ("Bearer ", None, None),
        ("Basic cDpw", "p", "p"),
        ("Basic cDpw", None, None),
        ("Bearert", None, None),
        ("Bearer t u", "p", NOT_A_TOKEN),
        ("Bearer t\x00", "p", NOT_A_TOKEN),
        ("Bearer té", None, NOT_A_TOKEN),
    ],
)
def test_bearer_has_precedence_over_the_passcode_in_connect(
    authorization: str | None, passcode: str | None, token: str | None
) -> None:
    assert token_of_connect(connect_with(passcode, authorization=authorization)) == token


@pytest.mark.parametrize(
    "headers, token",
    [
        ([], None),
        ([("authorization", "Bearer t")], "t"),
        ([("authorization", "Bearer t"), ("cookie", "auth=c")], "t"),
        ([("authorization", "Basic cDpw"), ("cookie", "auth=c")], "c"),
        ([("authorization", "Bearer t"), ("authorization", "Bearer u")], NOT_A_TOKEN),
        ([("authorization", "Bearer t u"), ("cookie", "auth=c")], NOT_A_TOKEN),
        ([("cookie", "auth=c")], "c"),
        ([("cookie", 'a=1; auth="c"; b=2')], "c"),
        ([("cookie", "a=1;auth=c==;b=2")], "c=="),
        ([("cookie", "auth=")], None),
        ([("cookie", "auth")], None),
        ([("cookie", "Auth=c; xauth=c; auth2=c")], None),
        ([("cookie", "auth=c; auth=d")], NOT_A_TOKEN),
        ([("cookie", "auth=c"), ("cookie", "auth=d")], NOT_A_TOKEN),
        ([("cookie", "auth=ÿþ")], "ÿþ"),
        ([("x-authorization", "Bearer t")], None),
    ],
)
def test_header_has_precedence_over_the_cookie_in_the_upgrade(headers: Headers, token: str | None) -> None:
    assert token_of_upgrade(by_name(headers), "auth") == token


def test_cookie_is_ignored_without_a_configured_name() -> None:
    assert token_of_upgrade({"cookie": ["auth=c; =d"]}, "") is None
