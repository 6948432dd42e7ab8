"""Hostile clients as a process: hundreds of connections that misbehave until SIGTERM.

    python -m tests.drill.attackers PORT SEED CONNECTIONS PER_ADDRESS ATTACK ...

With one attack each connection repeats it. With several it chooses one at random, pauses, and chooses again. The
attacks are those of ``tests.drill.attacks.COSTLY`` and the ones below: requests without an end, garbage before and
after the upgrade, floods of CONNECT, guessed tokens, clients that vanish, reset or stay half-open, frames without an
end, PINGs and STOMP frames with unread answers, heart-beats without a pause, subscribers that read nothing. The
connections come from loopback addresses of their own. The process prints ``begun`` and, at its end, the count of each
attack as JSON.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final

import trio
from attrs import frozen

from tests.drill.attacks import COSTLY, USER, Attack, reset_at_close, upgraded
from tests.websocket.test_battery import BINARY, CONTINUATION, PING, TEXT, frame
from tests.websocket.test_request import head

HOST: Final = "127.0.0.1"
CONNECT: Final = f"CONNECT\naccept-version:1.2\npasscode:{USER}\n\n\0".encode()
PER_ADDRESS: Final = 50
PAUSE_MAX_S: Final = 4.0
AGAIN_MAX_S: Final = 0.1
"""The maximum pause if there is only one attack."""
NICE: Final = 10
"""Hostile clients usually run on other machines. Here they share the processor with the server, and yield it."""
STAY_MAX_S: Final = 3.0
LARGE: Final = frame(BINARY, b"\n" * 60_000)
TOO_LARGE: Final = frame(TEXT, b"\n" * 200_000)
EMPTY: Final = frame(CONTINUATION, b"", fin=False) * 100
PINGS: Final = frame(PING, b"p" * 125) * 100
HEART_BEATS: Final = frame(TEXT, b"\n") * 2000
REQUESTS: Final = frame(TEXT, b"UNSUBSCRIBE\nid:9\nreceipt:r\n\n\x00" * 50) * 20
CONNECTS: Final = frame(TEXT, CONNECT) * 20
SUBSCRIBE: Final = b"SUBSCRIBE\nid:%d\ndestination:/events\nreplay:all\n\n\x00"


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


async def guesses_tokens(stream: trio.SocketStream, chance: random.Random) -> None:
    await upgraded(stream)
    await stream.send_all(frame(TEXT, CONNECT.replace(USER.encode(), b"%d" % chance.randrange(10**9))))
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


async def pings_with_unread_answers(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    with trio.move_on_after(chance.uniform(0, STAY_MAX_S)):
        for _ in range(20):
            await stream.send_all(PINGS)


async def heart_beats_without_end(stream: trio.SocketStream, _chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(HEART_BEATS)


async def requests_with_unread_answers(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    with trio.move_on_after(chance.uniform(0, STAY_MAX_S)):
        await stream.send_all(REQUESTS)


async def reader_of_nothing(stream: trio.SocketStream, chance: random.Random) -> None:
    await subscribed(stream)
    await trio.sleep(chance.uniform(0, STAY_MAX_S))


async def forger(stream: trio.SocketStream, _chance: random.Random) -> None:
    await subscribed(stream)
    await stream.send_all(frame(TEXT, b"SEND\ndestination:/events\n\n{}\x00"))
    await stream.receive_some()


CRUDE: Final[dict[str, Attack]] = {
    attack.__name__: attack
    for attack in (
        request_without_end,
        silence,
        garbage_for_a_request,
        garbage_for_frames,
        garbage_for_stomp,
        flood_of_connect,
        guesses_tokens,
        connect_and_vanish,
        frame_without_end,
        fragments_without_end,
        message_that_is_too_large,
        pings_with_unread_answers,
        heart_beats_without_end,
        requests_with_unread_answers,
        reader_of_nothing,
        forger,
    )
}


@frozen
class Attacker:
    """One connection after another from one address, each for an attack chosen at random."""

    port: int
    address: str
    attacks: Sequence[Attack]
    pause_max_s: float
    chance: random.Random

    async def attack_repeatedly(self, tally: Counter[str]) -> None:
        """Attack until cancelled, and count each attack."""
        while True:
            await trio.sleep(self.chance.uniform(0, self.pause_max_s))
            attack = self.chance.choice(self.attacks)
            try:
                stream = await trio.open_tcp_stream(HOST, self.port, local_address=self.address)
            except OSError:
                tally["no connection"] += 1
                continue
            tally[attack.__name__] += 1
            try:
                with trio.move_on_after(2 * STAY_MAX_S):
                    await attack(stream, self.chance)
                if self.chance.random() < 1 / 2:
                    reset_at_close(stream)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                tally["cut"] += 1
            await trio.aclose_forcefully(stream)


async def main(port: int, seed: int, connections: int, per_address: int, names: Sequence[str]) -> None:
    """Attack until SIGTERM, then print the counts."""
    attacks = [(COSTLY | CRUDE)[name] for name in names]
    pause_max_s = AGAIN_MAX_S if len(attacks) == 1 else PAUSE_MAX_S
    tally: Counter[str] = Counter()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        async with trio.open_nursery() as nursery:
            for number in range(connections):
                chance = random.Random(f"{seed} {number}")
                address = f"127.0.1.{1 + number // per_address}" if sys.platform == "linux" else HOST
                attacker = Attacker(port, address, attacks, pause_max_s, chance)
                nursery.start_soon(attacker.attack_repeatedly, tally)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
    sys.stdout.write(json.dumps(tally) + "\n")


if __name__ == "__main__":
    own_port, own_seed, own_connections, own_per_address = map(int, sys.argv[1:5])
    os.nice(NICE)
    trio.run(main, own_port, own_seed, own_connections, own_per_address, sys.argv[5:])
