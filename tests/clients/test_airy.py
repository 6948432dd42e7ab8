"""Airy's own inbox, unchanged: its behaviour on the wire, and how the server serves it."""

import re
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from airy_trio.delivery.disconnects import SILENT
from airy_trio.sessions.listener import ListenerOptions
from airy_trio.testing.client import StompClient
from tests.application import Application
from tests.clients.client_processes import stompjs
from tests.clients.test_client_processes import listen
from tests.e2e.route import configure
from tests.processes import server
from tests.sessions.serving import serving

TIMEOUT_S = 30.0
MINUTE_S = 60.0
AUTH = '[auth]\nmode = "tokens"\ntokens = { inbox = "right" }\n'


def names(frame: str) -> set[str]:
    """Return the names of a frame's headers."""
    return set(re.findall(r"^(.*?):", frame, re.MULTILINE))


async def test_airy_client_unsubscribes_after_disconnect(nursery: trio.Nursery) -> None:
    frames: list[str] = []
    with trio.fail_after(TIMEOUT_S):
        async with stompjs(await listen(frames, nursery)) as inbox:
            await inbox.messages(1)
            assert await inbox.terminate() == 0
    assert [frame.partition("\n")[0] for frame in frames] == ["CONNECT", "SUBSCRIBE", "DISCONNECT", "UNSUBSCRIBE"]
    connect, subscribe, disconnect, _ = frames
    assert names(connect) == {"accept-version", "heart-beat"}
    assert "\nheart-beat:10000,10000\n" in connect
    assert names(subscribe) == {"id", "destination"}
    assert names(disconnect) == {"receipt"}


async def test_disconnect_receipt_arrives_despite_frames_after_disconnect(
    sqlite_application: Application, tmp_path: Path
) -> None:
    config = configure(sqlite_application, tmp_path)
    with trio.fail_after(TIMEOUT_S):
        async with server(config) as serving, stompjs(serving.url) as inbox:
            sqlite_application.tag("t1")
            [received] = await inbox.messages(1)
            assert received.body == '{"type":"tag.updated","payload":{"id":"t1","name":"flag","color":"tag-red"}}'
            assert await inbox.terminate() == 0
            assert len(inbox.reported("disconnected")) == 1
            assert not inbox.reported("error")
            assert [closed["code"] for closed in inbox.reported("closed")] == [1000]


async def test_bad_credentials_get_an_error_with_401(sqlite_application: Application, tmp_path: Path) -> None:
    config = configure(sqlite_application, tmp_path, AUTH)
    sqlite_application.tag("t1")
    with trio.fail_after(TIMEOUT_S):
        async with (
            server(config) as serving,
            stompjs(serving.url, token="right", count=1) as welcome,
            stompjs(serving.url, token="wrong") as refused,
            stompjs(serving.url) as anonymous,
        ):
            assert await welcome.wait() == 0
            for inbox in (refused, anonymous):
                await inbox.until_reported("unauthorized", 2)  # it retries
                for error in inbox.reported("error"):
                    assert error["headers"]["message"] == "401-unauthorized"
                assert {closed["code"] for closed in inbox.reported("closed")} == {4401}
                assert not inbox.reported("connected")
                assert not inbox.out.all


async def heart_beats_in(client: StompClient, seconds: float) -> int:
    """Wait for some seconds, and count the server's heart-beats in this time."""
    before = client.heart_beats
    with trio.move_on_after(seconds):
        await client.receive()
        pytest.fail("expected only heart-beats")
    return client.heart_beats - before


async def test_hidden_tab_with_slow_timers_is_not_disconnected(autojump_clock: MockClock) -> None:
    async with serving(options=ListenerOptions(port=0), listen=False) as server:
        plugged = await server.plug_connected(headers=[("heart-beat", "10000,10000")])
        client = plugged.client
        await client.subscribe()
        for _ in range(10):
            assert await heart_beats_in(client, MINUTE_S) == 2
            await client.send_text("\n")  # the browser combines all ticks of a minute, so the timer fires once
        await server.append(1, 1)
        assert (await client.receive()).command == "MESSAGE"
        silent_from = trio.current_time()
        assert await plugged.ending.wait() is SILENT
        assert 75 <= plugged.ending.at - silent_from < 80
