"""`train`: every scheme, resumed after a kill, several processes, kinds of models, its folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import catwise
from catwise import _names
from catwise._configs import TrainConfig
from catwise.data import read_table
from catwise.decisions import Outputs
from catwise.errors import (
    ConfigError,
    FeatureError,
    IdError,
    OutputError,
    ShapeError,
)
from catwise.training.loop import Trainer
from catwise.training.processes import Processes
from catwise.training.run import prepare_train, train
from catwise.training.schemes import SCHEMES
from cli.train_case import MODEL, NAMES, SIZES, make_images, small_net

QUICK = {"epochs": 3, "batch_size": 16, "lr": 0.02}
ROOT = Path(__file__).parents[3]
_PATH = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("train") / "case")


def splits(folder, *names):
    table = read_table(
        folder / "labels.csv", encoding="nan", id_column="image", split_column="split",
        group_column="patient",
    )  # fmt: skip
    return {name: table.split(name).labels for name in names or ("train", "valid")}


def run(case, out, *, model=MODEL, labels=None, model_options=None, callbacks=(), **options):
    return train(
        model,
        case / "images",
        labels or splits(case),
        out,
        model_options=model_options,
        config=TrainConfig(**{**QUICK, **options}),
        callbacks=callbacks,
    )


def weights(result):
    return load_file(result.checkpoint)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Stop:
    """Ends training in the middle of an epoch, as a kill does."""

    def __init__(self, step):
        self.step = step

    def step_ended(self, step, *_):
        if step == self.step:
            raise KeyboardInterrupt

    def epoch_ended(self, record, module):
        pass


def test_stateful_schemes_are_named():
    """Those that remember something of each image are those that take updates or scores of them."""
    remembers = [n for n, s in SCHEMES.items() if s.state is not None and n != "csl"]
    assert tuple(sorted(remembers)) == tuple(sorted(_names.STATEFUL_SCHEMES))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_trains_and_resumes(case, tmp_path, scheme):
    """It learns; stopped in the middle of its second epoch, the same weights come out.

    It resumes within the epoch, from the last state that was saved; saving changes nothing.
    """
    options = {"scheme": scheme, "ema": 0.9 if scheme == "self_training" else None}
    if scheme in {"em_apl"}:
        options["scheme_options"] = {"warmup": 1}
    whole = run(case, tmp_path / "whole", **options)
    assert whole.score > 0.45
    assert [record["epoch"] for record in whole.history] == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "cut", callbacks=[Stop(14)], save_every=3, **options)
    steps = []
    watching = SimpleNamespace(
        step_ended=lambda step, *_: steps.append(step), epoch_ended=lambda *_: None
    )
    resumed = run(case, tmp_path / "cut", callbacks=[watching], save_every=3, **options)
    assert steps == list(range(13, 30))
    assert resumed.history == whole.history
    assert same(weights(resumed), weights(whole))
    for name in ("model.safetensors", "history.json", "labels.csv", "train.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [torch.load(tmp_path / n / "state.pt", weights_only=True) for n in ("cut", "whole")]
    memories = [state["memory"] or {} for state in states]
    assert memories[0].keys() == memories[1].keys()
    for name, value in memories[0].items():
        torch.testing.assert_close(value, memories[1][name], equal_nan=True, rtol=0, atol=0)


EVERYTHING = {
    "ema": 0.8, "optimizer": "sgd", "schedule": "cosine", "augment": "flip_shift",
    "mix": "logic_mix", "accumulate": 2, "clip_norm": 1.0, "amp": "bfloat16",
    "channels_last": True, "deterministic": True, "reserve": 0.1, "workers": 2,
    "save_every": 2,
}  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed(case, tmp_path):
    """A process that is killed by SIGKILL in its second epoch resumes to the same weights.

    With every option in use: dropout, batch norm, moving average, changed and mixed images, half
    precision, workers.
    """
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from cli.train_case import MODEL\n"
        "from catwise._configs import TrainConfig\n"
        "from catwise.data import read_table\n"
        "from catwise.training.run import train\n"
        "folder, out, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "table = read_table(folder / 'labels.csv', encoding='nan', id_column='image',\n"
        "                   split_column='split', group_column='patient')\n"
        "class Kill:\n"
        "    def step_ended(self, step, loss, rate):\n"
        "        if step == last:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "    def epoch_ended(self, record, module): pass\n"
        "if __name__ == '__main__':\n"
        "    labels = {n: table.split(n).labels for n in ('train', 'valid')}\n"
        "    train(MODEL, folder / 'images', labels,\n"
        f"          out, model_options={{'model_args': {{'norm': True}}}}, callbacks=[Kill()],\n"
        f"          config=TrainConfig(**{ {**QUICK, **EVERYTHING}!r}))\n"
    )
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), *_PATH])
    ends = []
    for out, last in (("whole", 99), ("cut", 6), ("cut", 99)):
        command = [sys.executable, str(script), str(case), str(tmp_path / out), str(last)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
        ends.append(done.returncode)
        if last == 6:
            state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
            assert (state["epoch"], state["step"]) == (1, 2)
    assert ends == [0, -signal.SIGKILL, 0]
    found = [load_file(tmp_path / out / "model.safetensors") for out in ("whole", "cut")]
    assert same(*found)
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_each_process_keeps_its_own_buffers(case, tmp_path):
    """Within an epoch running statistics of batch norm are each process's own, and saved so."""
    model = {"model_args": {"norm": True}}
    job = prepare_train(MODEL, case / "images", splits(case), tmp_path, model_options=model,
                        config=TrainConfig(**QUICK, ema=0.9))  # fmt: skip
    made = {"data": job.data, "config": job.config, "processes": Processes()}
    trainer = Trainer(job.model.module, job.model.layer, None, **made)
    trainer.state.step = 4
    rows = {"every": lambda part: torch.cat([part + 7, part]), "world": 2}
    trainer.processes = SimpleNamespace(rank=1, **rows)
    document = trainer.document()
    own = {name: part.clone() for name, part in trainer._buffers().items()}
    assert {name.split()[0] for name in own} == {"module", "average"}
    for rank, more in ((0, 7), (1, 0)):
        trainer.processes = SimpleNamespace(rank=rank, **rows)
        trainer.restore(document)
        for name, part in trainer._buffers().items():
            assert torch.equal(part, own[name] + more)
    assert trainer.state.step == 4


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["role", "em_apl"])
def test_two_processes_equal_one_that_accumulates(case, tmp_path, scheme):
    """By torchrun with gloo: the same weights and the same state of the scheme, to 1e-5."""
    one = run(case, tmp_path / "one", scheme=scheme, accumulate=2, ema=0.9)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "catwise", "train", "--model", MODEL]
    command += ["--images", case / "images", "--labels", case / "labels.csv", "--encoding", "nan"]
    command += ["--id-column", "image", "--split-column", "split", "--group-column", "patient"]
    command += ["--epochs", 3, "--batch-size", 16, "--lr", 0.02, "--ema", 0.9, "--scheme", scheme]
    command += ["--test-split", "none", "--out", tmp_path / "two"]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), *_PATH])
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3:") == 1
    two = load_file(tmp_path / "two" / "model.safetensors")
    for name, value in weights(one).items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    states = [torch.load(tmp_path / n / "state.pt", weights_only=True) for n in ("one", "two")]
    for name, value in (states[0]["memory"] or {}).items():
        torch.testing.assert_close(
            states[1]["memory"][name], value, rtol=1e-4, atol=1e-5, equal_nan=True
        )


