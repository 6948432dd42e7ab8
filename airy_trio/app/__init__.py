"""The server as a whole: ``serve`` in the nursery of another program, ``run`` as a program of its own.

The only package that names back ends (``back_ends``, ``stores``); ``serving`` shows the whole nursery tree.
"""

from airy_trio.app.server import Address, run, serve

__all__ = ["Address", "run", "serve"]
