"""WebSocket as hostile and broken clients write it, octet by octet, and the answers of the endpoint: a table.

RFC 6455, sections 5 to 8. The cases cover as much as the client cases of the Autobahn test suite, and their names
follow its chapters. Every case is a connection of its own over a real socket. A case without a violation ends with our
own Close frame, which must be answered with its code.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import pytest
import trio
import trio.testing
from attrs import field, frozen
from structlog.testing import capture_logs

from airy_trio.sessions.listener import ListenerOptions
from tests.sessions.serving import HOST, Server, serving
from tests.websocket.test_request import head

FRAME_BYTES_MAX: Final = ListenerOptions().frame_bytes_max
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK: Final = b"\x37\xfa\x21\x3d"
ASK: Final = b"UNSUBSCRIBE\nid:9\nreceipt:r\n\n\x00"
"""A STOMP frame that is answered by one RECEIPT."""
CONNECT: Final = b"CONNECT\naccept-version:1.2\n\n\x00"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length: bytes | None = None,
) -> bytes:
    """Return a frame of a client. ``length``: the octets of its length, if not the shortest form."""
    size = len(payload)
    if length is None:
        length = (
            bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65_536 else b"\x7f" + size.to_bytes(8)
        )
    first = bytes([fin << 7 | rsv << 4 | opcode, length[0] | (mask is not None) << 7]) + length[1:]
    if mask is None:
        return first + payload
    masks = (mask * (size // 4 + 1))[:size]
    return first + mask + (int.from_bytes(payload) ^ int.from_bytes(masks)).to_bytes(size)


def ask(size: int) -> bytes:
    """Return the request with line ends before it, which are noise in STOMP, up to a size in octets."""
    return b"\n" * (size - len(ASK)) + ASK


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def ask_with(text: bytes) -> bytes:
    """Return the request with a header of this text."""
    return ASK.replace(b"\n\n", b"\nx:" + text + b"\n\n")


def cut(payload: bytes, *at: int, opcode: int = TEXT) -> list[bytes]:
    """Return a message in fragments, cut at these places."""
    parts = [payload[start:end] for start, end in pairwise((0, *at, len(payload)))]
    last = len(parts) - 1
    return [
        frame(opcode if not number else CONTINUATION, part, fin=number == last) for number, part in enumerate(parts)
    ]


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2) + reason)


@frozen
class Case:
    """``sent``: pieces that arrive separately. ``answers``: before the Close frame; None: any.

    ``code`` and ``reason``: those of the Close frame; None: no code, or any reason. The code is 1000 if the case ends
    with our own Close frame.
    """

    name: str
    sent: Sequence[bytes]
    answers: Sequence[bytes | str] | None = ()
    code: int | None = 1002
    reason: bytes | None = field(default=None)


RECEIPT: Final = "RECEIPT"


def works(name: str, sent: Sequence[bytes], *answers: bytes | str) -> Case:
    return Case(name, [*sent, close(1000)], answers, 1000)


def sizes() -> Iterator[Case]:
    for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
        for size in (125, 126, 127, 128, 1000, 65_535, FRAME_BYTES_MAX):
            yield works(f"1 {kind} of {size}", [frame(opcode, ask(size))], RECEIPT)
        yield works(f"1 {kind} of 0", [frame(opcode), frame(opcode, ASK)], RECEIPT)
        yield works(f"1 {kind} of {FRAME_BYTES_MAX} in pieces of 997",
                    pieces(frame(opcode, ask(FRAME_BYTES_MAX)), 997), RECEIPT)  # fmt: skip
        yield Case(f"9 {kind} of {FRAME_BYTES_MAX + 1}", [frame(opcode, ask(FRAME_BYTES_MAX + 1))], code=1009)
        yield Case(f"9 {kind} of {FRAME_BYTES_MAX + 1} in fragments",
                   cut(ask(FRAME_BYTES_MAX + 1), 30_000, 60_000, opcode=opcode), code=1009)  # fmt: skip
        yield Case(f"9 {kind} that says it is of 2^62",
                   [frame(opcode, b"\n" * 70_000, length=b"\x7f" + (1 << 62).to_bytes(8))], code=1009)  # fmt: skip


def limits() -> Iterator[Case]:
    """Yield Autobahn's chapters 9 and 10, up to the limit of a frame: in fragments, in pieces, and many messages."""
    whole = ask(FRAME_BYTES_MAX)
    for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
        for size in (64, 256, 1024, 1300, 4096, 16_384):
            parts = cut(whole, *range(size, FRAME_BYTES_MAX, size), opcode=opcode)
            yield works(f"9 {kind} of {FRAME_BYTES_MAX} in fragments of {size}", [b"".join(parts)], RECEIPT)
        for size in (1024, 2048, 8192, 32_768):
            yield works(f"9 {kind} of {FRAME_BYTES_MAX} in pieces of {size}",
                        pieces(frame(opcode, whole), size), RECEIPT)  # fmt: skip
        for size in (0, 16, 64, 256, 1024):
            many = frame(opcode, b"\n" * size) * 300
            yield works(f"9 three hundred {kind}s of {size}", [many, frame(opcode, ASK)], RECEIPT)
        yield works(f"9 two hundred {kind}s that are answered", [frame(opcode, ASK) * 200], *[RECEIPT] * 200)
    yield works(f"9 message of {FRAME_BYTES_MAX}, then a ping", [frame(TEXT, whole), frame(PING, b"p")], RECEIPT, b"p")


