"""``airy-trio tail``: events in the terminal as they happen.

``airy-trio check``: every problem, a line for each.

``airy-trio completion``: what a shell needs to complete our commands and options.

``airy-trio demo``: the whole route in one command.

``airy-trio explain``: what happened to one object.

``airy-trio migrate``: our tables and triggers come, and go.

``airy-trio verify``: the loss certificate on one's own database.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import get_completion_class

from airy_trio.cli.logs import configure_logging
from airy_trio.cli.output import CONFIG, Stdout, bar, loaded, run_until_signalled, told


@click.command(short_help="Everything that is wrong, in one run.")
@CONFIG
def check(config: Path | None) -> None:
    """Look at the settings, the database, the mapping, the triggers and the event store, and change nothing.

    Of each mapped table the newest thousand rows are read, to name those that cannot be converted and values that the
    mapping does not list. Exit code 1 if the server would not start or not work; warnings alone leave it at 0.

    \b
    Example:
      airy-trio check --config config/prod.toml
    """  # noqa: D301 - click's mark for lines that stay as they are
    settings = loaded(config)
    from airy_trio import check as work

    report = work.check(settings)
    for note in report.of("note"):
        click.echo(note)
    for warning in report.of("warning"):
        click.echo(f"airy-trio: warning: {warning}", err=True)
    problems = report.of("problem")
    for problem in problems:
        click.echo(f"airy-trio: {problem}", err=True)
    sys.exit(1 if problems else 0)


SHELLS: Final = ("bash", "zsh", "fish")


@click.command(short_help="The completion of bash, zsh or fish.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion of a shell: its commands and options at the TAB key.

    \b
    Examples:
      source <(airy-trio completion bash)    in ~/.bashrc; bash 4.4 or newer
      source <(airy-trio completion zsh)     in ~/.zshrc, after compinit
      airy-trio completion fish > ~/.config/fish/completions/airy-trio.fish
    """  # noqa: D301 - click's mark for lines that stay as they are
    made = get_completion_class(shell)
    root = context.find_root()
    if made is None:  # pragma: no cover - click has these three
        raise AssertionError(shell)
    click.echo(made(root.command, {}, "airy-trio", "_AIRY_TRIO_COMPLETE").source())


@click.command(short_help="See it working, with nothing but Python.")
@click.option("--events", type=click.IntRange(min=1), help="End after so many events.")
@click.option("--open", "browse", is_flag=True, help="Open the console in a browser.")
def demo(events: int | None, *, browse: bool) -> None:
    """Show it working: a temporary database, an application that writes to it, and a line for each event.

    The console, a page for a browser, is at the address that is printed first.

    \b
    Examples:
      airy-trio demo               until Ctrl-C, which leaves nothing behind
      airy-trio demo --events 20
      airy-trio demo --open        shows the console too
    """  # noqa: D301 - click's mark for lines that stay as they are
    configure_logging("warning", "auto")
    from airy_trio import demo as work

    told(lambda: work.run(events_max=events, browse=browse))


TYPES = ("message", "metadata", "channel", "tag")


@click.command(short_help="What happened to one object, or what prevented it.")
@CONFIG
@click.argument("type_", metavar="TYPE", type=click.Choice(TYPES))
@click.argument("id_", metavar="ID")
def explain(config: Path | None, type_: str, id_: str) -> None:
    """Explain what happened to a message, a channel, a tag or the metadata of something.

    Prints a verdict, then the row, its last change by the trigger's clock, the recorded event, and how many of the
    clients connected now have received it. The clients are those of all workers of the server whose admin port the
    settings name; other servers have others. TYPE is message, metadata, channel or tag; the ID of metadata is
    SUBJECT:IDENTIFIER. The exit code is 0 if the object's current state was recorded, 1 if it was not or if that is
    not known.

    \b
    Examples:
      airy-trio explain --config config/prod.toml message 42
      airy-trio explain --config config/prod.toml metadata conversation:17
    """  # noqa: D301 - click's mark for lines that stay as they are
    settings = loaded(config)
    configure_logging("error", "auto")
    from airy_trio import explain as work

    subject = work.Subject.parse(type_, id_)
    if subject is None:
        message = f"{id_!r} lacks its subject: conversation:ID, channel:ID or message:ID"
        raise click.BadParameter(message, param_hint="ID")
    explanation = told(lambda: work.explain(settings, subject))
    for line in explanation.lines:
        click.echo("".join(letter if letter.isprintable() else " " for letter in line))
    sys.exit(0 if explanation.recorded else 1)


if TYPE_CHECKING:
    from airy_trio.capture.triggers import Firing
    from airy_trio.migrate import Migrated
    from airy_trio.settings import Settings


