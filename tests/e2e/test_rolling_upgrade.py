"""A rolling upgrade and a rollback with the wheel of the previous release, while an application writes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from attrs import define, field

from airy_trio import client
from airy_trio.migrate import Stream
from tests.application import Application
from tests.e2e.route import HOST, Writer, assert_same_epoch, writing
from tests.newer_schema import NEWER_SCHEMA, home_of, move_ahead
from tests.processes import AIRY_TRIO, Server, free_ports, run, server
from tests.releases import install_previous

TIMEOUT_S = 150.0
"""Long enough for a busy machine: the test starts eight programs, one after the other."""
PAUSE_S = 0.005
"""The pause between two writes, because the starts of eight programs need the processors too."""
STREAMS: Sequence[Stream] = ("changes", "log")

pytestmark = pytest.mark.slow


@define
class Load:
    """An application that writes one tag after the other: "1", "2" and so on. ``over``: it is to end."""

    written: int = 0
    over: bool = False

    async def run(self, writer: Writer) -> None:
        while not self.over:
            await writer.apply(f"insert into tags (id, name, color) values ('{self.written + 1}', 'flag', 'red')")
            self.written += 1
            await trio.sleep(PAUSE_S)


@define
class Place:
    """A port on which one server replaces another, and a client that reconnects to it.

    ``items``: everything that the client received. ``servers``: all servers that have run here, one at a time, each in
    a task of its own.
    """

    config: Path
    port: int
    nursery: trio.Nursery
    servers: list[Server] = field(factory=list)
    items: list[client.Event | client.Reset | client.State] = field(factory=list)
    _newest: int = 0
    _received: trio.Event = field(factory=trio.Event)

    async def start(self, program: Sequence[str]) -> Server:
        """Terminate the server that runs here, if any, and start one with this program in its place."""
        if self.servers:
            assert await self.servers[-1].terminate() == 0
        serving: Server = await self.nursery.start(self._serve, program)
        self.servers.append(serving)
        return serving

    async def _serve(  # noqa: ASYNC114 - only `start` starts it, and waits for it
        self, program: Sequence[str], *, task_status: trio.TaskStatus[Server]
    ) -> None:
        async with server(self.config, program=program) as serving:
            task_status.started(serving)
            await serving.err.end()
            assert await serving.wait() == 0, "\n".join(serving.err.all[-50:])

    async def follow(self) -> None:
        async with client.open(f"ws://{HOST}:{self.port}") as connection:
            async for item in connection.events(begin="oldest"):
                self.items.append(item)
                if isinstance(item, client.Event):
                    self._newest = int(item.payload["id"])
                received, self._received = self._received, trio.Event()
                received.set()

    async def until_received(self, number: int) -> None:
        """Wait until the client has received a tag with this number or a later one."""
        while self._newest < number:
            await self._received.wait()


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """The program of the previous release."""
    environment = install_previous(tmp_path_factory.mktemp("previous"))
    return (str(environment / "bin" / "airy-trio"),)


def settings_file(application: Application, folder: Path, port: int) -> Path:
    config = folder / f"{port}.toml"
    listener = f'[listener]\nport = {port}\ndrain_s = 0.2\n[admin]\nport = 0\n[logging]\nformat = "json"\n'
    config.write_text(f'[database]\nurl = "{application.url}"\n{listener}')
    return config


def revisions(application: Application) -> dict[Stream, str]:
    found: dict[Stream, str] = {}
    for stream in STREAMS:
        home = home_of(application, stream)
        found[stream] = home.scalar(f"select version_num from {home.log_table(f'{stream}_version')}")
        home.engine.dispose()
    return found


async def migrate_ahead(application: Application, config: Path) -> None:
    """Migrate as the present version does, and further if the previous version has all revisions of a stream."""
    before = await trio.to_thread.run_sync(revisions, application)
    migrated = await run("migrate", "--config", str(config))
    assert (migrated.code, migrated.err) == (0, "")
    after = await trio.to_thread.run_sync(revisions, application)
    for stream in STREAMS:
        if after[stream] == before[stream]:
            await trio.to_thread.run_sync(move_ahead, application, stream)


@pytest.mark.timeout(180)
async def test_upgrade_and_rollback_under_load_lose_nothing(
    any_application: Application, tmp_path: Path, previous: Sequence[str]
) -> None:
    any_application.execute("select 1")  # so that the SQLite file exists
    first = free_ports(2)
    configs = [settings_file(any_application, tmp_path, port) for port in (first, first + 1)]
    with trio.fail_after(TIMEOUT_S):
        installed = await run("migrate", "--with-tables", "--config", str(configs[0]), program=previous)
        assert (installed.code, installed.err) == (0, "")
        load = Load()
        async with trio.open_nursery() as nursery, writing(any_application) as writer:
            one, two = places = [Place(config, first + n, nursery) for n, config in enumerate(configs)]

            async def all_receive() -> None:
                """Wait until both clients have received something that is written from now on."""
                number = load.written + 1
                for place in places:
                    await place.until_received(number)

            for place in places:
                await place.start(previous)
                nursery.start_soon(place.follow)
            async with trio.open_nursery() as loading:
                loading.start_soon(load.run, writer)
                await all_receive()
                await migrate_ahead(any_application, configs[0])
                await all_receive()

                # The servers are replaced one after another, so the version of the recorder changes with every second
                # replacement.
                await one.start(AIRY_TRIO)
                await two.servers[0].record("recording")
                await all_receive()
                await two.start(AIRY_TRIO)
                await one.servers[1].record("recording")
                await all_receive()

                await (await one.start(previous)).record(NEWER_SCHEMA)
                await two.servers[1].record("recording")
                await all_receive()
                await (await two.start(previous)).record(NEWER_SCHEMA)
                await one.servers[2].record("recording")
                await all_receive()
                load.over = True
            for place in places:
                await place.until_received(load.written)
                assert await place.servers[-1].terminate() == 0
            nursery.cancel_scope.cancel()

    assert any_application.scalar("select count(*) from tags") == load.written
    for place in places:
        events = [item for item in place.items if isinstance(item, client.Event)]
        assert events == place.items  # no reset
        assert [event.payload["id"] for event in events] == [str(n + 1) for n in range(load.written)]
        [epoch] = {event.position.rpartition("-")[0] for event in events}
        assert [event.position for event in events] == [f"{epoch}-{n + 1}" for n in range(load.written)]
        for served in place.servers:
            assert_same_epoch(served)
