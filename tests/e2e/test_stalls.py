"""A database that stops answering one of two servers while its connections stay open."""

import pytest
import trio

from airy_trio import app
from airy_trio.database.postgres import MonitoredConnection
from airy_trio.testing.client import Closed, Rejected, StompClient, connect
from tests.application import Application
from tests.e2e.route import Listening
from tests.stalling_proxy import stalling

TIMEOUT_S = 40.0
LISTENER = "[listener]\nport = 0\n"
RETRY_S = 0.1


async def connected(address: app.Address) -> StompClient:
    """Connect a client as soon as the server accepts it."""
    while True:
        try:
            return await connect(address.host, address.port, address.path)
        except Rejected:
            await trio.sleep(RETRY_S)


async def answer_to_upgrade(address: app.Address) -> bytes:
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(
            f"GET {address.path} HTTP/1.1\r\nHost: {address.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        return b"".join([part async for part in stream])


async def test_clients_of_a_stalled_server_resume_on_another(
    postgres_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MonitoredConnection, "answer_timeout_s", 0.5)
    postgres_application.migrate()
    with trio.fail_after(TIMEOUT_S):
        async with stalling(postgres_application.url) as proxy, trio.open_nursery() as nursery:
            behind = Application(proxy.url)
            well: app.Address = await nursery.start(app.serve, postgres_application.settings(LISTENER))
            stalled: app.Address = await nursery.start(app.serve, behind.settings(f"{LISTENER}away_max_s = 0.5\n"))
            async with await connected(stalled) as client:
                ours = Listening(client, await client.subscribe())
                for number in range(2):  # from now on this server follows the other one
                    postgres_application.tag(f"before {number}")
                    assert (await ours.next()).object == ("tag", f"before {number}")
                proxy.stall()
                postgres_application.tag("meanwhile")
                error = await client.receive()
                assert (error.command, error.get("message")) == ("ERROR", "503-event-store-unavailable")
                with pytest.raises(Closed, match="1012"):
                    await client.receive()
            answer = await answer_to_upgrade(stalled)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 5\r\n" in answer
            async with await connected(well) as client:
                after = [("last-event-id", ours.events[-1].position)]
                there = Listening(client, await client.subscribe(headers=after))
                assert there.receipt.get("resume") == "resumed"
                assert (await there.next()).object == ("tag", "meanwhile")
            proxy.flow()
            async with await connected(stalled) as client:
                again = Listening(client, await client.subscribe(headers=after))
                postgres_application.tag("after")
                assert [event.object[1] for event in await again.take(2)] == ["meanwhile", "after"]
            nursery.cancel_scope.cancel()
