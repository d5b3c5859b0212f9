"""Imports point down and in no circle, names stay at home, files and functions stay short.

`import catwise` is cheap and the public names are pinned.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import catwise

ROOT = Path(__file__).parents[1]
PACKAGE = Path(catwise.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 700
MAX_CODE = 45  # of a function, as scripts/longest counts

# A module imports from earlier layers and from its own package only.
LAYERS = (
    {"_version", "_limits", "_lazy", "errors", "progress"},
    {"_lock", "_splitmix"},
    {"_io", "_arrays", "_json", "_zip", "_extras", "_device", "_names", "_options", "_text"},
    {"_configs", "_csv", "_reported"},
    {"_safetensors"},
    {"engines", "labels", "losses", "features"},
    {"data", "heads"},
    {"models", "joining"},
    {"metrics", "testing"},
    {"tuning"},
    {"decisions", "estimator"},
    {"reporting"},
    {"demo", "fixing", "plots"},
    {"training"},
    {"predicting"},
    {"studies"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}

HEAVY = ("torch", "torchvision", "timm", "transformers", "ray", "pandas", "sklearn", "numpy")


def layer_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def imports(path: Path) -> tuple[tuple[str, str], ...]:
    """(module, name) pairs that a file imports when it runs: TYPE_CHECKING blocks do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return tuple(pair for pair in found if pair[0].split(".")[0] == "catwise")


def imported(path: Path) -> Iterator[str]:
    """Parts of catwise that a file imports."""
    for module, name in imports(path):
        if (dotted := f"{module}.{name}".strip(".")) != "catwise":
            yield dotted.split(".")[1]


def file_of(module: str, name: str) -> Path | None:
    """The file that an import reads: the module `name` in `module`, else `module` itself."""
    for dotted in (f"{module}.{name}", module):
        base = PACKAGE.joinpath(*dotted.split(".")[1:])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach one another, sorted."""
    reach = {node: reached(node, arrows) for node in arrows}
    groups = {
        frozenset(other for other in reach[node] if node in reach.get(other, ())) | {node}
        for node in arrows
        if node in reach[node]
    }
    return sorted(sorted(group) for group in groups)


def reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = list(arrows[start])
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += arrows.get(node, ())
    return seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """Every module knows only what lies below it."""
    own = layer_name(path)
    if own == "__init__":
        assert set(imported(path)) <= {"_version", "_lazy", "errors"}
        return
    assert own in LAYER_OF, f"give {own!r} a place in LAYERS"
    for other in imported(path):
        if other == own:
            continue
        assert other in LAYER_OF, f"give {other!r} a place in LAYERS"
        assert LAYER_OF[other] < LAYER_OF[own], f"{own} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    """A file holds one noun; a longer one is to be cut."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


def test_no_circle() -> None:
    """No two files import one another, not even round about or inside functions."""
    arrows = {
        place(path): {place(file) for pair in imports(path) if (file := file_of(*pair))}
        - {place(path)}
        for path in FILES
    }
    assert circles(arrows) == []


def test_circles_are_found() -> None:
    """Of any length, each once; what only leads into one is in none."""
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert circles(arrows) == [["a", "b", "c"], ["e", "f"]]


def test_private_names_stay_in_their_package() -> None:
    """`_name` and `pkg._module` are of their package; top-level `_module`s are of all."""
    found = set()
    for path in FILES:
        for module, name in imports(path):
            home = module.split(".")[1:] or [name]
            private = name.startswith("_") and not name.startswith("__") and len(module) > 7
            hidden = any(part.startswith("_") for part in module.split(".")[2:])
            if (private or hidden) and home[0] != layer_name(path):
                found.add((place(path), f"{module}.{name}"))
    assert not found, "give what another package needs a public name"


