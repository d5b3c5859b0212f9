"""Imports point down, `import catwise` is cheap, public names are pinned, files stay short."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import catwise

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(catwise.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 700

# A module imports from earlier layers and from its own package only.
LAYERS = (
    {"_version", "_limits", "errors", "progress"},
    {"_lock"},
    {"_io", "_arrays", "_json", "_zip", "_extras", "_device", "_choices", "_text"},
    {"_safetensors"},
    {"labels", "losses", "features"},
    {"data", "heads", "joining"},
    {"models"},
    {"metrics", "testing"},
    {"tuning"},
    {"reporting"},
    {"demo", "fixing"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}

# What looks up, inside a function only: the method is a thin door to the reader.
DOORS = {("labels/core.py", "data")}

HEAVY = ("torch", "torchvision", "timm", "transformers", "ray", "pandas", "sklearn", "numpy")


def layer_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Parts of catwise that a file imports when it runs: TYPE_CHECKING blocks do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("catwise."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """Every module knows only what lies below it."""
    own = layer_name(path)
    if own == "__init__":
        assert set(imported(path)) <= {"_version", "errors"}
        return
    assert own in LAYER_OF, f"give {own!r} a place in LAYERS"
    for other in imported(path):
        if other == own or (path.relative_to(PACKAGE).as_posix(), other) in DOORS:
            continue
        assert other in LAYER_OF, f"give {other!r} a place in LAYERS"
        assert LAYER_OF[other] < LAYER_OF[own], f"{own} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    """A file holds one noun; a longer one is to be cut."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["catwise", "catwise.errors", "catwise.cli"])
def test_import_is_cheap(module: str) -> None:
    """None of the heavy packages is loaded, not even numpy."""
    code = f"import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)))"
    assert run(code) == ""


def test_optional_packages_stay_out() -> None:
    """With every public name in use, what is no dependency is still not loaded."""
    optional = ("torchvision", "timm", "transformers", "ray", "pandas")
    code = (
        "import sys, catwise\n"
        "for name in catwise.__all__: getattr(catwise, name)\n"
        f"print(*(set({optional!r}) & set(sys.modules)))"
    )
    assert run(code) == ""


def test_public_names() -> None:
    """The public names are these; a change here is a change for users."""
    assert catwise.__all__ == [
        "CatwiseError",
        "Evaluation",
        "FeatureStore",
        "Head",
        "InSampleWarning",
        "LabelPolicy",
        "PartialLabels",
        "SelectResult",
        "TuneResult",
        "__version__",
        "compare_heads",
        "evaluate",
        "extract",
        "fix",
        "list_heads",
        "load_head",
        "open_store",
        "read_features",
        "read_head",
        "save_head",
        "select",
        "tune",
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
