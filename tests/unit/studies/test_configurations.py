"""The configurations of published experiments run, on miniatures of the official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from catwise.studies import run_study
from catwise.studies.declared import make_study, read_declaration
from cli.train_case import MODEL
from unit.readers import test_chexpert as chexpert
from unit.readers import test_coco as coco
from unit.readers import test_nuswide as nuswide
from unit.readers import test_openimages as openimages
from unit.readers import test_visual_genome as visual_genome
from unit.readers import test_voc as voc

FOLDER = Path(__file__).parents[3] / "examples" / "studies"
SIZES = {"train": 100, "valid": 40, "test": 40}
TRUTH = np.array([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2], [1, 1, -2]])


def planted(split: str, n_categories: int = 4) -> tuple[list[np.ndarray], np.ndarray]:
    """Images in a colour, and the categories that the colour means."""
    random = np.random.default_rng(sorted(SIZES).index(split))
    pixels, codes = [], []
    for _ in range(SIZES[split]):
        tint = random.random(3)
        noise = random.random((12, 12, 3))
        pixels.append((255 * (0.6 * tint + 0.4 * noise)).astype(np.uint8))
        codes.append(TRUTH[:n_categories] @ (tint - 0.5) + random.normal(size=n_categories) / 6)
    return pixels, (np.array(codes) > 0.2).astype(int)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_coco(root: Path) -> None:
    numbers = list(coco.CATEGORIES)
    for k, (split, own) in enumerate({"train": "train", "val": "test"}.items()):
        pixels, codes = planted(own, len(numbers))
        found = {}
        for i, row in enumerate(codes):
            image = 1_000 * k + i + 1
            found[image] = [(numbers[c], 0) for c in np.flatnonzero(row)]
            save(root / f"{split}2014" / f"COCO_{split}2014_{image:012d}.jpg", pixels[i])
        coco.write(root, coco.content(found, split), split)


def write_chexpert(root: Path) -> None:
    place = root / chexpert.SMALL
    names = chexpert.OBSERVATIONS
    at = [names.index(name) for name in chexpert.COMPETITION]
    for split in SIZES:
        pixels, codes = planted(split)
        table: dict[str, list[int]] = {}
        studies: dict[str, list[int]] = {}
        for i, row in enumerate(codes):
            all_codes = [-1 if split == "train" else 0] * len(names)
            for c, code in enumerate(row):
                all_codes[at[c]] = int(code)
            study = f"{split}/patient{k_of(split) + i // 2:05d}/study1"
            if i % 2 and split == "test":  # both images of a study have its label
                all_codes = studies[f"CheXpert-v1.0/{study}"]
            image = f"{study}/view{i % 2 + 1}_frontal.jpg"
            table[image] = all_codes
            studies[f"CheXpert-v1.0/{study}"] = all_codes
            save(place / image, pixels[i])
        if split == "test":
            chexpert.write_test_labels(place / "groundtruth.csv", studies, "Study")
        else:
            chexpert.write_table(place / f"{split}.csv", table)


def k_of(split: str) -> int:
    return 10_000 * (1 + sorted(SIZES).index(split))


def write_openimages(root: Path) -> None:
    mids = openimages.TRAINABLE
    for k, split in enumerate(("train", "validation", "test")):
        pixels, codes = planted("valid" if split == "validation" else split, len(mids))
        ids = [f"{k + 1:02x}{i:014x}" for i in range(len(codes))]
        rows = [
            (ids[i], openimages.HUMAN, mid, str(row[c]))
            for i, row in enumerate(codes)
            for c, mid in enumerate(mids)
            if split != "train" or (i + c) % 3
        ]
        openimages.write(root / split / "annotations-human.csv", openimages.table(rows))
        listed = [(one, split, "http://example.org/o.jpg") for one in ids]
        head = "ImageID,Subset,OriginalURL"
        openimages.write(root / split / "images.csv", openimages.table(listed, head))
        for i, one in enumerate(ids):
            save(root / "images" / split / f"{one}.jpg", pixels[i])
    openimages.write(root / "classes-trainable.txt", "".join(f"{mid}\n" for mid in mids))
    described = "".join(f"{mid},{openimages.NAMES[mid]}\n" for mid in mids)
    openimages.write(root / "class-descriptions.csv", described)


def write_voc(root: Path) -> None:
    splits: dict[str, dict[str, dict[str, int]]] = {}
    images = {}
    for k, (split, own) in enumerate({"train": "train", "val": "valid", "test": "test"}.items()):
        pixels, codes = planted(own)
        splits[split] = {}
        for i, row in enumerate(codes):
            name = f"{k:03d}{i:03d}"
            splits[split][name] = {voc.CATEGORIES[c]: 1 for c in np.flatnonzero(row)}
            images[name] = pixels[i]
    splits["trainval"] = {**splits["train"], **splits["val"]}
    folder = voc.write_voc(root, 2007, splits)
    for name, one in images.items():
        save(folder / "JPEGImages" / f"{name}.jpg", one)


def write_vg(root: Path) -> None:
    found: dict[str, dict[str, list[int]]] = {}
    images = []
    for k, split in enumerate(("train", "test")):
        pixels, codes = planted(split)
        names = [f"{k + 1}{i:05d}.jpg" for i in range(len(codes))]
        found[split] = {
            name: np.flatnonzero(row).tolist() for name, row in zip(names, codes, strict=True)
        }
        images += list(zip(names, pixels, strict=True))
    visual_genome.write_vg(root, **found, n=200, images=False)
    for name, one in images:
        save(root / "VG_100K" / name, one)


def write_nuswide(root: Path) -> None:
    names, codes, splits = [], [], []
    for k, split in enumerate(("train", "test")):
        pixels, own = planted(split, len(nuswide.CONCEPTS))
        for i, row in enumerate(own):
            name = f"zoo/{k}{i:03d}_{k}{i:03d}.jpg"
            names.append(name)
            codes.append(row.tolist())
            splits.append(split)
            save(root / "Flickr" / name, pixels[i])
    nuswide.write_release(root, names, codes, splits)


MINIATURES = {
    "coco_partial": write_coco,
    "chexpert": write_chexpert,
    "openimages_v3": write_openimages,
    "voc2007": write_voc,
    "vg200": write_vg,
    "nuswide": write_nuswide,
    "authors_demo": write_coco,
}


def small(table: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a network, steps and shares that take a moment; the rest as it is."""
    table["train"] |= {"epochs": 1, "batch_size": 16, "lr": 0.02, "workers": 0, "device": "cpu"}
    for i, name in enumerate(table["backbones"]):
        table["backbones"][name] = {
            "model": MODEL,
            "options": {"dropout": 0.1 * i},
        }
    for own in table["methods"].values():
        own |= {"force": True, **({"max_steps": 3} if own.get("preset") == "paper" else {})}
    for grid in table["grid"]:
        grid["known"] = grid["known"][3:5] or grid["known"] if "known" in grid else [1.0]
        grid["seed"] = grid["seed"][:1]
    wanted = {
        one["where"]["scheme"] for one in table.get("published", []) if "scheme" in one["where"]
    }
    kept = wanted or set(list(table["schemes"])[:1])
    table["schemes"] = {name: one for name, one in table["schemes"].items() if name in kept}
    for data in table["data"].values():
        if data.get("valid_share"):
            data["valid_share"] = 0.4
        if data.get("groups"):
            data["groups"] = 3  # of three categories
    return table


