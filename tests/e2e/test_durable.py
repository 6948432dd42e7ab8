"""A durable subscription outlives the server: ended in order, and killed; and it goes over to another one."""

from pathlib import Path

import pytest
import trio

from airy_trio.stomp.frames import Frame
from airy_trio.testing.client import Closed, StompClient, connect
from tests.application import Application
from tests.e2e.route import HOST, configure, event_of, writing
from tests.processes import Server, server

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
async def test_what_was_acknowledged_outlives_the_server(any_application: Application, tmp_path: Path) -> None:
    config = configure(any_application, tmp_path, AUTH)
    with trio.fail_after(TIMEOUT_S):
        async with writing(any_application) as application:
            async with server(config) as serving, await log_in(serving) as client:
                await hold(client)
                await application.apply(*(f"insert into tags values ('t{n}', 'n', 'red')" for n in (1, 2, 3)))
                first, *_ = await take(client, "t1", "t2", "t3")
                await client.acknowledge(first)
                heard = await client.subscribe(subscription="1", headers=[("replay", "none")])
                assert heard.command == "RECEIPT"  # and nothing waited until the acknowledgement was written
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
                await take(client, "t3")
                await former.acknowledge(third)
                assert (await former.receive()).get("message") == "409-durable-taken"
