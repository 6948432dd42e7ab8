"""Follow the README as a newcomer does, up to events in a real browser (``make newcomer``).

Everything starts from a fresh clone of the last commit and an environment that has only PATH and HOME:

1. the checkout: ``make demo``, until the terminal and the console show events;
2. the checkout: the README's installation and settings, until its page shows a row that was written;
3. the wheel: the same without the checkout. ``make dist`` builds the wheel, and the clone is deleted. The commands are
   those of the wheel's description, in another folder with another environment.

Meanwhile a second clone is installed with the other commands that install: those of the tutorial and of the systemd
unit.

Commands, settings and the page are read from the README. Three values are replaced: ports, which other programs may
use; ``pip install .`` in the third part; and the log level, because the log shows when the page is connected. The
README's requirements must be installed: Python, make, and git for the clone. Also needed are a browser, systemctl, the
environment of the tests, and @stomp/stompjs from ``npm ci`` in tests/clients, which the bundler of a page would
provide. Exits with 1 if a step fails or everything together takes too long.
"""

import contextlib
import http.server
import itertools
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
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes
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
SECTION: Final = "On your database"
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
    """A clone of the checkout's last commit in a temporary folder, and an environment with PATH and HOME alone.

    ``folder`` is where commands run, and ``readme`` the text from which they are read.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = self.clone = place / "airy-trio"
        home = place / "home"
        home.mkdir()
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
        self.run(f"git clone --quiet {ROOT} {self.clone}", place)
        self.readme = (self.clone / "README.md").read_text()

    def leave(self) -> Path:
        """Build the wheel, delete the clone and continue in an empty folder with the wheel's description.

        Returns the path of the wheel.
        """
        project = self.clone / "pyproject.toml"  # `make dist` rejects the address that is reserved for documentation
        project.write_text(project.read_text().replace("git.example.org", "git.example.com"))
        # The tests' environment has what builds a wheel. Its stamp counts as old, so that make installs nothing in it.
        self.run(f"make --old-file={sys.prefix}/.tests VENV={sys.prefix} dist")
        [built] = self.clone.glob("dist/*.whl")
        wheel = built.rename(self.place / built.name)
        shutil.rmtree(self.clone)
        self.folder = self.place / "elsewhere"
        self.folder.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            self.readme = str(message_from_bytes(archive.read(name)).get_payload())
        return wheel

    def run(self, command: str, folder: Path | None = None) -> None:
        """Run a command to its end. Exits if it fails."""
        show_command(command)
        ended = subprocess.run(
            [SHELL, "-c", command],
            check=False,
            cwd=folder or self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            timeout=STEP_MAX_S,
        )
        if ended.returncode:
            sys.exit(f"newcomer: {command!r} ended with {ended.returncode}")

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[queue.Queue[str | None]]:
        """Run a command, and interrupt it as Ctrl-C does when the block ends.

        Yields the queue of its lines; None follows the last one.
        """
        show_command(command)
        process = subprocess.Popen(
            [SHELL, "-c", command],
            cwd=self.folder,
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
    """Read lines until ``count`` of them have matched, and return the last match. Exits if there are too few."""
    deadline = time.monotonic() + STEP_MAX_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            sys.exit(f"newcomer: no line matches {pattern.pattern!r}")
        sys.stdout.write(f"    {line}\n")
        found = pattern.search(line)
        count -= bool(found)
        if found and not count:
            return found


def blocks(text: str, heading: str, language: str) -> list[str]:
    """Return the blocks of a language below a heading. Exits if there is no such heading."""
    below = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)
    if len(below) == 1:
        sys.exit(f"newcomer: the README has no heading {heading!r}")
    section = re.split(r"^#+ ", below[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def commands(text: str, heading: str) -> list[list[str]]:
    """Return the commands of each console block below a heading: the lines that begin with ``$``."""
    found = blocks(text, heading, "console")
    return [[line.removeprefix("$ ") for line in block.splitlines() if line[:2] == "$ "] for block in found]


class Site(http.server.ThreadingHTTPServer):
    """Serves the page and the library that it imports. ``seen`` receives the events that the page logs."""

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
        """Log no requests."""

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def demo(newcomer: Newcomer, browser: Browser) -> None:
    """Run the README's first command until the terminal shows events, and the console at the printed address too."""
    command = commands(newcomer.readme, "Try it")[0][0]
    with newcomer.running(command) as lines:
        url = until(lines, CONSOLE)[1]
        until(lines, EVENT, DEMO_EVENTS)
        console = browser.new_page()
        console.goto(url)
        event = console.locator("#log li[data-position]").nth(DEMO_EVENTS - 1)
        event.wait_for(timeout=STEP_MAX_S * 1000)
        show_page("the console shows", event.inner_text())
        console.close()


