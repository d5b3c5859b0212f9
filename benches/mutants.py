"""Change the source in small ways, one at a time, and count how often the tests notice.

    python benches/mutants.py                                        60 changes a file
    python benches/mutants.py --per-file 5 --only ranking            a quick look
    python benches/mutants.py --root ../before --out before.jsonl    another checkout, to compare

Changed are the files of metrics, of the choice between candidates and of heads: comparisons, signs,
operations, constants, conditions and bounds of slices, drawn with a seed that is keyed by the file.
What only words an error, types and documentation are left alone.

The tests of a file are the test files that run it, found by running each once with a profiler; the
quickest come first, as many as `--seconds` allow. Each change runs in a fork of one process that
has imported what tests import, but no catwise. A change is noticed when a test fails, or takes ten
times as long as it should. Every result is a line of `--out`; a repeated call resumes there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple

FILES = ("metrics/*.py", "heads/*.py", "tuning/choice/*.py")
OLD_CHOICE = ("decide", "choosing", "folds", "gains", "unseen")  # files before they had a folder
TESTS = ("unit/*.py", "properties/*.py", "reference/*.py", "unit/models/test_head*.py")
PRELOADED = ("numpy", "torch", "scipy.stats", "sklearn.metrics", "hypothesis", "pytest", "pyarrow")

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


class Change(NamedTuple):
    """One change: where it is, what it does, and how it is made in a fresh tree."""

    line: int
    what: str
    make: Callable[[], None]


# ---------------------------------------------------------------------------------- changes


def changes(tree: ast.Module) -> list[Change]:
    """All changes of a file, in order."""
    found: list[Change] = []
    _visit(tree, found)
    return found


def _visit(node: ast.AST, found: list[Change]) -> None:
    if isinstance(node, ast.Raise) or _is_typing(node):
        return
    found.extend(_of(node))
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                _visit(child, found)


def _is_typing(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    targets = getattr(node, "targets", [])
    return any(getattr(one, "id", "") == "__all__" for one in targets)


def _of(node: ast.AST) -> Iterator[Change]:
    line = getattr(node, "lineno", 0)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        new = COMPARED[type(node.ops[0])]()
        yield Change(
            line, f"{type(node.ops[0]).__name__} to {type(new).__name__}", _set(node.ops, new)
        )
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATED:
        if isinstance(node, ast.BinOp) and _is_text(node.left, node.right):
            return
        new_op = OPERATED[type(node.op)]()
        what = f"{type(node.op).__name__} to {type(new_op).__name__}"
        yield Change(line, what, lambda: setattr(node, "op", new_op))
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield Change(line, f"to {type(other).__name__}", lambda: setattr(node, "op", other))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield Change(line, f"no {type(node.op).__name__}", lambda: setattr(node, "op", _same(node)))
    elif isinstance(node, ast.IfExp):
        yield Change(line, "branches exchanged", lambda: _swap(node))
    elif isinstance(node, (ast.If, ast.While)):
        test = node.test
        yield Change(line, "never", lambda: setattr(node, "test", _never(test)))
    elif isinstance(node, ast.Constant) and type(node.value) in {bool, int, float}:
        value = (not node.value) if type(node.value) is bool else node.value + 1
        yield Change(line, f"{node.value!r} to {value!r}", lambda: setattr(node, "value", value))


def _set(operators: list[ast.cmpop], new: ast.cmpop) -> Callable[[], None]:
    def make() -> None:
        operators[0] = new

    return make


def _is_text(*nodes: ast.AST) -> bool:
    return any(
        isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        for node in nodes
    )


def _same(node: ast.UnaryOp) -> ast.unaryop:
    if isinstance(node.op, ast.Not):  # twice: the truth of what is there
        node.operand = ast.copy_location(ast.UnaryOp(ast.Not(), node.operand), node)
        return ast.Not()
    return ast.UAdd()


def _never(test: ast.expr) -> ast.expr:
    return ast.copy_location(ast.BoolOp(ast.And(), [ast.Constant(value=False), test]), test)


def _swap(node: ast.IfExp) -> None:
    node.body, node.orelse = node.orelse, node.body


def changed_code(path: Path, number: int) -> CodeType:
    """The file with one of its changes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    changes(tree)[number].make()
    return compile(ast.fix_missing_locations(tree), str(path), "exec")


# ------------------------------------------------------------------------------------ runs


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from code that is given."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Only the changed module is found here."""
        del path, target
        if fullname != self.name:
            return None
        is_package = self.path.name == "__init__.py"
        return importlib.util.spec_from_file_location(
            fullname,
            self.path,
            loader=self,
            submodule_search_locations=[str(self.path.parent)] if is_package else None,
        )

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(self.code, module.__dict__)  # noqa: S102  our own source, changed


def in_fork(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns in a fork, or "timeout" or "died"."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def child() -> None:
        os.setpgrp()
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        there.send(work())
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    there.close()
    found: Any = "timeout"
    if here.poll(seconds):
        try:
            found = here.recv()
        except EOFError:
            found = "died"
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, 9)
    process.kill()
    process.join()
    return found


