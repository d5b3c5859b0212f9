"""Every remedy that a test of the command line meets: how it is followed, or why it is not run."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from catwise.cli.main import main
from catwise.heads import read_head
from cli.remedies import Run, add, again, as_told, instead, other_output, without

_PATH = "the path is wrong on purpose; which one was meant is not for a test to say"
_MODEL = "what is to be changed is the model, not the call"
_DATA = "what is to be changed is the data, not the call"
_OURS = "an error of catwise's own, forced by the test"
_NAMES = "remedy-names.txt"


def _value(call: list[str], option: str) -> int:
    """Where the last value of an option stands."""
    return len(call) - call[::-1].index(option)


def _head_names(call: list[str], _: str, __: str) -> list[str]:
    """The call with a file of names: those of the labels, and others up to the head's four rows."""
    own = [call[at + 1] for at, word in enumerate(call) if word == "--category"]
    names = [*own, *(name for name in ("ant", "bee", "cat", "dog") if name not in own)]
    Path(_NAMES).write_text("\n".join(names))
    return [*call, "--head-categories", _NAMES]


def _right_names(call: list[str], _: str, __: str) -> list[str]:
    """The call with the names of a file in the order in which they stand there."""
    at = _value(call, "--head-categories")
    told = json.loads(Path(call[at]).read_text())
    told = told.get("id2label", told) if isinstance(told, dict) else told
    Path(_NAMES).write_text(json.dumps([str(name) for name in told.values()]))
    return [*call[:at], _NAMES, *call[at + 1 :]]


def _folder(call: list[str], _: str, __: str) -> list[str]:
    """The call, with the folder of its output made."""
    Path(call[_value(call, "--out")]).parent.mkdir(parents=True)
    return call