def pings() -> Iterator[Case]:
    for size in (0, 1, 8, 124, 125):
        payload = bytes(range(size))
        yield works(f"2 ping of {size}", [frame(PING, payload)], payload)
    yield works("2 ping of octets that are no text", [frame(PING, b"\xfe\xff\x00")], b"\xfe\xff\x00")
    yield Case("2 ping of 126", [frame(PING, bytes(126))])
    yield Case("2 ping of 65536", [frame(PING, bytes(65_536))])
    yield works("2 ping octet by octet", [bytes([octet]) for octet in frame(PING, b"abc")], b"abc")
    yield works(
        "2 ten pings octet by octet",
        [bytes([octet]) for n in range(10) for octet in frame(PING, b"%d" % n)],
        *(b"%d" % n for n in range(10)),
    )
    yield works(
        "2 ten pings at once", [b"".join(frame(PING, b"%d" % n) for n in range(10))], *(b"%d" % n for n in range(10))
    )
    yield works("2 a hundred pings at once", [frame(PING, b"x") * 100], *[b"x"] * 100)
    yield works("2 pong without a ping", [frame(PONG), frame(PONG, b"abc"), frame(PING, b"p")], b"p")
    yield Case("2 pong of 126", [frame(PONG, bytes(126))])


def reserved() -> Iterator[Case]:
    for rsv in range(1, 8):
        for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
            yield Case(
                f"3 reserved bits {rsv:03b} in opcode {opcode}",
                [frame(opcode, ASK if opcode < CLOSE else b"", rsv=rsv)],
            )
    yield Case("3 reserved bits after a message", [frame(TEXT, ASK), frame(TEXT, ASK, rsv=4), frame(PING)], [RECEIPT])
    yield Case(
        "3 reserved bits in a continuation", [frame(TEXT, ASK[:5], fin=False), frame(CONTINUATION, ASK[5:], rsv=4)]
    )
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        for payload in (b"", b"abc"):
            yield Case(f"4 opcode {opcode} of {len(payload)}", [frame(opcode, payload)])
        yield Case(f"4 opcode {opcode} after a message", [frame(TEXT, ASK) + frame(opcode) + frame(PING)], [RECEIPT])