def run_tests(root: Path, tests: list[str]) -> int:
    """The exit code of pytest in this process."""
    import pytest

    os.chdir(root)
    sys.path[:0] = [str(root / "src"), str(root / "tests")]
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly"]
    return int(pytest.main(["-x", "-q", "--assert=plain", *plugins, *tests]))


def profile(root: Path, test: str) -> tuple[int, float, list[str]]:
    """Exit code, seconds, and the files of catwise that a test file runs."""
    seen: set[str] = set()
    source = str(root / "src" / "catwise")

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(look)
    began = time.perf_counter()
    code = run_tests(root, [test])
    sys.setprofile(None)
    inside = sorted(path for path in seen if path.startswith(source))
    return code, time.perf_counter() - began, inside


def run_change(root: Path, path: Path, number: int, tests: list[str]) -> int:
    """The exit code of the tests with one change."""
    parts = path.relative_to(root / "src").with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    sys.meta_path.insert(0, Changed(name, path, changed_code(path, number)))
    return run_tests(root, tests)


# ------------------------------------------------------------------------------------- all


def sources(root: Path, only: list[str]) -> list[Path]:
    """The files that are changed."""
    package = root / "src" / "catwise"
    found = {path for pattern in FILES for path in package.glob(pattern)}
    found |= {package / "tuning" / f"{name}.py" for name in OLD_CHOICE}
    named = [path for path in sorted(found) if path.is_file()]
    return [path for path in named if not only or any(word in str(path) for word in only)]


def plan_tests(root: Path, processes: int, seconds: float) -> dict[str, list[tuple[float, str]]]:
    """For each source file, (seconds, test file), the quickest first."""
    folder = root / "tests"
    names = sorted({str(p.relative_to(root)) for pattern in TESTS for p in folder.glob(pattern)})
    with ThreadPoolExecutor(processes) as pool:
        looked = pool.map(lambda test: in_fork(lambda: profile(root, test), 10 * seconds), names)
        plan: dict[str, list[tuple[float, str]]] = {}
        for test, found in zip(names, looked, strict=True):
            if not isinstance(found, tuple) or found[0] != 0:
                print(f"left out: {test} ({found if isinstance(found, str) else 'fails'})")
                continue
            for path in found[2]:
                plan.setdefault(path, []).append((found[1], test))
    return {path: sorted(tests) for path, tests in plan.items()}


def within(tests: list[tuple[float, str]], seconds: float) -> tuple[list[str], float]:
    """The quickest tests that fit, and what they take."""
    taken, total = [], 0.0
    for own, test in tests:
        if taken and total + own > seconds:
            break
        taken.append(test)
        total += own
    return taken, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--per-file", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=40.0, help="of tests for each change")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    options = parser.parse_args()
    root = options.root.resolve()
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    done = read_done(options.out)
    files = sources(root, options.only)
    plan = plan_tests(root, options.processes, options.seconds)
    jobs = []
    for path in files:
        relative = str(path.relative_to(root))
        if str(path) not in plan:
            print(f"no test runs {relative}")
            continue
        tests, taken = within(plan[str(path)], options.seconds)
        everything = changes(ast.parse(path.read_text(encoding="utf-8")))
        draw = random.Random(f"{options.seed} {path.name}")
        picked = draw.sample(range(len(everything)), min(options.per_file, len(everything)))
        for number in sorted(picked):
            about = {"file": relative, "change": number, "line": everything[number].line,
                     "what": everything[number].what}  # fmt: skip
            if (relative, number) not in done:
                jobs.append((path, about, tests, taken))
    print(f"{len(jobs):,} changes of {len(files)} files; {len(done):,} are done already")
    with ThreadPoolExecutor(options.processes) as pool, options.out.open("a") as out:
        for line in pool.map(lambda job: judge(root, *job), jobs):
            out.write(json.dumps(line) + "\n")
            out.flush()
    report(options.out)


def judge(
    root: Path, path: Path, about: dict[str, Any], tests: list[str], taken: float
) -> dict[str, Any]:
    """One change and whether it was noticed."""
    number = about["change"]
    code = in_fork(lambda: run_change(root, path, number, tests), 30 + 10 * taken)
    return {**about, "noticed": code != 0, "how": code}


def read_done(path: Path) -> set[tuple[str, int]]:
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["file"], line["change"]) for line in lines}


def report(path: Path) -> None:
    """Noticed changes by file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    all_of, noticed = Counter(), Counter()
    for line in lines:
        for key in (line["file"], "all"):
            all_of[key] += 1
            noticed[key] += line["noticed"]
    for key in sorted(all_of, key=lambda key: (key == "all", key)):
        print(f"{noticed[key]:5} of {all_of[key]:5} ({noticed[key] / all_of[key]:.0%})  {key}")


if __name__ == "__main__":
    main()
