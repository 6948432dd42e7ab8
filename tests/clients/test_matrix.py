"""Each cell of the matrix, from one run of all clients; and the page that shows the matrix."""

from pathlib import Path

import pytest
import trio

from tests.clients.client_processes import missing
from tests.clients.contents import BEFORE_THE_CRASH, JSON_TEXTS, LARGE_BYTES, PLAIN_TEXTS, STORED
from tests.clients.matrix import CLIENTS, Capability, RealClient
from tests.clients.matrix_run import Outcomes, try_all
from tests.clients.table import PAGE, page

RUNNABLE = tuple(client for client in CLIENTS if missing(client.program) is None)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder: Path = tmp_path_factory.mktemp("matrix")
    return trio.run(try_all, RUNNABLE, folder)


@pytest.mark.slow
@pytest.mark.timeout(150)  # the first test waits for the run: six steps of up to 20 s each
@pytest.mark.parametrize("capability", Capability, ids=lambda capability: capability.name.lower())
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.package)
def test_cell(client: RealClient, capability: Capability, outcomes: Outcomes) -> None:
    if reason := missing(client.program):
        pytest.skip(reason)
    assert (client.package, capability) in outcomes, "not reached: an earlier capability has failed"
    failure = outcomes[client.package, capability]
    if failure is not None:
        raise failure


def test_page_shows_the_matrix() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.clients.table --write"


def test_every_exception_has_its_reason() -> None:
    for client in CLIENTS:
        for verdict in client.exceptions.values():
            assert verdict.note


def test_events_have_the_claimed_contents() -> None:
    before = STORED[:BEFORE_THE_CRASH]
    assert set(before) == {*JSON_TEXTS, *PLAIN_TEXTS}
    assert len(before) == 100
    for claimed in ("👋", '"', r"\new", r"\rows", r"\cache", r"\u0000", "\\", "\0"):
        assert any(claimed in stored for stored in before)
    assert max(len(stored.encode()) for stored in before) >= LARGE_BYTES == 51_200
