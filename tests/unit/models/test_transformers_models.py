"""Image classifiers of transformers: folder in, folder out; labels, two heads, processors."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch

from catwise.errors import (
    CategoryError,
    CatwiseError,
    CheckpointError,
    ConfigError,
    HeadError,
    OutputError,
    ShapeError,
)
from catwise.heads import list_heads, read_head
from catwise.models.adapters.transformers import read_processor
from catwise.models.registry import load_model
from catwise.models.writing import write_model
from unit.models.test_registry import NAMES, another, images_for, need, run, scramble

if TYPE_CHECKING:
    from pathlib import Path

transformers = need("transformers")

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
FOUR = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ViT": ("ViTForImageClassification", SMALL, "classifier"),
    "DeiT": ("DeiTForImageClassification", SMALL, "classifier"),
    "Beit": ("BeitForImageClassification", SMALL, "classifier"),
    "Dinov2": ("Dinov2ForImageClassification", SMALL, "classifier"),
    "ConvNext": ("ConvNextForImageClassification", FOUR | {"image_size": 32}, "classifier"),
    "Swin": (
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32},
        "classifier",
    ),
    "ResNet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "classifier.1",
    ),
    "MobileNetV2": (
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.35, "image_size": 32},
        "classifier",
    ),
    "Segformer": ("SegformerForImageClassification", FOUR, "classifier"),
}
TWO_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "DeiT": ("DeiTForImageClassificationWithTeacher", SMALL),
    "Levit": (
        "LevitForImageClassificationWithTeacher",
        {"image_size": 32, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 1, 1],
         "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    ),
    "SwiftFormer": (
        "SwiftFormerForImageClassification",
        {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def make(family: str, kind: str, settings: dict[str, Any], folder: Path, **more: Any) -> Path:
    """Write a tiny model as its users do."""
    config = getattr(transformers, f"{family}Config")(
        **settings, **({"num_labels": len(NAMES)} | more)
    )
    model = getattr(transformers, kind)(config)
    scramble(model).save_pretrained(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "card.md").write_text("# A card\n")
    return folder


def make_vit(folder: Path, **more: Any) -> Path:
    return make("ViT", "ViTForImageClassification", SMALL, folder, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_folder(family: str, kind: str, settings: dict[str, Any], tmp_path: Path) -> Any:
    """The same head leaves every byte of the folder; another one changes what it should."""
    old = make(family, kind, settings, tmp_path / "old")
    before = contents(old)
    args = {"heads": "both"}
    model = load_model(f"transformers:{old}", model_args=args)
    assert model.head.n_categories == len(NAMES)
    write_model(model, model.head, tmp_path / "same")
    assert contents(tmp_path / "same") == before

    head = another(model.head)
    write_model(model, head, tmp_path / "new")
    after = contents(tmp_path / "new")
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]
    assert contents(old) == before
    again = load_model(f"transformers:{tmp_path / 'new'}", model_args=args)
    images = images_for(model)
    features, _ = run(model.module, model.layer, images)
    same_features, out = run(again.module, again.layer, images)
    assert torch.equal(features, same_features)
    assert torch.allclose(head.logits(features.flatten(1)), out, rtol=1e-4, atol=1e-4)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "new").eval()
    told = again.notes[-1] if "written by catwise" in again.notes[-1] else str(again.notes)
    assert head.digest in told
    with torch.no_grad():
        assert torch.allclose(theirs(images).logits, out, rtol=1e-4, atol=1e-4)
    heads = model.writer.inside.parts or [(model.weight_key, model.bias_key)]
    touched = {key for at in heads for key in at}
    was, now = (
        safetensors.torch.load_file(folder / "model.safetensors")
        for folder in (old, tmp_path / "new")
    )
    assert all(torch.equal(was[key], now[key]) for key in was if key.rpartition(".")[0] not in
               {str(name).rpartition(".")[0] for name in touched})  # fmt: skip
    return model


@pytest.mark.parametrize("family", MODELS)
def test_round_trip(family: str, tmp_path: Path) -> None:
    """Families of one head; Dinov2's takes the class token and the mean, twice the width."""
    kind, settings, layer = MODELS[family]
    model = check_folder(family, kind, settings, tmp_path)
    assert model.layer == layer
    assert model.image_argument == "pixel_values"
    if family == "Dinov2":
        assert model.head.n_features == 2 * settings["hidden_size"]