def _whole(call: list[str], _: str, what: str) -> list[str]:
    """The call, with a whole file where the damaged or absent one was looked for."""
    found = re.search(r"'([^']+)'", what)
    assert found is not None, what
    path = Path(found[1])
    path.unlink(missing_ok=True)
    state = {"fc.weight": torch.eye(2, 3), "fc.bias": torch.zeros(2)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix in {".pt", ".pth"}:
        torch.save(state, path)
    elif path.suffix == ".npz":
        np.savez(path, features=np.zeros((2, 3), dtype="f"), ids=np.array(["a", "b"]))
    else:
        path.write_text("id,x\na,1\n")
    return call


def _taken_out(call: list[str], text: str, _: str) -> list[str]:
    """The call with a head that was taken out of the checkpoint first."""
    assert "catwise join --head CHECKPOINT --head-categories NAMES --out FILE" in text
    at = _value(call, "--head")
    head = read_head(call[at])
    Path(_NAMES).write_text("\n".join(f"c{i}" for i in range(head.n_categories)))
    made = ["--head-categories", _NAMES, "--out", "taken.safetensors"]
    assert CliRunner().invoke(main, ["join", "--head", call[at], *made]).exit_code == 0
    return [*call[:at], "taken.safetensors", *call[at + 1 :]]


def _renamed(call: list[str], _: str, __: str) -> list[str]:
    """The call with a head in place of the last one whose rows have other names."""
    at = _value(call, "--head")
    both = read_head(call[at]).categories
    Path(_NAMES).write_text("\n".join(f"new {name}" for name in both))
    made = ["--head-categories", _NAMES, "--out", "other.safetensors"]
    assert CliRunner().invoke(main, ["join", "--head", call[at], *made]).exit_code == 0
    return [*call[:at], "other.safetensors", *call[at + 1 :]]


def _new_name(call: list[str], _: str, __: str) -> list[str]:
    Path("remedy.json").write_text('{"mass": "a=b"}')
    return [*without("--rename")(call, "", ""), "--rename", "remedy.json"]


def _shares(call: list[str], text: str, _: str) -> list[str]:
    return as_told(without("--share")(call, "", ""), text)


def _encoding(call: list[str], text: str, _: str) -> list[str]:
    """The call with the first encoding of the text."""
    found = re.search(r"--encoding \w+", text)
    assert found is not None
    return [*without("--encoding")(call, "", ""), *found[0].split()]


def _column(call: list[str], text: str, what: str) -> list[str]:
    """The call without the column that the text names, and with an encoding that fits the rest."""
    found = re.search(r"correct '([^']*)'", text)
    assert found is not None
    return [*_encoding(call, text, what), "--ignore-column", found[1]]


def _long(call: list[str], _: str, __: str) -> list[str]:
    return [*without("--ignore-column")(call, "", ""), "--layout", "long"]


def _data_set(call: list[str], text: str, _: str) -> list[str]:
    """The call for the data set that the text names."""
    found = re.search(r"--dataset \S+ --root \S+", text)
    assert found is not None
    return [call[0], *found[0].split()]


def _positives(call: list[str], _: str, __: str) -> list[str]:
    """The call with the last column of the table as the lists of positives."""
    with Path(call[_value(call, "--labels")]).open() as file:
        return [*call, "--positive-column", file.readline().strip().split(",")[-1]]


def _negatives(call: list[str], text: str, what: str) -> list[str]:
    return [*call, "--negative-column", _positives(call, text, what)[-1]]


def _splits(call: list[str], _: str, what: str) -> list[str]:
    """The call with the split that was meant, or with none where none was named."""
    wrong = re.search(r"the split '([^']*)'", what)
    meant = re.search(r"did you mean '([^']*)'", what)
    assert wrong is not None
    if wrong[1] == "train" and "train" not in call:
        with Path(call[_value(call, "--labels")]).open(newline="") as file:
            (own,) = {row[call[_value(call, "--split-column")]] for row in csv.DictReader(file)} - {
                "valid",
                "test",
            }
        return [*call, "--train-split", own]
    if wrong[1] not in call:
        return [*call, "--valid-split", "none", "--test-split", "none"]
    return [(meant[1] if meant else "none") if word == wrong[1] else word for word in call]


def _as_a_model(call: list[str], text: str, _: str) -> list[str]:
    return as_told(without("--checkpoint")(call, "", ""), text.partition(",")[0])


def _weights(call: list[str], _: str, __: str) -> list[str]:
    """The call with the checkpoint beside the images."""
    images = Path(call[_value(call, "--images")])
    return [*call, "--checkpoint", str(images.with_name("net.safetensors"))]


def _model_of_fix(call: list[str], _: str, __: str) -> list[str]:
    """The call with the model and the checkpoint that a run of fix made."""
    folder = Path(call[_value(call, "--fix")])
    model = ["--model", "python:cli.fix_case:tiny_net"]
    made = [*model, "--checkpoint", str(folder / "net.safetensors")]
    return [*without("--fix")(call, "", ""), *made]


def _one_kind(call: list[str], _: str, __: str) -> list[str]:
    """The call for images alone: without shards beside them, or for shards without a table."""
    if "--table" in call:
        return without("--table")(call, "", "")
    for shard in Path(call[_value(call, "--images")]).glob("*.tar"):
        shard.unlink()
    return call


def _unpacked(call: list[str], _: str, __: str) -> list[str]:
    """The call for an unpacked shard."""
    at = _value(call, "--images")
    Path("plain.tar").write_bytes(gzip.decompress(Path(call[at]).read_bytes()))
    return [*call[:at], "plain.tar", *call[at + 1 :]]


def _without_test(call: list[str], _: str, __: str) -> list[str]:
    for option in ("--test-features", "--test-labels", "--test-split"):
        call = without(option)(call, "", "")
    return call


def _tuned(call: list[str], _: str, __: str) -> list[str]:
    return ["tune", *call[1:]]


_ID_OPTIONS = ("--id-column", "--id-prefix", "--id-suffix", "--strip-prefix", "--strip-suffix")
_UNFIT = (
    "leave out or correct '…', which no encoding fits: --ignore-column … or --group-column NAME "
    "where it holds patients; in the other columns the values fit --encoding …"
)


def _afresh(call: list[str], _: str, __: str) -> list[str]:
    """The call of an update as one that starts over."""
    if call[0] == "fix":
        return [*without("--update", value=False)(call, "", ""), "--overwrite"]
    return ["--out" if word == "--update" else word for word in call] + ["--overwrite"]


def _overwritten(call: list[str], text: str, what: str) -> list[str]:
    """The call that starts over, which an update does not."""
    return _afresh(call, text, what) if "--update" in call else [*call, "--overwrite"]


def _trained_model(call: list[str], text: str, what: str) -> list[str]:
    """The call with the first of its models, a module of Python."""
    first = call[call.index("--model") + 1]
    assert first.startswith("python:")
    return instead("--model", first)(call, text, what)


def _emptied(call: list[str], _: str, __: str) -> list[str]:
    """The call with a file of cells whose labels are all empty."""
    path = Path(call[_value(call, "--chosen")])
    with path.open() as file:
        rows = [{**row, "label": ""} for row in csv.DictReader(file)]
    with path.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return call


REMEDIES: dict[str, Run | str] = {
    # ------------------------------------------------------------------- what is written
    "choose another name": Run((other_output,)),
    "another folder": Run((instead("--out", "new-out"),)),
    "another folder for --out": Run((other_output,)),
    "choose another folder": Run((other_output,)),
    "choose a new folder": Run((other_output,)),
    "another name, or --force to replace it": Run((other_output, add("--force"))),
    "choose another name, or replace it with --force": Run((other_output, add("--force"))),
    "choose another name, or replace it with --overwrite": Run((other_output, add("--overwrite"))),
    "choose another folder, or replace it with --overwrite": Run(
        (other_output, add("--overwrite"))
    ),
    "choose another folder, or replace an earlier run with --overwrite": Run(
        (other_output, add("--overwrite"))
    ),
    "choose another folder, or start over with --overwrite": Run((other_output, _overwritten)),
    "choose another name, repeat the options, or start over with --overwrite": Run(
        (other_output, add("--overwrite"))
    ),
    "choose a folder that you may write to, or change its permissions": Run(
        (instead("--out", "new-out"),)
    ),
    "make the folder first, or correct the path": Run((_folder, instead("--out", "new.out"))),
    "a part of the path is a file: correct the path": Run((instead("--out", "new-out"),)),
    "a folder has this name: choose another one": Run((instead("--out", "new.pt"),)),
    "free some space, or write to another disk": Run((again,)),
    "the disk or a limit does not allow files of this size": Run((again,)),
    "wait until it has ended, or choose another name": Run((again, other_output)),
    "run the command again, and leave the folder alone until it ends": Run((again,)),
    "run the command again, and leave its output alone until it ends": Run((again,)),
    "--out-encoding minus_one_uncertain or codes": Run(
        (add("--out-encoding minus_one_uncertain"), add("--out-encoding codes"))
    ),
    # ------------------------------------------------------------------- labels
    "--no-header if there is none: columns are then '…', '…', …; --header if these are names": Run(
        (add("--no-header"), add("--header"))
    ),
    "say which they are: --positive-column NAME, --negative-column NAME; or --no-header if there "
    "is no header line: columns are then '…', '…', …": Run(
        (_positives, _negatives, add("--no-header"))
    ),
    _UNFIT: Run((_column,), also=("--group-column",)),
    f"{_UNFIT}; or: this looks like a table of the data set chexpert: --dataset chexpert --root "
    "chexpert reads it as it is meant": Run((_column, _data_set), also=("--group-column",)),
    "the values fit --encoding …": Run((_encoding,)),
    "no encoding fits all of -0, 0, 0, '…', '…', '…', …: say what they mean, --code VALUE=MEANING, "
    "or correct them": "what the values of a table mean is for people to say",
    "--layout long if each row is one label": Run((_long,)),
    "say what it holds, or --ignore-column … ": Run((as_told,)),
    "--option unannotated=negative if there are no instances in the images": Run((as_told,)),
    "--option categories= … for those that are there": Run((as_told,)),
    "--option-of chex=categories='…' for those that are there": Run((as_told,)),
    "--option-of zoo=year=0, whose files are there": Run((as_told,)),
    "--share train=0 --share valid=0 --share test=0": Run((_shares,)),
    "--corrected to use the mask on corrected labels": Run((as_told,)),
    "write or download the file again": Run((_whole,)),
    "write the table again": Run((_whole,)),
    "correct the path": Run((_whole,)),
    "correct root, or download the file into it": _PATH,
    "where a name holds '…', a file of JSON says it: {'…': '…'}": Run((_new_name,)),
    "split again, by group": _DATA,
    "take them out of the … data, or split again by group": _DATA,
    "--train-split, --valid-split and --test-split name the splits; '…' of the last two is for "
    "none": Run((_splits,), also=("--train-split", "--valid-split", "--test-split")),
    # ------------------------------------------------------------------- rows and categories
    "these mean the same: --rename … or leave out the categories that the head does not know "
    "(--unknown-categories ignore)": Run((as_told,)),
    "rename the columns, --rename … or leave out the categories that the head does not know "
    "(--unknown-categories ignore)": Run((add("--unknown-categories ignore"),), also=("--rename",)),
    "name the head's rows in their order: --head-categories FILE": Run((_head_names,)),
    "the names agree but for folder and suffix: --id-suffix '…'": Run((as_told,)),
    "name the categories of head and labels so that they match by name; --force continues "
    "anyway": Run((add("--force"),)),
    "name the column that holds the ids of the features (--id-column), or extract the rest": _DATA,
    "remove the repeated rows, or make the ids longer (with the folder's name)": _DATA,
    "--by image, ids that are paths, or in Python by={id: study, …}": Run((add("--by image"),)),
    "tune fits rows that are there": Run((_tuned,)),
    "leave test out: out-of-fold logits of the tuning's rows are used anyway": Run(
        (_without_test,)
    ),
    # ------------------------------------------------------------------- images and features
    "--id-column names the column of the ids; --id-prefix, --id-suffix, --strip-prefix and "
    "--strip-suffix change them; --missing skip leaves these images out": Run(
        (add("--missing skip"),), also=_ID_OPTIONS
    ),
    "--images names the folder that the paths start from; --missing skip leaves these images "
    "out": Run((add("--missing skip"),), also=("--images",)),
    "repair them, or leave them out with --undecodable skip": Run((add("--undecodable skip"),)),
    "repair them, state the value of white, such as --white 0, or leave them out with "
    "--undecodable skip": Run((add("--white 4095"), add("--undecodable skip"))),
    "repair it, or leave such images out with --undecodable skip": Run(
        (add("--undecodable skip"),)
    ),
    "give a folder that holds either shards or images; shards take no --table": Run(
        (_one_kind,), also=("--table",)
    ),
    "unpack it to a plain .tar": Run((_unpacked,)),
    "name one with --parts …; several machines must share it": Run((add("--parts parts"),)),
    "check the path; copy or extract the file again if it was cut short": Run((_whole,)),
    "extract these images again (half precision overflows at 0), or leave them out": _DATA,
    "use the features that feed this head: the output of the layer before it": _DATA,
    "use the input of the classification layer as features, in evaluation mode": _DATA,
    "extract them with the classifier's own model; --force takes them": Run((add("--force"),)),
    # ------------------------------------------------------------------- heads and models
    "check the path; copy the file again if it was cut short": Run((_whole,)),
    "check the path; copy the file again if it was cut short; re-save the state_dict with "
    "torch.save or safetensors if it is of another kind": Run((_whole,)),
    "name it with --head-key … (and give its row names if it has further categories); to give the "
    "copy the head's rows and no others, --resize": Run((add("--resize"),), also=("--head-key",)),
    "name the one that is meant, such as --against-key a.weight": Run((as_told,)),
    "take the head out of a checkpoint: catwise join --head CHECKPOINT --head-categories NAMES "
    "--out FILE": Run((_taken_out,), also=("--head-categories",)),
    "leave them out of all but one with catwise join --head ONE --drop NAME --out FILE, or rename "
    "them with catwise join --head ONE --head-categories NAMES --out FILE": Run(
        (_renamed,), also=("--drop", "--head-categories")
    ),
    "load it as a model: --model onnx:m.onnx, without --checkpoint": Run(
        (_as_a_model,), also=("--checkpoint",)
    ),
    "export the model again so that it ends in such a layer; to take the features of another one, "
    "name it: --model-arg node=y": Run((as_told,)),
    "--model-arg n_categories=…": Run((add("--model-arg n_categories=2"),)),
    "--model-arg heads=both tunes them as one, --model-arg heads=first the first one alone": Run(
        (add("--model-arg heads=both"), add("--model-arg heads=first"))
    ),
    "let the function take the number, def build(…, n_categories): what is trained can then be "
    "loaded again": _MODEL,
    "--model python:cli.fix_case:tiny_net": Run((as_told,)),
    "give the file with its weights: --checkpoint": Run((_weights,)),
    "an earlier catwise made it: name the model and the new checkpoint (--model, "
    "--checkpoint)": Run((_model_of_fix,)),
    "start it without torchrun; catwise extract shares out its work": Run((again,)),
    "name the right layer (--layer), or take out what lies behind it": _MODEL,
    "do not use this file, and report this": _OURS,
    "something but the head differs: do not use this file, and report this": _OURS,
    "take out of its forward what depends on the values or the number of images": _MODEL,
    "check the model's name, its options (model_args, --model-arg) and the number of categories; a "
    "model that was changed is loaded by a function of yours: python:MODULE:FUNCTION": _MODEL,
    "correct the file, so that row 0 has the first name (apply takes names with --head-categories "
    "FILE, load_model with categories=[…])": Run((_right_names,)),
    "check the path, or let catwise fix end": _PATH,
    "check the path, or make the folder again": _PATH,
    "use those that were made for this head's logits": _DATA,
    "y": "made up by a test of exit codes",
    # ------------------------------------------------------------------- fitting and deciding
    "use --preset default with --validation fit_and_select, or give validation rows": Run(
        (as_told,)
    ),
    "--preset default fits on validation labels too": Run((add("--preset default"),)),
    "use --preset paper, which takes them, or leave them out": Run(
        (add("--preset paper"), without("--method"))
    ),
    "--value 0, for instance": Run((add("--value 0.9"),)),
    "--method logit, or ensemble.module(heads), which has a layer more": Run(
        (add("--method logit"),)
    ),
    "--method rank, or leave the member out": Run((add("--method rank"),)),
    "--ema 0": Run((as_told,)),
    "a smaller --batch-size (batch_size) or --accumulate (accumulate)": Run(
        (add("--batch-size 4"),), also=("--accumulate",)
    ),
    "python:MODULE:FUNCTION takes any module": Run((_trained_model,)),
    "correct one of the two, or empty the cell's label": Run((_emptied,)),
    "the same command makes it again": Run((again,)),
    "repeat its options, or tune all categories again with --overwrite": Run((_afresh,)),
    "give the run's own rows; other rows need a new run of tune": Run((_afresh,)),
    "copy the run again, or tune all categories again, with --overwrite": Run((_afresh,)),
    "tune all categories again, with --overwrite": Run((_afresh,)),
    "choose another --port, or none for a free one": "it would serve until it is ended",
    "the head before is '…'; look at the labels that changed": _DATA,
    "the same command tries them again; `failures` of --json has every message": (
        "the cell fails on purpose, again"
    ),
}
"""Remedies as `template` writes them → how they are followed, or why a test does not."""