def test_functions_are_short() -> None:
    """A function fits a screen."""
    functions = runpy.run_path(str(ROOT / "scripts" / "longest"))["functions"](PACKAGE)
    found = {
        f"{one.place.partition(':')[0]} {one.name}" for one in functions if one.lines > MAX_CODE
    }
    assert not found, "cut them: scripts/longest lists the longest"


DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


def test_design_names_what_is_there() -> None:
    """Each `file.py:name` of docs/design.md is a file of the package, and a name in it."""
    named = set(re.findall(r"([a-z_/0-9]+\.py)(?::([A-Za-z_]+))?", DESIGN))
    lacking = []
    for file, name in sorted(
        named - {("tests/test_architecture.py", ""), ("benches/kills.py", "")}
    ):
        path = PACKAGE / file if (PACKAGE / file).is_file() else ROOT / file
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        if text is None or not re.search(rf"^(def |class )?{name}\b", text, re.MULTILINE):
            lacking.append(f"{file}:{name}")
    assert lacking == []


def test_design_shows_the_layers() -> None:
    """The layers of docs/design.md are those that are held here."""
    block = DESIGN.partition("## Layers")[2].partition("```text\n")[2].partition("```")[0]
    shown = [set(line.partition("   ")[0].split()) for line in block.splitlines()]
    held = [name for layer in LAYERS[:-1] for name in layer]
    assert sorted(name for layer in shown for name in layer) == sorted(held)
    for number, layer in enumerate(shown[1:], 1):
        least = min(LAYER_OF[name] for name in layer)
        assert all(LAYER_OF[name] <= least for above in shown[:number] for name in above)


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["catwise", "catwise.errors", "catwise.cli"])
def test_import_is_cheap(module: str) -> None:
    """None of the heavy packages is loaded, not even numpy."""
    code = f"import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)))"
    assert run(code) == ""


def test_optional_packages_stay_out() -> None:
    """With every public name in use, what is no dependency is still not loaded.

    But for the classifier of scikit-learn, which itself loads pandas where that is installed.
    """
    optional = ("torchvision", "timm", "transformers", "ray", "pandas")
    code = (
        "import sys, catwise\n"
        "names = set(catwise.__all__) - {'CategoryWiseClassifier'}\n"
        "for name in names: getattr(catwise, name)\n"
        f"print(*(set({optional!r}) & set(sys.modules)))"
    )
    assert run(code) == ""


def test_public_names() -> None:
    """The public names are these; a change here is a change for users."""
    assert catwise.__all__ == [
        "Calibration",
        "CategoryWiseClassifier",
        "CatwiseError",
        "ChosenCells",
        "Classifier",
        "ConformalSets",
        "Ensemble",
        "Evaluation",
        "FeatureStore",
        "Head",
        "InSampleWarning",
        "LabelPolicy",
        "PartialLabels",
        "SelectResult",
        "Thresholds",
        "TuneResult",
        "__version__",
        "calibrate",
        "compare_heads",
        "compare_runs",
        "conformal",
        "ensemble",
        "evaluate",
        "extend_head",
        "extract",
        "finetune",
        "fix",
        "list_heads",
        "load_classifier",
        "load_head",
        "open_store",
        "read_features",
        "read_head",
        "read_retune_rows",
        "retune",
        "save_classifier",
        "save_head",
        "select",
        "suggest",
        "threshold",
        "tune",
        "union",
        "update_run",
        "write_head",
    ]


def modules() -> list[str]:
    found = pkgutil.walk_packages(catwise.__path__, "catwise.", onerror=str)
    return ["catwise", *(item.name for item in found if not item.name.endswith("__main__"))]


@pytest.mark.parametrize("name", modules())
def test_names_resolve(name: str) -> None:
    """Every name in an `__all__` is there, once, and in `dir`."""
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", []))
    assert len(set(names)) == len(names)
    missing = [item for item in names if not hasattr(module, item)]
    assert not missing
    assert set(names) <= set(dir(module))


def test_unknown_names_are_refused() -> None:
    """A name that is not public is an AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="no attribute 'tunes'"):
        _ = catwise.tunes
