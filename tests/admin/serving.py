"""The admin port of a complete server in this process, or of some pages alone, over real HTTP."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import trio
from attrs import define
from prometheus_client.parser import text_string_to_metric_families

from airy_trio import app
from airy_trio.admin.server import AdminOptions, Pages, open_listeners, serve
from airy_trio.settings import Settings

HOST = "127.0.0.1"
TIMEOUT_S = 30.0
OK = 200
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    """Return a free port. Port 0 would disable the admin port."""
    with socket.create_server((HOST, 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def admin(port: int, more: str = "") -> str:
    """Return settings for a server with an admin port."""
    return f"[listener]\nport = 0\n[admin]\nport = {port}\n{more}"


@define
class Port:
    """A client of an admin port."""

    number: int

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        url = f"http://{HOST}:{self.number}"
        # verify: this is plain HTTP, and each client would read all certificate authorities, which takes 5 ms
        async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S, verify=False) as client:
            return await client.get(path, headers=headers)

    async def is_open(self) -> bool:
        """Return whether the port accepts connections."""
        try:
            await self.get("/livez")
        except httpx2.ConnectError:
            return False
        return True

    async def ready(self) -> tuple[int, dict[str, Any]]:
        answer = await self.get("/readyz")
        return answer.status_code, answer.json()

    async def until_ready(self) -> None:
        """Poll until the server is ready."""
        with trio.fail_after(TIMEOUT_S):
            while (await self.ready())[0] != OK:
                pass

    async def until_not_ready(self, part: str, words: str) -> str:
        """Poll until a part is not ready for a reason that contains ``words``; return the reason."""
        with trio.fail_after(TIMEOUT_S):
            while True:
                code, found = await self.ready()
                if not found[part]["well"] and words in found[part]["reason"]:
                    assert (code, found["ready"]) == (503, False)
                    return str(found[part]["reason"])

    async def samples(self) -> Samples:
        """Return the values of /metrics by name and labels."""
        answer = await self.get("/metrics")
        assert answer.status_code == 200
        families = text_string_to_metric_families(answer.text)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


@asynccontextmanager
async def serving_all(settings: Settings) -> AsyncIterator[tuple[app.Address, Port]]:
    """Run a complete server until the block ends."""
    async with trio.open_nursery() as nursery:
        address: app.Address = await nursery.start(app.serve, settings)
        yield address, Port(settings.admin.port)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(pages: Pages, token: str = "") -> AsyncIterator[Port]:
    """Serve pages alone until the block ends."""
    port = free_port()
    listeners = await open_listeners(AdminOptions(port=port))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listeners, pages, token)  # noqa: ASYNC113 - the ports are open already
        yield Port(port)
        nursery.cancel_scope.cancel()
