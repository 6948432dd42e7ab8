"""Settings of different sections that contradict each other."""

import pytest

from airy_trio.errors import SettingsError
from airy_trio.settings import parse

URL = '[database]\nurl = "sqlite:///a.db"\n'


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as error:
        parse(f"{URL}{text}", {})
    return error.value.faults


def test_both_ports_of_one_process_are_different() -> None:
    assert faults("[admin]\nport = 8080") == ("listener.port, admin.port: both are 8080, on the same host",)
    assert parse(f'{URL}[listener]\nhost = "127.0.0.2"\n[admin]\nport = 8080', {}).admin.port == 8080
    assert parse(f"{URL}[listener]\nport = 0\n[admin]\nport = 0", {}).admin.port == 0


def test_workers_share_a_store() -> None:
    assert faults('[log]\nstore = "memory"\n[listener]\nworkers = 2') == (
        'listener.workers is 2, but log.store is "memory", which belongs to one process',
    )
    assert parse(f'{URL}[log]\nstore = "memory"\n[listener]\nworkers = 1', {}).listener.workers == 1


def test_every_worker_has_an_admin_port() -> None:
    assert faults("[admin]\nport = 65532\n[listener]\nworkers = 4") == (
        "listener.workers is 4, but admin.port + 4, of the recorder process, exceeds 65535",
    )
    assert parse(f"{URL}[admin]\nport = 65531\n[listener]\nworkers = 4", {}).admin.port == 65531
    assert parse(f"{URL}[admin]\nport = 0\n[listener]\nworkers = 256", {}).listener.workers == 256


@pytest.mark.parametrize("port", [8081, 8082, 8083, 8084])
def test_admin_ports_must_differ_from_the_client_port(port: int) -> None:
    (reported,) = faults(f"[listener]\nport = {port}\nworkers = 3")
    assert reported.startswith(f"listener.port is {port}, but admin.port to admin.port + 3 are the admin ports")
    assert parse(f"{URL}[listener]\nport = 8085\nworkers = 3", {}).listener.port == 8085


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "db1"])  # noqa: S104 - nothing listens
def test_admin_port_for_other_machines_needs_a_token(host: str) -> None:
    assert faults(f'[admin]\nhost = "{host}"') == (
        "admin: host is not a loopback address, so set a token: every client that reaches the port could read it",
    )
    assert parse(f'{URL}[admin]\nhost = "{host}"\ntoken = "{"t" * 16}"', {}).admin.host == host
    assert parse(f'{URL}[admin]\nhost = "{host}"\nport = 0', {}).admin.host == host


@pytest.mark.parametrize("token", ["t" * 15, "with spaces in between", "umlaut-äöü-long-enough"])
def test_admin_token_that_cannot_be_sent_or_is_short(token: str) -> None:
    assert faults(f'[admin]\ntoken = "{token}"') == (
        'admin.token: found string, expected at least 16 printable ASCII characters without a space, or ""',
    )


@pytest.mark.parametrize("workers", [0, -1, 257, "2.5", "'2'"])
def test_invalid_number_of_workers(workers: object) -> None:
    (reported,) = faults(f"[listener]\nworkers = {workers}")
    assert reported.startswith("listener.workers: found ")


@pytest.mark.parametrize("path, sse_path", [("/events", "/events"), ("/events/ws", "/events"), ("/a/b", "/a")])
def test_websocket_and_event_streams_have_different_paths(path: str, sse_path: str) -> None:
    (reported,) = faults(f'[listener]\npath = "{path}"\nsse_path = "{sse_path}"')
    assert reported.startswith(f"listener.path, listener.sse_path: {path} would be an event stream as well")
    assert parse(f'{URL}[listener]\npath = "{path}"\nsse_path = ""', {}).listener.sse_path == ""
    assert parse(f'{URL}[listener]\npath = "{path}s"\nsse_path = "{path}"', {}).listener.sse_path == path
