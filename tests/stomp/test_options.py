"""Limits of a connection: smaller before CONNECT, and enough for a token."""

import attrs
import pytest

from airy_trio.options import NotAllowedError
from airy_trio.sessions.conversation import SessionOptions
from airy_trio.stomp.codec import Limits
from airy_trio.stomp.connection import Connection, ConnectionOptions
from airy_trio.stomp.errors import LocalProtocolError
from tests.stomp.dialogue import options

LIMITS = [one.name for one in attrs.fields(ConnectionOptions) if one.type is int and one.name != "heartbeat_ms"]


def test_limits_before_connect_are_smaller() -> None:
    before, after = options().limits_before_connect, options().limits
    for name, value in attrs.asdict(before).items():
        assert value < getattr(after, name)


def test_limits_before_connect_never_exceed_those_after() -> None:
    with pytest.raises(NotAllowedError):
        SessionOptions(frame_bytes_max=4095)
    after = attrs.asdict(Limits(frame_bytes_max=SessionOptions(frame_bytes_max=4096).frame_bytes_max))
    assert all(value <= after[name] for name, value in attrs.asdict(options().limits_before_connect).items())


def test_a_bearer_token_of_two_kibibytes_fits_into_connect() -> None:
    assert options().limits_before_connect.header_line_bytes_max > 2048 + len("Authorization:Bearer ")


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_at_least_one(name: str) -> None:
    assert getattr(options(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=name):
        options(**{name: 0})


@pytest.mark.parametrize("name", [one.name for one in attrs.fields(Limits)])
def test_a_limit_of_a_frame_is_at_least_one(name: str) -> None:
    assert getattr(Limits(**{name: 1}), name) == 1
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


def test_no_heart_beats_may_be_offered() -> None:
    assert options(heartbeat_ms=0).heartbeat_ms == 0
    with pytest.raises(ValueError, match="heartbeat_ms"):
        options(heartbeat_ms=-1)


@pytest.mark.parametrize("name", ["a b", "", "a:b"])
def test_our_names_must_be_plain(name: str) -> None:
    with pytest.raises(LocalProtocolError):
        ConnectionOptions(server=name)
    with pytest.raises(LocalProtocolError):
        Connection(options(), name)