def test_the_best_epoch_is_kept(case, tmp_path):
    """By the metric on validation; without validation the last one; losses are minimised."""
    result = run(case, tmp_path / "out", epochs=4, lr=0.3, metric="log_loss")
    scores = [record["score"] for record in result.history]
    assert result.epoch == int(np.argmin(scores)) + 1
    assert result.score == min(scores)
    model = small_net(result.checkpoint).module
    job = prepare_train(MODEL, case / "images", splits(case), tmp_path / "new")
    images = torch.stack([row.image for row in (job.data.valid_images[i] for i in range(80))])
    with torch.no_grad():
        again = catwise.metrics.METRICS["log_loss"].per_category(model(images), job.splits["valid"])
    assert float(again.mean()) == pytest.approx(result.score, rel=1e-5)
    last = run(case, tmp_path / "none", labels=splits(case, "train"))
    assert (last.epoch, last.score) == (3, None)


def test_reserved_images(case, tmp_path):
    """A share is kept out, groups whole; the table says which; the weights are those without."""
    result = run(case, tmp_path / "out", reserve=0.25)
    assert result.reserved == pytest.approx(40, abs=2)
    table = read_table(
        result.labels, encoding="codes", id_column="id", split_column="split", group_column="group"
    )
    parts = {name: table.split(name).labels for name in ("train", "reserved", "valid")}
    assert parts["reserved"].n_rows == result.reserved
    assert parts["train"].n_rows + result.reserved == 160
    groups = [set(parts[name].groups.tolist()) for name in ("train", "reserved")]
    assert not groups[0] & groups[1]
    original = splits(case)
    at = {one: row for row, one in enumerate(original["train"].ids.tolist())}
    rows = [at[one] for one in parts["reserved"].ids.tolist()]
    assert np.array_equal(parts["reserved"].codes, original["train"].codes[rows])
    labels = {"train": parts["train"], "valid": original["valid"]}
    alone = run(case, tmp_path / "alone", labels=labels)
    assert same(weights(alone), weights(result))


