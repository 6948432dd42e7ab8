"""A durable subscription survives a shutdown and a kill of the server, and continues on another one."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from airy_trio.log.redis.store import open_store
from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient, connect
from tests.application import Application
from tests.drill.log_check import log_of
from tests.e2e.route import HOST, configure, event_of, writing
from tests.processes import Server, server
from tests.redis_server import RedisServer

TIMEOUT_S = 50.0
AUTH = '[auth]\nmode = "tokens"\ntokens = { ann = "s3cret" }\n'


async def hold(client: StompClient) -> Frame:
    headers = [("durable", "inbox"), ("ack", "client-individual"), ("replay", "all")]
    receipt = await client.subscribe(headers=headers)
    assert receipt.command == "RECEIPT", receipt
    return receipt


async def log_in(serving: Server) -> StompClient:
    return await connect(HOST, serving.port, headers=[("passcode", "s3cret")])


async def take(client: StompClient, *wanted: str) -> list[Frame]:
    frames = [await client.receive() for _ in wanted]
    assert [event_of(frame).object[-1] for frame in frames] == list(wanted)
    return frames


@pytest.mark.slow
async def test_acknowledgements_survive_the_server(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path, AUTH)
    with trio.fail_after(TIMEOUT_S):
        async with writing(any_application) as application:
            async with server(config) as serving, await log_in(serving) as client:
                await hold(client)
                await application.apply(*(f"insert into tags values ('t{n}', 'n', 'red')" for n in (1, 2, 3)))
                first, *_ = await take(client, "t1", "t2", "t3")
                await client.acknowledge(first)
                receipt = await client.subscribe(subscription="1", headers=[("replay", "none")])
                assert receipt.command == "RECEIPT"  # the server has not waited until the acknowledgement is stored
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serving.terminate)
                    assert (await client.receive()).get("message") == "503-shutting-down"
                    with pytest.raises(Closed):
                        await client.receive()
                    await client.stream.aclose()

            async with server(config) as doomed, await log_in(doomed) as client:
                assert (await hold(client)).get("resume") == "resumed"
                second, _ = await take(client, "t2", "t3")
                await client.acknowledge(second, headers=[("receipt", "written")])
                assert (await client.receive()).get("receipt-id") == "written"
                await doomed.kill()

            async with (
                server(config) as here,
                server(config) as there,
                await log_in(here) as former,
                await log_in(there) as client,
            ):
                assert (await hold(former)).get("resume") == "resumed"
                (third,) = await take(former, "t3")
                assert (await hold(client)).get("resume") == "resumed"
                again = await take(client, "t3")
                await former.acknowledge(third, headers=[("receipt", "claimed again")])
                assert (await former.receive()).get("receipt-id") == "claimed again"
                await client.acknowledge(*again, headers=[("receipt", "claimed for good")])
                assert (await client.receive()).get("receipt-id") == "claimed for good"
                await application.apply("insert into tags values ('t4', 'n', 'red')")
                await former.acknowledge(*await take(former, "t4"))
                assert (await former.receive()).get("message") == "409-durable-taken"


def late_config(application: Application, folder: Path, store: str = "") -> Path:
    """Return settings with which events expire after a second, in memory too once another event follows."""
    return configure(application, folder, f"[log]\nretain_s = 1\ntail_events = 1\n{store}{AUTH}")


async def hold_named(client: StompClient, name: str) -> str | None:
    return (await client.subscribe(headers=[("durable", name), ("ack", "client"), ("replay", "none")])).get("resume")


async def returns_late(config: Path, application: Application, trimmed: Callable[[], Awaitable[bool]]) -> None:
    """Acknowledge one event and return when the next ones are trimmed: to the same server, and to a later one.

    ``trimmed``: whether the log holds no event any more.
    """

    async def until_trimmed() -> None:
        while not await trimmed():  # noqa: ASYNC110 - nothing reports a trim
            await trio.sleep(0.05)

    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving:
            for name in ("same", "later"):
                async with await log_in(serving) as client:
                    assert await hold_named(client, name) == "live"
                    await trio.to_thread.run_sync(application.tag, name)
                    frame = await client.receive()
                    await client.acknowledge(frame, headers=[("receipt", "written")])
                    assert (await client.receive()).get("receipt-id") == "written"
            async with await log_in(serving) as other:
                await other.subscribe()
                for tag in ("t2", "t3"):
                    await trio.to_thread.run_sync(application.tag, tag)
                await other.receive()
                await until_trimmed()
            async with await log_in(serving) as client:
                assert await hold_named(client, "same") == "reset-expired"
            await serving.kill()
        async with server(config) as serving, await log_in(serving) as client:
            assert await hold_named(client, "later") == "reset-expired"


@pytest.mark.slow
async def test_return_after_expiry_gets_reset(any_application: Application, tmp_path: Path) -> None:
    config = late_config(any_application, tmp_path)

    async def trimmed() -> bool:
        return not await trio.to_thread.run_sync(log_of, any_application)

    await returns_late(config, any_application, trimmed)


@pytest.mark.slow
async def test_return_after_expiry_in_redis_gets_reset(
    sqlite_application: Application, own_redis: RedisServer, tmp_path: Path
) -> None:
    config = late_config(sqlite_application, tmp_path, f'store = "redis"\nurl = "{own_redis.url}"\n')
    async with open_store(own_redis.url) as store:

        async def trimmed() -> bool:
            bounds = await store.bounds()
            return bounds.first > bounds.last

        await returns_late(config, sqlite_application, trimmed)
