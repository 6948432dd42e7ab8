"""The benchmark: speed and memory of delivery, compared with what is physically possible and with a peer.

``python -m bench.run`` measures delivery and writes ``RESULTS.md``; ``python -m bench.route`` measures the whole route
from a commit. airy_trio does not import it.
"""
