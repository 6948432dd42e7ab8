"""``make bench``: deliver side by side with the limit and the peer; writes ``RESULTS.md`` and ``deliveries.svg``."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import report
from bench.cases import Case, Results, Scale, main_cases, sweep_cases
from bench.processes import MeasuringFailedError
from bench.proof import prove
from bench.targets import line, rows

FOLDER = Path(__file__).parent
SWEEP: Final[Sequence[int]] = (100, 300, 1000, 3000)
QUICK = Scale(clients=200, many=300, bystanders=300, measure_ms=500, patient_ms=2000)


def main() -> int:
    """Measure, write, and print the targets. Return 1 if an event was lost or duplicated."""
    arguments = _arguments()
    scale, rounds, counts = Scale(measure_ms=arguments.measure_ms), arguments.rounds, SWEEP
    if arguments.quick:
        scale, rounds, counts = QUICK, 1, SWEEP[:2]
    results, loads = Results(), [os.getloadavg()[0]]
    cases = [case for case in main_cases(scale) if not arguments.only or case.name in arguments.only]
    try:
        prove()
        for number in range(1, rounds + 1):
            _run(cases, results, f"round {number}/{rounds}")
        targets = rows(results, scale)
        if not arguments.only:
            _run(sweep_cases(counts, scale), results, "clients")
    except MeasuringFailedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    loads.append(os.getloadavg()[0])
    print()
    for row in targets:
        print(line(row))
    if not arguments.only:
        arguments.output.mkdir(parents=True, exist_ok=True)
        made = report.parts(results, targets, scale, rounds=rounds, loads=loads)
        report.write(report.DELIVERY, made, arguments.output / "RESULTS.md")
        (arguments.output / "deliveries.svg").write_text(report.picture(results, counts), encoding="utf-8")
    return int(any(figures["faults"] for of_case in results.rounds.values() for figures in of_case))


def _run(cases: Sequence[Case], results: Results, title: str) -> None:
    for case in cases:
        begun_at = time.monotonic()
        figures = case.run()
        results.add(case, figures)
        print(
            f"{title}  {case.name:<38} {case.contender.name:<11} {figures['deliveries_per_s']:>11,.0f}/s "
            f"{figures['server_cpu_us']:>7.2f} µs  p50 {figures['p50_ms']:>8.2f}  p99 {figures['p99_ms']:>8.2f} ms  "
            f"{figures['kib_per_connection']:>6.1f} KiB  {figures['connects_per_s']:>6,.0f} connects/s  "
            f"faults {figures['faults']:g}  ({time.monotonic() - begun_at:.1f} s)",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; the figures are their medians")
    parser.add_argument("--measure-ms", type=int, default=2000, help="duration of each case")
    parser.add_argument(
        "--quick", action="store_true", help="one short round with few clients, to see whether it works"
    )
    parser.add_argument(
        "--only", action="append", metavar="CASE", help="only this case (repeat for more); writes nothing"
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="the folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
