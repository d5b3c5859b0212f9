"""The torchvision stubs of the tests: cheap, and only where they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STUBS = Path(__file__).parents[1] / "stubs"


def run(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(STUBS), str(folder)])}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def test_start_loads_no_torch(tmp_path: Path) -> None:
    """Python starts without torch, and a missing torchvision stays missing."""
    code = "import sys; print(sys.modules['sitecustomize'].__file__, 'torch' in sys.modules)"
    assert run(code, tmp_path) == f"{STUBS / 'sitecustomize.py'} False"


def test_operators_are_there_when_torchvision_is_imported(tmp_path: Path) -> None:
    """A torchvision without its binary finds the operators that it registers fakes for."""
    package = tmp_path / "torchvision"
    package.mkdir()
    text = "import torch\nfound = [torch.ops.torchvision.nms, torch.ops.torchvision.qnms]\n"
    (package / "__init__.py").write_text(text)
    assert run("import torchvision; print(*torchvision.found)", tmp_path) == (
        "torchvision.nms torchvision.qnms"
    )
