"""Hostile clients, as a process of its own: hundreds of connections that do what no client should, until SIGTERM.

    python -m tests.drill.attackers PORT SEED CONNECTIONS

Each connection chooses at random, again and again: requests that never end, garbage before and after the upgrade,
floods of CONNECT, guesses of tokens, clients that vanish, reset or stay half-open, frames without an end, pings and
questions whose answers nobody reads, heart-beats without a pause, subscribers that read nothing. They come from
loopback addresses of their own. It says on stdout that it has begun, and at its end, as JSON, how often each was done.
Bounded: a connection waits between two attacks.
"""

import json
import os
import random
import signal
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tests.websocket.test_battery import BINARY, CONTINUATION, PING, TEXT, frame
from tests.websocket.test_request import head

HOST: Final = "127.0.0.1"
TOKEN: Final = "which-everybody-knows"
CONNECT: Final = f"CONNECT\naccept-version:1.2\npasscode:{TOKEN}\n\n\0".encode()
PER_ADDRESS: Final = 50
PAUSE_MAX_S: Final = 4.0
NICE: Final = 10
"""In the field hostile clients do not take the server's processor: here they yield it."""
STAY_MAX_S: Final = 3.0
LARGE: Final = frame(BINARY, b"\n" * 60_000)
TOO_LARGE: Final = frame(TEXT, b"\n" * 200_000)
EMPTY: Final = frame(CONTINUATION, b"", fin=False) * 100
PINGS: Final = frame(PING, b"p" * 125) * 100
HEART_BEATS: Final = frame(TEXT, b"\n") * 2000
ASKED: Final = frame(TEXT, b"UNSUBSCRIBE\nid:9\nreceipt:r\n\n\x00" * 50) * 20
CONNECTS: Final = frame(TEXT, CONNECT) * 20
SUBSCRIBE: Final = b"SUBSCRIBE\nid:%d\ndestination:/events\nreplay:all\n\n\x00"

Attack = Callable[[trio.SocketStream, random.Random], Awaitable[None]]


async def upgraded(stream: trio.SocketStream) -> None:
    await stream.send_all(head())
    await stream.receive_some()


async def subscribed(stream: trio.SocketStream) -> None:
    await upgraded(stream)
    await stream.send_all(frame(TEXT, CONNECT))
    await stream.receive_some()
    await stream.send_all(frame(TEXT, SUBSCRIBE % 0))


async def request_without_end(stream: trio.SocketStream, chance: random.Random) -> None:
    for octet in head("X: " + "x" * 100):
        await stream.send_all(bytes([octet]))
        await trio.sleep(chance.uniform(0, 0.2))


async def silence(_stream: trio.SocketStream, chance: random.Random) -> None:
    await trio.sleep(chance.uniform(0, STAY_MAX_S))


async def garbage_for_a_request(stream: trio.SocketStream, chance: random.Random) -> None:
    await stream.send_all(chance.randbytes(chance.randrange(1, 30_000)))


async def garbage_for_frames(stream: trio.SocketStream, chance: random.Random) -> None:
    await upgraded(stream)
    await stream.send_all(chance.randbytes(chance.randrange(1, 30_000)))
    await stream.receive_some()


async def garbage_for_stomp(stream: trio.SocketStream, chance: random.Random) -> None:
    await upgraded(stream)
    await stream.send_all(frame(BINARY, chance.randbytes(chance.randrange(1, 3_000))))
    await stream.receive_some()


async def flood_of_connect(stream: trio.SocketStream, _chance: random.Random) -> None:
    await upgraded(stream)
    await stream.send_all(CONNECTS)
    while await stream.receive_some():
        pass


async def guesses(stream: trio.SocketStream, chance: random.Random) -> None:
    await upgraded(stream)
    await stream.send_all(frame(TEXT, CONNECT.replace(TOKEN.encode(), b"%d" % chance.randrange(10**9))))
    while await stream.receive_some():
        pass


async def connect_and_vanish(stream: trio.SocketStream, _chance: random.Random) -> None:
    await upgraded(stream)
    await stream.send_all(frame(TEXT, CONNECT))


async def frame_without_end(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(LARGE[: chance.randrange(10, 60_000)])
    await trio.sleep(chance.uniform(0, STAY_MAX_S))


async def fragments_without_end(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(frame(TEXT, b"", fin=False))
    for _ in range(chance.randrange(1, 50)):
        await stream.send_all(EMPTY)


async def message_that_is_too_large(stream: trio.SocketStream, _chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(TOO_LARGE)


async def pings_whose_answers_nobody_reads(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    with trio.move_on_after(chance.uniform(0, STAY_MAX_S)):
        for _ in range(20):
            await stream.send_all(PINGS)


async def heart_beats_without_end(stream: trio.SocketStream, _chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(HEART_BEATS)


async def questions_whose_answers_nobody_reads(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    with trio.move_on_after(chance.uniform(0, STAY_MAX_S)):
        await stream.send_all(ASKED)


async def reader_of_nothing(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    await trio.sleep(chance.uniform(0, STAY_MAX_S))


async def forger(stream: trio.SocketStream, _chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(frame(TEXT, b"SEND\ndestination:/events\n\n{}\x00"))
    await stream.receive_some()


ATTACKS: Final[tuple[Attack, ...]] = (
    request_without_end,
    silence,
    garbage_for_a_request,
    garbage_for_frames,
    garbage_for_stomp,
    flood_of_connect,
    guesses,
    connect_and_vanish,
    frame_without_end,
    fragments_without_end,
    message_that_is_too_large,
    pings_whose_answers_nobody_reads,
    heart_beats_without_end,
    questions_whose_answers_nobody_reads,
    reader_of_nothing,
    forger,
)


async def attack_for_ever(port: int, number: int, chance: random.Random, tally: Counter[str]) -> None:
    """One connection after the other, from one address."""
    address = f"127.0.1.{1 + number // PER_ADDRESS}" if sys.platform == "linux" else HOST
    while True:
        await trio.sleep(chance.uniform(0, PAUSE_MAX_S))
        attack = chance.choice(ATTACKS)
        try:
            stream = await trio.open_tcp_stream(HOST, port, local_address=address)
        except OSError:
            tally["no connection"] += 1
            continue
        tally[attack.__name__] += 1
        try:
            with trio.move_on_after(2 * STAY_MAX_S):
                await attack(stream, chance)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            tally["cut"] += 1
        if chance.random() < 1 / 2:  # a reset instead of an orderly end
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)


async def main(port: int, seed: int, connections: int) -> None:
    """Attack until SIGTERM, then say how often."""
    tally: Counter[str] = Counter()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        async with trio.open_nursery() as nursery:
            for number in range(connections):
                chance = random.Random(f"{seed} {number}")
                nursery.start_soon(attack_for_ever, port, number, chance, tally)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    sys.stdout.write(json.dumps(tally) + "\n")


if __name__ == "__main__":
    _, own_port, own_seed, own_connections = sys.argv
    os.nice(NICE)
    trio.run(main, int(own_port), int(own_seed), int(own_connections))
