"""The command behind ``benchmarks/gpu.sh``: agreement with the CPU first, then times; status 1 where something fails.

python -m benchmarks.gpu [--device cuda|cpu] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.agreement import checks
from benchmarks.gpu.timing import LIMIT, against_a_plain_loop, parts, waits_of_a_step
from benchmarks.gpu.work import DRY, FULL, Work
from fedplatform.core.compute import Compute, ComputeError


def main() -> int:
    """Run everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="the times as CSV")
    chosen = parser.parse_args()
    try:
        compute = Compute.of(chosen.device)
    except ComputeError as error:
        print(f"benchmarks.gpu: {error}; here it means '--device cpu', a dry run", file=sys.stderr)
        return 1
    sizes = DRY if compute.is_cpu else FULL
    print(f"{compute}{', a dry run with small sizes' if compute.is_cpu else ''}\n")
    with TemporaryDirectory(prefix="fedplatform-gpu-") as folder:
        here, there = Work(Compute("cpu"), sizes, Path(folder)), Work(compute, sizes, Path(folder))
        print("| part | measure | from the CPU's | at most | |\n|---|---|---:|---:|---|")
        failed = []
        for check in checks(here, there):
            verdict = "agrees" if check.passed else "DIFFERS"
            found = f"{check.found:.2g} | {check.tolerance:g}"
            print(f"| {check.part} | {check.measure} | {found} | {verdict} |", flush=True)
            failed += [] if check.passed else [check.part]
        waits_of_a_step(there)
        print("\n| part | seconds | of |\n|---|---:|---|")
        rows = []
        for timing in parts(there):
            rows.append(timing)
            print(f"| {timing.part} | {timing.seconds:.4f} | {timing.what} |", flush=True)
        ours, plain = against_a_plain_loop(there)
        rows += [ours, plain]
        for timing in (ours, plain):
            print(f"| {timing.part} | {timing.seconds:.4f} | {timing.what} |")
    ratio = ours.seconds / plain.seconds
    print(f"\ntraining takes {ratio:.3f} times as long as a plain loop; target: at most {LIMIT:g}")
    if not compute.is_cpu and ratio > LIMIT:
        failed.append("training against a plain loop")
    if chosen.out:
        with chosen.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["part", "seconds", "of"])
            writer.writerows((row.part, f"{row.seconds:.5f}", row.what) for row in rows)
    print(f"failed: {', '.join(failed)}" if failed else "all agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
