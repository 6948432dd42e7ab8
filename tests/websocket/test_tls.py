"""The TLS transport: when it encrypts, its answers, its end, and peers that do not speak TLS.

``test_transport`` tests the properties that it shares with the others.
"""

import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from airy_trio.websocket import tls
from airy_trio.websocket.tls import EMPTY_RECORDS_MAX, RECORD_BYTES_MAX, TlsTransport
from airy_trio.websocket.transport import HandshakeError
from tests.certificates import issue
from tests.memory_transport import MemoryTransport
from tests.websocket.records import CLIENT_HELLO, KEY_UPDATE, Kind, Peer, split

LARGE = bytes(range(256)) * 1024
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
NAMES = ["TLS 1.2", "TLS 1.3"]


class Octets(MemoryTransport):
    """A transport whose input arrives octet by octet."""

    def __init__(self) -> None:
        super().__init__()
        self._came = b""

    async def receive_some(self, bytes_max: int) -> bytes:
        if not self._came:
            self._came = await super().receive_some(bytes_max)
        octet, self._came = self._came[:1], self._came[1:]
        return octet


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    files = issue(tmp_path_factory.mktemp("tls"))
    return tls.load(str(files.certificate), str(files.key)).context


@contextmanager
def limited() -> Generator[None]:
    with trio.fail_after(10):
        yield


def is_pending(transport: TlsTransport) -> bool:
    """Return whether data is pending, from a function: the type checker assumes that the property does not change."""
    return transport.pending


async def meet(
    context: ssl.SSLContext, below: MemoryTransport, version: ssl.TLSVersion | None = None, keys: Path | None = None
) -> tuple[TlsTransport, Peer]:
    """Return a transport over another one, and its peer, after their handshake."""
    transport, peer = TlsTransport(below, context), Peer(below, version, keys)
    with limited():
        await peer.shake_hands(transport)
    return transport, peer


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_the_protocol_is_agreed_on(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    _, peer = await meet(context, MemoryTransport(), version)
    assert peer.tls.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


async def test_handshake_steps_wait_for_their_turn(context: ssl.SSLContext) -> None:
    below, room = MemoryTransport(), trio.Event()
    waiting = 0

    async def turn() -> None:
        nonlocal waiting
        waiting += 1
        await room.wait()

    transport, peer = TlsTransport(below, context, turn), Peer(below)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    peer.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.handshake)
        await trio.testing.wait_all_tasks_blocked()
        assert (waiting, below.take()) == (1, b"")  # the hello has been read, and no answer was computed
        room.set()
        await trio.testing.wait_all_tasks_blocked()
        assert below.take().startswith(b"\x16\x03\x03")
        nursery.cancel_scope.cancel()


async def test_nothing_is_encrypted_while_data_is_pending(context: ssl.SSLContext) -> None:
    below = MemoryTransport(capacity_bytes=0)
    below.capacity_bytes = None
    transport, peer = await meet(context, below)
    peer.receive()
    below.capacity_bytes = 10
    assert transport.offer(b"first")  # it is encrypted, so it must be sent, before later data
    assert is_pending(transport)
    assert not transport.offer(b"refused")
    with pytest.raises(RuntimeError):
        transport.push(b"refused")
    below.capacity_bytes = None
    with limited():
        await transport.drain()
    assert not is_pending(transport)
    assert transport.offer(b", second")
    assert peer.receive() == b"first, second"


async def test_large_batch_leaves_in_full_records_and_one_write(context: ssl.SSLContext) -> None:
    class Counting(MemoryTransport):
        pushed = 0

        def push(self, data: bytes) -> None:
            self.pushed += 1
            super().push(data)

    below = Counting()
    transport, peer = await meet(context, below)
    peer.receive()
    before = below.pushed
    assert transport.offer(LARGE)
    assert below.pushed == before + 1
    assert below._left.count(b"\x17\x03\x03\x40\x11") >= len(LARGE) // RECORD_BYTES_MAX  # noqa: SLF001 - the heads of full records
    assert peer.receive() == LARGE