@pytest.mark.parametrize("family", TWO_HEADS)
def test_two_heads_as_one(family: str, tmp_path: Path) -> None:
    """Distilled models: both heads joined are the model's own output."""
    kind, settings = TWO_HEADS[family]
    model = check_folder(family, kind, settings, tmp_path)
    assert (model.layer, len(model.writer.inside.parts)) == ("joined", 2)


def test_two_heads_are_refused(tmp_path: Path) -> None:
    """Without a word on the two heads such a model is not loaded."""
    kind, settings = TWO_HEADS["DeiT"]
    folder = make("DeiT", kind, settings, tmp_path / "old")
    with pytest.raises(ConfigError, match="two heads"):
        load_model(f"transformers:{folder}")


def test_labels_are_the_categories(tmp_path: Path) -> None:
    """id2label names them; equal labels are told apart."""
    labels = ["ant", "crane", "cat", "crane", "dog", "elk", "fox"]
    folder = make_vit(tmp_path / "old", id2label=dict(enumerate(labels)), num_labels=7)
    model = load_model(f"transformers:{folder}")
    assert model.head.categories == ("ant", "crane (1)", "cat", "crane (3)", "dog", "elk", "fox")
    assert any("told apart" in note for note in model.notes)
    given = load_model(f"transformers:{folder}", categories=NAMES)
    assert given.head.categories == tuple(NAMES)


def test_invented_labels_are_no_names(tmp_path: Path) -> None:
    """LABEL_0, LABEL_1 … say nothing; the rows are numbered."""
    model = load_model(f"transformers:{make_vit(tmp_path / 'old')}")
    assert model.head.categories == tuple("0123456")


@pytest.mark.parametrize("kind", ["multi_label_classification", "single_label_classification"])
def test_problem_type_is_said(kind: str, tmp_path: Path) -> None:
    """What the model was trained for is among the notes."""
    model = load_model(f"transformers:{make_vit(tmp_path / 'old', problem_type=kind)}")
    assert any(f"problem_type is {kind}" in note for note in model.notes)


def test_wrong_number_of_categories(tmp_path: Path) -> None:
    """It must be the configuration's."""
    folder = make_vit(tmp_path / "old")
    with pytest.raises(ShapeError, match="7 labels"):
        load_model(f"transformers:{folder}", n_categories=8)


