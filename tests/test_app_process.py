"""What the program does to its own process at the start, and a real server that has run out of files."""

import gc
import json
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from airy_trio import app
from airy_trio.version import __version__
from tests.application import Application
from tests.e2e.route import HOST, configure, listening
from tests.processes import Server, running

TIMEOUT_S = 40.0
FILES = 64
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
PREPARED = """
import gc, json, resource, sys
from airy_trio.app import process
process.prepare()
process.freeze()
print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), gc.get_threshold(), gc.get_freeze_count() > 10_000,
                  sys.getswitchinterval()]))
"""


async def prepared(soft: int, hard: int) -> list[object]:
    code = LIMITED.format(soft=soft, hard=hard) + PREPARED
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


async def test_all_files_that_it_may_have_a_patient_collector_and_threads_that_need_not_wait() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert await prepared(100, hard) == [[hard, hard], [5_000, 200, 100], True, 0.0005]
    assert await prepared(100, 200) == [[200, 200], [5_000, 200, 100], True, 0.0005]


async def test_in_somebody_elses_program_it_leaves_the_process_as_it_is(sqlite_application: Application) -> None:
    settings = sqlite_application.migrate("[listener]\nport = 0\n[admin]\nport = 0\n")
    before = gc.get_threshold(), sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(app.serve, settings)
            assert (gc.get_threshold(), sys.getswitchinterval(), resource.getrlimit(resource.RLIMIT_NOFILE)) == before
            nursery.cancel_scope.cancel()


async def test_the_interpreter_looks_for_no_garbage_as_a_command_ends() -> None:
    code = (
        "import gc, sys; from airy_trio.__main__ import main; sys.argv[1:] = ['--version']; "
        "gc.callbacks.append(lambda phase, _: print(phase) if ended else None); ended = False\n"
        "try: main()\n"
        "finally: ended = True"
    )
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert done.stdout.decode().splitlines() == [f"airy-trio, version {__version__}"]


@pytest.mark.slow
async def test_who_comes_when_there_are_no_files_left_waits_and_is_served_later(
    sqlite_application: Application, tmp_path: Path
) -> None:
    code = LIMITED.format(soft=FILES // 2, hard=FILES) + "from airy_trio.__main__ import main; main()"
    config = configure(sqlite_application, tmp_path)
    config.write_text(config.read_text().replace("[listener]\n", "[listener]\nconnect_timeout_s = 2\n"))
    command = [sys.executable, "-c", code, "--config", str(config)]
    with trio.fail_after(TIMEOUT_S):
        async with running(Server, command) as server:
            server.port = (await server.record("listening"))["port"]
            warning = "few files may be open at once, and each connection needs one"
            assert (await server.record(warning))["files"] == FILES
            async with listening(server) as early:
                async with AsyncExitStack() as crowd:
                    for _ in range(2 * FILES):
                        await crowd.enter_async_context(await trio.open_tcp_stream(HOST, server.port))
                    await server.record("cannot accept connections")
                    sqlite_application.tag("t1")
                    assert (await early.next()).offset == 1
                async with listening(server, headers=[("replay", "none")]) as late:
                    sqlite_application.tag("t2")
                    assert [(await client.next()).offset for client in (early, late)] == [2, 2]
            assert await server.terminate() == 0