async def test_empty_batch_writes_nothing(context: ssl.SSLContext) -> None:
    transport, peer = await meet(context, MemoryTransport())
    peer.receive()
    assert transport.offer(b"")
    transport.push(b"")
    assert not is_pending(transport)
    assert peer.receive() == b""


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_peer_is_decrypted_only_on_demand(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, version)
    peer.send(b"x" * RECORD_BYTES_MAX)
    peer.send(b"y" * 10)
    with limited():
        read = b"".join([await transport.receive_some(1000) for _ in range(17)])
    assert read == b"x" * RECORD_BYTES_MAX
    assert below._to_read.statistics().current_buffer_used == 1  # noqa: SLF001 - the second record waits outside
    with limited():
        assert await transport.receive_some(1000) == b"y" * 10


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_close_notify_ends_only_the_stream_of_the_peer(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    transport, peer = await meet(context, MemoryTransport(), version)
    peer.receive()
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    peer.flush()
    with limited():
        assert await transport.receive_some(100) == b""
        assert await transport.receive_some(100) == b""
    if version is ssl.TLSVersion.TLSv1_3:
        assert transport.offer(b"more")


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_an_end_without_close_notify_breaks_the_stream(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, version)
    peer.send(b"half of what was meant")
    below.feed_eof()
    with limited():
        assert await transport.receive_some(100) == b"half of what was meant"
        with pytest.raises(trio.BrokenResourceError, match="without close_notify"):
            await transport.receive_some(100)
    with pytest.raises(trio.BrokenResourceError):
        transport.offer(b"x")
    with pytest.raises(trio.BrokenResourceError):
        transport.push(b"x")


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
@pytest.mark.parametrize("close", [TlsTransport.send_eof, TlsTransport.aclose], ids=["send_eof", "aclose"])
async def test_close_notify_is_sent_once(
    context: ssl.SSLContext, version: ssl.TLSVersion, close: Callable[[TlsTransport], object]
) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, version)
    transport.push(b"last words")
    with limited():
        await close(transport)  # type: ignore[misc]
        assert peer.receive() == b"last words"
        assert peer.tls.read(100) == b""  # and not: ended without it
        await transport.aclose()
        await transport.aclose()
    assert below.take() == b""
    assert below.closed


async def test_peer_can_be_read_after_our_end(context: ssl.SSLContext) -> None:
    transport, peer = await meet(context, MemoryTransport())
    peer.receive()
    with limited():
        await transport.send_eof()
        peer.send(b"I was not done")
        assert await transport.receive_some(100) == b"I was not done"
        with pytest.raises(trio.BrokenResourceError):
            transport.push(b"but we were")


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_unread_data_is_dropped_after_our_end(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, version)
    peer.send(b"x" * 5000)
    peer.send(b"y" * 5000)
    with limited():
        await transport.receive_some(10)
        transport._incoming.write(await below.receive_some(1))  # noqa: SLF001 - as if both came in one read
        await transport.send_eof()
        below.feed_eof()
        while await transport.receive_some(4096):
            pass
        assert peer.receive() == b""
        assert peer.tls.read(100) == b""


async def test_our_end_waits_for_pending_data(context: ssl.SSLContext) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below)
    peer.receive()
    below.capacity_bytes = 0
    transport.push(b"last words")
    with limited():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_eof)
            await trio.testing.wait_all_tasks_blocked()
            ended = [below.ended]
            below.capacity_bytes = None
            below.take()
    assert [*ended, below.ended] == [False, True]
    assert peer.receive() == b"last words"
    assert peer.tls.read(100) == b""


async def test_abort_sends_no_close_notify(context: ssl.SSLContext) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below)
    peer.receive()
    await transport.abort()
    assert below.aborted
    assert below.take() == b""
    for use in (transport.offer, transport.push):
        with pytest.raises(trio.ClosedResourceError):
            use(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_some(100)


@pytest.mark.parametrize(
    "sent, words",
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "http request"),
        (b"CONNECT\naccept-version:1.2\n\n\0", "https proxy request"),
        (b"\0" * 100, "wrong version number"),
        (b"\x16\x03\x01\x00\x05hello", "unexpected message"),
        (b"\x16\x03\x01\xff\xff" + b"\x01" * 1000, "broke the TLS|too long|record"),
    ],
    ids=["HTTP", "STOMP", "zeros", "no ClientHello", "too long"],
)
async def test_peer_without_tls_is_a_handshake_error(context: ssl.SSLContext, sent: bytes, words: str) -> None:
    below = MemoryTransport()
    transport = TlsTransport(below, context)
    below.feed(sent)
    with limited(), pytest.raises(HandshakeError, match=words):
        await transport.handshake()
    below.feed(b"and more of it")
    below.feed_eof()
    with limited():
        await transport.send_eof()
        assert await transport.receive_some(100) == b""
        await transport.aclose()


