"""The model's card: metadata that the Hub reads, and what became of a user's README."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import catwise
from catwise.data import read_table
from catwise.models.hub import front_matter, hub_metadata
from cli.fix_case import MODEL, make_case
from guide_case import image_case, transformers_case
from unit.models.test_registry import need


def fixed(
    folder: Path, model: str, images: str, column: str, **how: Any
) -> catwise.fixing.FixResult:
    table = read_table(
        folder / "labels.csv", encoding="nan", id_column=column, split_column="split"
    )
    labels = {name: table.split(name).labels for name in ("train", "valid", "test")}
    return catwise.fix(model, folder / images, labels, folder / "out", **how)


def parsed(text: str) -> Any:
    """The card as huggingface_hub reads it, without the network."""
    return need("huggingface_hub").ModelCard(text)


def test_every_metric_is_a_plain_number(tmp_path: Path) -> None:
    """The Hub's classes read the card, and give the numbers of evaluation.json."""
    make_case(tmp_path)
    done = fixed(tmp_path, MODEL, "images", "image", checkpoint=tmp_path / "net.safetensors")
    text = done.card.read_text("utf-8")
    card = parsed(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("pytorch", "image-classification")
    assert {"multi-label-classification", "catwise"} <= set(card.data.tags)
    means = done.evaluation["means"]
    values = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert list(values) == ["average_precision", "auroc", "log_loss"]
    for key, value in values.items():
        assert type(value) is float
        assert value == pytest.approx(means[key]["after"], abs=1e-6)
    one = card.data.eval_results[0]
    assert (one.task_type, one.dataset_split) == ("image-classification", "test")
    state = json.loads((tmp_path / "out/fix.json").read_text())
    assert one.dataset_revision == state["inputs"]["test labels"]
    again = need("huggingface_hub").ModelCard(str(card))  # written by the Hub's own classes
    assert again.data.to_dict() == card.data.to_dict()


def test_the_card_says_what_a_reader_asks(tmp_path: Path) -> None:
    """Verdict, table of categories, how labels were read; no repr, no path of this machine."""
    make_case(tmp_path)
    done = fixed(tmp_path, MODEL, "images", "image", checkpoint=tmp_path / "net.safetensors")
    text = done.card.read_text("utf-8")
    assert done.evaluation["sentence"] in text
    for row in done.evaluation["categories"]:
        assert re.search(rf"\| {row['category']} \| {row['before']:.4f} \| ", text)
    assert "## How the labels were read" in text
    assert "- while fitting: Uncertain labels are left out; unknown labels are left out." in text
    assert str(tmp_path) not in text
    assert not re.search(r"array\(|float(32|64)\(|<\w+ object|nan\b", text)


def test_a_folder_gets_a_readme(tmp_path: Path) -> None:
    """The written folder has the card as its README, with where the model comes from."""
    image_case(tmp_path)
    transformers_case(tmp_path)
    config = tmp_path / "vit-folder/config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "_name_or_path": "someone/vit-tiny"})
    )
    done = fixed(tmp_path, f"transformers:{tmp_path / 'vit-folder'}", "photos", "id")
    text = (done.checkpoint / "README.md").read_text("utf-8")
    assert text == done.card.read_text("utf-8")
    data = parsed(text).data
    assert (data.library_name, data.base_model) == ("transformers", "someone/vit-tiny")


def test_a_readme_of_the_user_stays(tmp_path: Path) -> None:
    """What the folder's README says is neither replaced nor changed, there or in the copy."""
    image_case(tmp_path)
    transformers_case(tmp_path)
    (tmp_path / "vit-folder/README.md").write_text("# Mine\n")
    done = fixed(tmp_path, f"transformers:{tmp_path / 'vit-folder'}", "photos", "id")
    for folder in (tmp_path / "vit-folder", done.checkpoint):
        assert (folder / "README.md").read_text() == "# Mine\n"
    assert "model-index" in done.card.read_text("utf-8")


@pytest.mark.parametrize(
    "text", ["a: b", "'", '"', "yes", "1.0", "- x", "é 😀", "{a}", "#", "@x", "tab\tend", "a\nb"]
)
def test_any_text_is_a_text(text: str) -> None:
    """YAML reads back every name as it is, but for ends of lines and tabs."""
    yaml = need("yaml")
    fields = {"name": text, "list": [{"a": text, "b": [text, 1]}], "n": 1e-5}
    block = front_matter(fields).split("---\n")[1]
    seen = text.replace("\t", " ").replace("\n", " ")
    assert yaml.safe_load(block) == {
        "name": seen, "list": [{"a": seen, "b": [seen, 1]}], "n": 1e-5
    }  # fmt: skip


def test_numbers_of_numpy_and_what_is_no_number() -> None:
    """Numbers of numpy become plain ones; NaN, infinity and None are left out."""
    given = {
        "auroc": ("mean AUROC", np.float64(0.5)), "brier": ("Brier", float("nan")),
        "ece": ("ECE", float("inf")), "f1": ("F1", None),
    }  # fmt: skip
    fields = hub_metadata(None, name="m", dataset={"name": "d", "type": "d"}, metrics=given)
    found = fields["model-index"][0]["results"][0]["metrics"]
    assert found == [{"type": "auroc", "value": 0.5, "name": "mean AUROC"}]
    assert type(found[0]["value"]) is float
