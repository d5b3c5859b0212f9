"""`catwise train`: from images and labels to a checkpoint, and on to `catwise fix`."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from catwise.cli import main
from catwise.errors import FeatureError, ShapeError
from cli.train_case import MODEL, NAMES, arguments, make_images


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("train") / "case")


def run(*call: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(call))
    assert result.exit_code == code, result.output
    return result.output


def test_train_then_fix(case: Path, tmp_path: Path) -> None:
    """The command that is printed at the end runs, with the images that were kept out."""
    out = tmp_path / "an out"
    given = ["--input-size", "8x12", "--mean", "0.5", "--std", "0.25"]
    given += ["--model-arg", "dropout=0.2"]
    more = ["--reserve", "0.3", "--scheme", "assume_negative", "--out", out]
    printed = run(*arguments(case, *given, *more))
    assert "labelled images: 112 train, 80 valid, 60 test, 48 reserved" in printed
    assert "epoch 3: loss " in printed
    assert "the best" in printed
    (line,) = [text for text in printed.splitlines() if text.startswith("next: ")]
    call = shlex.split(line.removeprefix("next: catwise "))
    assert call[-2:] == ["--out", "DIR"]
    assert " ".join(sorted(given)) == " ".join(sorted(set(call) & {*given}))
    fixed = json.loads(run(*call[:-1], str(tmp_path / "fixed"), "--json"))
    assert fixed["summary"]["n_replaced"] > 0
    assert fixed["evaluation"]["verdict"] in {"helped", "no difference shown"}
    before, after = (
        load_file(folder / "model.safetensors") for folder in (out, tmp_path / "fixed")
    )
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_training_images_alone(case: Path, tmp_path: Path) -> None:
    """Neither validation nor test images are needed: "none" may be said of both."""
    more = ["--valid-split", "none", "--test-split", "none", "--epochs", "1"]
    printed = run(*arguments(case, *more, "--out", tmp_path / "out"))
    assert "labelled images: 160 train\n" in printed
    (line,) = [text for text in printed.splitlines() if text.startswith("next: ")]
    run(*shlex.split(line.removeprefix("next: catwise "))[:-1], str(tmp_path / "f"), "--dry-run")


def test_a_given_input_is_not_assumed(case: Path, tmp_path: Path) -> None:
    """The note that the preprocessing is assumed goes where the input is named."""
    (tmp_path / "plain_net.py").write_text(
        "from cli.train_case import SmallNet\n\ndef net():\n    return SmallNet()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        call = arguments(case, "--dry-run", "--out", tmp_path / "o", model="python:plain_net:net")
        assert "the preprocessing is assumed" in run(*call)
        assert "the preprocessing is assumed" not in run(*call, "--input-size", "12x12")


def test_a_dataset_in_its_own_layout(case: Path, tmp_path: Path) -> None:
    """The readers of data sets serve as well, and the printed command finds their files."""
    with (case / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    root = tmp_path / "celeba"
    shutil.copytree(case / "images", root / "faces")
    lines = [
        f"{row['image']}.png " + " ".join("1" if row[n] == "1" else "-1" for n in NAMES)
        for row in rows
    ]
    text = "\n".join([str(len(rows)), " ".join(NAMES), *lines])
    (root / "list_attr_celeba.txt").write_text(text + "\n")
    numbers = {"train": 0, "valid": 1, "test": 2}
    parts = [f"{row['image']}.png {numbers[row['split']]}" for row in rows]
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    call = ["train", "--model", MODEL, "--dataset", "celeba", "--root", str(root)]
    call += ["--option", "groups=none", "--option", "images=faces", "--epochs", "2"]
    call += ["--batch-size", "16", "--lr", "0.02", "--reserve", "0.2", "--out", str(tmp_path / "o")]
    printed = run(*call)
    (line,) = [text for text in printed.splitlines() if text.startswith("next: ")]
    again = shlex.split(line.removeprefix("next: catwise "))[:-1]
    fixed = json.loads(run(*again, str(tmp_path / "fixed"), "--json", "--force"))
    assert fixed["evaluation"]["n_rows"] == 60


def test_one_document(case: Path, tmp_path: Path) -> None:
    """With --json nothing else is printed; repeated, nothing is trained again."""
    call = arguments(case, "--json", "--out", tmp_path / "out", "--scheme-arg", "gamma_neg=2")
    first = json.loads(run(*call))
    assert [record["epoch"] for record in first["history"]] == [1, 2, 3]
    state = (tmp_path / "out" / "state.pt").stat().st_mtime_ns
    assert json.loads(run(*call)) == first
    assert (tmp_path / "out" / "state.pt").stat().st_mtime_ns == state


def test_dry_run(case: Path, tmp_path: Path) -> None:
    """All is checked, nothing is written."""
    printed = run(*arguments(case, "--dry-run", "--out", tmp_path / "out"))
    assert "dry run: all fits" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--scheme", "hil"], 2, "'hil' is not one of"),
        (["--scheme-arg", "gama_neg=2"], 12, "did you mean 'gamma_neg'"),
        (["--scheme-arg", "gamma_neg"], 2, "Invalid value for '--scheme-arg'"),
        (["--scheme", "self_training"], 12, "--ema 0.999"),
        (["--scheme", "role", "--mix", "logic_mix"], 12, "--mix none"),
        (["--batch-size", "500"], 12, "a smaller --batch-size"),
        (["--model", "onnx:a.onnx"], 12, "cannot be trained"),
        (["--train-split", "trian"], 12, "did you mean 'train'"),
        (["--lr", "0"], 2, "0.0 is not in the range x>0"),
        (["--device", "cuda:7"], 12, "cuda:7"),
    ],
)
def test_wrong_use(case: Path, tmp_path: Path, more: list[str], code: int, said: str) -> None:
    """One error that names the option as it is typed, and nothing is written."""
    printed = run(*arguments(case, "--out", tmp_path / "out", *more), code=code)
    assert said in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_machine_labels(case: Path, tmp_path: Path) -> None:
    """A table of probabilities fills what is unknown; the count is printed."""
    table = tmp_path / "scores.csv"
    rows = [f"train_{i:03d},0.9,0.1,0.5,0.2" for i in range(160)]
    table.write_text("\n".join(["id,ant,bee,cat,dog", *rows]))
    call = arguments(case, "--machine-labels", table, "--epochs", "1", "--out", tmp_path / "out")
    printed = run(*call)
    assert "unknown labels said by a machine, with a weight of 0.3" in printed
    table.write_text("id,ant,bee,cat,dog\ntrain_000,0.9,0.1,0.5,0.2")
    assert "train_001" in run(*arguments(case, "--machine-labels", table), code=6)
    assert MODEL in call


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own packages
def test_tensorboard(case: Path, tmp_path: Path) -> None:
    """Loss, step size and metric are what the history says; nothing is written without a run."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    call = arguments(case, "--tensorboard", "--json", "--out", tmp_path / "out")
    run(*call, "--dry-run")
    assert not (tmp_path / "out").exists()
    history = json.loads(run(*call))["history"]
    found = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    found.Reload()
    for name, key in (("epoch/loss", "loss"), ("epoch/average_precision", "score")):
        seen = [(event.step, event.value) for event in found.Scalars(name)]
        assert seen == [(r["epoch"], pytest.approx(r[key], rel=1e-6)) for r in history]
    steps = found.Scalars("step/loss")
    assert [event.step for event in steps] == list(range(30))
    first = [event.value for event in steps[:10]]
    assert sum(first) / 10 == pytest.approx(history[0]["loss"], rel=1e-5)
    assert max(event.value for event in found.Scalars("step/rate")) == pytest.approx(0.02)
    assert json.loads(run(*call))["history"] == history


