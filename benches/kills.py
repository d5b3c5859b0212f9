"""Kill `catwise fix` and `catwise extract` at random moments, go on, and compare every byte.

    python benches/kills.py                         a small case that this script makes
    python benches/kills.py --kills 20 -- CALL      your own: what follows `catwise`, without --out

First an uninterrupted run, which also tells how long one takes. Then each run is started again and
again, killed by SIGKILL after a random share of that time, until the wanted number of kills is
reached; the last one ends by itself. Every file must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
CASES = ("fix", "extract")


def main() -> None:
    own = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where to work; a temporary folder if not given"
    )
    options = parser.parse_args(sys.argv[1:own])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        calls = {"own": sys.argv[own + 1 :]} if own < len(sys.argv) else made_up(folder / "case")
        for name, call in calls.items():
            measure(name, call, folder, options.kills, random.Random(options.seed))


def made_up(folder: Path) -> dict[str, list[str]]:
    """A small case of the tests, and the calls on it."""
    sys.path.insert(0, str(TESTS))
    from cli.fix_case import arguments, make_case

    make_case(folder)
    call = arguments(folder)
    fix = call[: call.index("--out")]
    model = fix[1 : fix.index("--images")]
    images = ["--images", str(folder / "images"), "--batch-size", "16"]
    return {"fix": fix, "extract": ["extract", *model, *images]}


def measure(name: str, call: list[str], folder: Path, kills: int, draw: random.Random) -> None:
    """One call, uninterrupted and killed."""
    whole, killed = folder / f"{name}-whole", folder / f"{name}-killed"
    for path in (whole, killed, Path(f"{whole}.parts"), Path(f"{killed}.parts")):
        shutil.rmtree(path, ignore_errors=True)
    start = time.perf_counter()
    started = begin(call, whole)
    if started.wait():
        sys.exit(f"{name}: the uninterrupted run failed")
    seconds = time.perf_counter() - start
    expected = digests(whole)
    done, restarts, moments = 0, 0, []
    while done < kills:
        process = begin(call, killed)
        moment = draw.uniform(0, seconds)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            moments.append(moment / seconds)
            continue
        if process.returncode:
            sys.exit(f"{name}: it failed after {done} kills, with code {process.returncode}")
        compare(name, expected, digests(killed))
        restarts += 1
        shutil.rmtree(killed)
    if begin(call, killed).wait():
        sys.exit(f"{name}: it failed after the last kill")
    compare(name, expected, digests(killed))
    shares = ", ".join(f"{moment:.2f}" for moment in sorted(moments))
    print(f"{name}: {done} kills over {restarts + 1} runs of {seconds:.1f} s each; "
          f"all {len(expected)} files the same")  # fmt: skip
    print(f"  killed at these shares of a run's time: {shares}")


def begin(call: list[str], out: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "catwise", *call, "--quiet", "--out", str(out)],
        env={**os.environ, "PYTHONPATH": path},
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too; folders count by their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def compare(name: str, expected: dict[str, str], found: dict[str, str]) -> None:
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        sys.exit(f"{name}: {len(wrong)} files differ: {', '.join(wrong[:5])}")


if __name__ == "__main__":
    main()
