"""The peer: a typical server with ``websockets`` and its ``broadcast()``, on asyncio.

It has only as much STOMP as the load client needs: one group of clients for each subscription id, no positions, no
replay, no acknowledgements. Prints its port; ends when its standard input does.
"""

import asyncio
import logging
import os
import resource

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from bench.pace import READ_BYTES, Pace, Progress
from bench.payload import body

TICK_S = 0.001
BACKLOG = 4096

Groups = dict[str, set[ServerConnection]]


class Listening:
    """The progress reported on standard input."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._reported = asyncio.Event()
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._read)

    async def wait(self) -> None:
        """Wait for the next report."""
        await self._reported.wait()
        self._reported.clear()

    def _read(self) -> None:
        self.progress.update(os.read(0, READ_BYTES))
        self._reported.set()
        if self.progress.ended:
            asyncio.get_running_loop().remove_reader(0)


def frame(subscription: str, number: int) -> str:
    """Return a MESSAGE as airy-trio writes it, of the same length."""
    text = body(number)
    return (
        f"MESSAGE\ndestination:/events\nsubscription:{subscription}\nmessage-id:peer00-{number}\n"
        f"content-type:application/json\ncontent-length:{len(text)}\n\n{text}\0"
    )


async def produce(pace: Pace, groups: Groups, listening: Listening) -> None:
    """Broadcast until the end of progress."""
    progress, loop, produced = listening.progress, asyncio.get_running_loop(), 0
    while not progress.begun and not progress.ended:
        await listening.wait()
    start = loop.time()
    while not progress.ended:
        due = pace.due(produced, progress.reached, loop.time() - start)
        for produced in range(produced + 1, produced + due + 1):  # noqa: B020 - the count continues from here
            for subscription, members in groups.items():
                broadcast(members, frame(subscription, produced))
        if due:
            await asyncio.sleep(0)
        elif pace.rate:
            await asyncio.sleep(max(TICK_S / 2, start + (produced + 1) / pace.rate - loop.time()))
        else:
            await listening.wait()


async def converse(connection: ServerConnection, groups: Groups) -> None:
    """Answer CONNECT and SUBSCRIBE."""
    try:
        async for message in connection:
            assert isinstance(message, str)
            command, *lines = message.partition("\n\n")[0].split("\n")
            headers = dict(line.split(":", 1) for line in lines)
            if command == "CONNECT":
                await connection.send("CONNECTED\nversion:1.2\nserver:peer\nsession:0\nheart-beat:0,0\n\n\0")
            elif command == "SUBSCRIBE":
                groups.setdefault(headers["id"], set()).add(connection)
                await connection.send(f"RECEIPT\nreceipt-id:{headers['receipt']}\n\n\0")
    except ConnectionClosed:
        logging.getLogger(__name__).debug("a client has left")
    finally:
        for members in groups.values():
            members.discard(connection)


async def main() -> None:
    """Read the command line and serve."""
    pace = Pace.of(Pace.parser(__doc__).parse_args())
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a line for each write after the load client has left
    groups: Groups = {}
    listening = Listening()
    protocol = Subprotocol("v12.stomp")
    async with serve(
        lambda connection: converse(connection, groups),
        "127.0.0.1",
        0,
        compression=None,  # with it, every client would cost a compression
        subprotocols=[protocol],
        backlog=BACKLOG,
    ) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await produce(pace, groups, listening)
    os._exit(0)  # skip thousands of closing handshakes with a load client that has ended


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main())
