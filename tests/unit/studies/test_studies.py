"""`run_study`: every cell once, resumed and cached by content, failures kept, one table."""

from __future__ import annotations

import csv
import json
import math
import shutil

import numpy as np
import pytest
import yaml

import catwise
from catwise.errors import CatwiseError, ConfigError, OutputError
from catwise.reporting.comparing import moments
from catwise.studies import prepare_study, read_study, run_study
from catwise.studies.running import BASES, in_sequence, run_task
from study_case import DECLARED, make_study


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study that is done: its file, its folder, what came of it, and the keys in order."""
    folder = tmp_path_factory.mktemp("study")
    file = make_study(folder)
    calls = []

    def watched(function, tasks):
        for task in tasks:
            calls.append(task.base)
            yield function(task)

    result = run_study(file, folder / "out", run=watched)
    return file, folder / "out", result, calls


def copied(done, tmp_path, declared=None):
    """A copy of the study that may be changed."""
    file, _, _, _ = done
    folder = tmp_path / "copy"
    shutil.copytree(file.parent, folder)
    if declared is not None:
        (folder / "study.toml").write_text(declared)
    return folder / "study.toml", folder / "out"


def test_every_cell_is_run_once(done):
    """Two schemes and two seeds by two methods; each model is trained once for both."""
    _, out, result, calls = done
    assert len(result.cells) == 8
    assert result.failures == []
    assert result.n_ahead == 0
    assert len(calls) == len(set(calls)) == 4
    assert len(list((out / "bases").iterdir())) == 4
    axes = {(row["scheme"], row["method"], row["seed"]) for row in result.cells}
    assert len(axes) == 8


def test_scores_are_those_of_the_heads(done):
    """What a row says is what `compare_heads` says of the head that is kept, on the test rows."""
    file, out, result, _ = done
    from catwise.studies.bases import make_base
    from catwise.studies.cells import Cell
    from catwise.studies.declared import AXES

    study = read_study(file)
    row = result.cells[3]
    document = json.loads((out / "cells" / f"{row['key']}.json").read_text())
    cell = Cell(**{axis: row[axis] for axis in AXES})
    base = make_base(study, cell, out / BASES / document["base"])
    head = catwise.load_head(out / "cells" / f"{row['key']}.safetensors")
    found = catwise.compare_heads(base.head, head, base.pair("test"), force=True).first
    assert row["score"] == pytest.approx(found.mean_after, abs=1e-12)
    assert row["base"] == pytest.approx(found.mean_before, abs=1e-12)
    assert row["difference_low"] == pytest.approx(found.mean_low, abs=1e-12)
    known = base.splits["train"].counts().known.sum() / (160 * 3)
    assert 0.4 < known < 0.6
    tuned = catwise.tune(base.head, base.pair("train"), base.pair("valid"), force=True,
                         preset="paper", config=catwise.tuning.plan.PaperConfig(max_steps=20),
                         seed=cell.seed)  # fmt: skip
    if cell.method == "paper":
        assert np.array_equal(tuned.head.weight, head.weight)


def test_lines_are_means_over_seeds(done):
    """Mean and standard deviation, as `compare` has them; then the mean over schemes."""
    _, _, result, _ = done
    (line,) = [
        one for one in result.lines if one["scheme"] == "ignore" and one["method"] == "default"
    ]
    own = [r for r in result.cells if r["scheme"] == "ignore" and r["method"] == "default"]
    scores = [row["score"] for row in own]
    assert line["score"] == pytest.approx(np.mean(scores))
    assert line["score_sd"] == pytest.approx(np.std(scores, ddof=1))
    assert line["seeds"] == [0, 1]
    assert line["n_cells"] == 2
    means = [{**row, "category": None} for row in own]
    assert line["difference_low"] == moments(means, "average_precision")["difference_low"]
    assert line["against_difference"] == pytest.approx(
        np.mean([row["against_difference"] for row in own])
    )
    (mean,) = [r for r in result.lines if r["scheme"] == "mean" and r["method"] == "default"]
    every = [row["score"] for row in result.cells if row["method"] == "default"]
    assert mean["score"] == pytest.approx(np.mean(every))
    assert mean["n_cells"] == 4
    bases = [one for one in result.lines if one["method"] == "base"]
    assert len(bases) == 3
    assert all(one["difference"] is None for one in bases)


def test_files(done):
    """Every table and plot is there, with the same numbers."""
    _, out, result, _ = done
    with (out / "cells.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["score"]) for row in rows] == pytest.approx(
        [row["score"] for row in result.cells]
    )
    table = (out / "table.md").read_text()
    assert table.count("\n| ") == len(result.lines) + 1
    assert "± 0.0" in table
    assert r"\toprule" in (out / "table.tex").read_text()
    assert (out / "plots" / "planted_differences.svg").read_text().startswith("<svg")
    assert json.loads((out / "study.json").read_text())["name"] == "Small"


def test_nothing_is_done_twice(done, tmp_path):
    """The same call does nothing and gives the same."""
    file, out = copied(done, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}

    def refuse(function, tasks):
        assert list(tasks) == []
        return []

    again = run_study(file, out, run=refuse)
    assert again.to_dict()["lines"] == done[2].to_dict()["lines"]
    assert before == {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}


def test_what_was_changed_alone_is_run(done, tmp_path):
    """A method's option runs its cells without training; a scheme's those of the scheme."""
    changed = DECLARED.replace("max_steps = 20", "max_steps = 21")
    file, out = copied(done, tmp_path, changed)
    ahead = prepare_study(file, out).ahead
    assert [cell.method for cell in ahead] == ["paper"] * 4
    kept = {path: path.stat().st_mtime_ns for path in (out / "bases").rglob("head.safetensors")}
    result = run_study(file, out)
    assert result.n_ahead == 0
    now = {path: path.stat().st_mtime_ns for path in (out / "bases").rglob("head.safetensors")}
    assert kept == now
    file.write_text(changed.replace("ignore = {}", "ignore = { train = { lr = 0.02 } }"))
    ahead = prepare_study(file, out).ahead
    assert {cell.scheme for cell in ahead} == {"ignore"}
    assert len(ahead) == 4


def test_changed_data_are_seen(done, tmp_path):
    """One label, or one feature, changes every key of the data set."""
    file, out = copied(done, tmp_path)
    table = file.parent / "planted.csv"
    text = table.read_text()
    table.write_text(text.replace("train0,train,1", "train0,train,0", 1)
                     if "train0,train,1" in text
                     else text.replace("train0,train,0", "train0,train,1", 1))  # fmt: skip
    assert len(prepare_study(file, out).ahead) == 8
    table.write_text(text)
    assert prepare_study(file, out).ahead == []
    arrays = dict(np.load(file.parent / "planted.npz"))
    arrays["features"][5, 2] += 1
    np.savez(file.parent / "planted.npz", **arrays)
    assert len(prepare_study(file, out).ahead) == 8


def test_a_killed_study_goes_on(done, tmp_path):
    """Stopped in the second model, the next call does the rest and comes to the same table."""
    file, _ = copied(done, tmp_path)
    out = tmp_path / "killed"

    def dies(function, tasks):
        for i, task in enumerate(tasks):
            if i == 2:
                raise KeyboardInterrupt
            yield function(task)

    with pytest.raises(KeyboardInterrupt):
        run_study(file, out, run=dies)
    prepared = prepare_study(file, out)
    assert len(prepared.ahead) == 4
    assert prepared.budget()["models"] == 2
    assert prepared.budget()["seconds"] > 0
    result = prepared.run()
    assert result.lines == done[2].lines


def test_a_failure_is_kept_and_the_others_go_on(done, tmp_path):
    """A cell that cannot be run says why; the next call tries it again, and only it."""
    declared = DECLARED + '\n[[grid]]\nreserve = [0.2]\nknown = [0.5]\nscheme = ["ignore"]\n'
    file, out = copied(done, tmp_path, declared)

    def spoilt(function, tasks):
        for task in tasks:
            study = task.study
            is_spoilt = task.cells[0][0].reserve and task.cells[0][0].seed == 0
            other = {k: type(v)(model="timm:nothing") for k, v in study.backbones.items()}
            changed = type(study)(**{**vars(study), "backbones": other})
            yield function(task._replace(study=changed) if is_spoilt else task)

    result = run_study(file, out, run=spoilt)
    assert [one["type"] for one in result.failures] == ["ConfigError"] * 2
    assert "reserve 20%" in result.failures[0]["label"]
    assert "does not take what" in result.failures[0]["message"]
    assert len(result.cells) == 8
    again = run_study(file, out)
    assert again.failures == []
    assert len(again.cells) == 10
    assert again.n_ahead == 0


def test_a_piece(done, tmp_path):
    """Some cells by their axes, by their numbers, or as many as there is time for."""
    file, _ = copied(done, tmp_path)
    out = tmp_path / "piece"
    result = run_study(file, out, only=["seed=1", "scheme=ignore", "method=default"])
    assert [(r["scheme"], r["seed"], r["method"]) for r in result.cells] == [
        ("ignore", 1, "default")
    ]
    assert result.n_ahead == 7
    assert result.cells[0]["against_difference"] is None
    part = run_study(file, out, only=["seed=0", "method=default"])
    (mean,) = [one for one in part.lines if one["scheme"] == "mean" and one["method"] == "default"]
    assert (mean["seeds"], mean["n_cells"]) == ([0], 2)  # seed 1 lacks a scheme so far
    assert len(prepare_study(file, out, cells="1-2").wanted) == 2
    stopped = run_study(file, out, minutes=1e-9)
    assert stopped.n_ahead == 5
    whole = run_study(file, out)
    assert whole.lines == done[2].lines


def test_results_do_not_depend_on_the_order(done, tmp_path):
    """Tasks in the reverse order give the same lines."""
    file, _ = copied(done, tmp_path)

    def backwards(function, tasks):
        return in_sequence(function, reversed(list(tasks)))

    assert run_study(file, tmp_path / "back", run=backwards).lines == done[2].lines


def test_tasks_travel(done, tmp_path):
    """A task is plain values: another process can be given it."""
    import pickle

    file, _ = copied(done, tmp_path)
    out = tmp_path / "travelled"
    prepared = prepare_study(file, out, only=["seed=0", "scheme=ignore"])
    (task,) = pickle.loads(pickle.dumps(prepared.tasks()))  # noqa: S301 - our own
    (out / "cells").mkdir(parents=True)
    assert all("means" in one for one in run_task(task))


def test_yaml(done, tmp_path):
    """The same declaration in YAML is the same study."""
    file, out = copied(done, tmp_path)
    import tomllib

    table = tomllib.loads(DECLARED)
    (file.parent / "study.yaml").write_text(yaml.safe_dump(table))
    assert prepare_study(file.parent / "study.yaml", out).ahead == []


def test_ensembles_and_published_figures(done, tmp_path):
    """The mean of the probabilities of two seeds; a figure stands beside its line."""
    declared = DECLARED + (
        '\n[[ensemble]]\nover = ["seed"]\n'
        '[[published]]\nwhere = { scheme = "ignore", method = "paper", seed = "ensemble" }\n'
        'score = 0.9333\nsource = "a paper"\n'
    )
    file, out = copied(done, tmp_path, declared)
    result = run_study(file, out)
    ensembles = [one for one in result.lines if one["seeds"] == ["ensemble"]]
    assert {(one["scheme"], one["method"]) for one in ensembles} == {
        (scheme, method)
        for scheme in ("ignore", "assume_negative")
        for method in ("base", "paper", "default")
    }
    (line,) = [one for one in result.lines if one["published"] is not None]
    assert (line["seeds"], line["published"], line["source"]) == (["ensemble"], 0.9333, "a paper")
    study = read_study(file)
    from catwise.studies.bases import make_base
    from catwise.studies.cells import cells_of

    parts = []
    for cell in cells_of(study):
        if cell.scheme == "ignore" and cell.method == "paper":
            key, base = prepare_study(file, out).keys[cell]
            z, labels = make_base(study, cell, out / BASES / base).pair("test")
            head = catwise.load_head(out / "cells" / f"{key}.safetensors")
            parts.append(head.logits(z.block(0, labels.n_rows)).double().sigmoid().numpy())
    mean = np.mean(parts, axis=0)
    expected = [_ap(mean[:, c], labels.codes[:, c]) for c in range(3)]
    assert line["score"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert "0.9333" in (out / "table.md").read_text()
    assert line["difference"] is not None
    assert math.isfinite(line["difference_low"])


def _ap(scores, codes):
    from sklearn.metrics import average_precision_score

    return average_precision_score(codes, scores)


def test_another_folder_is_left_alone(done, tmp_path):
    """A folder that holds something else is refused."""
    file, _ = copied(done, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("\\bye")
    with pytest.raises(OutputError, match="thesis"):
        run_study(file, tmp_path / "mine")
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[schemes]", "[shemes]", "did you mean 'schemes'"),
        ("ignore = {}", "ignor = {}", "did you mean 'ignore'"),
        ("epochs = 2", "epoch = 2", "did you mean 'epochs'"),
        ("epochs = 2", "epochs = 0", "epochs >= 1"),
        ("epochs = 2", 'epochs = "2"', "another type"),
        ("epochs = 2", "seed = 2", "no option 'seed'"),
        ('model = "mlp"', "", r"\[backbones.neck\] lacks 'model'"),
        ("known = [0.5]", "known = [1.5]", "known in"),
        ("seed = [0, 1]", 'scheme = ["asl"]', "declare no 'asl'"),
        ('against = "paper"', 'against = "papr"', "did you mean 'paper'"),
        ("max_steps = 20", "max_step = 20", "no option 'max_step'"),
        ("max_steps = 20", "max_steps = 0", "max_steps >= 1"),
        ("[methods.default]", "[methods.base]", "before it is tuned"),
        ('features = "planted.npz"', "", "needs images or features"),
        ('over = ["scheme"]', 'over = ["method"]', "method"),
        ("name =", "name ", "cannot read a study"),
        ('id_column = "id"', 'id_colum = "id"', "id_colum"),
        ('features = "planted.npz"', 'features = "other.npz"', "other.npz"),
        ('features = "planted.npz"', 'features = "planted.npz"\ntest = "tset"', "no split 'tset'"),
        ("ignore = {}", "self_training = {}", "moving average"),
        ("ignore = {}", "ignore = { options = { gamma = 2 } }", "gamma"),
    ],
)
def test_wrong_declarations(done, tmp_path, old, new, said):
    """One error that names the place in the file and the way out; nothing is written."""
    assert old in DECLARED
    file, _ = copied(done, tmp_path, DECLARED.replace(old, new, 1))
    with pytest.raises(CatwiseError, match=said):
        run_study(file, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("only", "cells", "said"),
    [
        (["sed=0"], None, "did you mean 'seed'"),
        (["seed"], None, "AXIS=VALUE"),
        (["seed=7"], None, "seed"),
        ([], "9-12", "from 1 to 8"),
        ([], "a", "from 1 to 8"),
    ],
)
def test_wrong_pieces(done, tmp_path, only, cells, said):
    """An axis, value or number that fits no cell is refused."""
    with pytest.raises(ConfigError, match=said):
        prepare_study(done[0], tmp_path / "none", only=only, cells=cells)