def test_machine_labels_count_with_their_weight(case, tmp_path):
    """In place of unknown labels; with weight 0 nothing changes; not with mixed images."""
    labels = splits(case)
    part = labels["train"]
    scores = Outputs(np.full(part.shape, 0.9), categories=NAMES, ids=part.ids)
    given = {"config": TrainConfig(**QUICK, scheme="ignore"), "machine": scores}
    without = run(case, tmp_path / "without", scheme="ignore")
    results = [
        train(MODEL, case / "images", labels, tmp_path / str(w), machine_weight=w, **given)
        for w in (0.0, 0.5)
    ]
    assert same(weights(results[0]), weights(without))
    assert not same(weights(results[1]), weights(without))
    mixed = {**given, "config": TrainConfig(**QUICK, mix="logic_mix")}
    with pytest.raises(ConfigError, match="mixed images"):
        train(MODEL, case / "images", labels, tmp_path / "mixed", **mixed)


# ------------------------------------------------------------------------- kinds of models


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_models_of_timm(case, tmp_path, name):
    """A convolutional network and a vision transformer; `fix` takes what comes out.

    From a checkpoint with other rows the backbone is kept and the layer is new.
    """
    pytest.importorskip("timm")
    import timm

    small = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}
    args = small if name.startswith("vit") else {}
    options = {"model_args": args}
    size = catwise.models.Preprocessing(size=(32, 32))
    given = {"model_options": options, "preprocessing": size}
    config = TrainConfig(epochs=1, batch_size=32)
    labels = splits(case, "train", "valid", "test")
    result = train(
        f"timm:{name}", case / "images", labels, tmp_path / "new", config=config, **given
    )
    fixed = catwise.fix(
        f"timm:{name}", case / "images", labels, tmp_path / "fixed", **given,
        checkpoint=result.checkpoint,
        config=catwise.fixing.FixConfig(force=True, batch_rows=32),
    )  # fmt: skip
    assert fixed.checkpoint.is_file()
    torch.manual_seed(0)
    start = timm.create_model(name, num_classes=7, **args)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    job = prepare_train(
        f"timm:{name}", case / "images", labels, tmp_path / "other",
        checkpoint=tmp_path / "start.safetensors", config=config, **given,
    )  # fmt: skip
    own, layer = job.model.module.state_dict(), job.model.layer
    assert own[f"{layer}.weight"].shape[0] == 4
    for key, value in start.state_dict().items():
        assert key.startswith(layer) or torch.equal(own[key], value)
    assert any("is new: 4 rows" in note for note in job.notes)