def fragments() -> Iterator[Case]:
    for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
        for at in range(1, len(ASK)):
            yield works(f"5 {kind} in two at {at}", cut(ASK, at, opcode=opcode), RECEIPT)
        yield works(f"5 {kind} octet by octet", cut(ASK, *range(1, len(ASK)), opcode=opcode), RECEIPT)
        yield works(f"5 {kind} with empty fragments", cut(ASK, 0, 5, 5, 5, len(ASK), opcode=opcode), RECEIPT)
        yield works(f"5 {kind} all at once", [b"".join(cut(ASK, 5, 9, opcode=opcode))], RECEIPT)
    first, second, third = cut(ASK, 5, 9)
    yield works("5 ping between", [first, frame(PING, b"p"), second, frame(PING, b"q"), third], b"p", b"q", RECEIPT)
    yield works("5 pong between", [first, frame(PONG, b"p"), second, third], RECEIPT)
    yield works("5 ping between, all at once", [first + frame(PING, b"p") + second + third], b"p", RECEIPT)
    yield Case("5 close between", [first, close(1000), second], code=1000)
    yield Case("5 fragmented ping", [frame(PING, b"a", fin=False), frame(CONTINUATION, b"b")])
    yield Case("5 fragmented pong", [frame(PONG, b"a", fin=False), frame(CONTINUATION, b"b")])
    yield Case("5 fragmented close", [frame(CLOSE, b"\x03", fin=False), frame(CONTINUATION, b"\xe8")])
    yield Case("5 fragmented ping between", [first, frame(PING, b"a", fin=False), second])
    yield Case("5 continuation of nothing", [frame(CONTINUATION, ASK)])
    yield Case("5 continuation of nothing, unfinished", [frame(CONTINUATION, ASK, fin=False), frame(CONTINUATION)])
    rest = [frame(CONTINUATION, b"x", fin=False), frame(TEXT, ASK)]
    yield Case("5 unfinished continuation after a message in two", [*cut(ASK, 5), *rest], [RECEIPT])
    yield Case("5 the same, all at once", [b"".join([*cut(ASK, 5), *rest])], [RECEIPT])
    nothing = [frame(CONTINUATION, b"x", fin=False), frame(TEXT, ASK), frame(CONTINUATION, b"x")]
    yield Case("5 continuation of nothing, again and again", nothing * 3)
    pinged = [first, second, frame(PING, b"p"), third, frame(PING, b"q"), *cut(ASK, 5, 9)]
    yield works("5 two messages with pings between their fragments", pinged, b"p", RECEIPT, b"q", RECEIPT)
    yield works("5 message between empty ones", [frame(TEXT), *cut(b"\n", 0, 1), *cut(ASK, 5), frame(BINARY)], RECEIPT)
    yield Case("5 continuation after the end", [frame(TEXT, ASK), frame(CONTINUATION, ASK)], [RECEIPT])
    for opcode, kind in ((TEXT, "text"), (BINARY, "binary")):
        yield Case(f"5 {kind} within text", [first, frame(opcode, ASK)])
        yield Case(f"5 {kind} begun within text", [first, frame(opcode, b"a", fin=False)])


VALID: Final = (
    "κόσμε",
    "\x01",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
    *(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)),
    "\ufdd0\ufdef",
)
INVALID: Final = (
    b"\x80", b"\xbf", b"\xc0", b"\xc0\xaf", b"\xc1\xbf", b"\xc2", b"\xe0\x80\xaf", b"\xe0\x9f\xbf", b"\xe2\x82",
    b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80", b"\xf0\x80\x80\xaf", b"\xf0\x8f\xbf\xbf",
    b"\xf0\x9f",
    b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80", b"\xfe", b"\xff",
)  # fmt: skip
MORE_INVALID: Final = (
    *(b"\x80\xbf\x80\xbf\x80\xbf\x80"[:size] for size in range(2, 8)),  # continuations of nothing
    bytes(range(0x80, 0xC0)),
    *(bytes([lead]) + b" " for lead in range(0xC0, 0x100)),  # beginnings of nothing
    b"\xdf ", b"\xef\xbf ", b"\xf7\xbf\xbf ", b"\xfb\xbf\xbf\xbf ", b"\xfd\xbf\xbf\xbf\xbf ",  # unfinished
    b"\xc0 \xe0\x80 \xf0\x80\x80 \xf8\x80\x80\x80 ",
    b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf",  # the last of each length
    b"\xfe\xfe\xff\xff",
    b"\xc1\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf",  # overlong
    b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80",
    b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf", b"\xed\xbe\x80",  # surrogates, alone and in pairs
    b"\xed\xa0\x80\xed\xbf\xbf", b"\xed\xad\xbf\xed\xb0\x80", b"\xed\xae\x80\xed\xbf\xbf", b"\xed\xaf\xbf\xed\xb0\x80",
)  # fmt: skip
PREFIX: Final = b"UNSUBSCRIBE\nid:9\nx:\xce\xba"


