"""Two servers on a Redis that is killed and restarted under load: clients stay connected, nothing is lost."""

from functools import partial

import trio

from airy_trio import app
from airy_trio.testing.client import StompClient, connect
from tests.application import Application
from tests.redis_server import OUTAGES, RedisServer

TIMEOUT_S = 50.0
CHANGES = 300
KILLS_AT = (60, 140, 220)

pytestmark = OUTAGES


async def client_of(address: app.Address, *headers: tuple[str, str]) -> StompClient:
    client = await connect(address.host, address.port, address.path)
    assert (await client.subscribe(headers=headers)).command == "RECEIPT"
    return client


async def positions(client: StompClient, count: int) -> list[tuple[str | None, bytes]]:
    """Return the offset and the tag of each event."""
    frames = [await client.receive() for _ in range(count)]
    assert {frame.command for frame in frames} == {"MESSAGE"}
    return [(frame.get("message-id"), frame.body.split(b'"id":"')[1].partition(b'"')[0]) for frame in frames]


async def test_clients_stay_connected_and_miss_nothing(any_application: Application, own_redis: RedisServer) -> None:
    settings = any_application.migrate(f'[log]\nstore = "redis"\nurl = "{own_redis.url}"\n[listener]\nport = 0\n')
    got: dict[int, list[tuple[str | None, bytes]]] = {}

    async def read(number: int, client: StompClient) -> None:
        got[number] = await positions(client, CHANGES)

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            stopping = trio.Event()
            addresses: list[app.Address] = [
                await nursery.start(partial(app.serve, settings, stopping=stopping)) for _ in range(2)
            ]
            async with await client_of(addresses[0]) as one, await client_of(addresses[1]) as other:
                async with trio.open_nursery() as reading:
                    reading.start_soon(read, 0, one)
                    reading.start_soon(read, 1, other)
                    for number in range(CHANGES):
                        if number in KILLS_AT:
                            await trio.to_thread.run_sync(own_redis.kill)
                        if number - 20 in KILLS_AT:
                            await trio.to_thread.run_sync(own_redis.start)
                        await trio.to_thread.run_sync(any_application.tag, f"t{number}")
                assert got[0] == got[1]
                resumed = await client_of(addresses[1], ("last-event-id", str(got[0][99][0])))
                async with resumed:
                    assert await positions(resumed, CHANGES - 100) == got[0][100:]
            stopping.set()
    assert [tag for _, tag in got[0]] == [b"t%d" % number for number in range(CHANGES)]
    epoch = str(got[0][0][0]).partition("-")[0]
    assert [position for position, _ in got[0]] == [f"{epoch}-{offset}" for offset in range(1, CHANGES + 1)]
