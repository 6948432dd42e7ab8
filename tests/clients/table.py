"""Write the matrix as a page of the documentation.

python -m tests.clients.table            prints the page
python -m tests.clients.table --write    writes it
"""

import json
import sys
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.clients.matrix import CLIENTS, Capability, RealClient
from tests.locks import pins

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "clients.md"
HEADING = "# Clients\n"
INTRODUCTION = """\
CI runs each of these clients against a real server: events with content that has broken parsers before (emoji, quotes,
backslashes before n, r and c, NUL in a JSON escape, 50 KiB), three heart-beat intervals of silence, `kill -9` of the
server, its restart, and a disconnect."""


def page() -> str:
    """Return the complete page."""
    notes: list[str] = []
    rows = [_row(["", *(capability.value for capability in Capability)]), _row(["---"] * (len(Capability) + 1))]
    rows += [
        _row([_name(client), *(_cell(client, capability, notes) for capability in Capability)]) for client in CLIENTS
    ]
    numbered = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([HEADING, INTRODUCTION, "", *rows, "", *numbered, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(client: RealClient, capability: Capability, notes: list[str]) -> str:
    verdict = client.verdict(capability)
    word = "yes" if verdict.works else "no"
    if not verdict.note:
        return word
    if verdict.note not in notes:
        notes.append(verdict.note)
    return f"{word} ({notes.index(verdict.note) + 1})"


def _name(client: RealClient) -> str:
    """Return the package with its locked version."""
    if client.program.endswith(".mjs"):
        lock = json.loads((Path(__file__).parent / "package-lock.json").read_text())
        return f"{client.package} {lock['packages'][f'node_modules/{client.package}']['version']}"
    [version] = [pin.version for pin in pins("test") if pin.name == canonicalize_name(client.package)]
    return f"{client.package} {version}"


def main() -> None:
    """Print the page, or write it."""
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()
