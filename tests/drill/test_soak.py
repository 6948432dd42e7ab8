"""The soak: all clients receive everything, and the server leaks nothing."""

import os
import sys
from pathlib import Path

import pytest
import trio

from tests.application import Application
from tests.drill.crowd import wrong_deliveries
from tests.drill.log_check import log_of
from tests.drill.nodes import ROOT
from tests.drill.progress import progress_bar
from tests.drill.soak import SETTINGS, Outcome, Roles, soak
from tests.processes import AIRY_TRIO, Server, free_ports, running

SOAK_S = float(os.environ.get("SOAK_SECONDS", "15"))
END_S = 90.0  # for the start, and after the last write
GROWTH_BYTES_MAX = 6 * 1024 * 1024
POOL_CONNECTIONS = 8
"""Connections that the server's pools keep open after use; the clients number in the hundreds."""
FILES = {"postgres_application": 1, "sqlite_application": 2}
"""File descriptors for a connection: a socket, or the file and its WAL."""
ROLES = Roles(reading=14, slow=3, dead=3, passing=10)


async def soaked(application: Application, folder: Path, roles: Roles, seconds: float) -> Outcome:
    admin_port = free_ports(1)
    application.migrate()
    config = folder / "soak.toml"
    config.write_text(f'[database]\nurl = "{application.url}"\n{SETTINGS.format(admin_port=admin_port)}')
    with trio.fail_after(seconds + END_S):
        async with running(Server, [*AIRY_TRIO, "--config", str(config)], folder=ROOT) as server:
            server.port = (await server.record("listening"))["port"]
            with progress_bar("soaking", seconds):
                outcome = await soak(server, admin_port, application, roles, seconds)
            assert await server.terminate() == 0
    assert [line for line in server.err.all if '"level": "error"' in line] == []
    return outcome


def summary(outcome: Outcome) -> str:
    """Return a line for the terminal."""
    ended = 'airy_trio_disconnects_total{reason="too slow"}'
    deliveries = sum(len(one.offsets) for member in outcome.crowd for one in member.subscriptions.values())
    first, last = outcome.samples[len(outcome.samples) // 4], outcome.samples[-1]
    most = next(
        (name.partition('le="')[2].partition('"')[0] for name, value in outcome.after.items()
         if name.startswith("airy_trio_delivery_seconds_bucket")
         and value >= 0.8 * outcome.after["airy_trio_delivery_seconds_count"]),
        "?",
    )  # fmt: skip
    return (
        f"{deliveries} deliveries checked, {sum(one.connections for one in outcome.crowd)} connections, "
        f"{outcome.after.get(ended, 0):.0f} disconnected as too slow, {outcome.growth_bytes / 2**20:+.1f} MiB "
        f"({first.rss_bytes / 2**20:.0f} to {last.rss_bytes / 2**20:.0f}), at most "
        f"{max(one.files for one in outcome.samples)} files; 80 % of deliveries within {most} s\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 2 * END_S)
@pytest.mark.parametrize("database", ["postgres_application", "sqlite_application"])
async def test_all_clients_receive_everything_without_leaks(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    application: Application = request.getfixturevalue(database)
    outcome = await soaked(application, tmp_path, ROLES, SOAK_S)
    sys.stdout.write(summary(outcome))
    log = log_of(application)
    assert wrong_deliveries(log, outcome.crowd) == []
    assert len(log) > 20 * SOAK_S
    assert outcome.growth_bytes < GROWTH_BYTES_MAX
    for leak in ("airy_trio_tasks", "airy_trio_subscriptions", "airy_trio_connections_behind"):
        assert outcome.after[leak] <= outcome.before[leak], leak
    assert outcome.after["process_open_fds"] <= outcome.before["process_open_fds"] + POOL_CONNECTIONS * FILES[database]
    assert outcome.after['airy_trio_disconnects_total{reason="too slow"}'] >= ROLES.dead
    assert sum(one.connections for one in outcome.crowd) > len(outcome.crowd) + SOAK_S