async def test_peer_that_leaves_in_the_handshake_is_gone(context: ssl.SSLContext) -> None:
    below = MemoryTransport()
    transport = TlsTransport(below, context)
    below.feed_eof()
    with limited(), pytest.raises(trio.BrokenResourceError) as gone:
        await transport.handshake()
    assert not isinstance(gone.value, HandshakeError)


async def test_junk_after_the_handshake_is_answered_with_an_alert(context: ssl.SSLContext, tmp_path: Path) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, keys=tmp_path / "keys")
    _, reading = peer.by_hand()
    below.feed(b"GET / HTTP/1.1\r\n\r\n")
    with limited(), pytest.raises(trio.BrokenResourceError):
        await transport.receive_some(100)
    kinds = [reading.open(record)[0] for record in split(below.take())]
    assert kinds[-1] is Kind.ALERT


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_older_versions_are_refused(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    below = MemoryTransport()
    transport = TlsTransport(below, context)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    client.set_ciphers("ALL:@SECLEVEL=0")
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    below.feed(hello.read())
    with limited(), pytest.raises(HandshakeError, match="unsupported protocol"):
        await transport.handshake()


async def test_key_update_is_answered_before_later_data(context: ssl.SSLContext, tmp_path: Path) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, keys=tmp_path / "keys")
    writing, reading = peer.by_hand()
    tickets = [reading.open(record)[0] for record in split(below.take())]
    assert set(tickets) <= {Kind.HANDSHAKE}
    below.feed(writing.seal(Kind.HANDSHAKE, KEY_UPDATE + b"\1"))
    writing = writing.next()
    below.feed(writing.seal(Kind.DATA, b"by the new key"))
    with limited():
        assert await transport.receive_some(100) == b"by the new key"
    assert transport.offer(b"by our new key")
    answer, data = split(below.take())
    assert reading.open(answer) == (Kind.HANDSHAKE, KEY_UPDATE + b"\0")
    assert reading.next().open(data) == (Kind.DATA, b"by our new key")


async def test_write_after_half_a_key_update_breaks_the_connection(context: ssl.SSLContext, tmp_path: Path) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, keys=tmp_path / "keys")
    writing, _ = peer.by_hand()
    below.take()

    async def listen() -> None:
        with pytest.raises(trio.BrokenResourceError, match="broke the TLS protocol"):
            await transport.receive_some(100)

    with limited():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            below.feed(writing.seal(Kind.HANDSHAKE, KEY_UPDATE))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError, match="broke the TLS protocol"):
                transport.offer(b"not taken")
            assert not is_pending(transport)
            below.feed(writing.seal(Kind.HANDSHAKE, b"\0"))
        with pytest.raises(trio.BrokenResourceError, match="broke the TLS protocol"):
            transport.push(b"not taken")
    assert below.take() == b""


async def test_many_key_updates_are_answered_in_order(context: ssl.SSLContext, tmp_path: Path) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, keys=tmp_path / "keys")
    writing, reading = peer.by_hand()
    for record in split(below.take()):
        reading.open(record)
    for _ in range(100):
        below.feed(writing.seal(Kind.HANDSHAKE, KEY_UPDATE + b"\1"))
        writing = writing.next()
    below.feed(writing.seal(Kind.DATA, b"the end"))
    with limited():
        assert await transport.receive_some(100) == b"the end"
    assert not is_pending(transport)
    assert transport.offer(b"x")
    *answers, data = split(below.take())
    assert answers
    for answer in answers:  # one answer for several of them would be valid too
        assert reading.open(answer) == (Kind.HANDSHAKE, KEY_UPDATE + b"\0")
        reading = reading.next()
    assert reading.open(data) == (Kind.DATA, b"x")


