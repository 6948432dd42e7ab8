"""The server as a whole: ``serve`` in the nursery of another program, ``run`` as a program.

``build`` makes the parts, ``server`` runs them and has the nursery tree, ``supervisor`` runs several processes.
"""

from airy_trio.app.server import run, serve, trio_run
from airy_trio.sessions.listener import Address

__all__ = ["Address", "run", "serve", "trio_run"]
