"""Kill every command that writes at random moments, repeat it, and compare every byte.

    python benches/kills.py                         200 kills over all commands, on made-up data
    python benches/kills.py --only fix extract      some of them
    python benches/kills.py --kills 20 -- CALL      your own: what follows `catwise`, without --out

Each command first runs by itself, which tells how long it takes and what it leaves. Then it is
begun again and again in a fresh folder and killed at a random moment (half of them in the last
fifth, where most is written), by SIGKILL or by a signal that asks it to end (SIGTERM, SIGHUP).
What is there then is told: nothing, unfinished work, or all. After a signal that asks there may be
no temporary file, nor a process. At last the same call is repeated: it must end well, or refuse a
complete output, and every file must be the same, with nothing beside.

Commands run in forks of this process, which has imported everything, so that moments fall into the
work and not into the imports. Files that tell the time that something took are compared by name.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1] / "tests"
TIMED = {"summary.json", "report.html", "demo.json"}
ASKING = (signal.SIGTERM, signal.SIGHUP)


class Case(NamedTuple):
    """A call of a command, and how often it is killed, by parts of all."""

    call: list[str]
    share: float = 1.0


def main() -> None:
    own = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args(sys.argv[1:own])
    sys.path.insert(0, str(TESTS))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = {"own": Case(sys.argv[own + 1 :])} if own < len(sys.argv) else made_up(folder)
        cases = {k: v for k, v in cases.items() if not options.only or k in options.only}
        warm_up()
        total = sum(case.share for case in cases.values())
        print("| command | s | kills | absent | unfinished | complete | left by SIGKILL | faults |")
        print("|---|---|---|---|---|---|---|---|")
        faults = []
        for name, case in cases.items():
            kills = max(1, round(options.kills * case.share / total))
            draw = random.Random(f"{options.seed} {name}")
            faults += measure(name, case, folder / "work", kills, draw)
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


def made_up(folder: Path) -> dict[str, Case]:
    """Small cases of the tests, and calls on them; OUT stands for the output's place."""
    import torch
    from safetensors.torch import load_file

    from cli import fix_case, train_case
    from cli.example import make_example

    one, two = folder / "example", folder / "case"
    one.mkdir()
    make_example(one)
    fix_case.make_case(two)
    ids = ["--encoding", "nan", "--id-column", "image", "--ignore-column", "split"]
    ids += ["--group-column", "patient"]
    rows = [str(one / "train.npz"), str(one / "train.csv"), str(one / "valid.npz")]
    pair = ["--features", rows[0], "--labels", rows[1], "--valid-features", rows[2]]
    pair += ["--valid-labels", str(one / "valid.csv"), *ids]
    head = ["--checkpoint", str(one / "model.safetensors")]
    names = ["--head-categories", str(one / "names.txt")]
    labels = ["--labels", str(one / "all.csv"), *ids]
    tuned = folder / "tuned"
    run(["tune", *pair, *head, *names, "--out", str(tuned)], quiet=True).wait()
    better = str(tuned / "head.safetensors")
    fix = fix_case.arguments(two)
    fix = fix[: fix.index("--out")]
    model = fix[1 : fix.index("--images")]
    images = ["--images", str(two / "images"), "--batch-size", "16"]
    test = ["--features", str(one / "test.npz"), "--labels", str(one / "test.csv"), *ids]
    valid = ["--valid-features", rows[2], "--valid-labels", str(one / "valid.csv"), *ids]
    heads = ["--candidate", f"base={head[1]}", "--candidate", f"tuned={better}"]
    fixed = folder / "fixed"
    run([*fix, "--out", str(fixed)], quiet=True).wait()
    applied = ["apply", "--head", str(fixed / "run" / "head.safetensors"), *model]
    package = ["package", "--fix", str(fixed)]
    run([*package, "--out", str(folder / "made")], quiet=True).wait()
    predict = ["predict", "--classifier", str(folder / "made"), "--model", model[1], *images]
    tables = ["--labels", str(one / "valid.csv"), *ids]
    decided = ["--run", str(tuned), *tables, "--test-features", str(one / "test.npz")]
    decided += ["--test-labels", str(one / "test.csv"), "--out", "OUT", "--csv", "OUT.csv"]
    cuts = ["--rule", "f1", "--cutoffs", "OUT-all.csv", "--report", "OUT.html"]
    member = ["--member", f"a={tuned}", "--member", f"b={tuned}", "--method", "logit"]
    member += [*tables, "--test-member", f"a={one}/test.npz", "--test-member", f"b={one}/test.npz"]
    member += ["--test-labels", str(one / "test.csv"), "--csv", "OUT.csv", "--predictions"]
    member += ["OUT-said.csv", "--logits-out", "OUT.npz", "--head-out", "OUT.safetensors"]
    patients = [*told_patients(folder / "who.csv", two / "images"), "--by", "patient"]
    four = str(folder / "four.safetensors")
    drop = ["join", *("--head", head[1], *names), "--drop", "eel", "--drop", "fox"]
    run([*drop, "--out", four], quiet=True).wait()
    again = ["tune", *pair, *head, *names, "--seed", "1", "--out", str(folder / "other")]
    run(again, quiet=True).wait()
    torch.save(load_file(one / "model.safetensors"), one / "model.pt")
    archive = ["--checkpoint", str(one / "model.pt")]
    return {
        "split": Case(["split", *labels, "--share", "a=0.7", "--share", "b=0.3", "--out", "OUT"]),
        "simulate": Case(["simulate", *labels, "--keep", "0.3", "--keep", "0.6", "--out", "OUT"]),
        "audit": Case(["audit", *labels, "--csv", "OUT"]),
        "evaluate": Case(["evaluate", *test, *head, *names, "--csv", "OUT"]),
        "tune": Case(["tune", *pair, *head, *names, "--out", "OUT"], 2.0),
        "tune, again": Case(["tune", *pair, *head, *names, "--overwrite", "--out", "OUT"]),
        "select": Case(["select", *heads, *valid, "--out", "OUT"], 2.0),
        "apply": Case(["apply", "--head", better, *head, "--card", "OUT.md", "--out", "OUT"]),
        "apply, archive": Case(["apply", "--head", better, *archive, "--out", "OUT"]),
        "apply, model": Case([*applied, "--card", "OUT.md", "--out", "OUT"]),
        "extract": Case(["extract", *model, *images, "--out", "OUT"], 2.0),
        "extract, workers": Case(["extract", *model, *images, "--workers", "2", "--out", "OUT"]),
        "fix": Case([*fix, "--out", "OUT"], 4.0),
        "train": Case(
            train_case.arguments(
                train_case.make_images(folder / "photos"),
                *("--scheme", "role", "--ema", "0.9", "--reserve", "0.1", "--out", "OUT"),
            ),
            2.0,
        ),
        "package": Case([*package, "--out", "OUT"]),
        "predict": Case([*predict, "--out", "OUT.csv"], 2.0),
        "calibrate": Case(["calibrate", *decided, "--head-out", "OUT.safetensors"]),
        "threshold": Case(["threshold", *decided, *cuts]),
        "conformal": Case(["conformal", *decided]),
        "ensemble": Case(["ensemble", *member, "--out", "OUT"]),
        "extend": Case(["extend", *pair, "--head", four, "--out", "OUT"], 2.0),
        "extend, again": Case(["extend", *pair, "--head", four, "--overwrite", "--out", "OUT"]),
        "suggest": Case(
            ["suggest", "--run", str(tuned), *tables, "--out", "OUT", "--suspects-out", "OUT.csv"]
        ),
        "compare": Case(
            [
                "compare",
                str(tuned),
                again[-1],
                *test,
                "--csv",
                "OUT.csv",
                "--markdown",
                "OUT.md",
                "--latex",
                "OUT.tex",
            ]
        ),
        "join": Case([*drop, "--out", "OUT"]),
        "predict, patients": Case([*predict, *patients, "--out", "OUT.csv"]),
        "demo": Case(["demo", "--out", "OUT"], 0.5),
    }


