"""The commands. Each reads its options, runs its implementation, and prints the result."""

import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

import click
import trio
from click.core import ParameterSource
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from airy_trio.cli.logs import configure_logging
from airy_trio.errors import listed
from airy_trio.terminal import ProgressReport, Stdout, one_line

if TYPE_CHECKING:
    from airy_trio.capture.triggers import Firing
    from airy_trio.migrate import Migrated
    from airy_trio.settings import Settings
    from airy_trio.verify import LossCertificate

CONFIG = click.option("--config", "config", metavar="FILE", type=click.Path(path_type=Path), help="The settings file.")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
SHELLS: Final = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
TYPES: Final = ("message", "metadata", "channel", "tag")  # as in ``capture.mapping``, which takes longer to import
SECONDS_MIN, SECONDS_MAX = 2, 3600
PROGRESS_CHARS: Final = 78
"""The width of the line that shows the progress of a backfill."""
NOTHING_TO_DO: Final = "-- nothing to do"
"""Printed by `migrate --sql` if there are no statements. A comment, because the output is SQL."""
EXAMPLES_MAX: Final = 10
"""How many lost, duplicated or reordered events ``verify`` names."""


def load_settings(config: Path | None) -> "Settings":
    """Load the settings file and configure logging as it specifies.

    Raises ``SettingsError``, and ``click.UsageError`` if no file was given.
    """
    if config is None:
        raise click.UsageError("Missing option '--config FILE'.")
    from airy_trio import settings

    loaded = settings.load(config, os.environ)
    configure_logging(loaded.logging.level, loaded.logging.format)
    return loaded


@contextlib.contextmanager
def progress_bar(label: str, length: int) -> Iterator[Callable[[float], None]]:
    """Return a function that takes the progress, from 0 to ``length``, and shows it as a bar on stderr.

    The bar appears with the first call and disappears with the block. Nothing is written if stderr is not a terminal.
    """
    bar = click.progressbar(length=length, label=label, file=sys.stderr, show_eta=False)
    with contextlib.ExitStack() as stack:

        def show(reached: float) -> None:
            if sys.stderr.isatty():
                if not bar.entered:
                    stack.enter_context(bar)
                bar.update(max(0, min(length, int(reached)) - bar.pos))

        yield show


@contextlib.contextmanager
def lock_progress() -> Iterator[Callable[[float], None] | None]:
    """Yield a function that shows how often a migration has waited for a lock; None if that is logged instead."""
    from airy_trio.migrate.transactions import LOCK_TRIES_MAX

    with progress_bar("waiting for an open transaction", LOCK_TRIES_MAX) as progress:
        yield progress if sys.stderr.isatty() else None


