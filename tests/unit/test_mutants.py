"""`scripts/mutants` on a package of one file, whose tests notice some changes and miss one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "mutants"
SOURCE = '''"""Two functions."""

LIMIT = 3


def is_large(value):
    return value > LIMIT


def half(value):
    return value / 2
'''
TESTS = """from catwise.metrics.small import half, is_large


def test_is_large():
    assert is_large(9)
    assert not is_large(1)


def test_half():
    assert half(3) == 1.5
"""


def test_what_is_noticed(tmp_path: Path) -> None:
    """`>` as `>=` and another limit pass unnoticed; halves do not. A second call tries nothing."""
    for name, text in (
        ("src/catwise/__init__.py", ""),
        ("src/catwise/metrics/__init__.py", ""),
        ("src/catwise/metrics/small.py", SOURCE),
        ("tests/unit/test_small.py", TESTS),
        ("pyproject.toml", "[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    out = tmp_path / "out.jsonl"
    call = [sys.executable, str(SCRIPT), "--root", str(tmp_path), "--out", str(out)]
    subprocess.run(call, check=True, capture_output=True, timeout=300)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    noticed = {(line["function"], line["what"]): line["noticed"] for line in lines}
    assert noticed == {
        (None, "3 to 4"): False,
        ("is_large", "Gt to GtE"): False,
        ("half", "Div to Mult"): True,
        ("half", "2 to 3"): True,
    }
    before = out.read_text()
    shown = subprocess.run([*call, "--survivors"], check=True, capture_output=True, text=True)
    assert "return value > LIMIT" in shown.stdout
    table = tmp_path / "table.json"
    subprocess.run([*call, "--table", str(table)], check=True)
    document = json.loads(table.read_text())
    assert document["files"]["metrics/small.py"] == {
        "tried": 4, "killed": 2, "equivalent": 0, "survived": 2,
    }  # fmt: skip
    document["survivors"][0]["equivalent"] = "It is a limit like any other."
    table.write_text(json.dumps(document))
    subprocess.run([*call, "--table", str(table)], check=True)
    counts = json.loads(table.read_text())["files"]["metrics/small.py"]
    assert (counts["equivalent"], counts["survived"]) == (1, 1)
    assert out.read_text() == before
