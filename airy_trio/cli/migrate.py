"""``airy-trio migrate``: our tables and triggers come, and go."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from airy_trio.cli.progress import bar
from airy_trio.cli.starting import CONFIG, loaded, told

if TYPE_CHECKING:
    from airy_trio.changes.triggers import Firing
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
            lines = list(_told(settings, done))
    for line in lines:
        click.echo(line)


def _adopt_log(settings: "Settings") -> None:
    import trio

    from airy_trio.app.stores import adopt_log

    store = told(lambda: trio.run(adopt_log, settings))
    click.echo(f"began a new epoch in the event log at {store}: its events are gone, and its clients reload")


def _told(settings: "Settings", done: "Migrated") -> Iterator[str]:
    if done.made:
        yield f"made the tables {', '.join(done.made)}"
    how = " by updated_at: nothing is installed in their database" if settings.changes.reads_only else ""
    yield f"watching {', '.join(done.watched)}{how}"
    yield from done.left