def run_until_signalled(work: Callable[[], Awaitable[None]]) -> bool:
    """Run an async function; return False if SIGINT or SIGTERM cancelled it. Raises its errors."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        return trio.run(_until_signalled, work)
    finally:  # not earlier: the former handlers may raise, which Trio reports as an internal error
        for number, handler in before.items():
            signal.signal(number, handler)


async def _until_signalled(work: Callable[[], Awaitable[None]]) -> bool:
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:

        def cancel(_number: int, _frame: FrameType | None) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

        for number in SIGNALS:
            signal.signal(number, cancel)
        await work()
    return not scope.cancelled_caught


@click.command(short_help="Send the rows that exist already, through the change log.")
@CONFIG
@click.argument("tables", metavar="[KIND or TYPE]...", nargs=-1)
@click.option("--rate", metavar="ROWS_PER_S", type=click.FloatRange(min=0.1), help="At most this many rows per second.")
@click.option("--restart", is_flag=True, help="Begin again, instead of continuing an interrupted backfill.")
def backfill(config: Path | None, tables: tuple[str, ...], *, rate: float | None, restart: bool) -> None:
    """Write the keys of all rows into the change log, as if the rows had changed. Safe while servers and writers run.

    Clients receive an event for each row, and afterwards the current state of these tables is complete. KIND is
    messages, metadata, channels or tags; TYPE is the type of their events. Without either, the types of `[log]
    keep_current` are sent. The command pauses while many rows wait to be recorded. Ctrl-C interrupts it; the next run
    continues.

    \b
    Examples:
      airy-trio backfill --config config/prod.toml
      airy-trio backfill --config config/prod.toml messages --rate 500
      airy-trio backfill --config config/prod.toml tag.updated --restart
    """
    settings = load_settings(config)
    _run_backfill(settings, tables, rate=rate, restart=restart)


def _run_backfill(
    settings: "Settings", tables: tuple[str, ...] = (), *, rate: float | None = None, restart: bool = False
) -> None:
    """Run a backfill. Exit if it is interrupted."""
    from airy_trio import backfill as implementation

    options = implementation.BackfillOptions(names=tables, rate=rate, restart=restart)
    progress = RowProgress()
    try:
        is_done = run_until_signalled(partial(implementation.backfill, settings, options, progress))
    finally:
        progress.clear()
    if not is_done:
        click.echo("airy-trio: interrupted; the next run of airy-trio backfill continues", err=True)
        sys.exit(1)


class RowProgress(ProgressReport):
    """Shows the progress of a backfill as a line on stderr, if that is a terminal."""

    def progress(self, kind: str, rows: int, about: int | None, rows_per_s: float) -> None:
        """Replace the line."""
        if sys.stderr.isatty():
            of = "" if about is None else f" of about {max(rows, about)}"
            click.echo(f"\r{f'{kind}: {rows}{of} rows, {rows_per_s:.0f} rows/s':<{PROGRESS_CHARS}}", nl=False, err=True)

    def line(self, text: str) -> None:
        """Print a result."""
        self.clear()
        click.echo(text)

    def note(self, text: str) -> None:
        """Print a line for the operator."""
        self.clear()
        click.echo(f"airy-trio: {text}", err=True)

    def clear(self) -> None:
        """Remove the line, if there is one."""
        if sys.stderr.isatty():
            click.echo(f"\r{'':<{PROGRESS_CHARS}}\r", nl=False, err=True)


@click.command(short_help="Report all problems in one run.")
@CONFIG
def check(config: Path | None) -> None:
    """Check the settings, the database, the mapping, the triggers and the event store, and change nothing.

    Reads the newest thousand rows of each mapped table, to report rows that cannot be converted and values that the
    mapping does not list. The exit code is 1 if the server would not start or would not work, and 0 if there are only
    warnings.

    \b
    Example:
      airy-trio check --config config/prod.toml
    """
    settings = load_settings(config)
    from airy_trio import check as implementation

    report = implementation.check(settings)
    for note in report.of("note"):
        click.echo(note)
    for warning in report.of("warning"):
        click.echo(f"airy-trio: warning: {warning}", err=True)
    problems = report.of("problem")
    for problem in problems:
        click.echo(f"airy-trio: {problem}", err=True)
    sys.exit(1 if problems else 0)


@click.command(short_help="Print the completion of bash, zsh or fish.")
@click.argument("shell", type=click.Choice([*SHELLS]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that lets a shell complete commands and options.

    \b
    Examples:
      source <(airy-trio completion bash)    in ~/.bashrc; bash 4.4 or newer
      source <(airy-trio completion zsh)     in ~/.zshrc, after compinit
      airy-trio completion fish > ~/.config/fish/completions/airy-trio.fish
    """
    click.echo(SHELLS[shell](context.find_root().command, {}, "airy-trio", "_AIRY_TRIO_COMPLETE").source())


@click.command(short_help="See airy-trio at work; needs only Python.")
@click.option("--events", type=click.IntRange(min=1), help="End after this many events.")
@click.option("--open", "browse", is_flag=True, help="Open the console in a browser.")
def demo(events: int | None, *, browse: bool) -> None:
    """Show airy-trio at work: a temporary database, an application that writes to it, and a line for each event.

    The first line is the address of the console, a page for a browser.

    \b
    Examples:
      airy-trio demo               until Ctrl-C, which leaves nothing behind
      airy-trio demo --events 20
      airy-trio demo --open        shows the console too
    """
    configure_logging("warning", "auto")
    from airy_trio import demo as implementation

    implementation.run(events_max=events, browse=browse)


