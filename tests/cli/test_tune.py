"""`catwise tune` and `catwise select`: what they pass on, write, print and refuse.

The tuning itself is replaced, so that each behaviour of the command line is seen alone; docs/cli.md
runs the real one.
"""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from catwise._configs import EvolutionConfig, PaperConfig
from catwise.cli import main
from catwise.cli.console import Output
from catwise.errors import (
    CategoryError,
    ConfigError,
    IdError,
    LabelError,
    MismatchError,
    OutputError,
)
from catwise.heads import load_head, read_head
from catwise.progress import Progress
from cli.example import NAMES, make_example

TABLE = ["--encoding", "nan", "--id-column", "image", "--group-column", "patient"]
TRAIN = ["--features", "train.npz", "--labels", "train.csv", *TABLE, "--ignore-column", "split"]
VALID = ["--valid-features", "valid.npz", "--valid-labels", "valid.csv"]
MODEL = ["--checkpoint", "model.safetensors", "--head-categories", "names.txt"]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    make_example(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)


def _record(category: str, index: int) -> dict[str, Any]:
    scored = index < 2
    return {
        "category": category,
        "index": index,
        "status": ("replaced", "kept")[index] if scored else "skipped",
        "reason": ("improved", "not_better")[index] if scored else "no_known_positive",
        "explanation": "",
        "candidate": "",
        "metric": "auroc",
        "before": 0.5 if scored else None,
        "after": 0.75 if scored else None,
        "gain": 0.25 if scored else None,
        "gain_low": 0.125 if scored else None,
        "gain_high": 0.375 if scored else None,
        "selected_on": None,
        "scored_on": "cross-fitted validation labels",
        "n_positive_valid": 7,
        "n_negative_valid": 70,
    }