def told_patients(path: Path, images: Path) -> list[str]:
    """The options of a table of images and patients, which is written."""
    names = sorted(image.name for image in images.iterdir())
    path.write_text("path,who\n" + "".join(f"{n},{at % 7}\n" for at, n in enumerate(names)))
    return ["--table", str(path), "--group-column", "who"]


def warm_up() -> None:
    """Import what the commands import, and make the demonstration small."""
    import catwise.demo.run as demo
    from catwise.cli.main import COMMANDS

    small = demo.DemoConfig
    demo.DemoConfig = lambda: small(n_train=300, n_valid=150, n_test=60, epochs=1)
    for name in ("tune", "compare_heads"):  # its network has learnt next to nothing
        setattr(demo, name, functools.partial(getattr(demo, name), force=True))
    for name in COMMANDS:
        __import__(f"catwise.cli.{name}")
    import catwise.fixing
    import catwise.models.extraction
    import catwise.reporting
    import catwise.training.run
    import catwise.tuning  # noqa: F401


class Running(NamedTuple):
    """A command in a process of its own, with a group of its own."""

    pid: int

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, minus the signal that ended it; None where it still runs then."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if end is not None and time.monotonic() >= end:
                return None
            time.sleep(0.0005)


def run(call: list[str], *, quiet: bool, modules: Path | None = None) -> Running:
    """Begin a command in a fork, which may tell at its end what it has imported."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Running(pid)
    code = 1
    try:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 1)
        if quiet:
            os.dup2(nowhere, 2)
        from catwise.cli import main as command

        command(call, prog_name="catwise")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        if modules is not None:
            modules.write_text("\n".join(name for name in sys.modules if "__" not in name))
        for worker in multiprocessing.active_children():  # as the interpreter does at its end
            worker.terminate()
        os._exit(code)


def measure(name: str, case: Case, work: Path, kills: int, draw: random.Random) -> list[str]:
    """One command, by itself and killed; returns what went wrong."""
    fresh(work, name, case)
    inputs = digests(work)
    modules = work.parent / "modules"
    for _ in range(2):  # the second finds everything imported
        fresh(work, name, case)
        start = time.perf_counter()
        if run(placed(case.call, work), quiet=False, modules=modules).wait():
            sys.exit(f"{name}: the uninterrupted run failed")
        seconds = time.perf_counter() - start
        for module in modules.read_text().split():
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
    expected = digests(work)
    seen, left, faults = Counter(), 0, []
    done = 0
    while done < kills:
        fresh(work, name, case)
        number = signal.SIGKILL if draw.random() < 0.5 else draw.choice(ASKING)
        moment = seconds * draw.uniform(0.8 * (draw.random() < 0.5), 1.0)
        process = run(placed(case.call, work), quiet=True)
        if process.wait(moment) is not None:
            continue
        os.kill(process.pid, number)
        code = process.wait()
        done += 1
        now = digests(work)
        hidden = [path for path in now if is_hidden(path)]
        left += bool(hidden)
        there = {path: text for path, text in now.items() if not is_hidden(path)}
        state = "unfinished"
        state = "absent" if there == inputs else "complete" if there == expected else state
        seen[state] += 1
        where = f"{name}, {number.name} after {moment:.3f} s of {seconds:.2f}, {state}"
        if number != signal.SIGKILL:
            faults += [f"{where}: left {hidden[0]}"] if hidden else []
            early = -number if state in {"absent", "complete"} else 0  # does not listen yet, or now
            faults += [f"{where}: exit code {code}"] if code not in (0, 128 + number, early) else []
            faults += [f"{where}: a process is left"] if lives(process.pid) else []
        code = run(placed(case.call, work), quiet=True).wait()
        wrong = difference(expected, digests(work))
        if code and not (code == 13 and state == "complete"):
            faults.append(f"{where}: repeated, it ended with {code}")
        elif wrong:
            faults.append(f"{where}: repeated, these differ: {', '.join(wrong[:3])}")
    counts = " | ".join(str(seen[state]) for state in ("absent", "unfinished", "complete"))
    print(f"| {name} | {seconds:.2f} | {done} | {counts} | {left} | {len(faults)} |", flush=True)
    return faults


def fresh(work: Path, name: str, case: Case) -> None:
    """An empty folder; where an earlier output is replaced, with that."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    if name.endswith("again"):
        run(placed(case.call, work), quiet=True).wait()


