"""The demo as somebody runs it: events in the terminal, an end in good order, and nothing left behind."""

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
COMPLAINT_S = 0.5  # how long a traceback would take at most
CONSOLE = re.compile(r"console +(http://127\.0\.0\.1:\d+/)")
EVENT = re.compile(r"\d\d:\d\d:\d\d\.\d{3}  [a-z0-9]{6}-(\d+) +(message|metadata|channel|tag)\.updated ")
IN_A_GROUP_OF_ITS_OWN = "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"
"""What a shell does with a command that it starts; Ctrl-C is SIGINT to the whole group."""


def offsets(lines: list[str]) -> list[int]:
    return [int(event[1]) for line in lines if (event := EVENT.match(line))]


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_ends_after_so_many_events(tmp_path: Path) -> None:
    ended = await run("demo", "--events", "7", environ={"TMPDIR": str(tmp_path)})
    assert (ended.code, ended.err) == (0, "")
    assert offsets(ended.out.splitlines()) == [1, 2, 3, 4, 5, 6, 7]
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


async def test_without_a_browser_it_says_so_and_goes_on(tmp_path: Path) -> None:
    ended = await run("demo", "--open", "--events", "1", environ={"TMPDIR": str(tmp_path), "PATH": "", "BROWSER": ""})
    assert (ended.code, ended.err) == (0, "airy-trio: there is no browser to open the console with\n")


async def test_a_console_port_that_is_taken_is_no_matter(tmp_path: Path) -> None:
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
                said = await demo.out.line(line)
                assert said is not None, demo.err.all
                if "metadata.updated" in said:  # the application is in the middle of a conversation
                    break
            demo.process.send_signal(signal.SIGSTOP)  # whoever else gets the signal has time to complain of it
            os.killpg(demo.process.pid, number)
            with trio.move_on_after(COMPLAINT_S):
                await demo.err.line(0)
            demo.process.send_signal(signal.SIGCONT)
            assert await demo.wait() == 0  # which waits for the pipes too: the application has them while it lives
    assert demo.err.all == []
    assert left_in(tmp_path) == []


async def test_signal_to_it_alone_ends_it(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [*AIRY_TRIO, "demo"], environ={"TMPDIR": str(tmp_path)}) as demo:
            assert await demo.out.line(5)
            assert await demo.terminate() == 0
    assert demo.err.all == []
    assert left_in(tmp_path) == []


async def test_signal_while_it_prepares_leaves_nothing(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with running(Program, [*AIRY_TRIO, "demo"], environ={"TMPDIR": str(tmp_path)}) as demo:
            while not await trio.to_thread.run_sync(left_in, tmp_path):
                pass
            demo.process.send_signal(signal.SIGINT)
            assert await demo.wait() in (0, 128 + signal.SIGINT)
    assert demo.err.all == []
    assert left_in(tmp_path) == []
