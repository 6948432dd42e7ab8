"""The way of somebody new: a fresh clone, nothing but PATH, the README's own commands, events in a real browser.

    make newcomer

The newcomer needs what the README says is needed (Python, git, make), a browser, and @stomp/stompjs as `npm ci` in
tests/clients leaves it, which a page's bundler would bring; who drives that browser has the environment of the tests.
The commands, the settings and the page are read from the README; only the ports are others, which the machine may need
for something else. Ends with 1 where anything fails or takes too long.
"""

import contextlib
import http.server
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser

from tests.console.browser import CHROMIUM, chromium

ROOT: Final = Path(__file__).parents[1]
SHELL: Final = "/bin/bash"
LIBRARY: Final = ROOT / "tests" / "clients" / "node_modules" / "@stomp" / "stompjs" / "esm6"
TIME_MAX_S: Final = 180.0
STEP_MAX_S: Final = 150.0
END_MAX_S: Final = 30.0
DEMO_EVENTS: Final = 5
EVENT: Final = re.compile(r"\d\d:\d\d:\d\d\.\d+ +[a-z0-9]{6}-\d+ ")
CONSOLE: Final = re.compile(r"^console +(http://\S+)$")
PAGE: Final = """<!doctype html>
<script type="importmap">{"imports": {"@stomp/stompjs": "/stompjs/index.js"}}</script>
<script type="module">
console.log = (event) => fetch('/seen', { method: 'POST', body: JSON.stringify(event) });
%s
</script>
"""


class Newcomer:
    """A clone of the checkout's last commit in a folder of its own, and an environment with PATH and HOME alone."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "airy-trio"
        home = folder / "home"
        home.mkdir()
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
        self.run(f"git clone --quiet {ROOT} {self.clone}", folder)
        self.readme = (self.clone / "README.md").read_text()

    def blocks(self, heading: str, language: str) -> list[str]:
        """The blocks of a language below a heading of the README."""
        below = re.split(rf"^#+ {re.escape(heading)}$", self.readme, maxsplit=1, flags=re.MULTILINE)
        if len(below) == 1:
            sys.exit(f"newcomer: the README has no heading {heading!r}")
        section = re.split(r"^#+ ", below[1], maxsplit=1, flags=re.MULTILINE)[0]
        return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)

    def commands(self, heading: str) -> list[str]:
        """What stands behind the `$` in the first block of commands below a heading."""
        return [line.removeprefix("$ ") for line in self.blocks(heading, "console")[0].splitlines() if line[:2] == "$ "]

    def run(self, command: str, folder: Path | None = None) -> None:
        """Run a command to its end. Ends the program where it fails."""
        told(command)
        ended = subprocess.run(
            [SHELL, "-c", command],
            check=False,
            cwd=folder or self.clone,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            timeout=STEP_MAX_S,
        )
        if ended.returncode:
            sys.exit(f"newcomer: {command!r} ended with {ended.returncode}")

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[queue.Queue[str | None]]:
        """Run a command until the block ends, then Ctrl-C. Gives its lines; None: it has ended."""
        told(command)
        process = subprocess.Popen(
            [SHELL, "-c", command],
            cwd=self.clone,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        try:
            yield lines
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(END_MAX_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def _read(process: "subprocess.Popen[str]", lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def until(lines: queue.Queue[str | None], pattern: re.Pattern[str], count: int = 1) -> re.Match[str]:
    """Read lines until so many have matched; give the last match. Ends the program where they end before."""
    deadline = time.monotonic() + STEP_MAX_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            sys.exit(f"newcomer: it has not said {pattern.pattern!r}")
        sys.stdout.write(f"    {line}\n")
        found = pattern.search(line)
        count -= bool(found)
        if found and not count:
            return found


class Site(http.server.ThreadingHTTPServer):
    """Serves the page and the library that it imports; keeps what the page has seen."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.seen: queue.Queue[str] = queue.Queue()
        super().__init__(("127.0.0.1", 0), _Visit)


