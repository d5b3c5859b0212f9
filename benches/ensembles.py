"""What an ensemble of two backbones is worth on real posters, on test rows that chose nothing.

    catwise extract --model timm:mobilenetv2_035 --checkpoint CHECKPOINT --input-size 192x128 \
        --crop-pct 1 --mean 0.5 --std 0.5 --images IMAGES --out STORE
    python benches/ensembles.py --store STORE --checkpoint CHECKPOINT --labels TABLE.csv \
        --features FEATURES.npz [--keep 0.3] [--half 1]

One member is the checkpoint, whose features are in STORE; the other has features of another
backbone (`Z_train`, `id_train`, … in FEATURES) and a head fitted from nothing on the known training
labels. Both are tuned by the `default` preset. The ensemble is compared with each on a half of the
test rows; then the methods with one another, the calibration of the mean with none, and fitted
weights with equal ones. With `--fits FOLDER`, as benches/decisions.py leaves it, the same over the
ready tasks: members are heads of one data set that was trained in several ways.
"""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import half_of

import catwise
from catwise import Head, PartialLabels
from catwise.data import read_label_table
from catwise.decisions.members import mapped
from catwise.decisions.outputs import read_members
from catwise.features import Features, read_features
from catwise.metrics import auroc, average_precision, compare_logits, log_loss

SPLITS = ("train", "valid", "test")
METRICS = ("average_precision", "auroc", "log_loss")
METRICS_BY_NAME = {"average_precision": average_precision, "auroc": auroc, "log_loss": log_loss}
OTHERS = {
    "logit": {"method": "logit"},
    "rank": {"method": "rank"},
    "fitted weights": {"weights": "fitted"},
}
PENALTY = 0.001


def tables(path: Path, categories: list[str], keep: float) -> dict[str, PartialLabels]:
    """Labels of the splits; a share of the validation labels is kept."""
    found = {
        split: read_label_table(
            path,
            encoding="nan",
            id_column="id",
            split_column="split",
            split=split,
            categories=categories,
        )
        for split in SPLITS
    }
    kept = np.random.default_rng(0).random(found["valid"].shape) < keep
    found["valid"] = found["valid"].keep_entries(lambda c, rows, _: kept[rows, c])
    return found


