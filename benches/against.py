"""The preset `default` of two source trees side by side: time, memory and test AP.

    git worktree add ../before COMMIT; pip wheel or copy its compiled library as installed
    python benches/against.py --other ../before/src --scale issue [--rounds 3] [--folder DIR]

Both tune the same files, features as a float16 memory map, in processes of their own that take
turns. Time is the wall's and the processor's (of all threads: what another program takes away
does not count); memory is the peak above what the process held when it began to tune. The test AP
of both is printed and must not be lower here by more than 0.005.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _synthetic import SCALES, Scale
from speed import write_coco

WORSE = 0.005
ALL = {**SCALES, "wide": Scale(20_000, 10_000, 2_000, 2_048, 400, 0.36, 0.36)}
CHILD = """
import json, resource, sys, time, warnings
from pathlib import Path
import numpy as np, torch, catwise
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
read = lambda name, **o: np.load(folder / f"{name}.npy", **o)
def labels(codes):
    return catwise.PartialLabels.from_array(codes, encoding="minus_one_unknown")
head = catwise.Head(torch.from_numpy(read("weight")), torch.from_numpy(read("bias")))
def pair(name, codes):
    return read(f"{name}_features", mmap_mode="r"), labels(read(codes))
train, valid = pair("train", "train_codes"), pair("valid", "valid_codes")
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = held()
Path("/proc/self/clear_refs").write_text("5")
wall, own = time.perf_counter(), time.process_time()
result = catwise.tune(head, train, valid)
wall, own = time.perf_counter() - wall, time.process_time() - own
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 - before
score = [catwise.evaluate(h, pair("test", "test_truth")).means["average_precision"]["macro"]
         for h in (head, result.head)]
print(json.dumps({"wall": wall, "cpu": own, "peak": peak, "base": score[0], "tuned": score[1],
                  "passes": result.summary["passes"]["fits"]}))
"""


def tuned(source: Path, folder: Path) -> dict[str, float]:
    """One run in a process of its own."""
    given = {**os.environ, "PYTHONPATH": str(source.resolve())}
    command = [sys.executable, "-c", CHILD, str(folder)]
    done = subprocess.run(command, env=given, check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", type=Path, required=True, help="the src folder to compare with")
    parser.add_argument("--scale", choices=list(ALL), default="issue")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are, or are to be, kept")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "bias.npy").exists():
        write_coco(ALL[args.scale], folder)
    here = Path(__file__).resolve().parents[1] / "src"
    rows = [(tuned(args.other, folder), tuned(here, folder)) for _ in range(args.rounds)]
    print(f"| {args.scale} | other | here | ratio |\n|---|---|---|---|")
    for key in ("wall", "cpu", "peak", "passes", "base", "tuned"):
        one, two = (np.median([pair[side][key] for pair in rows]) for side in (0, 1))
        unit = 2**30 if key == "peak" else 1
        print(f"| {key} | {one / unit:.4g} | {two / unit:.4g} | {two / one:.3f} |")
    lost = max(other["tuned"] - own["tuned"] for other, own in rows)
    assert lost <= WORSE, f"test AP is lower here by {lost:.4f}"


if __name__ == "__main__":
    main()
