"""Where a client's token is found: in CONNECT, in the upgrade's ``Authorization``, in a cookie; the first there counts.

The order: ``Authorization: Bearer`` in CONNECT, ``passcode``, ``Authorization: Bearer`` of the upgrade, the cookie. A
token that is there and wrong refuses the client: no other is tried. Another scheme than Bearer is not for us (a proxy
may use it), and what is empty is not there. Whether a token is right is not known here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from airy_trio.stomp.requests import Connect

NOBODYS: Final = ""
"""Stands for what is there and cannot be a token, such as two of them: nobody has it."""

_SCHEME: Final = re.compile(r"[ \t]*bearer(?:[ \t]+(.*))?", re.IGNORECASE | re.DOTALL)
_TOKEN: Final = re.compile(r"[!-~]+")

Headers = Mapping[str, Sequence[str]]
"""Of a request: the values of each by its name in lower case."""


def token_of_connect(request: Connect) -> str | None:
    """Give the token that CONNECT carries; None where there is none."""
    bearer = None if request.authorization is None else _bearer(request.authorization)
    return (request.passcode or None) if bearer is None else bearer


def token_of_upgrade(headers: Headers, cookie: str) -> str | None:
    """Give the token that an upgrade carries, in the header or the ``cookie`` of this name; None where there is none.

    Two of a kind are nobody's: which of them a proxy or a browser meant is not ours to guess.
    """
    bearers = [found for value in headers.get("authorization", ()) if (found := _bearer(value)) is not None]
    cookies = [found for value in headers.get("cookie", ()) if cookie for found in _cookies_named(cookie, value)]
    present = bearers or [one for one in cookies if one]
    return None if not present else present[0] if len(present) == 1 else NOBODYS


def _bearer(value: str) -> str | None:
    scheme = _SCHEME.fullmatch(value)
    text = "" if scheme is None else (scheme[1] or "").strip(" \t")
    if not text:
        return None
    return text if _TOKEN.fullmatch(text) else NOBODYS


def _cookies_named(name: str, header: str) -> list[str]:
    """The values of all cookies of a name (RFC 6265, section 4.2.1), which may stand in quotes."""
    values: list[str] = []
    for pair in header.split(";"):
        found, separator, value = pair.strip(" \t").partition("=")
        if separator and found == name:
            values.append(value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value)
    return values
