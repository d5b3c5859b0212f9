"""`catwise fix`."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

from catwise._lock import exclusive
from catwise.cli import main
from catwise.errors import (
    ConfigError,
    FeatureError,
    FeatureStoreError,
    IdError,
    MismatchError,
    OutputError,
    ShapeError,
)
from catwise.fixing import run as steps
from catwise.heads import load_head
from catwise.models import Preprocessing
from catwise.models.pixels import preprocess
from cli.fix_case import INPUT, NAMES, SPLITS, TinyNet, arguments, contents, make_case

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130
TESTS = Path(__file__).parents[1]


def fix(folder: Path, *more: str, **given: str) -> Result:
    return CliRunner().invoke(main, arguments(folder, *more, **given))


def done(folder: Path, *more: str, **given: str) -> dict[str, Any]:
    """Run it, it must succeed, and give the JSON document."""
    result = fix(folder, "--json", *more, **given)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def refused(result: Result, error: type[Exception], *texts: str) -> None:
    """It ends with that error's code, and its message holds these texts."""
    assert result.exit_code == error.exit_code, result.output  # type: ignore[attr-defined]
    assert result.stderr.startswith(f"{error.__name__}: ")
    for text in texts:
        assert text in result.stderr


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every case of this module is: a store remembers where its images were."""
    return tmp_path_factory.mktemp("place") / "case"


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a case whose run is finished; not to be changed."""
    make_case(place)
    done(place)
    return Path(shutil.copytree(place, tmp_path_factory.mktemp("finished") / "case"))


@pytest.fixture
def again(finished: Path, place: Path) -> Path:
    """The case after its run."""
    shutil.rmtree(place)
    return Path(shutil.copytree(finished, place))


@pytest.fixture
def case(again: Path) -> Path:
    """The case before its run."""
    shutil.rmtree(again / "out")
    return again


# ------------------------------------------------------------------------------ what comes out


def test_checkpoint_is_a_better_drop_in(finished: Path) -> None:
    """The new file loads strictly, only the head differs, and scores as the document says."""
    old, new = load_file(finished / "net.safetensors"), load_file(finished / "out/net.safetensors")
    assert [name for name in old if not torch.equal(old[name], new[name])] == [
        "fc.bias",
        "fc.weight",
    ]
    rows = table(finished)
    test = [row for row in rows if row["split"] == "test"]
    inputs = []
    for row in test:
        with Image.open(finished / "images" / f"{row['image']}.png") as file:
            inputs.append(preprocess(file, INPUT))
    images = torch.stack(inputs)
    truth = np.array([[int(row[name]) for name in NAMES] for row in test])
    evaluation = json.loads((finished / "out/evaluation.json").read_text())
    mean = evaluation["means"]["average_precision"]
    for state, side in ((old, "before"), (new, "after")):
        module = TinyNet().eval()
        module.load_state_dict(state, strict=True)
        with torch.no_grad():
            scores = module(images).numpy()
        assert mean[side] == pytest.approx(average_precision_score(truth, scores), abs=2e-3)
    assert mean["after"] > mean["before"] + 0.05
    assert mean["difference_low"] < mean["difference"] < mean["difference_high"]


def test_what_is_printed(again: Path) -> None:
    """A person reads what was understood, the gain on test images, and where everything is."""
    result = fix(again)
    assert (result.exit_code, result.stderr) == (0, "")
    evaluation = json.loads((again / "out/evaluation.json").read_text())
    mean = evaluation["means"]["average_precision"]
    assert evaluation["sentence"] in result.stdout
    assert evaluation["sentence"].startswith("Helped: on 80 test rows the mean average precision ")
    assert f"went from {mean['before']:.4f} to {mean['after']:.4f} (+" in evaluation["sentence"]
    for text in (
        "classification layer fc",
        "input: 8 x 8 pixels",
        "labelled images: 120 train, 100 valid, 80 test",
        "average precision on 80 test rows, which chose nothing",
        "On validation, cross-fitted in 5 folds, which fitted and chose: mean average precision",
        "Rows of the head: 4 replaced, 0 kept, 0 skipped.",
        "kept from before: extract, tune, apply, verify",
        f"checkpoint: {again}/out/net.safetensors",
        f"model card: {again}/out/MODEL_CARD.md",
        f"report:     {again}/out/report.html",
    ):
        assert text in result.stdout, text