def test_half_precision(tmp_path: Path) -> None:
    """The file's float16 is float32 in memory; what is written is float16 again."""
    folder = make_vit(tmp_path / "old")
    path = folder / "model.safetensors"
    state = {k: v.half() for k, v in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(state, path, {"format": "pt"})
    model = load_model(f"transformers:{folder}")
    assert (model.head.dtype, next(model.module.parameters()).dtype) == (
        torch.float16, torch.float32,
    )  # fmt: skip
    (report,) = write_model(model, another(model.head), tmp_path / "new")
    assert "float16" in report.cast


def test_sharded_weights(tmp_path: Path) -> None:
    """Of several files only the one that holds the head changes."""
    folder = make_vit(tmp_path / "old")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    in_head = {key for key in state if "classifier" in key}
    shards = {
        "model-00001-of-00002.safetensors": {k: state[k] for k in state.keys() - in_head},
        "model-00002-of-00002.safetensors": {k: state[k] for k in in_head},
    }
    for name, part in shards.items():
        safetensors.torch.save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {k: n for n, part in shards.items() for k in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_model(f"transformers:{folder}")
    assert model.writer.weights_file == "model-00002-of-00002.safetensors"
    write_model(model, another(model.head), tmp_path / "new")
    before, after = contents(folder), contents(tmp_path / "new")
    assert before.keys() == after.keys()
    assert [n for n in before if before[n] != after[n]] == ["model-00002-of-00002.safetensors"]


def test_heads_in_two_shards(tmp_path: Path) -> None:
    """Two heads are written in one file; where a folder's shards part them, that is said."""
    kind, settings = TWO_HEADS["DeiT"]
    folder = make("DeiT", kind, settings, tmp_path / "old")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, torch.Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for key, part in state.items():
        shards[f"{'b' if key.startswith('distillation') else 'a'}.safetensors"][key] = part
    for name, tensors in shards.items():
        safetensors.torch.save_file(tensors, folder / name, {"format": "pt"})
    places = {key: name for name, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": places})
    )
    with pytest.raises(HeadError, match="lie in several files"):
        load_model(f"transformers:{folder}", model_args={"heads": "both"})


def test_links_are_followed(tmp_path: Path) -> None:
    """A folder of links, as the hub's cache is, becomes a folder of files."""
    blobs = make_vit(tmp_path / "blobs")
    folder = tmp_path / "old"
    folder.mkdir()
    for path in blobs.glob("*.*"):
        (folder / path.name).symlink_to(path)
    before = contents(blobs)
    model = load_model(f"transformers:{folder}")
    write_model(model, another(model.head), tmp_path / "new")
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())
    assert contents(blobs) == before
    assert read_head(tmp_path / "new" / "model.safetensors", key="classifier") is not None


@pytest.mark.parametrize("out", ["old", "old/new", "."])
def test_the_folder_itself_is_never_written(out: str, tmp_path: Path) -> None:
    """Nor a folder in it, nor the one that holds it."""
    folder = make_vit(tmp_path / "old")
    before = contents(folder)
    model = load_model(f"transformers:{folder}")
    with pytest.raises(OutputError, match="own folder"):
        write_model(model, model.head, tmp_path / out, overwrite=True)
    assert contents(folder) == before


def test_a_folder_that_exists_stays(tmp_path: Path) -> None:
    """It is replaced only if asked for."""
    model = load_model(f"transformers:{make_vit(tmp_path / 'old')}")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        write_model(model, model.head, tmp_path / "new")
    assert (tmp_path / "new" / "mine.txt").read_text() == "mine"
    write_model(model, model.head, tmp_path / "new", overwrite=True)
    assert not (tmp_path / "new" / "mine.txt").exists()


def test_head_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """A failed write makes no folder."""
    model = load_model(f"transformers:{make_vit(tmp_path / 'old')}")
    wrong = model.head.replace(categories=[*NAMES[:-1], "else"])
    with pytest.raises(CatwiseError):
        write_model(model, wrong, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_folders_that_do_not_load(tmp_path: Path) -> None:
    """No config, no weights, a pickle alone, weights of another model."""
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(f"transformers:{tmp_path / 'absent'}")
    folder = make_vit(tmp_path / "old")
    shutil.copytree(folder, tmp_path / "other")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors"):
        load_model(f"transformers:{folder}")
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a pickle, which is not opened"):
        load_model(f"transformers:{folder}")
    del state["vit.layernorm.weight"]
    other = tmp_path / "other" / "model.safetensors"
    safetensors.torch.save_file(state | {"more": torch.ones(2)}, other, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing .*1 unexpected"):
        load_model(f"transformers:{tmp_path / 'other'}")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    """A model that brings its own code is refused."""
    folder = make_vit(tmp_path / "old")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "theirs",
        "auto_map": {
            "AutoConfig": "theirs.Config",
            "AutoModelForImageClassification": "theirs.Model",
        },
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="cannot be built"):
        load_model(f"transformers:{folder}")
    assert not (tmp_path / "ran").exists()


def test_other_copies_are_named(tmp_path: Path) -> None:
    """Copies in other formats keep the old head; a note says so."""
    folder = make_vit(tmp_path / "old")
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    model = load_model(f"transformers:{folder}")
    assert any("pytorch_model.bin" in note and "old head" in note for note in model.notes)


# Preprocessing


PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "DeiT": {},
    "ConvNext": {"size": {"shortest_edge": 224}},
    "EfficientNet": {"rescale_offset": True, "rescale_factor": 1 / 127.5},
    "Levit": {},
    "MobileViT": {"crop_size": {"height": 200, "width": 200}},
    "MobileNetV2": {"do_normalize": False},
    "CLIP": {"crop_size": 192},
}


@pytest.mark.parametrize("family", PROCESSORS)
def test_processor(family: str, tmp_path: Path) -> None:
    """Size, crop and colours are those of the library's own processor."""
    image = pytest.importorskip("PIL.Image")
    processor = getattr(transformers, f"{family}ImageProcessorPil")(**PROCESSORS[family])
    processor.save_pretrained(tmp_path)
    take, notes = read_processor(tmp_path, {})
    colour = (200, 100, 50)
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[:] = colour
    picture[:, :20] = 255  # what only a squashed image still shows
    theirs = processor(image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    assert theirs.shape[1:] == take.size
    if family == "MobileViT":
        theirs = theirs[::-1]
    columns = zip(colour, take.mean, take.std, strict=True)
    ours = [(value / 255 - mean) / std for value, mean, std in columns]
    middle = theirs[:, take.size[0] // 2, take.size[1] // 2]
    np.testing.assert_allclose(middle, ours, atol=1e-4)
    white = [(1 - mean) / std for mean, std in zip(take.mean, take.std, strict=True)]
    whole_is_there = bool(np.allclose(theirs[:, 100, 0], white, atol=1e-2))
    assert whole_is_there == (take.crop_mode == "squash" and take.crop_pct == 1)
    assert (take.source, notes) == ("preprocessor_config.json", [])


def test_channel_order_is_turned_inside(tmp_path: Path) -> None:
    """MobileViT takes BGR: the model turns RGB by itself, and a note says so."""
    settings = {"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
                "image_size": 64}  # fmt: skip
    folder = make("MobileViT", "MobileViTForImageClassification", settings, tmp_path / "old")
    plain = load_model(f"transformers:{folder}")
    transformers.MobileViTImageProcessorPil(size={"shortest_edge": 64}).save_pretrained(folder)
    turned = load_model(f"transformers:{folder}")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.module(pixel_values=images.flip(1)).logits
        assert torch.allclose(turned.module(pixel_values=images).logits, expected, atol=1e-6)
    assert any("BGR" in note for note in turned.notes)


def test_processor_that_is_not_there(tmp_path: Path) -> None:
    """The size is the configuration's; the colours are a guess, and called one."""
    take, notes = read_processor(tmp_path, {"image_size": 96})
    assert (take.size, take.source) == ((96, 96), "assumed")
    assert "assumed" in notes[0]


def test_processor_of_a_timm_model(tmp_path: Path) -> None:
    """Timm writes its own configuration into config.json."""
    config = {"input_size": [3, 32, 48], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9,
              "interpolation": "bicubic"}  # fmt: skip
    take, _ = read_processor(tmp_path, {"pretrained_cfg": config})
    assert (take.size, take.crop_pct, take.interpolation) == ((32, 48), 0.9, "bicubic")


def test_processor_without_a_size_that_is_known(tmp_path: Path) -> None:
    """It is refused with what was found."""
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"longest_edge": 9}}')
    with pytest.raises(ConfigError, match="longest_edge"):
        read_processor(tmp_path, {})


def test_heads_are_listed_as_expected(tmp_path: Path) -> None:
    """The layer that is taken is the one that read_head finds by itself."""
    folder = make_vit(tmp_path / "old")
    model = load_model(f"transformers:{folder}")
    assert [place.name for place in list_heads(folder / "model.safetensors")] == [model.weight_key]


WRONG_LABELS: dict[str, tuple[dict[str, Any], str]] = {
    "from 1": ({"id2label": {"1": "a", "2": "b", "3": "c", "4": "d"}}, "none for row 0"),
    "with a gap": ({"id2label": {"0": "a", "1": "b", "2": "c", "4": "d"}}, "none for row 3"),
    "contradicted": (
        {"label2id": {"a": 1, "b": 0, "c": 2, "d": 3}}, "label2id .*(.|\n)*'a' is 1; 'b' is 0"
    ),
    "from 1 in label2id": ({"label2id": {"a": 1, "b": 2, "c": 3, "d": 4}}, "'d' is 4"),
    "of another number": ({"num_labels": 3}, "4 names(.|\n)*3, one for each row"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_labels_that_do_not_name_the_rows(kind: str, tmp_path: Path) -> None:
    """What config.json says of its rows is taken whole, or refused; names that are given win."""
    changes, reason = WRONG_LABELS[kind]
    folder = make_vit(tmp_path / "old", id2label=dict(enumerate("abcd")), label2id={}, num_labels=4)
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CategoryError, match=reason):
        load_model(f"transformers:{folder}")
    if "num_labels" not in changes:
        model = load_model(f"transformers:{folder}", categories=list("wxyz"))
        assert model.head is not None
        assert model.head.categories == tuple("wxyz")


def test_labels_that_say_the_same_otherwise(tmp_path: Path) -> None:
    """Numbers as texts, and a default label2id beside names, are no contradiction."""
    folder = make_vit(tmp_path / "old", id2label=dict(enumerate("abcd")), label2id={}, num_labels=4)
    for inverse in ({"a": "0", "b": "1", "c": "2", "d": "3"}, {"LABEL_0": 0, "LABEL_1": 1}):
        settings = json.loads((folder / "config.json").read_text()) | {"label2id": inverse}
        (folder / "config.json").write_text(json.dumps(settings))
        head = load_model(f"transformers:{folder}").head
        assert head is not None
        assert head.categories == tuple("abcd")


def test_labels_as_a_list(tmp_path: Path) -> None:
    """Such a folder is not opened by transformers itself; what to write is said."""
    folder = make_vit(tmp_path / "old")
    settings = json.loads((folder / "config.json").read_text()) | {"id2label": NAMES}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r'is not a table(.|\n)*"0": "first name"'):
        load_model(f"transformers:{folder}")
