"""``airy-trio explain``: what became of one object."""

from pathlib import Path

import click

from airy_trio.cli.logs import configure_logging
from airy_trio.cli.starting import CONFIG, loaded, told

TYPES = ("message", "metadata", "channel", "tag")


@click.command(short_help="What became of one object, or why nothing did.")
@CONFIG
@click.argument("type_", metavar="TYPE", type=click.Choice(TYPES))
@click.argument("id_", metavar="ID")
def explain(config: Path | None, type_: str, id_: str) -> None:
    """Tell what became of a message, a channel, a tag or the metadata of something.

    Its row, its last change by the trigger's clock, the event that was recorded, and how many of the clients connected
    now have passed it; or what stood in the way. The clients are those of the server whose admin port the settings
    name, of all its workers; servers elsewhere have others. TYPE is message, metadata, channel or tag; the ID of
    metadata is SUBJECT:IDENTIFIER.

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
    for line in told(lambda: work.explain(settings, subject)):
        click.echo("".join(letter if letter.isprintable() else " " for letter in line))