def test_json_is_one_document(again: Path) -> None:
    """All that people read is there for machines too, and nothing else is on stdout."""
    document = done(again)
    assert document["steps"] == dict.fromkeys(steps.STEPS, "kept")
    assert document["checkpoint"] == f"{again}/out/net.safetensors"
    assert [row["category"] for row in document["evaluation"]["categories"]] == list(NAMES)
    assert document["summary"]["n_replaced"] == len(document["records"]) == 4
    assert document["left_out"] == []


def test_report_and_card(finished: Path) -> None:
    """Both tell the test score, what was verified, and how images become input."""
    mean = json.loads((finished / "out/evaluation.json").read_text())["means"]["average_precision"]
    report = (finished / "out/report.html").read_text()
    card = (finished / "out/MODEL_CARD.md").read_text()
    for text in (report, card):
        assert f"{mean['after']:.4f}" in text
        assert "the features of 8 images are identical" in text
        assert "8 x 8 pixels" in text
    ET.fromstring(report.split("\n", 1)[1])  # noqa: S314  # well-formed; our own text
    assert "Other metrics on the test rows" in report
    assert "<dt>Model</dt><dd>python:cli.fix_case:tiny_net</dd>" in report
    assert "## The classification layer of python:cli.fix_case:tiny_net" in card


def test_inputs_are_not_touched(case: Path) -> None:
    """Every file of the user is as it was."""
    before = contents(case)
    done(case)
    after = contents(case)
    assert {name: data for name, data in after.items() if not name.startswith("out/")} == before


def test_dry_run(case: Path) -> None:
    """It checks, says which steps are ahead, and writes nothing."""
    before = contents(case)
    document = done(case, "--dry-run")
    assert document["steps"] == list(steps.STEPS)
    assert "dry run: all fits; would run extract, tune, apply, verify" in (
        fix(case, "--dry-run").stdout
    )
    assert contents(case) == before
    (case / "labels.csv").write_text((case / "labels.csv").read_text() + "nobody,test,0,0,0,1\n")
    refused(fix(case, "--dry-run"), IdError, "1 of 301 labelled images are not there", "'nobody'")


def test_the_headline_is_the_test_rows(finished: Path) -> None:
    """Everywhere the verdict on test rows stands first, and what chose is beside it, named so."""
    evaluation = json.loads((finished / "out/evaluation.json").read_text())
    run = json.loads((finished / "out/run/summary.json").read_text())["summary"]
    assert (run["headline"], run["verdict"]) == (evaluation["sentence"], "helped")
    assert run["headline_rows"] == "test"
    assert (finished / "out/run/evaluation.json").read_bytes() == (
        finished / "out/evaluation.json"
    ).read_bytes()
    card = (finished / "out/MODEL_CARD.md").read_text().splitlines()
    assert [line[2:] for line in card if line.startswith("- ")][:2] == [
        evaluation["sentence"],
        run["chose"],
    ]
    for name in ("out/report.html", "out/run/report.html"):
        page = (finished / name).read_text()
        verdict = f'<p class="verdict">{evaluation["sentence"]}</p>'
        assert page.index(verdict) < page.index(f'<p class="soft chose">{run["chose"]}</p>')
        assert '<section class="headline helped"' in page


