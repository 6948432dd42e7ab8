"""The benchmark: how fast and how large the delivery is, beside what is physically possible and what others reach.

``python -m bench.run`` measures delivery and writes ``RESULTS.md``; ``python -m bench.route`` measures the whole route
from a commit. Nothing of airy_trio imports this.
"""
