"""A server for the drills with attacks: its settings, its start, its admin pages, its memory."""

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from airy_trio.testing.client import connect
from tests.application import Application
from tests.certificates import issue, trusting
from tests.drill.attacks import USER
from tests.drill.nodes import ROOT
from tests.e2e.route import HOST, configure, event_of
from tests.processes import AIRY_TRIO, Lines, Server, running

START_S: Final = 20.0
PROBE_TIMEOUT_S: Final = 1.0
CREDENTIALS: Final = (("passcode", USER),)
TOKENS: Final = f'[auth]\nmode = "tokens"\ntokens = {{ user = "{USER}" }}\n'
SMALL_TAIL: Final = "[log]\ntail_events = 1000\n"
"""Older events are read from the event store."""
FILL: Final = """
    with recursive n(i) as (select 1 union all select i + 1 from n where i < :count)
    insert into messages (id, conversation_id, channel_id, content, delivery_state, from_contact, sent_at, source)
    select 'old-' || i, 'c' || (i % 50), 'busy', 'text', 'pending', true, '2020-10-25T21:24:54.560Z', 'facebook' from n
"""


class Unread(Lines):
    """A pipe that is open and never read."""

    async def read(self, pipe: trio.abc.ReceiveStream) -> None:
        async with pipe:
            await trio.sleep_forever()


@define
class SilentServer(Server):
    """A server whose stderr is not read."""

    err: Lines = field(factory=Unread)


@frozen
class Arrangement:
    """A server on SQLite. ``listener``: lines of that section. ``more``: sections. ``old_events``: recorded first."""

    listener: str = ""
    more: str = ""
    auth: str = TOKENS
    workers: int = 1
    old_events: int = 0
    tls: bool = False
    command: Sequence[str] = AIRY_TRIO
    reads_stderr: bool = True

    def prepare(self, application: Application, folder: Path, port: int) -> tuple[Path, ssl.SSLContext | None]:
        """Write the settings and the old events. Return the settings file and, with TLS, a context for clients."""
        config = configure(application, folder, port=port, workers=self.workers)
        listener = (issue(folder).listener if self.tls else "") + self.listener
        text = config.read_text().replace("[admin]\nport = 0\n", f"{listener}[admin]\nport = {port + 1}\n")
        config.write_text(f"{text}{self.more}{self.auth}")
        if self.old_events:
            application.execute(FILL, count=self.old_events)
        return config, trusting() if self.tls else None

    @asynccontextmanager
    async def started(self, config: Path, port: int) -> AsyncGenerator[Server]:
        """Start the server. Yields it once it is ready."""
        kind = Server if self.reads_stderr else SilentServer
        async with running(kind, [*self.command, "--config", str(config)], folder=ROOT) as serving:
            with trio.fail_after(START_S):
                while (await page(port + 1, "/readyz"))[0] != 200:
                    assert serving.process.poll() is None, serving.err.all
                    await trio.sleep(0.05)
            yield serving


async def caught_up(application: Application, port: int, tls: ssl.SSLContext | None) -> None:
    """Wait until the server has sent a new event, so that it has recorded all older ones."""
    with trio.fail_after(START_S):
        async with await connect(HOST, port, headers=CREDENTIALS, tls=tls) as client:
            await client.subscribe(headers=[("replay", "none")])
            application.tag("marker", "flag")
            while event_of(await client.receive()).payload.get("id") != "marker":
                pass


async def page(port: int, path: str) -> tuple[int, int]:
    """Return status and size of a page of the admin port; zeros if it does not answer in time."""
    data = b""
    with trio.move_on_after(PROBE_TIMEOUT_S) as timeout:
        try:
            async with await trio.open_tcp_stream(HOST, port) as stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                async for more in stream:
                    data += more
        except (OSError, trio.BrokenResourceError):
            return 0, 0
    return (0, 0) if timeout.cancelled_caught or not data else (int(data[9:12]), len(data))


async def resident_kib(serving: Server) -> int:
    """Return the resident memory of the server and its workers."""
    found = await trio.run_process(["ps", "-A", "-o", "pid=,ppid=,rss="], capture_stdout=True)
    lines = (map(int, line.split()) for line in found.stdout.splitlines())
    return sum(kib for pid, parent, kib in lines if serving.process.pid in (pid, parent))