def test_what_decided_the_labels_is_recorded(case: Path) -> None:
    """Every option that was given is in the run's configuration."""
    rows = (case / "labels.csv").read_text().splitlines()
    rows = [f"{row},{'1' if i else 'weight'}" for i, row in enumerate(rows)]
    (case / "labels.csv").write_text("\n".join(rows) + "\n")
    done(case, "--uncertain", "negative", "--ignore-column", "weight", "--missing", "skip")
    config = json.loads((case / "out/run/config.json").read_text())
    labels = config["inputs"]["labels"]
    assert {key: labels[key] for key in ("encoding", "id_column", "ignore_column")} == {
        "encoding": "nan",
        "id_column": "image",
        "ignore_column": ["weight"],
    }
    assert labels["split_column"] == "split"
    assert config["inputs"]["splits"]["test"]["called"] == "test"
    assert config["config"]["policy"]["uncertain"] == "negative"
    assert config["inputs"]["options"]["missing"] == "skip"


# ------------------------------------------------------------------------------- going on


def stop_at(patch: pytest.MonkeyPatch, name: str) -> None:
    def stop(*args: object, **given: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(steps, name, stop)


@pytest.mark.parametrize("name", ["extract", "tune", "write_model", "verify_copy", "_account"])
def test_stopped_run_goes_on(name: str, finished: Path, case: Path) -> None:
    """Stopped before any step, the same command ends with the bytes of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, name)
        assert fix(case).exit_code == INTERRUPTED
    document = done(case)
    order = ["extract", "tune", "write_model", "verify_copy", "_account"]
    expected = ["kept"] * order.index(name) + ["ran"] * (4 - order.index(name))
    assert list(document["steps"].values()) == expected
    assert contents(case / "out") == contents(finished / "out")


@pytest.mark.parametrize(
    ("gone", "step"),
    [
        ("features", "extract"),
        ("run", "tune"),
        ("run/evaluation.json", "tune"),
        ("net.safetensors", "apply"),
        ("evaluation.json", None),
        ("report.html", None),
    ],
)
def test_lost_files_are_made_again(
    gone: str, step: str | None, finished: Path, again: Path
) -> None:
    """A step whose result is gone runs again, and so do those after it; the bytes are the same."""
    path = again / "out" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ran = [name for name, what in done(again)["steps"].items() if what == "ran"]
    assert ran == ([] if step is None else list(steps.STEPS[steps.STEPS.index(step) :]))
    assert contents(again / "out") == contents(finished / "out")


def test_left_overs_of_a_kill_are_removed(finished: Path, again: Path) -> None:
    """Half-written files under temporary names do not stay."""
    (again / "out/.catwise-0123.json").write_text("{")
    (again / "out/.catwise-4567").mkdir()
    done(again)
    assert contents(again / "out") == contents(finished / "out")


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def other_checkpoint(folder: Path) -> None:
    state = load_file(folder / "net.safetensors")
    save_file({**state, "body.1.bias": state["body.1.bias"] + 1}, folder / "net.safetensors")


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        (other_checkpoint, [], "checkpoint: other content"),
        (
            lambda folder: edit(
                folder / "labels.csv", lambda text: text.replace(",1\n", ",0\n", 1)
            ),
            [],
            "train labels: other content",
        ),
        (None, ["--seed", "7"], "seed: 0, now 7"),
        (None, ["--metric", "auroc"], "metric: average_precision, now auroc"),
        (None, ["--input-size", "8x9"], "preprocessing size: (8, 8), now (8, 9)"),
        (None, ["--test-split", "none"], "test labels: not there now"),
        (None, ["--flips"], "flips: False, now True"),
        (None, ["--uncertain", "negative"], "policy: None, now Uncertain labels count as negative"),
        (None, ["--blank", "negative"], "policy: None, now Uncertain labels"),
        (None, ["--group-column", "image"], "train labels: other content"),
        (None, ["--valid-split", "none"], "valid labels: not there now"),
        (None, ["--train-split", "valid", "--valid-split", "train"], "train labels: other content"),
    ],
)
def test_other_inputs_are_named(change: Any, more: list[str], told: str, again: Path) -> None:
    """A folder with a run of other inputs is refused, what differs is named, nothing changes."""
    if change is not None:
        change(again)
    before = contents(again / "out")
    result = fix(again, *more)
    refused(result, OutputError, "holds a run with other inputs", told, "--overwrite")
    assert contents(again / "out") == before


def test_overwrite_begins_anew(again: Path) -> None:
    """The old run's files go, features that would be the same stay."""
    stamp = (again / "out/features/features-00000.safetensors").stat().st_mtime_ns
    document = done(again, "--seed", "7", "--test-split", "none", "--overwrite")
    assert document["steps"] == {"extract": "ran", "tune": "ran", "apply": "ran", "verify": "ran"}
    assert not (again / "out/evaluation.json").exists()
    assert document["config"]["seed"] == 7
    document = done(again, "--seed", "8", "--test-split", "none", "--overwrite")
    assert document["steps"] == {"extract": "kept", "tune": "ran", "apply": "ran", "verify": "ran"}
    done(again, "--metric", "auroc", "--overwrite")
    assert (again / "out/evaluation.json").exists()
    assert (again / "out/features/features-00000.safetensors").stat().st_mtime_ns != stamp
    stamp = (again / "out/features/features-00000.safetensors").stat().st_mtime_ns
    done(again, "--overwrite")
    assert (again / "out/features/features-00000.safetensors").stat().st_mtime_ns == stamp


def test_foreign_folders_are_left_alone(case: Path) -> None:
    """A folder with other files, a file, and a broken fix.json are refused."""
    out = case / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    refused(fix(case, "--overwrite"), OutputError, "holds files of something else", "thesis.tex")
    assert (out / "thesis.tex").read_text() == "mine"
    refused(fix(case, "--out", str(out / "thesis.tex")), OutputError, "is a file")
    (out / "fix.json").write_text('{"finished": 3}')
    refused(fix(case, "--overwrite"), OutputError, "is not what fix writes")


def test_no_other_process(again: Path) -> None:
    """While one process is at work in a folder, another one is refused."""
    with exclusive(again / "out", inside=True):
        refused(fix(again), OutputError, "another process is writing")
    done(again)


# -------------------------------------------------------------------------- images and labels


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "images" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")


def test_undecodable_images(case: Path) -> None:
    """They are refused by name, or skipped, listed and counted."""
    spoil(case, "train_003", "valid_004", "test_005")
    refused(fix(case), FeatureError, "cannot be decoded", "'train_003'")
    document = done(case, "--undecodable", "skip")
    lost = [{"id": f"{split}_00{n}", "split": split} for split, n in
            (("train", 3), ("valid", 4), ("test", 5))]  # fmt: skip
    assert document["left_out"] == [{**row, "reason": "cannot be decoded"} for row in lost]
    assert (case / "out/left_out.csv").read_text().splitlines()[1:] == [
        f"{row['id']},{row['split']},cannot be decoded" for row in lost
    ]
    assert document["evaluation"]["n_rows"] == SPLITS["test"] - 1
    printed = fix(case, "--undecodable", "skip").stdout
    assert f"3 labelled images were left out; they are in {case}/out/left_out.csv" in printed
    assert "3: cannot be decoded" in (case / "out/report.html").read_text()


def test_labels_without_images(case: Path) -> None:
    """They are refused by name with a remedy, or skipped, listed and counted."""
    for name in ("train_000", "test_079"):
        (case / "images" / f"{name}.png").unlink()
    refused(
        fix(case),
        IdError,
        "2 of 300 labelled images are not there",
        "'train_000' (did you mean 'train_",
        "--missing skip",
    )
    document = done(case, "--missing", "skip")
    assert [row["reason"] for row in document["left_out"]] == ["no image", "no image"]
    assert document["evaluation"]["n_rows"] == SPLITS["test"] - 1
    shutil.rmtree(case / "images")
    (case / "images").mkdir()
    refused(fix(case, "--missing", "skip"), ConfigError, "there are no images in")


def test_images_without_labels(case: Path) -> None:
    """They are counted and not used."""
    for name in ("extra_1", "extra_2"):
        shutil.copy(case / "images/train_000.png", case / "images" / f"{name}.png")
    document = done(case, "--dry-run")
    note = "2 images have no labels and are not used."
    assert note in document["notes"]
    assert note in done(case, "--dry-run", "--test-split", "none")["notes"]


def test_no_test_split(case: Path) -> None:
    """Without test labels the headline says which rows it is about, and which would judge."""
    result = fix(case, "--test-split", "none")
    assert result.exit_code == 0
    headline = (
        "Validation only: on validation, cross-fitted in 5 folds, which fitted and chose, mean "
    )
    for text in (
        result.stdout,
        (case / "out/report.html").read_text(),
        (case / "out/MODEL_CARD.md").read_text(),
    ):
        assert headline in text
        assert "corrected for the choosing). Test rows, which choose nothing, would judge." in text
        assert "Helped" not in text
    assert not (case / "out/evaluation.json").exists()
    summary = json.loads((case / "out/run/summary.json").read_text())["summary"]
    assert (summary["verdict"], summary["headline_rows"]) == ("not_judged", "validation")


def test_no_valid_split(case: Path) -> None:
    """Training labels are cross-fitted, and it is said what that is worth."""
    result = fix(case, "--valid-split", "none")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "No validation data: the known training labels were cross-fitted." in result.stdout
    assert "Helped: on 80 test rows the mean" in result.stdout
    assert "On training labels, cross-fitted in 5 folds, which fitted and chose: " in result.stdout
    refused(
        fix(case, "--valid-split", "none", "--validation", "select", "--overwrite"),
        ConfigError,
        "validation data are needed",
    )


def test_no_splits_at_all(case: Path) -> None:
    """Without a split column every row is a training row."""
    lines = [line.split(",") for line in (case / "labels.csv").read_text().splitlines()]
    text = "\n".join(",".join([line[0], *line[2:]]) for line in lines)
    (case / "plain.csv").write_text(text + "\n")
    given = arguments(case, "--json", "--labels", str(case / "plain.csv"))
    at = given.index("--split-column")
    result = CliRunner().invoke(main, given[:at] + given[at + 2 :])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["inputs"]["splits"] == {"train": {"images": 300, "called": ""}}


def test_split_names(case: Path) -> None:
    """Splits have any names; a wrong one is met with those that there are."""
    refused(fix(case, "--test-split", "tset"), ConfigError, "'tset' (did you mean 'test'?)")
    edit(case / "labels.csv", lambda text: text.replace(",train,", ",fit,"))
    refused(fix(case), ConfigError, "no row is in the split 'train'", "fit or test or valid")
    assert done(case, "--train-split", "fit", "--dry-run")["steps"] == list(steps.STEPS)
    refused(
        fix(case, "--train-split", "fit", "--valid-split", "fit"),
        ConfigError,
        "one split cannot serve twice",
    )
    edit(case / "labels.csv", lambda text: text.replace(",valid,", ",val,"))
    named = ("--train-split", "fit", "--dry-run")
    refused(fix(case, *named), ConfigError, "no row is in the split 'valid' (did you mean 'val'?)")
    assert done(case, *named, "--valid-split", "none")["steps"] == list(steps.STEPS)


def add_groups(folder: Path, group: Callable[[str, int], str]) -> None:
    rows = list(csv.reader((folder / "labels.csv").read_text().splitlines()))
    rows[0].append("patient")
    for number, row in enumerate(rows[1:]):
        row.append(group(row[1], number // 2))
    (folder / "labels.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")


def test_groups(case: Path) -> None:
    """Groups are kept whole in the folds; a group in two splits is refused."""
    add_groups(case, lambda split, number: f"{split}{number}")
    document = done(case, "--group-column", "patient")
    assert document["inputs"]["labels"]["groups"] is True
    edit(case / "labels.csv", lambda text: text.replace(",test110", ",train5"))
    refused(
        fix(case, "--group-column", "patient"),
        IdError,
        "groups are in the train and the test labels",
        "'train5'",
    )


def test_an_image_in_two_splits(case: Path) -> None:
    """What was tuned on must not judge."""
    edit(case / "labels.csv", lambda text: text + "train_000,test,0,0,0,1\n")
    result = fix(case)
    assert result.exit_code == IdError.exit_code
    assert "train_000" in result.stderr


def test_a_dataset_in_its_own_layout(case: Path) -> None:
    """The readers of data sets serve as well: labels, splits and image files as they name them."""
    rows = table(case)
    root = case / "celeba"
    shutil.copytree(case / "images", root / "faces")
    lines = [f"{row['image']}.png " + " ".join("1" if row[n] == "1" else "-1" for n in NAMES)
             for row in rows]  # fmt: skip
    text = "\n".join([str(len(rows)), " ".join(NAMES), *lines])
    (root / "list_attr_celeba.txt").write_text(text + "\n")
    numbers = {"train": 0, "valid": 1, "test": 2}
    parts = [f"{row['image']}.png {numbers[row['split']]}" for row in rows]
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    call = ["fix", "--model", "python:cli.fix_case:tiny_net", "--json", "--out", str(case / "out")]
    call += ["--checkpoint", str(case / "net.safetensors"), "--dataset", "celeba"]
    call += ["--root", str(root), "--option", "groups=none", "--option", "images=faces"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["inputs"]["labels"]["dataset"] == "celeba"
    assert document["evaluation"]["n_rows"] == SPLITS["test"]
    (root / "faces/train_001.png").unlink()
    refused(CliRunner().invoke(main, call), IdError, "1 of 300", "faces/train_001.png")


def test_tar_shards(case: Path, finished: Path) -> None:
    """The same images in shards give the same checkpoint."""
    (case / "shards").mkdir()
    for number, split in enumerate(SPLITS):
        with tarfile.open(case / "shards" / f"{number}.tar", "w") as shard:
            for path in sorted((case / "images").glob(f"{split}_*.png")):
                shard.add(path, path.name)
    done(case, "--images", str(case / "shards"))
    assert (case / "out/net.safetensors").read_bytes() == (
        finished / "out/net.safetensors"
    ).read_bytes()
    shutil.rmtree(case / "out")
    (case / "shards/2.tar").unlink()
    refused(fix(case, "--images", str(case / "shards")), IdError, "80 of 300", "'test_000'")


# -------------------------------------------------------------------------------- refusals


def test_wrong_options_cost_no_time(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot work is refused before the first image is read."""
    stop_at(monkeypatch, "extract")
    refused(fix(case, "--method", "ga"), ConfigError, "takes no methods")
    refused(fix(case, "--model", "python:cli.fix_case:nothing"), ConfigError, "no function")
    result = fix(case, "--category", "ant", "--category", "bee")
    assert result.exit_code == 4
    assert "4 rows of the head, 2 columns of labels" in result.stderr
    assert fix(case, "--split", "train").exit_code == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(fix(case), ConfigError, "one process", "torchrun")
    assert not (case / "out").exists()


def test_labels_of_another_model(case: Path) -> None:
    """A head that ranks no better than chance is met with a mismatch; --force goes on."""
    rows = list(csv.reader((case / "labels.csv").read_text().splitlines()))
    random = np.random.default_rng(0)
    for row in rows[1:]:
        row[2:] = [str(int(one)) for one in random.random(4) < 0.4]
    (case / "labels.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    refused(fix(case), MismatchError)
    result = fix(case, "--force", "--overwrite")
    assert result.exit_code == 0
    if " 0 replaced" in result.stdout:
        assert "the new checkpoint is a copy of the old one" in result.stdout


def test_model_without_checkpoint(case: Path) -> None:
    """There must be something to repair."""
    given = arguments(case, model="python:cli.fix_case:TinyNet")
    at = given.index("--checkpoint")
    result = CliRunner().invoke(main, given[:at] + given[at + 2 :])
    refused(result, ConfigError, "loaded without a checkpoint", "--checkpoint")


# ------------------------------------------------------------------------------- other models


def test_timm(tmp_path: Path) -> None:
    """An architecture of timm with options; timm itself loads the result strictly."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_vit", num_classes=len(NAMES), img_size=32).eval()
    take = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    make_case(tmp_path, module, "head", take)
    options = ["--model-arg", "img_size=32", "--mean", "0.5", "--std", "0.5", "--crop-pct", "1"]
    document = done(tmp_path, *options, "--interpolation", "bilinear", model="timm:test_vit")
    mean = document["evaluation"]["means"]["average_precision"]
    assert mean["difference"] > 0.05
    module.load_state_dict(load_file(document["checkpoint"]), strict=True)
    old, new = load_file(tmp_path / "net.safetensors"), load_file(document["checkpoint"])
    assert {name for name in old if not torch.equal(old[name], new[name])} == {
        "head.weight",
        "head.bias",
    }


def test_transformers_folder(tmp_path: Path) -> None:
    """A folder in, a folder of the same files out; transformers loads it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=len(NAMES),
        id2label=dict(enumerate(NAMES)), problem_type="multi_label_classification",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)  # with 0 its first row ranks another column at 0.97, and is stopped
        model = transformers.ViTForImageClassification(config).eval()
    take = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    make_case(tmp_path / "case", Logits(model), "model.classifier", take)
    model.save_pretrained(tmp_path / "vit")
    call = arguments(tmp_path / "case", "--json", model=f"transformers:{tmp_path / 'vit'}")
    del call[3:5]
    call += ["--input-size", "16x16", "--mean", "0.5", "--std", "0.5", "--crop-pct", "1"]
    call += ["--crop-mode", "center", "--interpolation", "bilinear"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["evaluation"]["means"]["average_precision"]["difference"] > 0.05
    assert document["checkpoint"] == f"{tmp_path}/case/out/vit"
    again = transformers.ViTForImageClassification.from_pretrained(document["checkpoint"])
    assert again.config.id2label == dict(enumerate(NAMES))
    made = sorted([*contents(tmp_path / "vit"), "README.md"])  # the card, as there was none
    assert made == sorted(contents(tmp_path / "case/out/vit"))
    steps_again = json.loads(CliRunner().invoke(main, call).stdout)["steps"]
    assert set(steps_again.values()) == {"kept"}


class Logits(torch.nn.Module):
    """A model of transformers that returns a tensor."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=images).logits


def test_onnx_file(tmp_path: Path) -> None:
    """An ONNX file in, one with other numbers in its last layer out; onnxruntime agrees."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    module = make_case(tmp_path / "case")
    save_onnx(onnx, module, tmp_path / "net.onnx")
    call = arguments(tmp_path / "case", "--json", model=f"onnx:{tmp_path / 'net.onnx'}")
    del call[3:5]
    result = CliRunner().invoke(main, [*call, "--crop-pct", "1"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["evaluation"]["means"]["average_precision"]["difference"] > 0.05
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(document["checkpoint"], providers=["CPUExecutionProvider"])
    with torch.no_grad():
        features = module.get_submodule("body")(images)
    tuned = load_head(tmp_path / "case/out/run/head.safetensors")
    found = session.run(None, {"x": images.numpy()})[0]
    assert np.allclose(found, tuned.logits(features).numpy(), atol=1e-4)


def save_onnx(onnx: Any, module: torch.nn.Module, path: Path) -> None:
    """The tiny network as a graph."""
    node, state = onnx.helper.make_node, module.state_dict()
    names = {"w": "body.1.weight", "b": "body.1.bias", "hw": "fc.weight", "hb": "fc.bias"}
    graph = onnx.helper.make_graph(
        [
            node("Flatten", ["x"], ["flat"]),
            node("Gemm", ["flat", "w", "b"], ["z"], transB=1),
            node("Tanh", ["z"], ["f"]),
            node("Gemm", ["f", "hw", "hb"], ["y"], name="head", transB=1),
        ],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", len(NAMES)])],
        [onnx.numpy_helper.from_array(state[key].numpy(), name) for name, key in names.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


# ------------------------------------------------------------------------------- a hard world


def spawn(folder: Path, *, lead: str = "", more: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """The command in a process of its own; `lead` is a line of shell before it."""
    call = shlex.join([sys.executable, "-m", "catwise", *arguments(folder, "--quiet", *more)])
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        ["/bin/sh", "-c", f"{lead}exec {call}"],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )


def test_killed_at_some_moments(finished: Path, case: Path) -> None:
    """SIGKILL at moments that are not chosen; the last run ends with the same bytes.

    benches/kills.py does it at twenty moments.
    """
    for seen in ("fix.json", "features", "run"):
        process = spawn(case)
        deadline = time.monotonic() + 60
        while not (case / "out" / seen).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.communicate()
    last = spawn(case)
    message = last.communicate()[1]
    assert (last.returncode, message) == (0, b"")
    there, right = contents(case / "out"), contents(finished / "out")
    assert sorted(name for name in right if there.get(name) != right[name]) == []
    assert sorted(there) == sorted(right)


def test_full_disk(case: Path) -> None:
    """Where no more can be written, one error says so, and nothing half-written is left."""
    pytest.importorskip("resource")
    process = spawn(case, lead="ulimit -f 8; ")
    message = process.communicate()[1].decode()
    assert process.returncode in {OutputError.exit_code, FeatureStoreError.exit_code}, message
    assert "Traceback" not in message
    assert "cannot" in message
    assert not [path for path in (case / "out").rglob(".catwise-*") if path.is_file()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(case: Path) -> None:
    """A folder that cannot be written to is refused at once."""
    (case / "out").mkdir(mode=0o500)
    refused(fix(case), OutputError, "may write to")


def test_folder_cannot_be_made(case: Path) -> None:
    """A file where a folder of the path should be."""
    (case / "file").write_text("")
    refused(fix(case, "--out", str(case / "file" / "out")), OutputError, "file")


def test_rows_are_named(case: Path) -> None:
    """Labels of some categories, and a model without names: the remedy of the error works."""
    some = ["--category", "dog", "--category", "ant"]
    result = fix(case, *some)
    refused(result, ShapeError, "the head has no category names", "--head-categories FILE")
    (case / "names.txt").write_text("\n".join(NAMES) + "\n")
    document = done(case, *some, "--head-categories", str(case / "names.txt"))
    assert [one["category"] for one in document["records"]] == ["dog", "ant"]
    old, new = load_file(case / "net.safetensors"), load_file(case / "out/net.safetensors")
    changed = (old["fc.weight"] != new["fc.weight"]).any(1).tolist()
    assert changed == [True, False, False, True]
    (case / "names.txt").write_text("\n".join(NAMES[:3]) + "\n")
    result = fix(case, "--overwrite", "--head-categories", str(case / "names.txt"))
    refused(result, ShapeError, "4 rows", "3")


def test_chosen_cells(case: Path) -> None:
    """They fit, judge nothing, and another list of them is another run."""
    cells = [(f"{part}_{i:03d}", NAMES[i % 4]) for part in ("valid", "test") for i in range(20)]
    path = case / "cells.csv"
    path.write_text("id,category\n" + "".join(f"{one},{name}\n" for one, name in cells))
    plain = done(case)
    result = fix(case, "--chosen", str(path))
    refused(result, OutputError, "chosen cells")
    told = done(case, "--overwrite", "--chosen", str(path))
    assert told["steps"]["extract"] == "kept"
    for text in ("20 of 400 known labels were chosen", "test: 20 of 320 known labels were chosen"):
        assert any(note.startswith(text) for note in told["notes"]), told["notes"]
    sides = zip(plain["evaluation"]["categories"], told["evaluation"]["categories"], strict=True)
    assert [a["n_positive"] + a["n_negative"] - b["n_positive"] - b["n_negative"]
            for a, b in sides] == [5] * 4  # fmt: skip
