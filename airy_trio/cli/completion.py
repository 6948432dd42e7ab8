"""``airy-trio completion``: what a shell needs to complete our commands and options."""

from typing import Final

import click
from click.shell_completion import get_completion_class

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
