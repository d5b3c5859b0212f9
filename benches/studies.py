"""The data of the generality study: tables of labels and files of features, from ready arrays.

    python benches/studies.py --data FOLDER --out PLACE
    catwise study benches/studies/generality.toml --root PLACE --out STUDY

FOLDER holds `posters_features.npz`, `tmc2007_500.npz`, `bgg_features.npz` and
`tox21_fingerprints.npz` (`Z_*`, `Y_*`, ids, categories; labels of −1 were never measured), and the
folder `posters`. A part of the rows is taken, the first ones of each split by a hash of their
number, and the ten categories with the most positives, so that a cell takes seconds.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import zlib
from pathlib import Path

import numpy as np

ROWS = {"train": 1_500, "valid": 500, "test": 1_500}
MOST = 10
FILES = {
    "posters": "posters_features.npz",
    "text": "tmc2007_500.npz",
    "covers": "bgg_features.npz",
    "tox21": "tox21_fingerprints.npz",
}


def taken(n: int, most: int) -> np.ndarray:
    """Numbers of rows, the same ones whatever else is there."""
    order = sorted(range(n), key=lambda i: zlib.crc32(f"{i}".encode()))
    return np.sort(np.array(order[:most]))


def write(name: str, source: Path, out: Path) -> None:
    """NAME.npz with features and ids, and NAME.csv with splits and labels."""
    arrays = np.load(source)
    names = arrays["categories"].tolist() if "categories" in arrays else None
    kept = np.argsort(-(arrays["Y_train"] == 1).sum(0), kind="stable")[:MOST]
    kept = np.sort(kept)
    rows, features = [], []
    for split, most in ROWS.items():
        z, y = arrays[f"Z_{split}"], arrays[f"Y_{split}"][:, kept]
        at = taken(len(z), most)
        z = np.unpackbits(z, axis=1) if name == "tox21" else z
        features.append(z[at].astype(np.float16))
        for i in at:
            cells = ["" if value < 0 else str(int(value)) for value in y[i]]
            rows.append([f"{name}_{split}_{i}", split, *cells])
    ids = np.array([row[0] for row in rows])
    np.savez(out / f"{name}.npz", features=np.concatenate(features), ids=ids)
    titles = [names[c] if names else f"topic {c}" for c in kept]
    with (out / f"{name}.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "split", *titles], *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        write(name, given.data / file, given.out)
    posters = given.data / "posters"
    if posters.is_dir():
        write_posters(posters, given.out)


def write_posters(folder: Path, out: Path) -> None:
    """A part of the posters' table with all labels, and the checkpoint beside it."""
    with (folder / "labels_full.csv").open() as stream:
        reader = csv.reader(stream)
        titles, rows = next(reader), list(reader)
    at = titles.index("split")
    chosen = []
    for split, most in {"train": 1_000, "valid": 400, "test": 800}.items():
        own = [row for row in rows if row[at] == split]
        chosen += [own[i] for i in taken(len(own), most)]
    with (out / "poster_images.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([titles, *chosen])
    (checkpoint,) = folder.glob("*.safetensors")
    shutil.copyfile(checkpoint, out / "posters.safetensors")
    link = out / "images"
    if not link.exists():
        link.symlink_to((folder / "images").resolve(), target_is_directory=True)


if __name__ == "__main__":
    main()
