"""What the guides of docs/ need to run: small files, and their commands for real."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from catwise.cli import main
from catwise.data import read_table
from catwise.heads import Head
from catwise.models import Preprocessing
from catwise.models.extraction import extract
from catwise.models.registry import load_model, write_model
from catwise.testing import make_task
from unit.models.test_registry import need

DOCS = Path(__file__).parents[1] / "docs"


def run_commands(page: str, *, after: str = "", before: str = "") -> None:
    """Run the `$ catwise …` lines of a page, between two of its lines if they are named."""
    text = (DOCS / page).read_text("utf-8")
    start = text.index(after)
    text = text[start : text.index(before, start) if before else len(text)].replace("\\\n", " ")
    lines = re.findall(r"^\$ (catwise .*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        done = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
        assert done.exit_code == 0, f"$ {line}\n{done.output}"


COLOURS = ("red", "green", "blue")
SIZE = 32


def image_case(folder: Path) -> None:
    """Write photos/*.png and labels.csv: an image is "red" if it is bright in that."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    lines = [",".join(("id", "split", *COLOURS))]
    for split, n in (("train", 60), ("valid", 60), ("test", 60)):
        for i in range(n):
            present = random.random(3) < 0.4
            level = np.where(present, 150, 100) + random.normal(0, 15, 3)
            noise = random.normal(0, 40, (SIZE, SIZE, 3))
            pixels = np.clip(level + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / f"{split}_{i:02d}.png")
            known = random.random(3) < (1.0 if split == "test" else 0.7)
            cells = [str(int(p)) if k else "" for p, k in zip(present, known, strict=True)]
            lines.append(",".join((f"{split}_{i:02d}.png", split, *cells)))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _with_rough_head(spec: str, source: Path, destination: Path, *, is_folder: bool) -> None:
    """Copy a model with a head that is fitted as if unknown were negative: it can gain."""
    model = load_model(spec, checkpoint=None if is_folder else source, categories=COLOURS)
    if spec.startswith("onnx:"):  # the file says no input; what the guide's options say
        halves = (0.5,) * 3
        model = replace(model, preprocessing=Preprocessing((SIZE, SIZE), halves, halves))
    found = extract(model, source.parent / "photos", dtype="float32")
    table = read_table(
        source.parent / "labels.csv", encoding="nan", id_column="id", split_column="split"
    )
    labels = table.split("train").labels
    at = {name: i for i, name in enumerate(found.ids)}
    rows = torch.as_tensor(np.asarray(found.features))[[at[name] for name in labels.ids]].double()
    centred = rows - rows.mean(0)
    target = torch.from_numpy((labels.codes == 1).astype(float))
    gram = centred.T @ centred + 0.1 * torch.eye(rows.shape[1]) * centred.square().sum(0).mean()
    weight = 4 * torch.linalg.solve(gram, centred.T @ (target - target.mean(0))).T
    bias = -1.0 - weight @ rows.mean(0)
    head = Head(weight.float(), bias.float(), categories=list(COLOURS))
    write_model(model, head, destination)


def timm_case(folder: Path) -> None:
    """Write model.safetensors, a small transformer of timm with drawn weights."""
    timm = need("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_vit", num_classes=3)
        nn.init.normal_(module.head.weight, std=0.1)
    save_file(module.state_dict(), folder / "raw.safetensors")
    _with_rough_head(
        "timm:test_vit", folder / "raw.safetensors", folder / "model.safetensors", is_folder=False
    )


def transformers_case(folder: Path) -> None:
    """Write vit-folder, a small transformer of transformers with drawn weights."""
    transformers = need("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=SIZE, patch_size=8, id2label=dict(enumerate(COLOURS)),
        label2id={name: i for i, name in enumerate(COLOURS)},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.ViTForImageClassification(config)
        nn.init.normal_(module.classifier.weight, std=0.3)
    raw = folder / "raw-folder"
    module.save_pretrained(raw)
    size = {"height": SIZE, "width": SIZE}
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    kind(size=size).save_pretrained(raw)
    _with_rough_head(f"transformers:{raw}", raw, folder / "vit-folder", is_folder=True)


def onnx_case(folder: Path) -> None:
    """Write model.onnx, the means of patches behind a linear layer."""
    onnx = need("onnx")
    need("onnxruntime")
    random = np.random.default_rng(0)
    tensors = {
        "kernel": random.normal(0, 0.1, (12, 3, 8, 8)),
        "weight": random.normal(0, 0.3, (3, 12)),
        "bias": np.zeros(3),
    }
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Conv", ["images", "kernel"], ["patches"], strides=[8, 8]),
            node("Relu", ["patches"], ["positive"]),
            node("GlobalAveragePool", ["positive"], ["means"]),
            node("Flatten", ["means"], ["features"]),
            node("Gemm", ["features", "weight", "bias"], ["logits"], transB=1),
        ],
        "colours",
        [onnx.helper.make_tensor_value_info("images", 1, ["n", 3, SIZE, SIZE])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["n", 3])],
        [
            onnx.numpy_helper.from_array(values.astype(np.float32), name)
            for name, values in tensors.items()
        ],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    raw = folder / "raw.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), raw)
    _with_rough_head(f"onnx:{raw}", raw, folder / "model.onnx", is_folder=True)


FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")


def chexpert_case(folder: Path) -> None:
    """Write a folder in CheXpert's layout, features of its images, and a head to tune."""
    task = make_task(200, 120, 10, 8, len(FINDINGS), known=0.6, seed=0)
    root = folder / "CheXpert-v1.0-small"
    root.mkdir()
    random = np.random.default_rng(1)
    for split, part in (("train", task.train), ("valid", task.valid)):
        ids, lines = [], ["Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(FINDINGS)]
        for i, codes in enumerate(part.labels.codes.tolist()):
            patient = i + (1 if split == "train" else 64541)
            ids.append(f"{split}/patient{patient:05d}/study1/view1_frontal.jpg")
            unsure = random.random(len(FINDINGS)) < (0.1 if split == "train" else 0)
            cells = [
                "-1.0" if doubt else {1: "1.0", 0: "0.0"}.get(code, "")
                for code, doubt in zip(codes, unsure, strict=True)
            ]
            lines.append(f"{root.name}/{ids[-1]},Female,50,Frontal,AP,{','.join(cells)}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
        np.savez(folder / f"{split}.npz", features=part.features.values, ids=np.array(ids))
    head = {"classifier.weight": task.head.weight, "classifier.bias": task.head.bias}
    save_file(
        {name: value.contiguous() for name, value in head.items()}, folder / "chexpert.safetensors"
    )