@click.command(short_help="Report what happened to one object, or what prevented it.")
@CONFIG
@click.argument("type_", metavar="TYPE", type=click.Choice(TYPES))
@click.argument("id_", metavar="ID")
def explain(config: Path | None, type_: str, id_: str) -> None:
    """Explain what happened to a message, a channel, a tag or metadata.

    Prints a verdict, then the row, its last change by the trigger's clock, the recorded event, and how many of the
    connected clients are past this event: they have received it, or subscribed later. The number covers all workers of
    the server at the admin port in the settings, but no other servers. TYPE is message, metadata, channel or tag; the
    ID of metadata is SUBJECT:IDENTIFIER. The exit code is 0 if the object's current state was recorded, and 1 if it was
    not or if this is unknown.

    \b
    Examples:
      airy-trio explain --config config/prod.toml message 42
      airy-trio explain --config config/prod.toml metadata conversation:17
    """
    settings = load_settings(config)
    configure_logging("error", "auto")
    from airy_trio import explain as implementation

    fault = f"{id_!r} lacks its subject: conversation:ID, channel:ID or message:ID"
    subject: implementation.Subject = _parsed(partial(implementation.Subject.parse, type_), id_, "ID", fault)
    recorded, lines = implementation.explain(settings, subject)
    for line in lines:
        click.echo(one_line(line))
    sys.exit(0 if recorded else 1)


@click.command(short_help="Check whether the server on this machine is alive or ready.")
@CONFIG
@click.option("--ready", is_flag=True, help="Also check that it is ready, and print each part that is not.")
def health(config: Path | None, *, ready: bool) -> None:
    """Check the health of each process of the server on this machine, through the admin port in the settings.

    For supervisors that cannot send an HTTP request, such as the health check of an image. Restart a server that is not
    alive. A server that is not ready recovers by itself, for example when its database is available again. The exit
    code is 1 if a process does not answer or, with --ready, is not ready.

    \b
    Examples:
      airy-trio health --config config/prod.toml
      airy-trio health --config config/prod.toml --ready
    """
    settings = load_settings(config)
    from airy_trio import health as implementation

    faults = [*implementation.faults(settings, ready=ready)]
    for fault in faults:
        click.echo(f"airy-trio: {fault}", err=True)
    if faults:
        sys.exit(1)
    click.echo("ready" if ready else "alive")


