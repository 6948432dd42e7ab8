"""The process limits that the program sets at its start, and a real server at the limit of open files."""

import gc
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import pytest
import trio

from airy_trio import __version__, app
from airy_trio.sessions.listener import FILES_RESERVED
from airy_trio.testing.client import Closed, Rejected
from tests.admin.serving import Port
from tests.application import Application
from tests.e2e.route import HOST, Listening, configure, listening
from tests.processes import Server, free_ports, running

TIMEOUT_S = 40.0
FILES = 128
CROWD = 300
PROBE_S = 10.0
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
PREPARED = """
import gc, json, resource, sys
from airy_trio.app import server as process
process.prepare_process()
process.freeze_heap()
print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), gc.get_threshold(), gc.get_freeze_count() > 10_000,
                  sys.getswitchinterval()]))
"""


async def prepared(soft: int, hard: int) -> list[object]:
    code = LIMITED.format(soft=soft, hard=hard) + PREPARED
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
async def test_file_limit_collector_and_switch_interval_are_set() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert await prepared(100, hard) == [[hard, hard], [5_000, 200, 100], True, 0.0005]
    assert await prepared(100, 200) == [[200, 200], [5_000, 200, 100], True, 0.0005]


async def test_serve_leaves_the_process_unchanged(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate("[listener]\nport = 0\n[admin]\nport = 0\n")
    before = gc.get_threshold(), sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            assert (gc.get_threshold(), sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)) == before
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_no_garbage_collection_at_the_end_of_a_command() -> None:
    code = (
        "import gc, sys; from airy_trio.__main__ import main; sys.argv[1:] = ['--version']; "
        "gc.callbacks.append(lambda phase, _: print(phase) if ended else None); ended = False\n"
        "try: main()\n"
        "finally: ended = True"
    )
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert done.stdout.decode().splitlines() == [f"airy-trio, version {__version__}"]


@pytest.mark.slow
async def test_recording_and_probes_work_at_the_file_limit(sqlite_application: Application, tmp_path: Path) -> None:
    admin_port, fitting = free_ports(1), (FILES - FILES_RESERVED) * 7 // 8
    code = LIMITED.format(soft=FILES // 2, hard=FILES) + "from airy_trio.__main__ import main; main()"
    config = configure(sqlite_application, tmp_path)
    text = config.read_text().replace("[admin]\nport = 0", f"[admin]\nport = {admin_port}")
    config.write_text(text.replace("[listener]\n", "[listener]\nconnect_timeout_s = 60\n"))
    with trio.fail_after(TIMEOUT_S):
        async with AsyncExitStack() as stack:
            command = [sys.executable, "-c", code, "--config", str(config)]
            server = await stack.enter_async_context(running(Server, command))
            server.port = (await server.record("listening"))["port"]
            early = await stack.enter_async_context(listening(server))
            event = "fewer connections than listener.connections_max fit; raise the limit of open files"
            facts = await server.record(event, connections_max=20_000, files=FILES)
            assert facts["fitting"] == fitting
            crowd = stack.enter_context(ExitStack())
            for _ in range(CROWD):
                with suppress(ConnectionResetError):  # it may be closed before the client notices that it was open
                    crowd.enter_context(socket.create_connection((HOST, server.port)))
            await server.record("connections turned away")
            for number in range(3):
                with trio.fail_after(PROBE_S):
                    assert (await Port(admin_port).get("/livez")).status_code == HTTPStatus.OK
                sqlite_application.tag(f"t{number}")
                assert (await early.next()).offset == 1 + number
            metrics = await Port(admin_port).samples()
            assert metrics["airy_trio_connections_rejected_total", (("limit", "connections_max"),)] > 0
            crowd.close()
            async with late_client(server) as late:
                sqlite_application.tag("late")
                assert [(await client.next()).offset for client in (early, late)] == [4, 4]
            assert await server.terminate() == 0
    assert "cannot accept connections" not in "\n".join(server.err.all)


@asynccontextmanager
async def late_client(server: Server) -> AsyncIterator[Listening]:
    """Yield a client that has reconnected until it was accepted."""
    async with AsyncExitStack() as stack:
        while True:
            try:
                client = await stack.enter_async_context(listening(server, headers=[("replay", "none")]))
            except (Rejected, Closed, trio.BrokenResourceError):
                await trio.sleep(0.05)
                continue
            break
        yield client
