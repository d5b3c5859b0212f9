"""`--update` of `extract` and `fix`: only what changed is done, and it says what that was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from catwise.cli import main
from catwise.errors import HarmError, OutputError
from catwise.features import open_store
from catwise.heads import load_head
from cli.fix_case import MODEL, NAMES, arguments, contents, make_case

TESTS = Path(__file__).parents[1]
RUN_HEAD = "run/head.safetensors"


@pytest.fixture
def case(tmp_path: Path) -> Path:
    make_case(tmp_path / "case")
    return tmp_path / "case"


def update(folder: Path, *more: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*arguments(folder, "--update"), *more])
    assert result.exit_code == code, result.output
    return result


def document(folder: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(update(folder, "--json", *more).stdout)
    return found


def rows(folder: Path) -> list[str]:
    return (folder / "labels.csv").read_text().splitlines()


def write_rows(folder: Path, lines: list[str]) -> None:
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def add(folder: Path, name: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.png")


def test_fix_does_what_changed(case: Path) -> None:
    """Images that were added, changed or removed, and new labels, give what a new run gives."""
    first = document(case)
    assert first["update"] == {"added": 300, "changed": 0, "kept": 0, "removed": 0}
    assert first["against"] is None
    add(case, "train_200", 1)
    add(case, "train_004", 2)
    lines = [line for line in rows(case) if not line.startswith("train_007,")]
    write_rows(case, [*lines, "train_200,train,1,0,,1"])
    (case / "images" / "train_007.png").unlink()
    old = (case / "out" / "run" / "head.safetensors").read_bytes()
    again = document(case)
    assert again["update"] == {"added": 1, "changed": 1, "kept": 298, "removed": 1}
    assert set(again["steps"].values()) == {"ran"}
    assert "average precision" in again["against"]
    assert (case / "out" / "previous.safetensors").read_bytes() == old
    fresh = json.loads(
        CliRunner().invoke(main, arguments(case, "--json", "--out", str(case / "fresh"))).stdout
    )
    means = [one["evaluation"]["means"]["average_precision"] for one in (again, fresh)]
    assert means[0]["after"] == pytest.approx(means[1]["after"], abs=2e-3)
    assert means[0]["before"] == pytest.approx(means[1]["before"], abs=2e-3)
    assert len(open_store(case / "out" / "features")) == 300


def test_only_labels_changed(case: Path) -> None:
    """With other labels no image is run; the plain command resumes what an update made."""
    first = document(case)
    lines = rows(case)
    lines[1] = lines[1].rpartition(",")[0] + ",1"
    lines[2] = lines[2].rpartition(",")[0] + ",0"
    write_rows(case, lines)
    again = document(case)
    assert (again["update"]["kept"], again["steps"]["extract"]) == (300, "kept")
    assert again["steps"]["tune"] == "ran"
    assert (again["labels"]["categories"], first["labels"]) == ([NAMES[-1]], None)
    old, new = (load_head(case / "out" / name) for name in ("previous.safetensors", RUN_HEAD))
    assert bool((new.weight[:-1] == old.weight[:-1]).all())
    assert not bool((new.weight == old.weight).all())
    assert not (case / "out" / "previous").exists()
    made = contents(case / "out")
    result = CliRunner().invoke(main, arguments(case, "--json"))
    assert set(json.loads(result.stdout)["steps"].values()) == {"kept"}
    assert contents(case / "out") == made


def test_stopped_while_labels_were_brought_up_to_date(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before is there still, and the next call ends with the same bytes."""
    document(case)
    shutil.copytree(case, case.with_name("twin"))
    for folder in (case, case.with_name("twin")):
        lines = rows(folder)
        lines[1] = lines[1].rpartition(",")[0] + ",1"
        lines[2] = lines[2].rpartition(",")[0] + ",0"
        write_rows(folder, lines)
    document(case)
    with monkeypatch.context() as patch:
        patch.setattr("catwise.fixing.run.write_run", _stopped)
        CliRunner().invoke(main, arguments(case.with_name("twin"), "--update"))
    assert not (case.with_name("twin") / "out" / "run").exists()
    assert document(case.with_name("twin"))["labels"]["categories"] == [NAMES[-1]]
    one, two = (
        (folder / "out" / RUN_HEAD).read_bytes() for folder in (case, case.with_name("twin"))
    )
    assert one == two


def _stopped(*given: Any, **more: Any) -> None:
    raise KeyboardInterrupt


def test_an_image_that_changed_alone(case: Path) -> None:
    """The same labels and another image: the head is tuned again."""
    document(case)
    add(case, "valid_001", 3)
    again = document(case)
    assert (again["update"]["changed"], again["steps"]["tune"]) == (1, "ran")
    assert again["steps"]["apply"] == "ran"


def test_nothing_changed(case: Path) -> None:
    """A call with nothing to do says so, and loads neither torch nor the images."""
    document(case)
    made = contents(case / "out")
    assert document(case) == {"command": "fix", "out": str(case / "out"), "unchanged": True}
    line = "import sys; from catwise.cli import main\n"
    line += "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
    line += "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), 'loaded'\n"
    words = [sys.executable, "-c", line, *arguments(case, "--update")]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=TESTS)
    assert done.stdout == "nothing has changed since the last update\n"
    assert contents(case / "out") == made
    (case / "out" / "report.html").unlink()
    assert "unchanged" not in document(case)
    assert (case / "out" / "report.html").is_file()


def test_other_options_are_refused(case: Path) -> None:
    """An update takes other images and labels, and nothing else that decides the result."""
    document(case)
    lines = rows(case)
    write_rows(case, lines[:-1])
    text = update(case, "--seed", "7", code=OutputError.exit_code).output
    assert "seed: 0, now 7" in text
    assert update(case, "--overwrite", code=2).output.endswith("--update takes no --overwrite.\n")


def test_a_worse_head_has_its_own_exit_code(case: Path) -> None:
    """Labels that were turned round make the head worse, which the exit code says."""
    document(case, "--force")
    old = load_head(case / "out" / "run" / "head.safetensors")
    turned = {"0": "1", "1": "0", "": ""}
    lines = [rows(case)[0]]
    for line in rows(case)[1:]:
        name, split, *cells = line.split(",")
        cells = cells if split == "test" else [turned[cell] for cell in cells]
        lines.append(",".join([name, split, *cells]))
    write_rows(case, lines)
    for _ in range(2):  # it is said as long as it is so
        result = update(case, "--force", code=HarmError.exit_code)
        assert "worse than the one before" in result.output
    kept = load_head(case / "out" / "previous.safetensors")
    assert (kept.categories, kept.weight.shape) == (NAMES, old.weight.shape)
    assert bool((kept.weight == old.weight).all())


def test_extract(case: Path) -> None:
    """`extract --update` says what it did, and what there was to do."""
    words = ["extract", "--update", "--model", MODEL, "--images", str(case / "images")]
    words += ["--checkpoint", str(case / "net.safetensors"), "--out", str(case / "store")]
    for expected in ("300 images added", "nothing has changed", "nothing has changed"):
        result = CliRunner().invoke(main, words)
        assert (result.exit_code, expected in result.output) == (0, True), result.output
    add(case, "new", 1)
    result = CliRunner().invoke(main, [*words, "--json"])
    done = json.loads(result.stdout)
    assert done["update"] == {"added": 1, "changed": 0, "kept": 300, "removed": 0}
    assert done["rows"] == 301
    assert CliRunner().invoke(main, [*words, "--no-resume"]).exit_code == 2
