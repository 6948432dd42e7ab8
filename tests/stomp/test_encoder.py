"""Encoded frames decode to the same frames; frames that a client could not read are rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.stomp.codec import EOL, NUL, encode, header, message_head, message_prefix, plain
from airy_trio.stomp.errors import LocalProtocolError
from airy_trio.stomp.frames import Frame, Version
from tests.stomp.dialogue import VERSIONS, read

UNWRITABLE = {Version.V1_0: "\0\r\n", Version.V1_1: "\0\r", Version.V1_2: "\0"}
COMMANDS = ["SEND", "MESSAGE", "SUBSCRIBE", "ERROR", "CONNECT", "STOMP", "CONNECTED"]


def test_frame_is_command_headers_blank_line_body_nul() -> None:
    frame = Frame("MESSAGE", (("destination", "/events"), ("content-length", "2")), b"{}")
    assert encode(frame, Version.V1_2) == b"MESSAGE\ndestination:/events\ncontent-length:2\n\n{}\0"


def test_headers_are_escaped_by_the_version() -> None:
    frame = Frame("RECEIPT", (("receipt-id", "a:b\\c"),))
    assert encode(frame, Version.V1_0) == b"RECEIPT\nreceipt-id:a:b\\c\n\n\0"
    assert encode(frame, Version.V1_1) == b"RECEIPT\nreceipt-id:a\\cb\\\\c\n\n\0"
    assert encode(frame, Version.V1_2) == b"RECEIPT\nreceipt-id:a\\cb\\\\c\n\n\0"
    assert encode(frame, None) == b"RECEIPT\nreceipt-id:a:b\\c\n\n\0"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", ["CONNECT", "STOMP", "CONNECTED"])
def test_the_opening_frames_are_never_escaped(version: Version, command: str) -> None:
    frame = Frame(command, (("host", "a:b\\c"),))
    assert encode(frame, version) == f"{command}\nhost:a:b\\c\n\n\0".encode()
    with pytest.raises(LocalProtocolError):
        encode(Frame(command, (("host", "a\nb"),)), version)


@pytest.mark.parametrize("command", ["", "A B", "A\nB", "A\0", "Ä", "A\r"])
def test_invalid_command_is_rejected(command: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode(Frame(command), Version.V1_2)


@pytest.mark.parametrize(
    "name, version",
    [("", Version.V1_2), ("", Version.V1_0), ("a:b", Version.V1_0), ("a:b", None), ("a\0", Version.V1_2)],
)
def test_invalid_header_name_is_rejected(name: str, version: Version | None) -> None:
    with pytest.raises(LocalProtocolError):
        header(name, "x", version)


def test_name_is_escaped_if_the_version_can() -> None:
    assert header("a:b", "c", Version.V1_1) == b"a\\cb:c\n"


@pytest.mark.parametrize(
    "headers, body",
    [((), b"a\0b"), ((("content-length", "2"),), b"a"), ((("content-length", "2"), ("content-length", "1")), b"a")],
)
def test_body_of_another_length_is_rejected(headers: tuple[tuple[str, str], ...], body: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        encode(Frame("MESSAGE", headers, body), Version.V1_2)


@given(data=st.data(), version=st.sampled_from(VERSIONS), command=st.sampled_from(COMMANDS))
def test_encode_then_decode_is_identity(data: st.DataObject, version: Version, command: str) -> None:
    raw = command in {"CONNECT", "STOMP", "CONNECTED"}
    unwritable = "\0\r\n" if raw else UNWRITABLE[version]
    characters = st.one_of(st.sampled_from(":\\ncr \n\r"), st.characters(exclude_categories=["Cs"]))
    values = st.text(characters.filter(lambda c: c not in unwritable))
    names = values.filter(lambda n: n not in {"", "content-length"})
    if raw or version is Version.V1_0:
        names = names.map(lambda n: n.replace(":", "")).filter(lambda n: n not in {"", "content-length"})
    if version is Version.V1_0 and not raw:
        values = values.map(lambda v: v.strip(" \t"))
    headers = data.draw(st.lists(st.tuples(names, values), max_size=5))
    body = data.draw(st.binary(max_size=20))
    if b"\0" in body or data.draw(st.booleans()):
        headers.insert(data.draw(st.integers(0, len(headers))), ("content-length", str(len(body))))
    frame = Frame(command, tuple(headers), body)
    assert read(encode(frame, version), version) == frame


def test_the_parts_of_a_message_make_one() -> None:
    body = b'{"a":1}'
    written = (
        message_prefix(Version.V1_2, "/events", "sub:0")
        + message_head("k7f3q9-12", len(body), truncated=False)
        + header("ack", "7.k7f3q9-12", Version.V1_2)
        + header("resume", "resumed", Version.V1_2)
        + EOL
        + body
        + NUL
    )
    assert written == (
        b"MESSAGE\ndestination:/events\nsubscription:sub\\c0\nmessage-id:k7f3q9-12\ncontent-type:application/json\n"
        b'content-length:7\nack:7.k7f3q9-12\nresume:resumed\n\n{"a":1}\0'
    )
    assert read(written).get("subscription") == "sub:0"


def test_a_subscription_without_id_has_no_such_header() -> None:
    assert message_prefix(Version.V1_0, "/events", None) == b"MESSAGE\ndestination:/events\n"


def test_an_empty_id_is_an_id() -> None:
    assert message_prefix(Version.V1_1, "/events", "") == b"MESSAGE\ndestination:/events\nsubscription:\n"


def test_truncated_header_follows_the_length() -> None:
    assert message_head("k7f3q9-1", 5, truncated=True).endswith(b"\ncontent-length:5\ntruncated:true\n")


@pytest.mark.parametrize("value", ["401-unauthorized", "application/json", "airy-trio/0.1.0", "1.0,1.1,1.2", "!", "~"])
def test_plain_values_pass(value: str) -> None:
    assert plain(value) == value


@pytest.mark.parametrize("value", ["", "a b", "a:b", "a\\b", "ä", "a\n", "\x7f", "a\t"])
def test_values_that_some_client_cannot_read_are_refused(value: str) -> None:
    with pytest.raises(LocalProtocolError):
        plain(value)
