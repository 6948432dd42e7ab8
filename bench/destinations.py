"""The cost of an event while 10 000 clients, over real sockets, are subscribed to quiet conversations.

Runs only these two cases of ``make bench``: ``python -m bench.destinations [--rounds N]``. The limit of
open files must allow twice 10 000, half of them the load client's. Needs ``make bench/build/load``.
"""

import argparse
import sys
from statistics import median
from typing import Final

from bench.cases import Results, Scale, main_cases
from bench.processes import AIRY, MeasuringFailedError

ALONE: Final = "no bystanders"
BYSTANDERS: Final = "bystanders"
RATIO_MAX: Final = 1.1


def main() -> int:
    """Measure and print the ratio; return 1 if it cannot be measured or something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds, scale, results = parser.parse_args().rounds, Scale(), Results()
    cases = [case for case in main_cases(scale) if case.name in (ALONE, BYSTANDERS)]
    try:
        for _ in range(rounds):
            for case in cases:
                figures = case.run()
                results.add(case, figures)
                print(f"{case.name}: {figures['server_cpu_us']:.2f} µs, p99 {figures['p99_ms']:.2f} ms", flush=True)
    except MeasuringFailedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    ratio = _ratio(results)
    print(f"an event next to {scale.bystanders} clients of other conversations: {ratio:.2f}×, at most {RATIO_MAX}×")
    return int(any(figures["faults"] for of_case in results.rounds.values() for figures in of_case))


def _ratio(results: Results) -> float:
    """Return the median ratio over the rounds."""
    pairs = zip(results.rounds[BYSTANDERS, AIRY.name], results.rounds[ALONE, AIRY.name], strict=True)
    return median(with_bystanders["server_cpu_us"] / alone["server_cpu_us"] for with_bystanders, alone in pairs)


if __name__ == "__main__":
    sys.exit(main())
