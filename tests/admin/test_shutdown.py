"""The admin port during a shutdown: not ready at once, alive until the end."""

import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from airy_trio import app
from airy_trio.admin.readiness import Readiness
from airy_trio.log.memory import MemoryStore
from airy_trio.sessions import session
from airy_trio.sessions.session import SPREAD_S
from airy_trio.testing.client import Closed, StompClient, connect
from tests.admin.serving import HOST, TIMEOUT_S, Port, admin, free_port
from tests.application import Application
from tests.log.recording import node
from tests.memory_feed import MemoryChanges
from tests.processes import server

CLIENTS = 50


def test_not_ready_before_it_listens() -> None:
    one = node(MemoryChanges(), MemoryStore())
    found = Readiness(one.recorder, one.log, no_faults, lag_max_s=10)
    assert found.conditions()["listener"].reason == "the port for clients is not open yet"
    found.listen()
    assert found.conditions()["listener"].well
    found.stop()
    assert not found.conditions()["listener"].well


async def no_faults() -> Sequence[str]:
    await trio.lowlevel.checkpoint()
    return ()


async def test_readiness_fails_first_and_port_answers_during_drain(
    any_application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CLOSE_TIMEOUT_S", TIMEOUT_S)  # the client below decides when it closes
    settings = any_application.migrate(admin(free_port()))
    port, stopping = Port(settings.admin.port), trio.Event()
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery, AsyncExitStack() as clients:
            address: app.Address = await nursery.start(partial(app.serve, settings, stopping=stopping))
            await port.until_ready()
            one = await clients.enter_async_context(await connect(HOST, address.port))
            stopping.set()
            assert await port.until_not_ready("listener", "shutting down")  # the client has not answered its Close yet
            assert (await port.get("/livez")).status_code == 200
            assert 'airy_trio_ready{part="listener"} 0.0' in (await port.get("/metrics")).text
            with pytest.raises(OSError, match="connect"):  # refused at once, although the server still runs
                await trio.open_tcp_stream(HOST, address.port)
            assert (await one.receive()).get("message") == "503-shutting-down"
        with pytest.raises(httpx2.ConnectError):
            await port.get("/livez")


async def test_sigterm_drains_and_exits_with_0(sqlite_application: Application, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "airy-trio.toml"
    sqlite_application.migrate()
    config.write_text(
        f'[database]\nurl = "{sqlite_application.url}"\n{admin(port)}[logging]\nformat = "json"\n'
        "[replay]\nwindow_s = 0\n"
    )
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(await connect(HOST, serving.port)) for _ in range(CLIENTS)]
            disconnected_at: list[float] = []
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(until_disconnected, client, disconnected_at)
                os.kill(serving.process.pid, signal.SIGTERM)
            assert await serving.wait() == 0
    assert len(disconnected_at) == CLIENTS
    assert max(disconnected_at) - min(disconnected_at) > SPREAD_S * CLIENTS / 2  # not all at once


async def until_disconnected(client: StompClient, disconnected_at: list[float]) -> None:
    assert (await client.receive()).get("message") == "503-shutting-down"
    with pytest.raises(Closed) as closed:
        await client.receive()
    assert closed.value.code == 1012
    disconnected_at.append(trio.current_time())