def page(newcomer: Newcomer, browser: Browser, package: str = ".") -> None:
    """Install the package, serve a new database, and write a row. Exits if the README's page does not show the row."""
    (environment, install), (*prepare, serve), [row] = commands(newcomer.readme, SECTION)
    [script] = blocks(newcomer.readme, SECTION, "js")
    [origins] = blocks(newcomer.readme, SECTION, "toml")
    [activate] = re.findall(r"\. \S+/activate", environment)
    [config] = re.findall(r"--config (\S+)", serve)
    install, changed = re.subn(r"(?<=pip install --quiet )\.(?=\s)", package, install)
    if not changed:
        sys.exit(f"newcomer: the README does not install a package: {install}")
    newcomer.run("\n".join(["set -e", environment, install, *prepare]))
    port, admin_port = free_port(), free_port()
    site = Site(PAGE % script.replace("localhost:8080", f"localhost:{port}"))
    with serving(site) as number:
        settings = origins.replace("localhost:3000", f"localhost:{number}")
        more = f'{settings}port = {port}\n[admin]\nport = {admin_port}\n[logging]\nlevel = "debug"\n'
        with (newcomer.folder / config).open("a") as file:
            file.write(more)
        with newcomer.running(f"{activate}\nexec {serve}") as lines:
            until(lines, re.compile("listening"))
            shown = browser.new_page()
            shown.goto(f"http://localhost:{number}/")
            until(lines, re.compile("connection opened"))
            newcomer.run(f"{activate}\n{row}")
            seen = json.loads(site.seen.get(timeout=STEP_MAX_S))
            shown.close()
    show_page("the page has seen", json.dumps(seen))
    if seen["type"] != "message.updated" or repr(seen["payload"]["message"]["content"]) not in row:
        sys.exit("newcomer: this is not the row that was written")


def installations(place: Path) -> None:
    """Install as the tutorial does, then as the comment in the systemd unit does, below a folder instead of /.

    There ``systemctl`` enables the unit without a running systemd.
    """
    place.mkdir()
    newcomer = Newcomer(place)
    newcomer.folder = place / "tutorial"
    root = place / "root"
    newcomer.folder.mkdir()
    (root / "etc" / "systemd" / "system").mkdir(parents=True)
    [install] = blocks((newcomer.clone / "docs" / "tutorial.md").read_text(), "Install", "sh")
    newcomer.run("set -e\n" + install.replace("PATH_OF_THE_CHECKOUT", str(newcomer.clone)))
    unit = (newcomer.clone / "deploy" / "airy-trio.service").read_text()
    lines = re.sub(r"(?<=\s)/(?=opt/|etc/)", f"{root}/", "\n".join(re.findall(r"^#   (.+)$", unit, re.MULTILINE)))
    lines = lines.replace("systemctl enable --now", f"systemctl --root={root} enable")
    newcomer.run(f"set -e\n{lines}\n{root}/opt/airy-trio/bin/python -c 'import coredis'", newcomer.clone)
    [link] = root.glob("etc/systemd/system/*.wants/*")
    [start] = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    paths = [str(link.readlink()), *re.findall(r"/\S+", start)]
    if missing := [path for path in paths if not Path(f"{root}{path}").exists()]:
        sys.exit(f"newcomer: the unit needs {missing}")


@contextlib.contextmanager
def serving(site: Site) -> Iterator[int]:
    """Serve until the block ends. Yields the port."""
    thread = threading.Thread(target=site.serve_forever, daemon=True)
    thread.start()
    try:
        yield site.server_address[1]
    finally:
        site.shutdown()
        site.server_close()


def free_port() -> int:
    """Return a port that no program uses now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def show_command(command: str) -> None:
    """Show a command as a terminal does."""
    for line in command.splitlines():
        sys.stdout.write(f"$ {line}\n")
    sys.stdout.flush()


def show_page(what: str, text: str) -> None:
    """Show the text that a page in the browser contains."""
    sys.stdout.write(f"    {what}: {' '.join(text.split())}\n")


def main() -> None:
    """Follow all three parts, and print how long each took."""
    if not any(map(shutil.which, CHROMIUM)):
        sys.exit(f"newcomer: no browser: none of {', '.join(CHROMIUM)} is in PATH")
    if shutil.which("systemctl") is None:
        sys.exit("newcomer: no systemctl in PATH")
    if not LIBRARY.is_dir():
        sys.exit("newcomer: no @stomp/stompjs: run `npm ci` in tests/clients")
    with (
        tempfile.TemporaryDirectory(prefix="airy-trio-newcomer-") as folder,
        ThreadPoolExecutor() as meanwhile,
        chromium() as browser,
    ):
        installed = meanwhile.submit(installations, Path(folder) / "installations")
        times = [time.monotonic()]
        newcomer = Newcomer(Path(folder))
        demo(newcomer, browser)
        times.append(time.monotonic())
        page(newcomer, browser)
        times.append(time.monotonic())
        page(newcomer, browser, str(newcomer.leave()))
        times.append(time.monotonic())
        installed.result()
        times.append(time.monotonic())
    demo_s, checkout_s, wheel_s, rest_s = (after - before for before, after in itertools.pairwise(times))
    took_s = times[-1] - times[0]
    sys.stdout.write(
        f"newcomer: {took_s:.0f} s: events in the console {demo_s:.0f} s, a row in the page from the checkout "
        f"{checkout_s:.0f} s, from the wheel {wheel_s:.0f} s, then the other installations {rest_s:.0f} s\n"
    )
    if took_s > TIME_MAX_S:
        sys.exit(f"newcomer: this is more than {TIME_MAX_S:.0f} s")


if __name__ == "__main__":
    main()