def placed(call: list[str], work: Path) -> list[str]:
    """The call with its output in a folder."""
    call = call if any("OUT" in text for text in call) else [*call, "--out", "OUT"]
    return [text.replace("OUT", str(work / "out")) for text in call]


def is_hidden(path: str) -> bool:
    return any(part.startswith(".catwise-") for part in Path(path).parts)


def lives(pid: int) -> bool:
    """Whether a process of the group runs after a moment; what has ended may still be listed."""
    for _ in range(50):
        if not any(member == pid for member in running_groups()):
            return False
        time.sleep(0.02)
    return True


def running_groups() -> Iterator[int]:
    """The group of every process that has not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if state not in {"Z", "X"}:
                yield int(group)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too; folders and files that tell times by their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        timed = path.name in TIMED or name.endswith("run/evaluation.json")  # the demonstration's
        plain = path.is_file() and not timed
        with contextlib.suppress(FileNotFoundError):
            found[name] = digest(path) if plain else "there"
    return found


def digest(path: Path) -> str:
    """Of a file's bytes; of a state of training the content: its pickle depends on resuming."""
    if path.name != "state.pt":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    import torch

    parts = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            value = (value.dtype, value.tolist())
        elif isinstance(value, dict):
            value = [part for item in sorted(value.items(), key=repr) for part in item]
        if isinstance(value, list) and any(
            isinstance(v, (dict, list, torch.Tensor)) for v in value
        ):
            for part in value:
                add(part)
        else:
            parts.update(repr(value).encode())

    add(torch.load(path, weights_only=True))
    return parts.hexdigest()


def difference(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return [key for key in {**expected, **found} if expected.get(key) != found.get(key)]


if __name__ == "__main__":
    main()
