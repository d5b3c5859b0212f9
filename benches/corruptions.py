"""Corrupted label files by the hundred thousand: what becomes of each.

    python benches/corruptions.py [--cases N] [--first N] [--seed N] [--json FILE]

The files, the corruptions and the strict parser that judges are those of
`tests/properties/test_table_corruptions.py`, whose docstring states the rules. Prints a table of
outcomes and every case that is neither read alike nor refused with its line.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROPERTIES = Path(__file__).resolve().parent.parent / "tests" / "properties"
HANG_SECONDS = 120


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--seed", type=int, help="default: that of the test")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    return parser.parse_args()


def main() -> None:
    args = parse()
    sys.path.insert(0, str(PROPERTIES))
    cases = importlib.import_module("test_table_corruptions")
    seed = cases.SEED if args.seed is None else args.seed
    counted: dict[str, Counter[str]] = {name: Counter() for name in cases.CORRUPTIONS}
    slowest, n_wrong, start = 0.0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(args.first, args.first + args.cases):
            # what hangs in native code cannot be interrupted: say where, and end
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            outcome = cases.run_case(index, Path(folder), seed)
            slowest = max(slowest, outcome.seconds)
            good = outcome.verdict in ("same", "refused")
            counted[outcome.corruption][outcome.verdict if good else "wrong"] += 1
            if not good:
                n_wrong += 1
                print(f"{index} {outcome.corruption} {outcome.kind} {outcome.data[:300]!r}")
                print(f"  {outcome.verdict[:600]}")
    faulthandler.cancel_dump_traceback_later()
    print(f"{'corruption':<18}{'same cells':>12}{'refused':>12}{'wrong':>8}")
    total: Counter[str] = sum(counted.values(), Counter())
    for name, row in [*counted.items(), ("all", total)]:
        print(f"{name:<18}{row['same']:>12,}{row['refused']:>12,}{row['wrong']:>8,}")
    seconds = time.perf_counter() - start
    print(f"{args.cases:,} cases in {seconds:.0f} s; the slowest took {slowest:.2f} s")
    if args.json:
        report = {"cases": args.cases, "seed": seed, "seconds": seconds, "slowest": slowest}
        report["outcomes"] = {name: dict(row) for name, row in counted.items()}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(n_wrong))


if __name__ == "__main__":
    main()