def texts() -> Iterator[Case]:
    for number, text in enumerate(VALID):
        message = ask_with(text.encode())
        yield works(f"6 valid {number} {text!a}", [frame(TEXT, message)], RECEIPT)
    for number, octets in enumerate(INVALID):
        yield Case(f"6 invalid {number} {octets!r}", [frame(TEXT, ask_with(octets))], code=1007)
        yield Case(f"6 invalid {number} at the end", [frame(TEXT, PREFIX + octets)], code=1007)
        if octets[:1] not in {b"\xc2", b"\xe2", b"\xf0"} or len(octets) > 2:  # others are only unfinished yet
            first = frame(TEXT, PREFIX + octets, fin=False)
            yield Case(f"6 invalid {number} is reported before its message ends", [first], code=1007)
    for number, octets in enumerate(MORE_INVALID):
        yield Case(f"6 more invalid {number} {octets!r}", [frame(TEXT, ask_with(octets))], code=1007)
    begun = frame(TEXT, PREFIX + b"\xf4\x90\x80\x80" + b"y" * 100)[:-100]
    yield Case("6 invalid is reported before its frame ends", [begun], code=1007)
    yield Case("6 invalid is reported before its frame ends, octet by octet", pieces(begun, 1), code=1007)
    for end in range(1, len("κόσμε".encode()) + 1):
        beginning = "κόσμε".encode()[:end]
        whole = beginning.decode(errors="ignore").encode() == beginning
        sent = [frame(TEXT, PREFIX + beginning), frame(TEXT, b"\nreceipt:r\n\n\x00")]
        yield works(f"6 valid up to {end}", sent, RECEIPT) if whole else Case(f"6 cut off at {end}", sent, code=1007)
    yield Case("6 invalid in what follows a valid message", [frame(TEXT, ASK), frame(TEXT, b"\xff")], [RECEIPT], 1007)
    yield Case("6 invalid in binary is STOMP's to refuse", [frame(BINARY, ask_with(b"\xff"))], ["ERROR"], 1002)


def texts_in_pieces() -> Iterator[Case]:
    """Yield texts that arrive in two fragments or octet by octet. They test only the reader of frames."""
    for number, text in enumerate(VALID):
        message = ask_with(text.encode())
        yield works(f"6 valid {number} octet by octet", [bytes([octet]) for octet in frame(TEXT, message)], RECEIPT)
        for at in range(len(ask_with(b"")) - 3, len(message)):
            yield works(f"6 valid {number} cut at {at}", cut(message, at), RECEIPT)
    for number, octets in enumerate(INVALID):
        for at in range(1, len(octets)):
            yield Case(
                f"6 invalid {number} cut at {at}", cut(ask_with(octets), ask_with(octets).index(octets) + at), code=1007
            )
    for number, octets in enumerate(MORE_INVALID):
        yield Case(f"6 more invalid {number} in a fragment", cut(ask_with(octets), 3), code=1007)


def closes() -> Iterator[Case]:
    yield Case("7 close without a code", [frame(CLOSE)], code=None)
    yield Case("7 close with one octet", [frame(CLOSE, b"\x03")])
    for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999):
        yield Case(f"7 close with {code}", [close(code)], code=code)
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535):
        yield Case(f"7 close with {code}", [close(code)])
    yield Case("7 close with a reason", [close(1000, "κόσμε".encode())], code=1000, reason="κόσμε".encode())
    yield Case("7 close with a reason of 123", [close(4000, b"*" * 123)], code=4000, reason=b"*" * 123)
    yield Case("7 close with a reason of 124", [close(4000, b"*" * 124)])
    yield Case("7 close with a reason that is no text", [close(1000, b"\xce\xba\xff")], code=1007)
    yield Case("7 close with a reason cut in a character", [close(1000, b"\xce")], code=1007)
    yield Case("7 close twice", [close(1000) + close(1001)], code=1000)
    yield Case("7 message after close", [close(1000) + frame(TEXT, ASK)], code=1000)
    yield Case("7 ping after close", [close(1000) + frame(PING, b"p")], code=1000)
    yield Case("7 rubbish after close", [close(1000) + b"\xff" * 1000], code=1000)
    # A client that closes immediately does not wait for an answer, so any answer is accepted.
    yield Case("7 message before close, at once", [frame(TEXT, ASK) + close(1000)], None, 1000)