async def test_renegotiation_is_refused_with_a_warning(context: ssl.SSLContext, tmp_path: Path) -> None:
    below = MemoryTransport()
    transport, peer = await meet(context, below, ssl.TLSVersion.TLSv1_2, tmp_path / "keys")
    writing = peer.old_by_hand()
    below.feed(writing.seal(Kind.HANDSHAKE, CLIENT_HELLO))
    below.feed(writing.seal(Kind.DATA, b"then not"))
    below.take()
    with limited():
        assert await transport.receive_some(100) == b"then not"
    assert transport.offer(b"no")
    kinds = [record[0] for record in split(below.take())]
    assert kinds == [Kind.ALERT, Kind.DATA]


def empty_records(peer: Peer, version: ssl.TLSVersion, count: int) -> list[bytes]:
    """Return key updates, or refused renegotiations; then one record with content."""
    if version is ssl.TLSVersion.TLSv1_2:
        old = peer.old_by_hand()
        return [*(old.seal(Kind.HANDSHAKE, CLIENT_HELLO) for _ in range(count)), old.seal(Kind.DATA, b"the end")]
    new, _ = peer.by_hand()
    records = []
    for _ in range(count):
        records.append(new.seal(Kind.HANDSHAKE, KEY_UPDATE + b"\1"))
        new = new.next()
    return [*records, new.seal(Kind.DATA, b"the end")]


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_each_record_without_content_takes_a_turn(
    context: ssl.SSLContext, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    below, turns = MemoryTransport(), 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        await trio.lowlevel.checkpoint()

    transport, peer = TlsTransport(below, context, turn), Peer(below, version, tmp_path / "keys")
    with limited():
        await peer.shake_hands(transport)
        turns = 0
        below.feed(b"".join(empty_records(peer, version, 100)))
        assert await transport.receive_some(100) == b"the end"
    assert turns == 100


@pytest.mark.parametrize("taken", [True, False], ids=["answers are taken", "no answer is taken"])
@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
async def test_records_without_content_are_limited(
    context: ssl.SSLContext, tmp_path: Path, version: ssl.TLSVersion, *, taken: bool
) -> None:
    for beyond in (0, 1):
        below, keys = MemoryTransport(), tmp_path / str(beyond)
        transport, peer = await meet(context, below, version, keys)
        below.take()
        below.capacity_bytes = None if taken else 0
        below.feed(b"".join(empty_records(peer, version, EMPTY_RECORDS_MAX + beyond)))
        with limited():
            if not beyond:
                assert await transport.receive_some(100) == b"the end"
                continue
            with pytest.raises(trio.BrokenResourceError, match="without content"):
                await transport.receive_some(100)


async def test_records_may_arrive_octet_by_octet(context: ssl.SSLContext) -> None:
    transport, peer = await meet(context, Octets())
    with limited():
        for _ in range(3):
            peer.send(b"twelve bytes")
        assert b"".join([await transport.receive_some(100) for _ in range(3)]) == 3 * b"twelve bytes"


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
@pytest.mark.parametrize("seed", range(20))
async def test_accepted_data_arrives_complete_and_in_order(
    context: ssl.SSLContext, version: ssl.TLSVersion, seed: int, autojump_clock: MockClock
) -> None:
    moods = Random(seed)
    below = MemoryTransport(moods=moods)
    transport, peer = await meet(context, below, version)
    below.capacity_bytes = moods.choice([1, 100, 5000, 50_000])
    accepted = sent = received = read = b""
    for _ in range(300):
        what = moods.random()
        if what < 0.5:
            data = moods.randbytes(moods.choice([1, 10, 500, 20_000, 70_000]))
            if transport.offer(data):
                accepted += data
        elif what < 0.8:
            received += peer.receive(moods.choice([1, 100, 5000, 100_000]))
        elif what < 0.9:
            data = moods.randbytes(moods.choice([1, 500, 5000]))
            peer.send(data)
            sent += data
        else:
            with trio.move_on_after(moods.choice([0, 0.001])):  # some are cancelled half-way, and continue later
                if moods.random() < 0.5:
                    await transport.drain()
                else:
                    read += await transport.receive_some(1000)
    below.capacity_bytes = None
    while transport.pending:
        below.take(0)
        await transport.drain()
    received += peer.receive()
    with trio.fail_after(10):
        while len(read) < len(sent):
            read += await transport.receive_some(1000)
    assert (received, read) == (accepted, sent)
