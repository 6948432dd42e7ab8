"""``airy-trio explain``: what happened to one object."""

import sys
from pathlib import Path

import click

from airy_trio.cli.logs import configure_logging
from airy_trio.cli.starting import CONFIG, loaded, told

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