def lengths() -> Iterator[Case]:
    for opcode in (TEXT, BINARY, PING, CLOSE):
        for size in (0, 1, 125):
            yield Case(f"8 opcode {opcode} of {size} with the length in two octets",
                       [frame(opcode, bytes(size), length=b"\x7e" + size.to_bytes(2))])  # fmt: skip
        for size in (0, 125, 126, 65_535):
            yield Case(f"8 opcode {opcode} of {size} with the length in eight octets",
                       [frame(opcode, bytes(size), length=b"\x7f" + size.to_bytes(8))])  # fmt: skip
        yield Case(f"8 opcode {opcode} with the highest bit of the length",
                   [frame(opcode, b"abc", length=b"\x7f\x80" + bytes(7))])  # fmt: skip
        yield Case(f"8 opcode {opcode} without a mask", [frame(opcode, ASK, mask=None)])
    yield Case(
        "8 continuation without a mask", [frame(TEXT, ASK[:5], fin=False), frame(CONTINUATION, ASK[5:], mask=None)]
    )
    yield works("8 mask of nothing", [frame(TEXT, ASK, mask=bytes(4))], RECEIPT)
    yield Case("8 rubbish", [bytes(range(255, 0, -1))])
    yield Case("8 a request of HTTP", [head()])


CASES: Final = [*sizes(), *limits(), *pings(), *reserved(), *fragments(), *texts(), *closes(), *lengths()]


