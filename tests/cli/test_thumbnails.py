"""Small pictures of the images that moved most, in reports of `fix`, `tune` and `evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from catwise.cli import main
from catwise.cli.options import LabelFiles
from catwise.cli.thumbnails import is_medical
from cli.fix_case import arguments, make_case

PICTURE = '<img src="data:image/jpeg;base64,'


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, labels and a checkpoint, and what `fix` made of them."""
    folder = tmp_path_factory.mktemp("case") / "case"
    make_case(folder)
    done = CliRunner().invoke(main, arguments(folder))
    assert done.exit_code == 0, done.output
    return folder


def of_rows(folder: Path, command: str, *more: str | Path) -> Result:
    labels = ("--labels", folder / "labels.csv", "--encoding", "nan", "--id-column", "image",
              "--split-column", "split")  # fmt: skip
    return run(command, "--features", folder / "out" / "features", *labels, *more)


def test_fix_shows_images(case: Path) -> None:
    """It has them; asked not to, it makes the page again without, and runs no step."""
    path = case / "out" / "report.html"
    page = path.read_text("utf-8")
    assert page.count(PICTURE) == page.count('alt="Image test_') > 6
    again = CliRunner().invoke(main, arguments(case, "--no-thumbnails"))
    assert again.exit_code == 0, again.output
    assert "kept from before: extract, tune, apply, verify" in again.output
    without = path.read_text("utf-8")
    assert PICTURE not in without
    assert "Images whose probability moved most, of test rows" in without
    assert CliRunner().invoke(main, arguments(case)).exit_code == 0
    assert path.read_text("utf-8") == page


def test_tune_and_evaluate_show_a_folder_of_images(case: Path, tmp_path: Path) -> None:
    """Beside features; validation images where there are no test rows."""
    head = ("--head", case / "out" / "run" / "head.safetensors")
    checkpoint = ("--checkpoint", case / "net.safetensors", "--head-categories", tmp_path / "n")
    (tmp_path / "n").write_text("ant\nbee\ncat\ndog\n")
    images = ("--images", case / "images")
    done = of_rows(case, "tune", *checkpoint, *images, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert page.count(PICTURE) == page.count('alt="Image valid_') > 6
    report = tmp_path / "e.html"
    both = (*head, "--split", "test", "--against", case / "net.safetensors", "--report", report)
    done = of_rows(case, "evaluate", *both, *images)
    assert done.exit_code == 0, done.output
    assert report.read_text("utf-8").count(PICTURE) > 6


def test_images_are_looked_for_before_the_work(case: Path, tmp_path: Path) -> None:
    """A wrong folder, no folder, or nothing to compare is one error and leaves nothing."""
    head = ("--head", case / "out" / "run" / "head.safetensors")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "run"
    done = of_rows(case, "tune", *head, "--images", tmp_path / "empty", "--out", out)
    assert done.exit_code != 0
    assert "there are no images" in done.stderr
    done = of_rows(case, "tune", *head, "--thumbnails", "--out", out)
    assert "--thumbnails needs --images" in done.stderr
    assert not out.exists()
    done = of_rows(case, "evaluate", *head, "--split", "test", "--images", case / "images")
    assert "need --against and --report" in done.stderr.replace("\n", " ")


def test_medical_data_sets_are_told(tmp_path: Path) -> None:
    """By their name, or by the columns of their table."""
    table = tmp_path / "t.csv"
    table.write_text("Image Index,Finding Labels,Patient ID\na.png,Mass,1\n")
    assert is_medical(LabelFiles(labels=table))
    assert is_medical(LabelFiles(dataset="chexpert", root=tmp_path))
    table.write_text("image,cat\na.png,1\n")
    assert not is_medical(LabelFiles(labels=table))
    assert not is_medical(LabelFiles(dataset="coco", root=tmp_path))
