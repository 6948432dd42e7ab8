"""The demo as a process: events in the terminal, a clean end, and no files left behind."""

import contextlib
import itertools
import os
import re
import signal
import socket
import sys
from pathlib import Path

import httpx2
import pytest
import trio

from tests.processes import AIRY_TRIO, Program, run, running

TIMEOUT_S = 40.0
COMPLAINT_S = 0.5  # a traceback would be printed within this time
CONSOLE = re.compile(r"console +(http://127\.0\.0\.1:\d+/)")
EVENT = re.compile(r"\d\d:\d\d:\d\d\.\d{3}  [a-z0-9]{6}-(\d+) +(message|metadata|channel|tag)\.updated ")
STATE = re.compile(
    r"the current state up to [a-z0-9]{6}-8\n(\S+  \S+-\d +(channel|tag)\.updated .*\n){8}"
    r"the current state ends here; .*\n"
)
"""The state comes first, and no type is missing from it."""
IN_A_GROUP_OF_ITS_OWN = "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"
"""A shell starts each command in a process group; Ctrl-C sends SIGINT to the whole group."""


def offsets(lines: list[str]) -> list[int]:
    return [int(event[1]) for line in lines if (event := EVENT.match(line))]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_ends_after_the_given_number_of_events(tmp_path: Path) -> None:
    ended = await run("demo", "--events", "11", environ={"TMPDIR": str(tmp_path)})
    assert (ended.code, ended.err) == (0, "")
    assert STATE.search(ended.out)
    assert offsets(ended.out.splitlines()) == list(range(1, 12))
    assert "ws://127.0.0.1:" in ended.out
    assert left_in(tmp_path) == []


async def test_opens_the_console_at_the_address_that_it_prints(tmp_path: Path) -> None:
    temporary, opened, browser = tmp_path / "tmp", tmp_path / "opened", tmp_path / "browser"
    temporary.mkdir()
    browser.write_text(f"#!/bin/sh\necho $1 >> {opened}\n")
    browser.chmod(0o755)
    with trio.fail_after(TIMEOUT_S):
        environ = {"TMPDIR": str(temporary), "BROWSER": f"{browser} %s"}
        async with running(Program, [*AIRY_TRIO, "demo", "--open"], environ=environ) as demo:
            found = CONSOLE.fullmatch(await demo.out.line(0) or "")
            assert found, demo.err.all
            async with httpx2.AsyncClient() as client:
                answer = await client.get(found[1])
            assert "<title>airy-trio console</title>" in answer.text
            assert await demo.out.line(5)
            assert opened.read_text() == f"{found[1]}\n"
            assert await demo.terminate() == 0
    assert demo.err.all == []
    assert left_in(temporary) == []


async def test_missing_browser_is_reported_and_the_demo_continues(tmp_path: Path) -> None:
    ended = await run("demo", "--open", "--events", "1", environ={"TMPDIR": str(tmp_path), "PATH": "", "BROWSER": ""})
    assert (ended.code, ended.err) == (0, "airy-trio: no browser found; open the console by hand\n")


async def test_console_takes_another_port_if_its_own_is_in_use(tmp_path: Path) -> None:
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 8081)):
        ended = await run("demo", "--events", "1", environ={"TMPDIR": str(tmp_path)})
        found = CONSOLE.fullmatch(ended.out.splitlines()[0])
        assert found
        assert not found[1].endswith(":8081/")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_signal_to_the_group_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_GROUP_OF_ITS_OWN, *AIRY_TRIO, "demo"]
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, command, environ={"TMPDIR": str(tmp_path)}) as demo:
            for line in itertools.count():
                text = await demo.out.line(line)
                assert text is not None, demo.err.all
                if "metadata.updated" in text:  # the application is in the middle of a conversation
                    break
            demo.process.send_signal(
                signal.SIGSTOP
            )  # if the application got the signal too, it has time to print a traceback
            os.killpg(demo.process.pid, number)
            with trio.move_on_after(COMPLAINT_S):
                await demo.err.line(0)
            demo.process.send_signal(signal.SIGCONT)
            assert await demo.wait() == 0  # also waits for the pipes, which the application holds while it runs
    assert demo.err.all == []
    assert left_in(tmp_path) == []


async def test_signal_to_the_demo_alone_ends_it(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [*AIRY_TRIO, "demo"], environ={"TMPDIR": str(tmp_path)}) as demo:
            assert await demo.out.line(5)
            assert await demo.terminate() == 0
    assert demo.err.all == []
    assert left_in(tmp_path) == []


async def test_signal_during_preparation_leaves_no_files(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [*AIRY_TRIO, "demo"], environ={"TMPDIR": str(tmp_path)}) as demo:
            while not await trio.to_thread.run_sync(left_in, tmp_path):
                pass
            demo.process.send_signal(signal.SIGINT)
            assert await demo.wait() in (0, 128 + signal.SIGINT)
    assert demo.err.all == []
    assert left_in(tmp_path) == []


async def test_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with trio.fail_after(TIMEOUT_S):
        environ = {**os.environ, "TMPDIR": str(tmp_path)}
        ended = await trio.run_process(
            [*AIRY_TRIO, "demo"], stdout=writing, capture_stderr=True, check=False, env=environ
        )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert left_in(tmp_path) == []


async def test_the_end_of_the_application_is_an_error(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [*AIRY_TRIO, "demo"], environ={"TMPDIR": str(tmp_path)}) as demo:
            assert await demo.out.line(5)
            children = await trio.run_process(["pgrep", "-P", str(demo.process.pid)], capture_stdout=True)
            [application] = children.stdout.split()
            os.kill(int(application), signal.SIGKILL)
            assert await demo.process.wait() == 1
    assert demo.err.all == ["airy-trio: the demo's application has ended with -9"]
    assert left_in(tmp_path) == []
