"""``airy-trio demo``: the whole route in one command."""

import click

from airy_trio.cli.logs import configure_logging
from airy_trio.cli.starting import told


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