class Peer:
    """A raw socket, and the frames that come over it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._data = bytearray()

    async def upgrade(self) -> None:
        await self.stream.send_all(head())
        while b"\r\n\r\n" not in self._data:
            some = await self.stream.receive_some()
            assert some, bytes(self._data)
            self._data += some
        answer, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        self._data = bytearray(rest)

    async def connect(self) -> None:
        await self.upgrade()
        await self.stream.send_all(frame(TEXT, CONNECT))
        opcode, payload = await self.next()
        assert (opcode, payload[:9]) == (TEXT, b"CONNECTED")

    async def next(self) -> tuple[int, bytes]:
        """Return the next frame: its opcode and its payload."""
        first, size = await self._take(2)
        assert first & 0xF0 == 0x80  # final, nothing reserved
        assert size < 128  # not masked
        if size >= 126:
            size = int.from_bytes(await self._take(2 if size == 126 else 8))
        return first & 0x0F, await self._take(size)

    async def until_close(self) -> tuple[list[bytes | str], bytes]:
        """Return the frames before the Close frame, and its payload."""
        answers: list[bytes | str] = []
        while True:
            opcode, payload = await self.next()
            if opcode == CLOSE:
                break
            assert opcode in {TEXT, PONG}
            answers.append(payload if opcode == PONG else payload.partition(b"\n")[0].decode())
        return answers, payload

    async def end(self) -> bytes:
        """Return everything up to the end of the stream, which may be a reset."""
        try:
            while some := await self.stream.receive_some():
                self._data += some
        except trio.BrokenResourceError:
            pass
        return bytes(self._data)

    async def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            some = await self.stream.receive_some()
            assert some, "the stream has ended without a Close frame"
            self._data += some
        taken = bytes(self._data[:size])
        del self._data[:size]
        return taken


async def go_through(server: Server, case: Case) -> None:
    async with await trio.open_tcp_stream(HOST, server.port) as stream:
        peer = Peer(stream)
        await peer.connect()
        for piece in case.sent:
            try:
                await stream.send_all(piece)
            except trio.BrokenResourceError:  # it was refused before its end
                break
            await trio.testing.wait_all_tasks_blocked()
        answers, payload = await peer.until_close()
        assert case.answers is None or answers == list(case.answers)
        assert payload[:2] == (b"" if case.code is None else case.code.to_bytes(2))
        if case.reason is not None:
            assert payload[2:] == case.reason
        if case.code != 1000:
            await stream.send_all(close(1000))
        assert await peer.end() == b""


@pytest.mark.parametrize("chapter", ["1", "2", "3", "4", "5", "6", "7", "8", "9"])
async def test_every_case_is_answered_as_listed_without_harming_others(chapter: str) -> None:
    cases = [case for case in CASES if case.name.startswith(f"{chapter} ")]
    assert len({case.name for case in cases}) == len(cases)
    wrong: dict[str, str] = {}
    with capture_logs() as logs, trio.fail_after(50):
        async with serving() as server, await server.dial() as bystander:
            for case in cases:
                try:
                    with trio.fail_after(10):
                        await go_through(server, case)
                except (AssertionError, trio.TooSlowError, trio.BrokenResourceError) as error:
                    wrong[case.name] = repr(error)
            await bystander.subscribe()
            await server.append(1, 1)
            assert (await bystander.receive()).command == "MESSAGE"
            assert len(server.sessions.clients) == 1
    assert wrong == {}
    assert [line for line in logs if line["log_level"] in {"warning", "error"}] == []


REQUESTS: Final = [
    (head(line="GET /elsewhere HTTP/1.1"), 404),
    (head(line="GET /ws.communication/ HTTP/1.1"), 404),
    (head(line="GET /ws.communication%2f HTTP/1.1"), 404),
    (head(line="GET //ws.communication HTTP/1.1"), 404),
    (head(line="GET /../ws.communication HTTP/1.1"), 404),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    (b"GET /ws.communication HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    (head(line="POST /ws.communication HTTP/1.1"), 400),
    (head(line="HEAD /ws.communication HTTP/1.1"), 400),
    (head(line="GET /ws.communication HTTP/1.0"), 400),
    (head(line="GET /ws.communication HTTP/0.9"), 400),
    (head(line="GET /ws.communication HTTP/2.0"), 400),
    (head(line="GET http://localhost/ws.communication HTTP/1.1"), 400),
    (head(changed={"Sec-WebSocket-Version": "8"}), 426),
    (head(changed={"Sec-WebSocket-Version": "12"}), 426),
    (head(changed={"Sec-WebSocket-Version": None}), 400),
    (head(changed={"Sec-WebSocket-Key": "short"}), 400),
    (head(changed={"Sec-WebSocket-Key": None}), 400),
    (head(changed={"Upgrade": None}), 400),
    (head(changed={"Connection": "close"}), 400),
    (head(changed={"Host": None}), 400),
    (head("Host: other"), 400),
    (head("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400),
    (head("Origin: http://localhost:8080", "Origin: http://attacker.example"), 400),
    (head("Transfer-Encoding: chunked") + b"0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (head("Transfer-Encoding: chunked"), 400),
    (head("Content-Length: 5", "Transfer-Encoding: chunked") + b"hello", 400),
    (head("Content-Length: 5") + b"hello", 400),
    (head("Content-Length: 5"), 400),
    (head("Content-Length: 0", "Content-Length: 5") + b"hello", 400),
    (head("X: a\r\n folded"), 400),
    (head("X : a"), 400),
    (head("X: a\x00"), 400),
    (head().replace(b"\r\n", b"\n"), 400),
    (head() + head(), 400),
    (head() + frame(TEXT, CONNECT), 400),
    (head("Sec-WebSocket-Protocol: \xfc"), 400),
    (head(changed={"Host": "\xff.example"}), 400),
    (head(f"Cookie: {'x' * 20_000}"), 431),
    (head(line=f"GET /{'x' * 70_000} HTTP/1.1"), 431),
    (head(*(f"X-{number}: a" for number in range(200))), 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"\x00" * 100, 400),
    (b"\xff" * 100, 400),
    (b"\r\n\r\n", 400),
    (b"CONNECT\naccept-version:1.2\n\n\x00", 400),
    (head(line="GET /ws.communication?a=b HTTP/1.1"), 101),
    (head("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-unknown"), 101),
    (head("Sec-WebSocket-Protocol: chat"), 101),
]


async def test_every_request_is_answered_as_listed_and_its_connection_ends() -> None:
    wrong: dict[bytes, int] = {}
    with capture_logs() as logs, trio.fail_after(50):
        async with serving() as server:
            for request, status in REQUESTS:
                async with await trio.open_tcp_stream(HOST, server.port) as stream:
                    await stream.send_all(request)
                    answer = bytes(await stream.receive_some())
                    found = int(answer.split(b" ")[1])
                    agreed = b"extensions" in answer.lower()  # nothing is compressed, even if the client offers it
                    empty = request.startswith(b"HEAD ") or status == 101
                    if (
                        found != status
                        or answer.count(b"\nHTTP/1.1 ")
                        or agreed
                        or answer.endswith(b"\r\n\r\n") != empty
                    ):
                        wrong[request] = found
                    if status != 101:
                        assert await Peer(stream).end() == b"", request
            await server.ended()
    assert wrong == {}
    assert [line for line in logs if line["log_level"] in {"warning", "error"}] == []


async def test_slow_request_is_cut_with_the_connect_timeout() -> None:
    async with (
        serving(options=ListenerOptions(port=0, connect_timeout_s=0.5)) as server,
        await trio.open_tcp_stream(HOST, server.port) as stream,
    ):
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await drip(stream, head("X: " + "x" * 5000))
        await server.ended()
        assert server.sessions.disconnects["silent"] == 1


async def drip(stream: trio.SocketStream, data: bytes) -> None:
    for octet in data:
        await stream.send_all(bytes([octet]))
        await trio.sleep(0.01)