@pytest.mark.parametrize("name", MINIATURES)
def test_configuration(name: str, tmp_path: Path) -> None:
    """Every cell runs, and each published figure stands beside a line."""
    MINIATURES[name](tmp_path)
    table = small(read_declaration(FOLDER / f"{name}.toml"))
    study = make_study(table, tmp_path)
    result = run_study(study, tmp_path / "out")
    assert [one["message"] for one in result.failures] == []
    assert result.n_ahead == 0
    methods = {line["method"] for line in result.lines}
    assert methods == {"base", *table["methods"]}
    shown = {line["published"] for line in result.lines} - {None}
    assert shown == {one["score"] for one in table.get("published", [])}
    assert all(0 < line["score"] <= 1 for line in result.lines)
    if name == "openimages_v3":
        assert {len(line["groups"]) for line in result.lines} == {3}
    if name == "chexpert":
        assert {one["n_rows"] for one in _documents(tmp_path)} == {20}
        assert any(line["backbone"] == "ensemble" for line in result.lines)
    if name == "authors_demo":
        found = {row["method"]: row for row in result.cells}
        greedy = found["greedy"]
        assert greedy["against_difference"] is not None
        assert {"cft_bp", "cft_ga", "greedy"} <= set(found)


def _documents(folder: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(path.read_text()) for path in (folder / "out" / "cells").glob("*.json")]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_declarations(path: Path) -> None:
    """Each file is a study, and each has a miniature."""
    assert make_study(read_declaration(path), path.parent).grids
    assert path.stem in MINIATURES
