"""``python -m airy_trio`` is ``airy-trio``."""

from airy_trio.cli import main

main()