def from_nothing(features: np.ndarray, labels: PartialLabels) -> Head:
    """Penalised logistic regressions on the known labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    weight, bias = [], []
    for c in range(labels.n_categories):
        rows, positive = labels.known(c)
        fit = LogisticRegression(C=PENALTY, max_iter=500).fit(scaled[rows], positive)
        own = fit.coef_[0] / scaler.scale_
        weight.append(own)
        bias.append(fit.intercept_[0] - own @ scaler.mean_)
    return Head(
        np.array(weight, np.float32), np.array(bias, np.float32), categories=labels.categories
    )


def members(
    args: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, Any], PartialLabels, PartialLabels]:
    """Two tunings, features of their test rows, validation labels and test labels."""
    given = np.load(args.features)
    categories = [str(name) for name in given["categories"]]
    labels = tables(args.labels, categories, args.keep)
    store = read_features(args.store)
    names = [name.rpartition("/")[2].rpartition(".")[0] for name in store.ids.tolist()]
    one = Features(store.rows(range(len(names))), names)
    other = {
        split: Features(given[f"Z_{split}"].astype(np.float32), given[f"id_{split}"])
        for split in SPLITS
    }
    head = catwise.read_head(args.checkpoint).replace(categories=categories)
    rows = {name: i for i, name in enumerate(given["id_train"].tolist())}
    train = other["train"].rows([rows[name] for name in labels["train"].ids.tolist()])
    tuned = {
        "checkpoint": catwise.tune(
            head, (one, labels["train"]), (one, labels["valid"]), force=True
        ),
        "other": catwise.tune(
            from_nothing(train, labels["train"]),
            (other["train"], labels["train"]),
            (other["valid"], labels["valid"]),
        ),
    }
    test = labels["test"].take_rows(half_of(len(labels["test"]), args.half))
    return tuned, {"checkpoint": one, "other": other["test"]}, labels["valid"], test


def show(name: str, before: Any, after: Any, labels: PartialLabels) -> None:
    for metric in METRICS:
        found = compare_logits(before, after, labels, metric)
        print(
            f"| {name} | {metric} | {found.mean_before:.4f} | {found.mean_after:.4f} | "
            f"{found.mean_difference:+.4f} ({found.mean_low:+.4f} to {found.mean_high:+.4f}) | "
            f"{found.verdict} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("store", "checkpoint", "labels", "features", "fits"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--keep", type=float, default=1.0, help="share of the validation labels")
    parser.add_argument("--half", type=int, default=2, choices=(1, 2))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.fits is not None:
        ready(args.fits, args.half)
        return
    if None in (args.store, args.checkpoint, args.labels, args.features):
        parser.error("give --store, --checkpoint, --labels and --features, or --fits")
    tuned, features, valid, test = members(args)
    print(f"half {args.half}, {len(test)} rows, {args.keep:.0%} of the validation labels")
    print("| comparison | metric | before | after | difference | verdict |")
    print("|---|---|---|---|---|---|")
    both = catwise.ensemble(tuned, valid, weights="fitted", test=(features, test))
    plain = catwise.ensemble(tuned, valid, test=(features, test))
    rows = {name: (tuned[name].head, features[name]) for name in tuned}
    columns, _ = read_members(rows, test, dict.fromkeys(tuned, "logits"), force=True)
    after = plain.calibration.logits(plain.mean(columns))
    for name in tuned:
        own = calibrated(plain, columns, name)
        show(f"{name} → ensemble", own, after, test)
    for method in ("logit", "rank"):
        other = catwise.ensemble(tuned, valid, method=method)
        show(f"{method} → probability", other.calibration.logits(other.mean(columns)), after, test)
    held_out = plain.combine(tuned, ids=valid.ids).logits
    show("mean → calibrated again", after, catwise.calibrate(held_out, valid).logits(after), test)
    fitted = both.calibration.logits(both.mean(columns))
    show(f"equal → weights {both.weights[:, 0].round(2).tolist()}", after, fitted, test)
    for metric, one in both.worth.items():
        print(f"weights, cross-fitted: {metric} {one.mean_difference:+.4f} {one.verdict}")


def ready(folder: Path, half: int) -> None:
    """What differs from the mean of probabilities, over groups of ready fits: mean ± its error."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.glob("*_0.npz")):
        name = re.fullmatch(r"([a-z]+\d*(?:_0\.\d)?)_.+_(0\.\d|1\.0)_0", path.stem)
        if name is not None:
            groups.setdefault((name[1], name[2]), []).append(path)
    rows: dict[str, list[np.ndarray]] = {}
    for paths in groups.values():
        tasks = [np.load(path) for path in paths]
        if len(tasks) < 2:
            continue
        chosen = tasks[0]["half"] if half == 2 else ~tasks[0]["half"]
        valid, test = PartialLabels(tasks[0]["y_valid"]), PartialLabels(tasks[0]["y_test"][chosen])
        given = {str(i): task["oof"] for i, task in enumerate(tasks)}
        new = {str(i): task["tuned_test"][chosen] for i, task in enumerate(tasks)}
        scored = ((valid.codes == 1).any(0)) & ((test.codes == 1).any(0))

        def scores(logits: Any, test: Any = test, scored: Any = scored) -> np.ndarray:
            each = [METRICS_BY_NAME[name](logits, test).numpy()[scored] for name in METRICS]
            return np.array([np.nanmean(one) for one in each])

        plain = catwise.ensemble(given, valid, force=True)
        after = plain.combine(new).logits
        again = catwise.calibrate(plain.combine(given).logits, valid).logits(after)
        others = {"calibrated again": again}
        for name, options in OTHERS.items():
            found = catwise.ensemble(given, valid, force=True, **options)
            others[name] = found.combine(new).logits
        best = max(given, key=lambda name: float(average_precision(given[name], valid).nanmean()))
        others["the member best out of fold"] = catwise.calibrate(given[best], valid).logits(
            new[best]
        )
        for name, logits in others.items():
            rows.setdefault(name, []).append(scores(logits) - scores(after))
    print(f"half {half}, less the mean of probabilities; {len(rows['logit'])} groups of heads")
    print("| | " + " | ".join(METRICS) + " |")
    for name, found in rows.items():
        table = np.array(found)
        pairs = zip(table.mean(0), table.std(0, ddof=1) / len(table) ** 0.5, strict=True)
        print(f"| {name} | " + " | ".join(f"{m:+.4f} ± {e:.4f}" for m, e in pairs) + " |")


def calibrated(found: Any, columns: Any, name: str) -> torch.Tensor:
    """One member's calibrated logits."""
    at = [one.name for one in found.members].index(name)
    return torch.from_numpy(mapped(columns[at], found.members[at].maps, found.method))


if __name__ == "__main__":
    main()