def _revisions(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Complete a revision."""
    from airy_trio.migrate import revisions

    known = (*revisions("changes"), *revisions("log"))
    return [revision for revision in known if revision.startswith(incomplete)]


@click.command(short_help="Install our tables and triggers, or remove them.")
@CONFIG
@click.option("--with-tables", is_flag=True, help="Create our default tables if they do not exist.")
@click.option("--grant", metavar="ROLE", help="Grant a Postgres role the rights that a server needs, and no more.")
@click.option(
    "--triggers",
    "firing",
    type=click.Choice(("origin", "always")),
    help='When Postgres triggers fire: "always" includes the writes of a replica role, as in logical replication. '
    "Without this option the triggers keep their setting.",
)
@click.option(
    "--to",
    metavar="REVISION",
    shell_complete=_revisions,
    help="Only bring the tables of the change log (changes_NNNN) or of the event log (log_NNNN) up to this revision.",
)
@click.option("--sql", "preview", is_flag=True, help="Print what would be done, and change nothing.")
@click.option("--remove", is_flag=True, help="Remove our tables and triggers, with the events in them.")
@click.option("--adopt-log", is_flag=True, help="Take over an event log of another database, with a new epoch.")
@click.option("--backfill", "then_backfill", is_flag=True, help="Then run airy-trio backfill, with its defaults.")
def migrate(  # noqa: PLR0913 - one for each option
    config: Path | None,
    *,
    with_tables: bool,
    grant: str | None,
    firing: "Firing | None",
    to: str | None,
    preview: bool,
    remove: bool,
    adopt_log: bool,
    then_backfill: bool,
) -> None:
    """Install the change log and the triggers in the database, completely or not at all. Safe to repeat.

    Changes that are committed afterwards are recorded; only a backfill sends existing rows. The installation takes no
    longer on large tables. If another transaction has locked a table, the command retries for one minute, and lets
    other transactions proceed meanwhile.

    \b
    Examples:
      airy-trio migrate --config config/prod.toml --sql            show what it would do
      airy-trio migrate --config config/prod.toml --grant server   as owner, for a server with another role
      airy-trio migrate --config config/dev.toml --with-tables     in a database without tables
      airy-trio migrate --config config/prod.toml --triggers always
      airy-trio migrate --config config/prod.toml --backfill       and send the existing rows
      airy-trio migrate --config config/prod.toml --remove         uninstall everything
      airy-trio migrate --config config/prod.toml --adopt-log      drop the events of another database
      airy-trio migrate --config config/prod.toml --to log_0006    one step of an upgrade, without triggers
    """
    given = {"--remove": remove, "--adopt-log": adopt_log, "--to": to is not None}
    alone = [option for option, is_given in given.items() if is_given]
    others = with_tables or grant is not None or firing is not None or then_backfill or (preview and to is None)
    if alone and (others or len(alone) > 1):
        but = " except --sql" if alone == ["--to"] else ""
        raise click.UsageError(f"{alone[0]} cannot be combined with other options{but}")
    if preview and then_backfill:
        raise click.UsageError("--sql and --backfill exclude each other")
    from airy_trio import migrate as implementation

    if to is not None:
        _parsed(implementation.stream_of, to, "--to")
    settings = load_settings(config)
    options: dict[str, Any] = {"with_tables": with_tables, "grant": grant, "firing": firing}
    with lock_progress() as waiting:
        if adopt_log:
            lines = [_adopt_log(settings)]
        elif remove:
            implementation.remove(settings, waiting=waiting)
            lines = [*_removed_lines(settings)]
        elif to is not None:
            lines = implementation.migrate_to(settings, to, preview=preview, waiting=waiting)
        elif preview:
            lines = implementation.preview(settings, waiting=waiting, **options)
        else:
            lines = [*_migrated_lines(settings, implementation.migrate(settings, waiting=waiting, **options))]
    for line in lines or [NOTHING_TO_DO]:  # only a preview can have no lines
        click.echo(line)
    if then_backfill:
        _run_backfill(settings)


def _adopt_log(settings: "Settings") -> str:
    from airy_trio.app.build import adopt_log

    trio.run(adopt_log, settings)
    return f"began a new epoch in the event log at {settings.log_words}: its events are gone, and its clients reload"


def _removed_lines(settings: "Settings") -> Iterator[str]:
    yield "removed"
    if settings.log.store not in ("sql", "memory"):
        where = settings.log_words
        yield f"kept: the events and durable subscriptions in the event store {where}; delete them there"


def _migrated_lines(settings: "Settings", done: "Migrated") -> Iterator[str]:
    if done.made:
        yield f"made the tables {', '.join(done.made)}"
    how = " by updated_at: nothing is installed in their database" if settings.changes.reads_only else ""
    yield f"watching {', '.join(done.watched)}{how}"
    yield from done.left


@click.command(short_help="Print events in the terminal as they happen.")
@CONFIG
@click.argument("destination", default="/events")
@click.option("--url", help="Follow this server (ws:// or wss://) as a client, instead of reading its event store.")
@click.option("--token", envvar="AIRY_TRIO_TOKEN", show_envvar=True, help="The token to send with --url.")
@click.option("--since", metavar="POSITION", help="Begin after this position (EPOCH-OFFSET), as a client resumes.")
@click.option("--all", "everything", is_flag=True, help="Begin with the oldest event that is retained.")
@click.option("--current", is_flag=True, help="Begin with the current state of all objects; needs --url.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each event, with its position.")
@click.option("--events", type=click.IntRange(min=1), help="End after this many events.")
def tail(  # noqa: PLR0913 - one for each option
    config: Path | None,
    destination: str,
    *,
    url: str | None,
    token: str | None,
    since: str | None,
    everything: bool,
    current: bool,
    as_json: bool,
    events: int | None,
) -> None:
    """Print events as they happen, read directly from the event store: all of them, or those of one DESTINATION.

    No server needs to run on this machine, but one must record somewhere. With --url the command needs no settings: it
    is a client of that server, and reconnects and resumes by itself. Ctrl-C ends it, with exit code 0.

    \b
    Examples:
      airy-trio tail --config config/prod.toml
      airy-trio tail --config config/prod.toml /events/conversation/42
      airy-trio tail --config config/prod.toml --json --since k7f3q9-1042 /events/message.updated
      airy-trio tail --config config/prod.toml --all --json > events.jsonl
      AIRY_TRIO_TOKEN=... airy-trio tail --url wss://chat.example.org/ws.communication
    """
    if (since is not None) + everything + current > 1:
        raise click.UsageError("--since, --all and --current exclude each other")
    if current and url is None:
        raise click.UsageError("--current needs --url")
    if url is not None and config is not None:
        raise click.UsageError("--config and --url exclude each other")
    # AIRY_TRIO_TOKEN may be set for other commands, so only the option is an error.
    if url is None and click.get_current_context().get_parameter_source("token") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--token needs --url")
    settings = load_settings(config) if url is None else None
    from airy_trio import tail as implementation
    from airy_trio.events import destinations
    from airy_trio.log.store import Position

    allowed = "/events, /events/TYPE, /events/channel/ID or /events/conversation/ID"
    fault = f"{destination!r} is not a destination; allowed are {allowed}"
    wanted: destinations.Destination = _parsed(destinations.parse, destination, "DESTINATION", fault)
    begin: Position | None = None
    if since is not None:
        fault = f"{since!r} is not a position, which looks like k7f3q9-1042"
        begin = _parsed(Position.parse, since, "--since", fault)
    if as_json:
        cast("TextIOWrapper", sys.stdout).reconfigure(encoding="utf-8")  # of JSON, in every locale (RFC 8259)
    output = Stdout()
    options = implementation.TailOptions(
        destination=wanted, since=begin, everything=everything, current=current, as_json=as_json, events_max=events
    )
    if settings is not None:
        work = partial(implementation.tail, settings, options, output)
    else:
        from airy_trio.client.connection import ServerAddress

        address = url or ""
        _parsed(partial(ServerAddress.parse, tls=None), address, "--url")
        work = partial(implementation.follow, address, token, options, output)
    run_until_signalled(work)


def _parsed(parse: Callable[[str], Any], text: str, name: str, fault: str = "") -> Any:  # noqa: ANN401 - from parse
    """Parse an argument or option. Raises ``click.BadParameter`` if ``parse`` raises ``ValueError`` or returns None.

    ``fault``: the message; if it is empty, the message of the ``ValueError``.
    """
    try:
        found = parse(text)
    except ValueError as error:
        found, fault = None, fault or str(error)
    if found is None:
        raise click.BadParameter(fault, param_hint=name)
    return found


@click.command(short_help="Prove on your database that nothing is lost.")
@CONFIG
@click.option(
    "--seconds", type=click.IntRange(SECONDS_MIN, SECONDS_MAX), default=20, show_default=True, help="How long to write."
)
def verify(config: Path | None, seconds: int) -> None:
    """Write to your own database with commits, rollbacks and lost connections, and count what a client receives.

    Works in a scratch schema (Postgres) or a scratch folder next to the file (SQLite), with a change log and a server
    of its own: your tables are not touched, and a running server is not affected. Everything is removed at the end,
    also after Ctrl-C. If a run is killed, the next one removes its remains. The role needs the right to create a
    schema.

    The exit code is 0 only if nothing was lost, duplicated or reordered.

    \b
    Examples:
      airy-trio verify --config config/prod.toml
      airy-trio verify --config config/prod.toml --seconds 120
    """
    settings = load_settings(config)
    configure_logging("critical", "auto")  # the errors of connections that it terminates itself are expected
    from airy_trio import verify as implementation

    with progress_bar("verifying", seconds) as progress:
        certificate = implementation.verify(settings, seconds, progress)
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
    disturbances = {
        "rolled back": counts["rolled back"],
        "savepoints rolled back": counts["savepoints rolled back"],
        "connections terminated": counts["writers terminated"],
        "recorders terminated": counts["recorders terminated"],
        "left open for long": counts["long"],
    }
    shown = ", ".join(f"{count} {name}" for name, count in disturbances.items() if count)
    yield f"sent        {counts['changes']} changes in {counts['transactions']} transactions"
    yield f"meanwhile   {shown or 'nothing happened'}"
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
    for kind, found in (
        ("lost", certificate.lost),
        ("duplicated", certificate.duplicated),
        ("reordered", certificate.reordered),
    ):
        if found:
            yield f"{kind}: {listed(found, EXAMPLES_MAX, '; ')}"


COMMANDS: Final = (backfill, check, completion, demo, explain, health, migrate, tail, verify)