class _Visit(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        file = LIBRARY / path.removeprefix("/stompjs/")
        if path == "/":
            self._answer(200, "text/html", self.server.page.encode())
        elif path.startswith("/stompjs/") and file.is_file():
            self._answer(200, "text/javascript", file.read_bytes())
        else:
            self._answer(404, "text/plain", b"")

    def do_POST(self) -> None:
        self.server.seen.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self._answer(204, "text/plain", b"")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def demo(newcomer: Newcomer, browser: Browser) -> None:
    """The first command of the README, until there are events in the terminal, and in the console that it names."""
    command = newcomer.commands("Try it")[0]
    with newcomer.running(command) as lines:
        url = until(lines, CONSOLE)[1]
        until(lines, EVENT, DEMO_EVENTS)
        console = browser.new_page()
        console.goto(url)
        event = console.locator("#log li[data-position]").nth(DEMO_EVENTS - 1)
        event.wait_for(timeout=STEP_MAX_S * 1000)
        told_by_page("the console shows", event.inner_text())
        console.close()


def page(newcomer: Newcomer, browser: Browser) -> None:
    """A server on a database of one's own, and the README's page in a browser, which sees a row as it is committed."""
    *preparing, serve = newcomer.commands("On your database")
    [script] = newcomer.blocks("On your database", "js")
    [origins] = newcomer.blocks("On your database", "toml")
    row = newcomer.blocks("On your database", "console")[1].removeprefix("$ ")
    [activate] = re.findall(r"\. \S+/activate", preparing[0])
    port, admin_port = free_port(), free_port()
    site = Site(PAGE % script.replace("localhost:8080", f"localhost:{port}"))
    with serving(site) as number:
        settings = origins.replace("localhost:3000", f"localhost:{number}")
        config = newcomer.clone / re.findall(r"--config (\S+)", serve)[0]
        config.write_text(f"{config.read_text()}\n{settings}port = {port}\n[admin]\nport = {admin_port}\n")
        # one shell: what is activated in it stays so
        with newcomer.running("set -e\n" + "\n".join([*preparing, f"exec {serve}"])) as lines:
            until(lines, re.compile("listening"))
            browser.new_page().goto(f"http://localhost:{number}/")
            until(lines, re.compile("connection opened"))
            newcomer.run(f"{activate}\n{row}")
            seen = json.loads(site.seen.get(timeout=STEP_MAX_S))
    told_by_page("the page has seen", json.dumps(seen))
    if seen["type"] != "tag.updated":
        sys.exit("newcomer: that is not the row that was written")


@contextlib.contextmanager
def serving(site: Site) -> Iterator[int]:
    """Serve until the block ends; give the port."""
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    try:
        yield site.server_address[1]
    finally:
        site.shutdown()
        site.server_close()


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def told(command: str) -> None:
    """Show a command as a terminal does."""
    for line in command.splitlines():
        sys.stdout.write(f"$ {line}\n")
    sys.stdout.flush()


def told_by_page(what: str, text: str) -> None:
    """Show what a page in the browser has."""
    sys.stdout.write(f"    {what}: {' '.join(text.split())}\n")


def main() -> None:
    """Go the whole way, and say how long it took."""
    if not any(map(shutil.which, CHROMIUM)):
        sys.exit(f"newcomer: no browser: none of {', '.join(CHROMIUM)} is in PATH")
    if not LIBRARY.is_dir():
        sys.exit("newcomer: no @stomp/stompjs: run `npm ci` in tests/clients")
    with tempfile.TemporaryDirectory(prefix="airy-trio-newcomer-") as folder, chromium() as browser:
        began = time.monotonic()
        newcomer = Newcomer(Path(folder))
        demo(newcomer, browser)
        console_s = time.monotonic() - began
        page(newcomer, browser)
        took_s = time.monotonic() - began
    sys.stdout.write(
        f"newcomer: events in the console after {console_s:.0f} s, a row of one's own after {took_s:.0f} s\n"
    )
    if took_s > TIME_MAX_S:
        sys.exit(f"newcomer: that is more than {TIME_MAX_S:.0f} s")


if __name__ == "__main__":
    main()
