"""``airy-trio verify``: the loss certificate on one's own database."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from airy_trio.cli.logs import configure_logging
from airy_trio.cli.progress import bar
from airy_trio.cli.starting import CONFIG, loaded, told

if TYPE_CHECKING:
    from airy_trio.verify import Certificate

EXAMPLES_MAX: Final = 10
SECONDS_MIN, SECONDS_MAX = 2, 3600


@click.command(short_help="Prove on your database that nothing is lost.")
@CONFIG
@click.option(
    "--seconds",
    type=click.IntRange(SECONDS_MIN, SECONDS_MAX),
    default=20,
    show_default=True,
    help="For how long to write.",
)
def verify(config: Path | None, seconds: int) -> None:
    """Write, commit, roll back and be cut off on your own database, and count what arrives at a client.

    In a scratch schema (Postgres) or a scratch folder beside the file (SQLite), with a change log and a server of its
    own: your tables are not touched, and a running server does not notice. Everything is removed at the end, after
    Ctrl-C too; what a run that was killed has left, the next one removes. Needs the right to make a schema.

    Exit code 0 only where nothing was lost, duplicated or reordered.

    \b
    Examples:
      airy-trio verify --config config/prod.toml
      airy-trio verify --config config/prod.toml --seconds 120
    """  # noqa: D301 - click's mark for lines that stay as they are
    settings = loaded(config)
    configure_logging("critical", "auto")  # what is cut off on purpose is no news
    from airy_trio import verify as work

    with bar("verifying", seconds) as progress:
        certificate = told(lambda: work.verify(settings, seconds, progress))
    if certificate is None:
        click.echo("airy-trio: interrupted: nothing was proved, and everything was removed", err=True)
        sys.exit(1)
    for line in _told(certificate):
        click.echo(line)
    for fault in _faults(certificate):
        click.echo(f"airy-trio: {fault}", err=True)
    sys.exit(0 if certificate.clean else 1)


def _told(certificate: "Certificate") -> Iterator[str]:
    counts = certificate.counts
    torments = {
        "rolled back": counts["rolled back"],
        "savepoints rolled back": counts["savepoints rolled back"],
        "connections cut": counts["writers cut"],
        "recorders cut": counts["recorders cut"],
        "left open for long": counts["long"],
    }
    told = ", ".join(f"{count} {what}" for what, count in torments.items() if count)
    yield f"sent        {counts['changes']} changes in {counts['transactions']} transactions"
    yield f"meanwhile   {told or 'nothing happened'}"
    yield f"received    {certificate.received} events (changes that are read together may share one)"
    yield f"lost        {len(certificate.lost) + certificate.missing}"
    yield f"duplicated  {len(certificate.duplicated)}"
    yield f"reordered   {len(certificate.reordered)}"
    p50_s, p99_s = certificate.latency_s(0.5), certificate.latency_s(0.99)
    if p50_s is not None and p99_s is not None:
        yield f"latency     p50 {p50_s * 1000:.1f} ms, p99 {p99_s * 1000:.1f} ms, from the COMMIT to the client"


def _faults(certificate: "Certificate") -> Iterator[str]:
    if not certificate.counts["changes"]:
        yield "nothing could be written, so nothing was proved"
    for what, found in (
        ("lost", certificate.lost),
        ("duplicated", certificate.duplicated),
        ("reordered", certificate.reordered),
    ):
        if found:
            more = f" and {len(found) - EXAMPLES_MAX} more" if len(found) > EXAMPLES_MAX else ""
            yield f"{what}: {'; '.join(found[:EXAMPLES_MAX])}{more}"
