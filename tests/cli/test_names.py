"""Names of categories that meet: renamed, known of a model, or ignored."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from catwise import Head, save_head
from catwise.cli.main import main
from catwise.errors import CategoryError, ConfigError
from catwise.labels import PartialLabels
from catwise.labels.renaming import matching_names

IDS = [f"i{row:03}" for row in range(120)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that separate two observations, a head that knows how, and labels in a table."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    truth = random.random((len(IDS), 2)) < 0.5
    features = (truth + random.normal(0, 0.4, truth.shape)).astype("f")
    np.savez("f.npz", features=features, ids=IDS)
    weight, bias = torch.eye(2) * 4, torch.full((2,), -2.0)
    save_head(Head(weight, bias, categories=["Effusion", "Mass"]), "head.safetensors")
    torch.save({"fc.weight": weight, "fc.bias": bias}, "m.pt")
    rows = [
        ",".join([one, *(str(int(value)) for value in row)])
        for one, row in zip(IDS, truth, strict=True)
    ]
    Path("l.csv").write_text("\n".join(["id,Pleural Effusion,mass", *rows]) + "\n")


LINE = ["evaluate", "--features", "f.npz", "--labels", "l.csv", "--encoding", "complete",
        "--id-column", "id"]  # fmt: skip


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def scores(*arguments: str) -> dict[str, float]:
    document = json.loads(run(*LINE, *arguments, "--json").stdout)
    return {row["category"]: row["auroc"] for row in document["categories"]}


def test_the_remedy_renames() -> None:
    """The options that the error offers make the names meet; then scores are those by position."""
    result = run(*LINE, "--head", "head.safetensors", code=CategoryError.exit_code)
    told = result.output.partition("try:")[2]
    options = shlex.split(" ".join(re.findall(r"--rename (?:'[^']*'|\S+?=\w+)", told)))
    assert options == ["--rename", "Pleural Effusion=Effusion", "--rename", "mass=Mass"]
    found = scores("--head", "head.safetensors", *options)
    assert list(found) == ["Effusion", "Mass"]
    assert min(found.values()) > 0.8
    Path("names.txt").write_text("Pleural Effusion=Effusion\n\nmass=Mass\n")
    Path("names.json").write_text('{"Pleural Effusion": "Effusion", "mass": "Mass"}')
    for file in ("names.txt", "names.json"):
        assert scores("--head", "head.safetensors", "--rename", file) == found


def test_a_head_is_renamed_too() -> None:
    """The old name may be the head's."""
    renames = ["--rename", "Effusion=Pleural Effusion", "--rename", "Mass=mass"]
    assert list(scores("--head", "head.safetensors", *renames)) == ["Pleural Effusion", "mass"]


@pytest.mark.parametrize(
    ("rename", "code", "told"),
    [
        ("Efusion=X", 5, "no category 'Efusion'"),
        ("mass=Pleural Effusion", 5, "two categories have one name"),
        ("mass=", 12, "OLD=NEW"),
        ("a=b=c", 12, "a file of JSON"),
        ("nowhere.txt", 12, "cannot read new names"),
    ],
)
def test_renames_that_cannot_be(rename: str, code: int, told: str) -> None:
    """Names that are nowhere, or would be there twice, and what is no pair."""
    line = ["audit", "--labels", "l.csv", "--encoding", "complete", "--id-column", "id"]
    assert told in run(*line, "--rename", rename, code=code).output


def test_unknown_categories_are_ignored_on_request() -> None:
    """A column that the head does not have is left out, and told of; without the option refused."""
    renames = ["--rename", "mass=Mass"]
    run(*LINE, "--head", "head.safetensors", *renames, code=CategoryError.exit_code)
    more = [*renames, "--unknown-categories", "ignore"]
    result = run(*LINE, "--head", "head.safetensors", *more)
    assert "1 category is not of the head, and ignored: Pleural Effusion" in result.output
    assert list(scores("--head", "head.safetensors", *more)) == ["Mass"]


def test_names_of_a_model() -> None:
    """With --model a checkpoint's rows have the names that the model knows."""
    spec = "python:cli.test_names:build"
    line = ["--checkpoint", "m.pt", "--model", spec, "--rename", "Pleural Effusion=Effusion"]
    assert list(scores(*line, "--rename", "mass=Mass")) == ["Effusion", "Mass"]
    result = run(*LINE, "--model", spec, code=2)
    assert "needs --checkpoint" in result.output


def build(checkpoint: Path | None = None) -> Any:
    """A model that knows what its rows are called."""
    from torch import nn

    from catwise.models import LoadedModel, Preprocessing

    state = {} if checkpoint is None else torch.load(checkpoint)
    head = (
        Head(state["fc.weight"], state["fc.bias"], categories=["Effusion", "Mass"])
        if state
        else None
    )
    return LoadedModel("m", nn.Linear(2, 2), "fc", Preprocessing((8, 8)), head=head)


def test_names_of_rows_in_json() -> None:
    """A list, a table by numbers, or the id2label of a configuration."""
    for text in ('["Effusion", "Mass"]', '{"0": "Effusion", "1": "Mass"}',
                 '{"id2label": {"0": "Effusion", "1": "Mass"}}'):  # fmt: skip
        Path("names.json").write_text(text)
        line = ["--checkpoint", "m.pt", "--head-categories", "names.json"]
        line += ["--rename", "Pleural Effusion=Effusion", "--rename", "mass=Mass"]
        assert list(scores(*line)) == ["Effusion", "Mass"]
    Path("names.json").write_text('{"1": "Effusion", "2": "Mass"}')
    run(*LINE, "--checkpoint", "m.pt", "--head-categories", "names.json", code=5)


def test_names_that_mean_the_same() -> None:
    """Case and joints never matter; observations of radiographs have several names."""
    names = ["Pleural_Thickening", "pulmonary fibrosis", "Airspace Opacity", "cat", "edema"]
    wanted = ["Pleural thickening", "Fibrosis", "Lung Opacity", "dog", "Edema", "EDEMA"]
    assert matching_names(names, wanted) == {
        "Pleural_Thickening": "Pleural thickening",
        "pulmonary fibrosis": "Fibrosis",
        "Airspace Opacity": "Lung Opacity",
    }
    assert matching_names(["Effusion", "Pleural Effusion"], ["Pleural Effusion"]) == {}
    labels = PartialLabels([[1, 0]], categories=["a", "b"])
    assert labels.rename_categories({"a": "c"}).column("c").tolist() == [1]
    with pytest.raises(CategoryError):
        labels.rename_categories({"x": "y"})


def test_a_name_with_an_equals_sign() -> None:
    """Only a file can say it."""
    Path("names.json").write_text('{"mass": "a=b"}')
    line = ["audit", "--labels", "l.csv", "--encoding", "complete", "--id-column", "id"]
    assert "a=b" in run(*line, "--rename", "names.json").output
    run(*line, "--rename", "mass=a=b", code=ConfigError.exit_code)
