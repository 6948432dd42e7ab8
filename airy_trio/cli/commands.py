"""``airy-trio tail``: events in the terminal as they happen."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from airy_trio.cli.output import Stdout
from airy_trio.cli.signals import run_until_signalled
from airy_trio.cli.starting import CONFIG, loaded, told

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