class Fake:
    """Takes the place of the tuning and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: BaseException | None = None

    def tune(self, head: Any, train: Any, valid: Any = None, **settings: Any) -> Any:
        self.calls.append({"head": head, "train": train, "valid": valid, **settings})
        if self.error is not None:
            raise self.error
        return self._result(head, base=head)

    def select(self, candidates: Any, **settings: Any) -> Any:
        self.calls.append({"candidates": candidates, **settings})
        return self._result(next(iter(candidates.values())).head)

    @staticmethod
    def _result(head: Any, **more: Any) -> Any:
        return SimpleNamespace(
            head=head,
            records=[_record(name, i) for i, name in enumerate(head.categories)],
            config={"seed": 0},
            summary={
                "metric": "auroc",
                "n_categories": len(NAMES),
                "n_scored": 2,
                "before": 0.5,
                "after": 0.75,
                "gain": 0.25,
                "gain_low": float("nan"),
                "gain_high": 0.375,
            },
            gap={"advice": "Label more images.", "level": 0.95},
            notes=["a note"],
            history=[],
            folds=None,
            **more,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    value = Fake()
    monkeypatch.setattr("catwise.tuning.tune", value.tune, raising=False)
    monkeypatch.setattr("catwise.tuning.select", value.select, raising=False)
    return value


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


GOLDEN = Path(__file__).with_name("tune.txt")


def test_printed_and_written(fake: Fake, tmp_path: Path) -> None:
    """The table, what it came to, advice and notes; the report's path last; all files there."""
    out = tmp_path / "run"
    result = run("tune", *TRAIN, *VALID, *MODEL, "--metric", "auroc", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.stdout.replace(str(out), "OUT") == GOLDEN.read_text()
    assert result.stderr == ""
    assert load_head(out / "head.safetensors").categories == NAMES
    config = json.loads((out / "config.json").read_text())
    assert config["inputs"]["train labels"]["path"] == "train.csv"
    assert "Label more images." in (out / "report.html").read_text()


def test_json_is_one_document(fake: Fake, tmp_path: Path) -> None:
    """Nothing but JSON on stdout; NaN is null; the files are named."""
    out = tmp_path / "run"
    result = run("tune", *TRAIN, *VALID, *MODEL, "--out", str(out), "--json")
    document = json.loads(result.stdout)
    assert document["summary"]["gain_low"] is None
    assert document["files"]["records.csv"] == str(out / "records.csv")
    assert [record["category"] for record in document["records"]] == list(NAMES)


def test_options_reach_the_tuning(fake: Fake, tmp_path: Path) -> None:
    """Every option that decides is passed on, and nothing else."""
    more = [
        "--metric", "auroc", "--preset", "paper", "--method", "bp_bce", "--method", "bp_asl",
        "--validation", "select", "--seed", "3", "--device", "cpu", "--force",
        "--uncertain", "0.55:0.85", "--blank", "negative", "--lr", "0.001", "--generations", "70",
        "--patience", "7", "--population", "8", "--no-recalibrate", "--selection", "rank",
    ]  # fmt: skip
    result = run("tune", *TRAIN, *VALID, *MODEL, *more, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    call = fake.calls[0]
    given = {key: call[key] for key in ("metric", "preset", "methods", "validation", "seed")}
    assert given == {
        "metric": "auroc",
        "preset": "paper",
        "methods": ["bp_bce", "bp_asl"],
        "validation": "select",
        "seed": 3,
    }
    assert (call["device"], call["force"], call["logits"], call["progress"]) == (
        "cpu", True, None, None,
    )  # fmt: skip
    operators = EvolutionConfig(population_size=8, selection="rank")
    assert call["config"] == PaperConfig(
        lr=1e-3, max_steps=70, patience=7, operators=operators, recalibrate=False
    )
    assert call["policy"].uncertain == (0.55, 0.85)
    assert call["policy"].blank == "negative"
    assert call["train"][1].n_rows == 400
    assert call["valid"][1].n_rows == 240


def test_split_column(fake: Fake, tmp_path: Path) -> None:
    """One table and one file of features with both splits; without validation there is none."""
    both = ["tune", "--features", "all.npz", "--labels", "all.csv", *MODEL]
    run(*both, *TABLE, "--split-column", "split", "--out", str(tmp_path / "a"))
    place = ["--encoding", "nan", "--ignore-column", "image", "--split-column", "split"]
    run(*both, *place, "--group-column", "patient", "--out", str(tmp_path / "b"))
    run("tune", *TRAIN, *MODEL, "--out", str(tmp_path / "c"))
    by_id, by_place, alone = fake.calls
    assert [part[1].n_rows for part in (by_id["train"], by_id["valid"])] == [400, 240]
    assert by_id["train"][1].ids[0] == "train_000"
    assert [part[0].shape for part in (by_place["train"], by_place["valid"])] == [
        (400, 8),
        (240, 8),
    ]
    assert by_place["valid"][0].ids[0] == "valid_000"
    assert alone["valid"] is None


TEST = ["--test-features", "test.npz", "--test-labels", "test.csv"]


def test_test_rows(fake: Fake, tmp_path: Path) -> None:
    """Their own files, beside one table with splits too, or a split of that; none unless named."""
    both = ["tune", "--features", "all.npz", "--labels", "all.csv", *MODEL]
    split = [*TABLE, "--split-column", "split"]
    out = str(tmp_path / "run")
    run("tune", *TRAIN, *VALID, *MODEL, *TEST, "--out", out)
    run(*both, *split, *TEST, "--out", out, "--overwrite")
    run(*both, *split, "--valid-split", "train", "--train-split", "valid", "--test-split", "train",
        "--out", out, "--overwrite")  # fmt: skip
    run(*both, *split, "--out", out, "--overwrite")
    own, beside, part, absent = fake.calls
    for call in (own, beside):
        assert call["test"][1].n_rows == 400
        assert call["test"][1].ids[0] == "test_000"
        assert call["test"][1].categories == NAMES
    assert part["test"][1].ids[0] == "train_000"
    assert absent["test"] is None
    about = json.loads((tmp_path / "run/config.json").read_text())["inputs"]
    assert "test labels" not in about


def test_the_headline_is_the_test_rows(tmp_path: Path) -> None:
    """Printed, in the report and in the files; what validation says is named so."""
    out = tmp_path / "run"
    result = run("tune", *TRAIN, *VALID, *MODEL, *TEST, "--out", str(out))
    assert result.exit_code == 0, result.output
    evaluation = json.loads((out / "evaluation.json").read_text())
    sentence = evaluation["sentence"]
    assert sentence.startswith("Helped: on 400 test rows the mean average precision went from ")
    lines = result.stdout.splitlines()
    assert lines[0] == "average precision on 400 test rows, which chose nothing"
    at = lines.index(sentence)
    assert lines[at + 1].startswith(
        "On validation, cross-fitted in 5 folds, which fitted and chose"
    )
    assert lines[at + 1].endswith("corrected for the choosing).")
    assert sum("validation" in line for line in lines[:at]) == 0
    summary = json.loads((out / "summary.json").read_text())["summary"]
    assert (summary["headline"], summary["headline_rows"]) == (sentence, "test")
    assert (summary["verdict"], summary["chose"]) == ("helped", lines[at + 1])
    assert f'<p class="verdict">{sentence}</p>' in (out / "report.html").read_text()
    records = json.loads((out / "records.json").read_text())
    assert {record["test_outcome"] for record in records} == {"better", "no_difference"}
    best_first = sorted(evaluation["categories"], key=lambda row: -row["difference"])
    assert [line.split()[0] for line in lines[4:10]] == [row["category"] for row in best_first]
    assert max(map(len, lines[:10])) <= 100


def test_what_decided_the_labels_is_recorded(fake: Fake, tmp_path: Path) -> None:
    """Lists of categories: what is in no list, and how they are cut."""
    rows = ["image;positive;negative"]
    rows += [f"train_{i:03d};{NAMES[i % 6]}|{NAMES[(i + 1) % 6]};{NAMES[(i + 2) % 6]}"
             for i in range(400)]  # fmt: skip
    (tmp_path / "lists.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    result = run("tune", "--features", "train.npz", "--labels", str(tmp_path / "lists.csv"),
                 "--layout", "lists", "--id-column", "image", "--others", "negative", "--separator",
                 "|", "--delimiter", ";", *MODEL, "--out", str(out))  # fmt: skip
    assert result.exit_code == 0, result.output
    about = json.loads((out / "config.json").read_text())["inputs"]["train labels"]
    given = ("layout", "id_column", "others", "separator", "delimiter")
    assert [about[name] for name in given] == ["lists", "image", "negative", "|", ";"]
    assert "negative" in (out / "report.html").read_text()


def test_a_dry_run_checks_test_rows(fake: Fake, tmp_path: Path) -> None:
    """Rows of another source, labels without features, and a mismatch are found."""
    dry = ["tune", *TRAIN, *VALID, *MODEL, "--out", str(tmp_path / "run"), "--dry-run"]
    assert run(*dry, *TEST).exit_code == 0
    valid = run(*dry, "--test-features", "valid.npz", "--test-labels", "valid.csv")
    assert valid.exit_code == IdError.exit_code
    assert "240 ids are in both the validation and the test data" in valid.stderr
    assert run(*dry, *TEST, "--test-features", "train.npz").exit_code == IdError.exit_code
    with np.load("test.npz") as test:
        np.savez(tmp_path / "other.npz", features=test["features"][::-1], ids=test["ids"])
    other = run(*dry, *TEST, "--test-features", str(tmp_path / "other.npz"))
    assert other.exit_code == MismatchError.exit_code
    assert "test: columns or features look mismatched" in other.stderr


def test_wrong_use(fake: Fake, tmp_path: Path) -> None:
    """Combinations that mean nothing are refused before anything is read."""
    out = ["--out", str(tmp_path / "run")]
    cases = [
        [*TRAIN, *MODEL, *out, "--valid-features", "valid.npz"],
        [*TRAIN, *VALID, *MODEL, *out, "--split-column", "split"],
        [*TRAIN, *VALID, *MODEL, *out, "--test-features", "test.npz"],
        [*TRAIN, *VALID, *MODEL, *out, "--test-split", "test"],
        [
            *TRAIN[:4],
            *TABLE,
            *MODEL,
            *out,
            "--split-column",
            "split",
            "--test-split",
            "test",
            "--test-labels",
            "test.csv",
        ],
        [*TRAIN, *out],
        [*TRAIN, *MODEL, *out, "--uncertain", "maybe"],
        [*TRAIN, *MODEL, *out, "--category", "ant"],
        [*TRAIN, *MODEL, *out, "--metric", "accuracy"],
        [*TRAIN, *MODEL],
    ]
    for arguments in cases:
        result = run("tune", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
    assert not fake.calls


def test_dry_run_checks_and_writes_nothing(fake: Fake, tmp_path: Path) -> None:
    """A rehearsal reads and checks everything, and neither tunes nor writes."""
    out = tmp_path / "run"
    dry = ["tune", *TRAIN, *VALID, *MODEL, "--out", str(out), "--dry-run"]
    result = run(*dry)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("dry run: everything fits; nothing was written\n")
    document = json.loads(run(*dry, "--json").stdout)
    assert document["dry_run"] is True
    assert document["settings"]["preset"] == "default"
    assert run(*dry, "--valid-labels", "train.csv").exit_code == IdError.exit_code
    assert run(*dry, "--valid-labels", "none.csv").exit_code == LabelError.exit_code
    same = ["--valid-features", "train.npz", "--valid-labels", "train.csv"]
    assert "in both" in run(*dry, *same).stderr
    assert not fake.calls
    assert list(tmp_path.iterdir()) == []


def test_dry_run_finds_a_mismatch(fake: Fake, tmp_path: Path) -> None:
    """Head rows in another order than the columns are noticed; names that are unknown too."""
    dry = ["tune", *TRAIN, *VALID, "--out", str(tmp_path / "run"), "--dry-run"]
    model = ["--checkpoint", "model.safetensors", "--head-categories", str(tmp_path / "names")]
    (tmp_path / "names").write_text("\n".join([*NAMES[1:], NAMES[0]]))
    assert run(*dry, *model).exit_code == MismatchError.exit_code
    assert run(*dry, *model, "--force").exit_code == 0
    (tmp_path / "names").write_text("\n".join([*NAMES[1:], "gnu"]))
    assert run(*dry, *model).exit_code == CategoryError.exit_code


def test_logits_are_compared(fake: Fake, tmp_path: Path) -> None:
    """The model's own logits are put in the labels' order, and must be the head's."""
    features = np.load("all.npz")
    head = read_head("model.safetensors")
    logits = head.logits(features["features"]).numpy()
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "others.npy", logits[:, ::-1])
    np.savez(tmp_path / "ids.npz", logits=logits[::-1], ids=features["ids"][::-1])
    both = ["tune", "--features", "all.npz", "--labels", "all.csv", *MODEL, "--dry-run"]
    both += ["--split-column", "split", "--encoding", "nan", "--out", str(tmp_path / "run")]
    by_id = ["--id-column", "image", "--group-column", "patient"]
    by_place = ["--ignore-column", "image", "--ignore-column", "patient"]
    for rows in (by_id, by_place):
        given = run(*both, *rows, "--logits", str(tmp_path / "logits.npy"))
        assert given.exit_code == 0, given.output
        others = run(*both, *rows, "--logits", str(tmp_path / "others.npy"))
        assert others.exit_code == MismatchError.exit_code
    assert run(*both, *by_id, "--logits", str(tmp_path / "ids.npz")).exit_code == 0


def test_options_are_checked_in_a_dry_run(fake: Fake, tmp_path: Path) -> None:
    """What the tuning would refuse is refused by the rehearsal."""
    dry = ["tune", *TRAIN, *MODEL, "--out", str(tmp_path / "run"), "--dry-run"]
    assert run(*dry, "--preset", "paper").exit_code == ConfigError.exit_code
    wrong = run(*dry, *VALID, "--preset", "paper", "--validation", "fit_and_select")
    assert wrong.exit_code == ConfigError.exit_code
    assert run(*dry, *VALID, "--preset", "paper", "--method", "bp_bce").exit_code == 0


@pytest.mark.parametrize("device", ["meta:x", "gpu", "cuda:999"])
def test_device_must_be_there(fake: Fake, tmp_path: Path, device: str) -> None:
    """A device that torch does not know or have is an option that is not possible."""
    result = run("tune", *TRAIN, *MODEL, "--out", str(tmp_path / "run"), "--device", device)
    assert result.exit_code == ConfigError.exit_code, result.output
    assert f"the device '{device}' cannot be used" in result.stderr


def test_rows_without_names_are_named(fake: Fake, tmp_path: Path) -> None:
    """A checkpoint's rows take the names of as many label columns, and the account says so."""
    out = tmp_path / "run"
    result = run("tune", *TRAIN, "--checkpoint", "model.safetensors", "--out", str(out), "-q")
    assert result.exit_code == 0, result.output
    assert load_head(out / "head.safetensors").categories == NAMES
    about = json.loads((out / "config.json").read_text())["inputs"]["head"]
    assert about["names"] == "of the label columns, in their order"


def test_earlier_runs_are_safe(fake: Fake, tmp_path: Path) -> None:
    """What is there is found before the work begins, and replaced only when that is asked for."""
    out = tmp_path / "run"
    tune = ["tune", *TRAIN, *MODEL, "--out", str(out)]
    assert run(*tune).exit_code == 0
    assert run(*tune).exit_code == OutputError.exit_code
    assert len(fake.calls) == 1
    assert run(*tune, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (MismatchError("no."), 11)]
)
def test_nothing_is_left_after_a_failure(
    fake: Fake, tmp_path: Path, error: BaseException, code: int
) -> None:
    """An interrupt or an error while tuning leaves no folder."""
    fake.error = error
    result = run("tune", *TRAIN, *MODEL, "--out", str(tmp_path / "run"))
    assert result.exit_code == code
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be written is said before the work begins."""
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    result = run("tune", *TRAIN, *MODEL, "--out", str(tmp_path / "run"))
    assert result.exit_code == OutputError.exit_code
    assert "permission" in result.stderr
    assert not fake.calls


def test_full_disk(fake: Fake, tmp_path: Path) -> None:
    """A file that the system cuts off is an error of the output, and nothing is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        result = run("tune", *TRAIN, *MODEL, "--out", str(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == OutputError.exit_code, result.output
    assert list(tmp_path.iterdir()) == []


def test_select(fake: Fake, tmp_path: Path) -> None:
    """Heads by name, from heads' files and checkpoints; the run is written as tune's."""
    out = tmp_path / "run"
    valid = [*VALID, *TABLE, "--ignore-column", "split"]
    pairs = ["--candidate", "base=model.safetensors", "--candidate", "other=model.safetensors"]
    result = run("select", *pairs, *valid, "--rule", "greedy", "--out", str(out), "-q")
    assert result.exit_code == 0, result.output
    assert list(fake.calls[0]["candidates"]) == ["base", "other"]
    assert fake.calls[0]["rule"] == "greedy"
    assert json.loads((out / "config.json").read_text())["kind"] == "select"
    for wrong in (["--candidate", "a"], ["--candidate", "base=x"], []):
        assert run("select", *pairs[:2], *wrong, *valid, "--out", "o").exit_code == 2


def test_select_reads_a_run(tmp_path: Path) -> None:
    """The folder of a run, or the head in it, brings out-of-fold logits; a bare head does not."""
    tuned, bare = tmp_path / "run", tmp_path / "bare.safetensors"
    assert run("tune", *TRAIN, *MODEL, *VALID, "--out", str(tuned), "-q").exit_code == 0
    bare.write_bytes((tuned / "head.safetensors").read_bytes())
    given = [*VALID, *TABLE, "--ignore-column", "split"]
    for place in (tuned, tuned / "head.safetensors"):
        out = tmp_path / f"from {place.name}"
        pairs = ["--candidate", "base=model.safetensors", "--candidate", f"tuned={place}"]
        assert run("select", *pairs, *given, "--out", str(out), "-q").exit_code == 0
        summary = json.loads((out / "summary.json").read_text())["summary"]
        assert summary["judged_by"]["tuned"].startswith("out-of-fold logits of")
        inputs = json.loads((out / "config.json").read_text())["inputs"]
        assert inputs["candidates"]["tuned"]["out_of_fold"] is True
    pairs = ["--candidate", "base=model.safetensors", "--candidate", f"tuned={bare}"]
    result = run("select", *pairs, *given, "--out", str(tmp_path / "last"))
    assert result.exit_code == 0
    assert "to ?: no candidate could be judged" in result.stdout
    assert "fitted or chose the candidate 'tuned'" in result.stderr
    summary = json.loads((tmp_path / "last" / "summary.json").read_text())["summary"]
    assert summary["after"] is None
    assert summary["in_sample_rows"]["tuned"] > 0


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage, count and time left on a terminal; nothing where nobody looks."""
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Output().progress() as draw:
        assert draw is not None
        draw(Progress("fitting", 1, 4, "[bold]not markup"))
        draw(Progress("fitting", 4, 4))
    assert "fitting" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    for output in (Output(json=True), Output(quiet=True)):
        with output.progress() as draw:
            assert draw is None
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with Output().progress() as draw:
        assert draw is None


def test_interrupt_of_a_process(tmp_path: Path) -> None:
    """SIGINT while the work runs ends a real process with 130 and leaves no folder."""
    code = (
        "import os, signal, sys, catwise.tuning as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "t.tune = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from catwise.cli import main\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "tune", *TRAIN, *MODEL, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []
