"""The head of an HTTP request: what is accepted, what is refused, and that nothing is ambiguous."""

import time
from collections.abc import Mapping

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airy_trio.websocket.request import (
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    SUBPROTOCOLS_MAX,
    Request,
    RequestRefusedError,
    read_head,
    upgrade_in,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = {
    "Host": "localhost:8080",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(
    *more: str, line: str = "GET /ws.communication HTTP/1.1", changed: Mapping[str, str | None] | None = None
) -> bytes:
    """Return a request for a WebSocket with headers changed (None: omitted) and more lines."""
    headers = {**HEADERS, **(changed or {})}
    lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value is not None), *more, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def read(data: bytes) -> Request:
    request = read_head(data)
    assert request is not None
    return request


def refused(data: bytes) -> int:
    with pytest.raises(RequestRefusedError) as caught:
        upgrade_in(read(data))
    return caught.value.status.value


def test_a_request_for_a_websocket_is_read() -> None:
    request = read(
        head("Cookie: a=b", "X-Forwarded-For: 192.0.2.1", "x-forwarded-for:192.0.2.2  ", line="GET /a?b=c#d HTTP/1.1")
    )
    assert (request.method, request.path) == ("GET", "/a")
    assert request.headers["x-forwarded-for"] == ("192.0.2.1", "192.0.2.2")
    assert "a=b" not in repr(request)
    upgrade = upgrade_in(
        read(head("Origin: http://x", "Sec-WebSocket-Protocol: v12.stomp, v11.stomp", "sec-websocket-protocol: z"))
    )
    assert (upgrade.host, upgrade.origin, upgrade.key) == ("localhost:8080", "http://x", KEY)
    assert upgrade.subprotocols == ("v12.stomp", "v11.stomp", "z")


def test_a_head_may_be_cut_anywhere() -> None:
    whole = head("Origin: http://x")
    assert [read_head(whole[:cut]) for cut in range(1, len(whole))] == [None] * (len(whole) - 1)
    assert read_head(whole) is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "UPGRADE"},
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
        {"Content-Length": "0"},
    ],
    ids=str,
)
def test_requests_of_real_clients_are_accepted(changed: dict[str, str | None]) -> None:
    assert upgrade_in(read(head(changed=changed))).key == KEY


LINES = [
    "GET  /ws.communication HTTP/1.1", "GET /ws.communication HTTP/1.0", "GET /ws.communication HTTP/2.0",
    "GET /ws.communication HTTP/1.1 ", "GET /ws.communication", "GET http://localhost/ws.communication HTTP/1.1",
    "GET * HTTP/1.1", "GET /\xe4 HTTP/1.1", "GET /a b HTTP/1.1", "G(T / HTTP/1.1", " GET / HTTP/1.1", "",
    "PRI * HTTP/2.0", "\x16\x03\x01\x02\x00", "get\t/ HTTP/1.1", "GET /ws.communication http/1.1",
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_malformed_request_line_is_refused(line: str) -> None:
    assert refused(head(line=line)) == 400


@pytest.mark.parametrize("line", LINES)
def test_malformed_request_line_is_refused_before_the_head_ends(line: str) -> None:
    with pytest.raises(RequestRefusedError):
        read_head(line.encode("latin-1") + b"\r\nHost: x\r\n")


@pytest.mark.parametrize(
    "more, status",
    [
        (["Host: other"], 400),
        (["Origin: http://a", "Origin: http://b"], 400),
        ([f"Sec-WebSocket-Key: {KEY}"], 400),
        (["Sec-WebSocket-Version: 13"], 400),
        (["Sec-WebSocket-Protocol: v12.stomp, \xfc"], 400),
        (["Sec-WebSocket-Protocol: " + ",".join(["a"] * SUBPROTOCOLS_MAX)], 0),
        (["Sec-WebSocket-Protocol: " + ",".join(["a"] * (SUBPROTOCOLS_MAX + 1))], 400),
        (["Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: identity", "Content-Length: 0"], 400),
        (["Content-Length: 5"], 400),
        (["Content-Length: 0", "Content-Length: 5"], 400),
        (["Content-Length: 0, 0"], 400),
        (["Content-Length: +0"], 400),
        (["X : a"], 400),
        ([" folded: a"], 400),
        (["\tfolded"], 400),
        (["no colon"], 400),
        ([": no name"], 400),
        (["X: a\x00b"], 400),
        (["X: a\x7fb"], 400),
        (["X: a\nHost: b"], 400),
        (["X: a\rHost: b"], 400),
        (["X\xe4: a"], 400),
        (["X: \xe4\tb"], 0),
        (["X:"], 0),
        (["X: a"] * (HEADERS_MAX - len(HEADERS)), 0),
        (["X: a"] * (HEADERS_MAX + 1 - len(HEADERS)), 431),
    ],
)
def test_headers(more: list[str], status: int) -> None:
    if status:
        assert refused(head(*more)) == status
    else:
        assert upgrade_in(read(head(*more))).key == KEY


@pytest.mark.parametrize(
    "changed, status",
    [
        ({"Host": None}, 400),
        ({"Upgrade": None}, 400),
        ({"Upgrade": "h2c"}, 400),
        ({"Connection": None}, 400),
        ({"Connection": "keep-alive"}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
        ({"Sec-WebSocket-Key": "dGhl"}, 400),
        ({"Sec-WebSocket-Key": KEY + "AAAA"}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZ!=="}, 400),
        ({"Sec-WebSocket-Key": "\xe4GhlIHNhbXBsZSBub25jZQ=="}, 400),
        ({"Sec-WebSocket-Version": None}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": "13, 8"}, 426),
    ],
    ids=str,
)
def test_request_that_is_not_for_a_websocket_is_refused(changed: dict[str, str | None], status: int) -> None:
    assert refused(head(changed=changed)) == status


def test_the_answer_to_another_version_names_ours() -> None:
    with pytest.raises(RequestRefusedError) as caught:
        upgrade_in(read(head(changed={"Sec-WebSocket-Version": "8"})))
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in caught.value.answer()


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "CONNECT", "DELETE"])
def test_other_methods_are_refused(method: str) -> None:
    assert refused(head(line=f"{method} /ws.communication HTTP/1.1")) == 400


@pytest.mark.parametrize("rest", [b"abc", b"\x81\x80\x00\x00\x00\x00", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_nothing_may_follow_the_request(rest: bytes) -> None:
    assert refused(head() + rest) == 400


def test_the_head_has_a_limit() -> None:
    longest = HEAD_BYTES_MAX - len(head("X: "))
    assert read(head(f"X: {'x' * longest}")).headers["x"] == ("x" * longest,)
    with pytest.raises(RequestRefusedError) as caught:
        read_head(head(f"X: {'x' * (longest + 1)}"))
    assert caught.value.status.value == 431
    with pytest.raises(RequestRefusedError) as caught:
        read_head(b"GET /" + b"x" * HEAD_BYTES_MAX)
    assert caught.value.status.value == 431
    assert read_head(b"GET /" + b"x" * (HEAD_BYTES_MAX - 6)) is None


def answer(data: bytes, seen: int = 0) -> Request | int | None:
    try:
        return read_head(data, seen)
    except RequestRefusedError as refused:
        return refused.status.value


@given(
    st.lists(st.sampled_from([b"GET / HTTP/1.1", b"\r", b"\n", b"\r\n", b"Host: x", b"a", b" "]), max_size=12).map(
        b"".join
    )
)
def test_octet_by_octet_reads_the_same(data: bytes) -> None:
    for count in range(1, len(data) + 1):
        found = answer(data[:count], count - 1)
        assert found == answer(data[:count])
        if found is not None:
            break


def test_octet_by_octet_has_linear_cost() -> None:
    def cost_s(length: int) -> float:
        data = bytearray()
        begun_at = time.thread_time()
        for octet in head(f"X: {'x' * length}")[:-4]:
            data.append(octet)
            assert read_head(data, len(data) - 1) is None
        return time.thread_time() - begun_at

    short_s, long_s = (min(cost_s(length) for _ in range(3)) for length in (1_000, HEAD_BYTES_MAX - 400))
    assert long_s < 3 * short_s * HEAD_BYTES_MAX / 1_000


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\nHost: x\n\n", b"GET / HTTP/1.1\r\nHost: x\n\n", b"\r\n", b"\x00"])
def test_hopeless_request_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(RequestRefusedError):
        read_head(data)


def test_answer_is_a_complete_response() -> None:
    with pytest.raises(RequestRefusedError) as caught:
        read_head(b"\x00")
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(caught.value.answer())
    reader.receive_data(b"")
    events = []
    while not isinstance(event := reader.next_event(), h11.ConnectionClosed):
        assert event is not h11.NEED_DATA
        events.append(event)
    assert [type(one) for one in events] == [h11.Response, h11.Data, h11.EndOfMessage]


PIECES = st.sampled_from([
    "GET ", "/a", " HTTP/1.1", "\r\n", "\n", "\r", ":", " ", "\t", ",", "Host", "host: x", "X: y", "Content-Length: 3",
    "Transfer-Encoding: chunked", "Upgrade: websocket", "\x00", "\xe9", "\x7f", "/", "POST", "HTTP/1.0", "\x0b", "\x0c",
])  # fmt: skip


@given(st.lists(PIECES, max_size=30).map("".join), st.booleans())
def test_accepted_request_reads_the_same_in_h11(text: str, begun: bool) -> None:
    data = (("GET /a HTTP/1.1\r\nHost: x\r\n" if begun else "") + text + "\r\n\r\n").encode("latin-1")
    try:
        request = read_head(data)
    except RequestRefusedError:
        return
    assert request is not None
    if "host" not in request.headers or len(request.headers["host"]) > 1 or "transfer-encoding" in request.headers:
        return  # refused by ``upgrade_in``, and by h11
    if request.headers.get("content-length", ("0",)) != ("0",):
        return
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(data)
    other = reader.next_event()
    assert isinstance(other, h11.Request)
    assert other.method.decode() == request.method
    assert other.target.decode().partition("?")[0] == request.path
    named: dict[str, tuple[str, ...]] = {}
    for name, value in other.headers:
        named[name.decode()] = (*named.get(name.decode(), ()), value.decode("latin-1"))
    assert named == request.headers
