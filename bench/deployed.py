"""A server as it is deployed, the scale of a measurement, and its results."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from bench.application import Database
from bench.processes import ROOT
from bench.targets import Row, line
from tests.processes import Server, server


@frozen(kw_only=True)
class Sizes:
    """How much is measured."""

    rows: int = 100_000
    commits: int = 300
    commit_rounds: int = 5
    settled: int = 4
    rate_s: float = 6
    idle_s: float = 10
    retained: int = 1_000_000
    few_retained: int = 10_000
    stored: int = 100_000
    appends: int = 200
    write_rounds: int = 5
    write_s: int = 2
    changed_per_s: int = 30_000
    clients: int = 1000
    contention_rounds: int = 3
    contention_ms: int = 3000
    crowd: int = 5000
    behind: int = 5000
    churn_ms: int = 40_000


QUICK: Final = Sizes(
    rows=5000,
    commits=30,
    commit_rounds=1,
    settled=2,
    rate_s=1,
    idle_s=1,
    retained=20_000,
    few_retained=2000,
    stored=5000,
    appends=10,
    write_rounds=1,
    write_s=1,
    changed_per_s=3000,
    clients=200,
    contention_rounds=1,
    contention_ms=1000,
    crowd=100,
    behind=500,
    churn_ms=3000,
)


@define
class Measured:
    """The results; ``notes`` are figures without a target."""

    rows: list[Row] = field(factory=list)
    notes: list[str] = field(factory=list)

    def add(self, row: Row) -> None:
        """Add a row and print it."""
        self.rows.append(row)
        print(line(row), flush=True)

    def note(self, text: str) -> None:
        """Add a figure without a target and print it."""
        self.notes.append(text)
        print(f"     {text}", flush=True)


def configure(database: Database, folder: Path) -> Path:
    """Write a settings file for a server on this database, on any port and without an admin port."""
    path = folder / f"{database.name}.toml"
    ports = "[listener]\nport = 0\ndrain_s = 0\n[admin]\nport = 0\n"
    text = f'[database]\nurl = "{database.url}"\n{ports}[logging]\nformat = "json"\n'
    path.write_text(text, encoding="utf-8")
    return path


@asynccontextmanager
async def serving(config: Path) -> AsyncIterator[tuple[Server, float]]:
    """Start the server; yield it and the seconds until it listened."""
    begun_at = trio.current_time()
    async with server(config, folder=ROOT) as listening:
        yield listening, trio.current_time() - begun_at
        await listening.terminate()