def test_models_of_transformers(case, tmp_path):
    """A folder in, a folder out, with the categories' names; `fix` takes it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=12, patch_size=4, num_labels=6,
    )  # fmt: skip
    torch.manual_seed(0)
    start = transformers.ViTForImageClassification(config)
    start.save_pretrained(tmp_path / "start")
    processor = {"size": {"height": 12, "width": 12}, "do_resize": True, "do_normalize": True,
                 "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True,
                 "image_processor_type": "ViTImageProcessor"}  # fmt: skip
    (tmp_path / "start" / "preprocessor_config.json").write_text(json.dumps(processor))
    labels = splits(case, "train", "valid", "test")
    model = f"transformers:{tmp_path / 'start'}"
    result = run(case, tmp_path / "out", model=model, labels=labels, lr=0.005)
    assert result.checkpoint == tmp_path / "out" / "model"
    again = transformers.ViTForImageClassification.from_pretrained(result.checkpoint)
    assert list(again.config.id2label.values()) == list(NAMES)
    assert not torch.equal(
        again.vit.embeddings.position_embeddings, start.vit.embeddings.position_embeddings
    )
    fixed = catwise.fix(
        f"transformers:{result.checkpoint}", case / "images", labels, tmp_path / "fixed",
        config=catwise.fixing.FixConfig(force=True),
    )  # fmt: skip
    assert fixed.checkpoint.is_dir()


def test_models_that_cannot_be_trained(case, tmp_path):
    """Another kind, a loaded model with other rows, and a layer that cannot get new rows."""
    with pytest.raises(ConfigError, match=r"(?s)kind 'onnx' cannot be trained.*timm, torchvision"):
        run(case, tmp_path / "out", model="onnx:model.onnx")
    with pytest.raises(ShapeError, match=r"(?s)found: +3 rows.*expected: +4"):
        run(case, tmp_path / "out", model=small_net(n_categories=3))
    assert not (tmp_path / "out").exists()
    loaded = run(case, tmp_path / "loaded", model=small_net())
    assert loaded.checkpoint.is_file()


# ------------------------------------------------------------------------------ the folder


def test_a_folder_holds_one_run(case, tmp_path):
    """Other options are refused by name; overwrite starts over; other files are not touched."""
    first = run(case, tmp_path / "out")
    before = weights(first)
    with pytest.raises(OutputError, match=r"(?s)lr: 0.02, now 0.05.*--overwrite"):
        run(case, tmp_path / "out", lr=0.05)
    with pytest.raises(OutputError, match="options of the scheme"):
        run(case, tmp_path / "out", scheme_options={"gamma_neg": 2.0})
    assert run(case, tmp_path / "out").history == first.history
    config = TrainConfig(**{**QUICK, "lr": 0.05})
    labels = splits(case)
    other = train(MODEL, case / "images", labels, tmp_path / "out", config=config, overwrite=True)
    assert not same(before, weights(other))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        run(case, tmp_path / "else")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(OutputError, match="were removed"):
        run(case, tmp_path / "out", lr=0.05)
    (tmp_path / "out" / "state.pt").write_bytes(b"broken")
    with pytest.raises(OutputError, match="cannot be resumed from"):
        run(case, tmp_path / "out", lr=0.05)


def test_bad_input(case, tmp_path):
    """Missing and broken images, too few for a step, a loss that is not finite."""
    labels = splits(case)
    strange = catwise.PartialLabels([[1, 0, 1, 0]], ids=["no such"], categories=NAMES)
    with pytest.raises(IdError, match="no such"):
        run(case, tmp_path / "a", labels={"train": strange})
    with pytest.raises(ConfigError, match=r"(?s)160 images, 512 in a step"):
        run(case, tmp_path / "b", batch_size=512)
    broken = tmp_path / "images"
    broken.mkdir()
    for path in (case / "images").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "train_007.png").write_bytes(b"not an image")
    with pytest.raises(FeatureError, match="'train_007' cannot be decoded"):
        train(MODEL, broken, labels, tmp_path / "c", config=TrainConfig(**QUICK))
    job = prepare_train(
        MODEL, broken, labels, tmp_path / "c", config=TrainConfig(**QUICK, undecodable="skip")
    )
    assert job.splits["train"].n_rows == SIZES["train"] - 1
    assert "1 images cannot be decoded and are left out: train_007." in job.notes
    with pytest.raises(FeatureError, match=r"(?s)the loss is .*--clip-norm 1"):
        run(case, tmp_path / "d", lr=1e30, scheme="ignore", optimizer="sgd", schedule="constant")


def test_nothing_else_changes(case, tmp_path):
    """Inputs, the random state and the deterministic switch are as they were."""
    files = {path: path.read_bytes() for path in case.rglob("*") if path.is_file()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    run(case, tmp_path / "out", deterministic=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert files == {path: path.read_bytes() for path in case.rglob("*") if path.is_file()}
