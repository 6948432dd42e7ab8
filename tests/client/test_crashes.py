"""The client over a server on SQLite that is killed and restarted, as processes."""

from pathlib import Path

import pytest
import trio

from airy_trio import client
from airy_trio.client import FilePosition
from tests.application import Application
from tests.client.rig import number_of
from tests.e2e.route import HOST, configure
from tests.processes import free_ports, server

TIMEOUT_S = 50.0
KILLS = 1
TAGS_EACH = 30


@pytest.mark.slow
async def test_nothing_lost_or_repeated_although_the_server_is_killed(
    sqlite_application: Application, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRY_MAX_S", 0.5)
    port = free_ports(1)
    config = configure(sqlite_application, tmp_path, port=port)
    position = FilePosition(tmp_path / "position")
    expected = list(range((KILLS + 1) * TAGS_EACH))
    got: list[int] = []

    async def listen() -> None:
        while True:
            async with client.open(f"ws://{HOST}:{port}") as inbox:
                async for event in inbox.events(position=position, begin="oldest"):
                    number = number_of(event)
                    if got[-1:] == [number]:  # the last one before the break is repeated
                        continue
                    got.append(number)
                    if len(got) % 7 == 0:
                        break  # like a program that is restarted

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for kill in range(KILLS + 1):
                async with server(config) as serving:
                    for number in range(kill * TAGS_EACH, (kill + 1) * TAGS_EACH):
                        sqlite_application.tag(f"t{number}")
                        await trio.sleep(0.005)
                    if kill < KILLS:
                        await serving.kill()
                    else:
                        while len(got) < len(expected):  # noqa: ASYNC110 - the list has no event for this
                            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    assert got == expected
