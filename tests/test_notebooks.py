"""The notebooks of docs/ run from top to bottom, and what is stored of them is small and clean."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
_PATH_OF_A_MACHINE = re.compile(r"/(?:root|home|tmp|work|Users|usr|opt)/|[A-Z]:\\\\")


def kinds(notebook: nbformat.NotebookNode) -> list[list[tuple[str, ...]]]:
    """What each code cell gave: the kind of each output and its formats."""
    return [
        [(one.output_type, *sorted(one.get("data", ()))) for one in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_two() -> None:
    """Both notebooks are found."""
    assert [path.stem for path in NOTEBOOKS] == ["features-to-head", "module-to-decisions"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    """Every cell runs, in an empty folder, and gives outputs of the kinds that are stored."""
    copy = tmp_path / path.name
    shutil.copyfile(path, copy)
    command = [sys.executable, "-m", "jupyter", "execute", "--inplace", copy.name]
    done = subprocess.run(
        [*command, "--KernelManager.transport=ipc"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored, notebook = (nbformat.read(one, as_version=4) for one in (path, copy))
    assert kinds(notebook) == kinds(stored)
    assert any("image/svg+xml" in one for cell in kinds(stored) for one in cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_clean(path: Path) -> None:
    """No path of a machine, no error, no warning; 100 kB at most."""
    text = path.read_text("utf-8")
    assert not _PATH_OF_A_MACHINE.search(text)
    assert len(text) < 100_000
    notebook = nbformat.read(path, as_version=4)
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    assert outputs
    assert all(one.output_type != "error" and one.get("name") != "stderr" for one in outputs)