@click.command(short_help="Add our tables and triggers, or remove them.")
@CONFIG
@click.option("--with-tables", is_flag=True, help="Make our default tables where there are none.")
@click.option("--grant", metavar="ROLE", help="Give a role of Postgres what a server needs, and no more.")
@click.option(
    "--triggers",
    "firing",
    type=click.Choice(("origin", "always")),
    help='When triggers of Postgres fire: "always" includes the writes of a replica role, as of logical replication. '
    "Left out: as before.",
)
@click.option("--sql", "preview", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--remove", is_flag=True, help="Take everything of ours away again, the events too.")
@click.option("--adopt-log", is_flag=True, help="Begin a new epoch in an event log of another database, to use it.")
def migrate(  # noqa: PLR0913 - one for each option
    config: Path | None,
    *,
    with_tables: bool,
    grant: str | None,
    firing: "Firing | None",
    preview: bool,
    remove: bool,
    adopt_log: bool,
) -> None:
    """Add the change log and the triggers to the database; all or nothing, and again without harm.

    What is committed after it is recorded; rows from before are not sent. It takes no longer on large tables; while a
    transaction of somebody else has one of them locked, it lets others pass and tries again for a minute.

    \b
    Examples:
      airy-trio migrate --config config/prod.toml --sql            what would it do?
      airy-trio migrate --config config/prod.toml --grant server   as owner, for a server that is none
      airy-trio migrate --config config/dev.toml --with-tables     in a database without tables
      airy-trio migrate --config config/prod.toml --triggers always
      airy-trio migrate --config config/prod.toml --remove         as if it had never been there
      airy-trio migrate --config config/prod.toml --adopt-log      drop the events of another database
    """  # noqa: D301 - click's mark for lines that stay as they are
    if remove and (with_tables or grant is not None or firing is not None or preview):
        message = "--remove stands alone"
        raise click.UsageError(message)
    if adopt_log and (with_tables or grant is not None or firing is not None or preview or remove):
        message = "--adopt-log stands alone"
        raise click.UsageError(message)
    settings = loaded(config)
    if adopt_log:
        _adopt_log(settings)
        return
    from airy_trio import migrate as work

    with bar("waiting for an open transaction", work.LOCK_TRIES_MAX) as seen:
        waiting = seen if sys.stderr.isatty() else None
        if remove:
            told(lambda: work.remove(settings, waiting=waiting))
            lines = ["removed"]
        elif preview:
            lines = told(
                lambda: work.preview(settings, with_tables=with_tables, grant=grant, firing=firing, waiting=waiting)
            )
        else:
            done = told(
                lambda: work.migrate(settings, with_tables=with_tables, grant=grant, firing=firing, waiting=waiting)
            )
            lines = list(_migrated_lines(settings, done))
    for line in lines:
        click.echo(line)


def _adopt_log(settings: "Settings") -> None:
    import trio

    from airy_trio.app.build import adopt_log

    store = told(lambda: trio.run(adopt_log, settings))
    click.echo(f"began a new epoch in the event log at {store}: its events are gone, and its clients reload")


def _migrated_lines(settings: "Settings", done: "Migrated") -> Iterator[str]:
    if done.made:
        yield f"made the tables {', '.join(done.made)}"
    how = " by updated_at: nothing is installed in their database" if settings.changes.reads_only else ""
    yield f"watching {', '.join(done.watched)}{how}"
    yield from done.left


if TYPE_CHECKING:
    from airy_trio.verify import LossCertificate

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
    for line in _verdict_lines(certificate):
        click.echo(line)
    for fault in _faults(certificate):
        click.echo(f"airy-trio: {fault}", err=True)
    sys.exit(0 if certificate.clean else 1)


def _verdict_lines(certificate: "LossCertificate") -> Iterator[str]:
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


def _faults(certificate: "LossCertificate") -> Iterator[str]:
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


if TYPE_CHECKING:
    from airy_trio.events.destinations import Destination
    from airy_trio.log.position import Position


@click.command(short_help="Events in the terminal as they happen.")
@CONFIG
@click.argument("destination", default="/events")
@click.option("--since", metavar="POSITION", help="Begin after this position (EPOCH-OFFSET), as a client resumes.")
@click.option("--all", "everything", is_flag=True, help="Begin with the oldest event that is kept.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each event, with its position.")
@click.option("--events", type=click.IntRange(min=1), help="End after so many events.")
def tail(  # noqa: PLR0913 - click passes each option
    config: Path | None, destination: str, *, since: str | None, everything: bool, as_json: bool, events: int | None
) -> None:
    """Show events as they happen, read from the event store itself: all of them, or those of one DESTINATION.

    A server need not run here, but one must record somewhere. Ctrl-C ends it, with exit code 0.

    \b
    Examples:
      airy-trio tail --config config/prod.toml
      airy-trio tail --config config/prod.toml /events/conversation/42
      airy-trio tail --config config/prod.toml --json --since k7f3q9-1042 /events/message.updated
      airy-trio tail --config config/prod.toml --all --json > events.jsonl
    """  # noqa: D301 - click's mark for lines that stay as they are
    if since is not None and everything:
        message = "--since and --all exclude each other"
        raise click.UsageError(message)
    settings = loaded(config)
    wanted, begin = _destination(destination), None if since is None else _position(since)
    from airy_trio import tail as work

    output = Stdout()
    options = work.TailOptions(
        destination=wanted, since=begin, everything=everything, as_json=as_json, events_max=events
    )
    told(lambda: run_until_signalled(lambda: work.tail(settings, options, output)))


def _destination(text: str) -> "Destination":
    from airy_trio.events.destinations import UnknownDestinationError, parse

    try:
        return parse(text)
    except UnknownDestinationError:
        allowed = "/events, /events/TYPE, /events/channel/ID or /events/conversation/ID"
        message = f"{text!r} is no destination; there are {allowed}"
        raise click.BadParameter(message, param_hint="DESTINATION") from None


def _position(text: str) -> "Position":
    from airy_trio.log.position import Position

    position = Position.parse(text)
    if position is None:
        message = f"{text!r} is no position, which looks like k7f3q9-1042"
        raise click.BadParameter(message, param_hint="--since")
    return position