def test_images_that_cannot_be_decoded(case: Path, tmp_path: Path) -> None:
    """The error's remedy leaves them out, of training as of the labels for `fix`."""
    folder = Path(shutil.copytree(case / "images", tmp_path / "images"))
    (folder / "train_007.png").write_bytes(b"no image")
    (folder / "valid_001.png").write_bytes(b"no image")
    call = arguments(case, "--images", folder, "--epochs", "1", "--out", tmp_path / "out")
    refused = run(*call, code=FeatureError.exit_code)
    assert "--undecodable skip" in refused.partition("try:")[2]
    told = run(*call, "--undecodable", "skip")
    assert "2 images cannot be decoded and are left out: train_007, valid_001." in told
    assert "labelled images: 159 train, 79 valid, 60 test" in told
    assert "train_007" not in (tmp_path / "out/labels.csv").read_text()


def test_a_function_of_fixed_rows(case: Path, tmp_path: Path) -> None:
    """It could not build what is trained: refused, with what makes it right."""
    text = "from cli.train_case import SmallNet\n\ndef net({}):\n    return SmallNet({})\n"
    for module, taken, given in (
        ("seven", "", "7"),
        ("any_number", "n_categories", "n_categories"),
    ):
        (tmp_path / f"{module}_net.py").write_text(text.format(taken, given))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        call = [*arguments(case, "--dry-run", "--out", tmp_path / "o"), "--input-size", "12x12"]
        refused = run(*call, "--model", "python:seven_net:net", code=ShapeError.exit_code)
        assert "n_categories" in refused.partition("try:")[2]
        assert "all fits" in run(*call, "--model", "python:any_number_net:net")
