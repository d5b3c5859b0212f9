"""The data of the generality study: tables of labels and files of features, from ready arrays.

    python benches/studies.py --data FOLDER --out PLACE
    catwise study benches/studies/generality.toml --root PLACE --out STUDY
    python benches/studies.py --tables STUDY --root PLACE --json docs/figures/study.json

The last prints the tables of docs/study.md and keeps the lines that they are made of.

FOLDER holds `posters_features.npz`, `tmc2007_500.npz`, `bgg_features.npz` and
`tox21_fingerprints.npz` (`Z_*`, `Y_*`, ids, categories; labels of −1 were never measured), and the
folder `posters`. A part of the rows is taken, the first ones of each split by a hash of their
number, and the ten categories with the most positives, so that a cell takes seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from catwise.studies import prepare_study

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


METHODS = ("paper", "default", "select", "ga")
KEYS = (
    "data", "known", "reserve", "scheme", "backbone", "method", "seeds", "n_cells", "score",
    "score_sd",
    "difference", "difference_low", "difference_high", "verdict", "better", "worse",
    "against_difference", "against_difference_low", "against_difference_high", "against_verdict",
)  # fmt: skip


def tables(folder: Path, root: Path, kept: Path | None) -> None:
    """Print what docs/study.md shows of a study, and keep its lines."""
    declared = Path(__file__).parent / "studies" / "generality.toml"
    result = prepare_study(declared, folder, root=root).result()
    print(f"{len(result.cells):,} cells, {len(result.failures)} failed, {result.n_ahead:,} ahead")
    print(f"seconds: {sum(row['seconds'] for row in result.cells):,.0f}")
    lines = [line for line in result.lines if line["backbone"] == "neck"]
    averaged = [line for line in lines if line["scheme"] == "mean" and line["data"] != "mean"]
    show("data", averaged, lambda one: f"{one['data']} {percent(one)}{reserve(one)}")
    scheme = [line for line in lines if line["data"] == "mean"]
    show("scheme", scheme, lambda one: one["scheme"])
    images = [line for line in result.lines if line["backbone"] == "mobilenet"]
    show("scheme, images", images, lambda one: one["scheme"])
    if kept is not None:
        short = [{key: rounded(line[key]) for key in KEYS} for line in result.lines]
        kept.write_text(json.dumps(short, separators=(",", ":")))


def percent(line: dict) -> str:
    return "as it is" if line["known"] == 1.0 else f"{line['known']:.0%}"


def reserve(line: dict) -> str:
    kept = f", {line['reserve']:.0%} reserved"
    return kept if line["data"].endswith("without_valid") else ""


def rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value


def show(head: str, lines: list[dict], name: Callable[[dict], str]) -> None:
    """A row for each name: the base, and each method's difference with its interval."""
    rows: dict[str, dict[str, dict]] = {}
    for line in lines:
        rows.setdefault(name(line), {})[line["method"]] = line
    methods = [one for one in METHODS if any(one in row for row in rows.values())]
    print(f"\n| {head} | cells | base | " + " | ".join(f"{m} − base" for m in methods)
          + " | default − paper | select − paper |")  # fmt: skip
    print("|---|---:|---:|" + "---:|" * (len(methods) + 2))
    for title, row in rows.items():
        n = max(line["n_cells"] for method, line in row.items() if method != "base")
        cells = [difference(row.get(one), "", n) for one in methods]
        cells += [difference(row.get(one), "against_", n) for one in ("default", "select")]
        print(f"| {title} | {n} | {row['base']['score']:.4f} | " + " | ".join(cells) + " |")


def difference(line: dict | None, prefix: str, n: int) -> str:
    """A difference with half of its interval; of how many cells, where these are not all."""
    if line is None or line[f"{prefix}difference"] is None:
        return "–"
    low, high = line[f"{prefix}difference_low"], line[f"{prefix}difference_high"]
    half = "" if low is None else f" ± {(high - low) / 2:.4f}"
    own = "" if line["n_cells"] == n else f" ({line['n_cells']} cells)"
    return f"{line[f'{prefix}difference']:+.4f}{half}{own}".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="ready arrays")
    parser.add_argument("--out", type=Path, help="for tables and features")
    parser.add_argument("--tables", type=Path, help="folder of the study")
    parser.add_argument("--root", type=Path, help="of its data")
    parser.add_argument("--json", type=Path, help="keep the lines there")
    given = parser.parse_args()
    if given.tables is not None:
        tables(given.tables, given.root, given.json)
        return
    if given.data is None or given.out is None:
        parser.error("give --data and --out, or --tables and --root")
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
