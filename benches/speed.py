"""Speed of catwise, side by side with a plain loop and with mlcpl, in one run.

    python benches/speed.py [--scale small|issue|coco] [--device cpu|cuda] [--json FILE]

Prints times per epoch of all categories with their validation average precision, the floor
that this machine's measured rates allow, and, where `catwise.tune` is there, the whole of
the `default` preset against the published recipe run by the peers. Asserts that all of
them compute the same. Ratios are of times measured in this run; best of several laps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from _peers import import_mlcpl, mlcpl_loop, plain_loop, synchronise
from _synthetic import SCALES, Scale, Task, make_task

from catwise.metrics import Metric
from catwise.metrics.ranking import RankingPlan
from catwise.tuning.fits.adam import BackpropConfig, fit_backprop
from catwise.tuning.fits.loop import TuningData
from catwise.tuning.rows.products import product

LOSSES_RUN = ("bce", "asl_published")
LAPS = 4
EPOCHS = 5
CHUNK = 10


def best_of(work, device: torch.device, laps: int = LAPS) -> float:
    """Seconds of the fastest of several laps."""
    seconds = []
    for _ in range(laps):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def on(task: Task, device: torch.device) -> SimpleNamespace:
    """Lay a task out on a device, as the peers take it."""
    return SimpleNamespace(
        weight=task.weight.to(device),
        bias=task.bias.to(device),
        features=task.train.features.to(device),
        codes=task.train.codes.to(device),
        features_valid=task.valid.features.to(device),
        codes_valid=task.valid.codes.to(device),
    )


# ------------------------------------------------------------------------------ the floor


def floor(scale: Scale, n_known: tuple[int, int], device: torch.device) -> dict[str, float]:
    """Least time of an epoch at the rates measured now, whichever way it is done.

    The rows of training and validation are read once, at the rate of a sum over 400 MB. Training
    takes two products, forward and backward, validation one; each is done in the cheaper of two
    ways. Dense: all entries, at the rate of a square matrix product. Known: only the entries
    with a known label, each of which loads an operand of its own, 4 bytes, at the rate of a sum
    over 1 MiB in the cache.
    """
    n = 2_048
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    dense_rate = n**3 / min(best_of(partial(f, a, b), device, 8) for f in (torch.mm, product))
    cached = torch.ones(1 << 18, device=device).expand(256, -1)
    cache_rate = 4 * cached.numel() / best_of(partial(torch.sum, cached, 1), device, 20)
    known_rate = min(dense_rate, cache_rate / 4)
    stream = torch.ones(100_000_000, device=device)
    memory_rate = 4 * stream.numel() / best_of(stream.sum, device, 8)
    c, d = scale.categories, scale.features
    sizes = {"train": (2 * scale.train * c * d, 2 * n_known[0] * d)}
    sizes["valid"] = (scale.valid * c * d, n_known[1] * d)
    out = {
        "dense_multiply_adds_per_second": dense_rate,
        "known_multiply_adds_per_second": known_rate,
        "bytes_per_second": memory_rate,
        "memory_seconds": (scale.train + scale.valid) * d * 4 / memory_rate,
    }
    for name, (dense, known) in sizes.items():
        out[f"{name}_dense_multiply_adds"], out[f"{name}_known_multiply_adds"] = dense, known
        out[f"{name}_dense_seconds"] = dense / dense_rate
        out[f"{name}_known_seconds"] = known / known_rate
        out[f"{name}_seconds"] = min(dense / dense_rate, known / known_rate)
    out["seconds"] = max(out["memory_seconds"], out["train_seconds"] + out["valid_seconds"])
    return out


# ------------------------------------------------------------------------- (a) one epoch


def our_epochs(t: SimpleNamespace, **options):
    """Run some epochs of the paper preset; return the result and the seconds of one."""
    train, valid = TuningData(t.features, t.codes), TuningData(t.features_valid, t.codes_valid)
    marks: list[float] = []
    device = t.features.device

    def note(_) -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    config = BackpropConfig(patience=10**9, progress_every=CHUNK, **options)
    result = fit_backprop(t.weight, t.bias, train, valid, config, progress=note)
    laps = [(b - a) / CHUNK for a, b in itertools.pairwise(marks)]
    return result, min(laps[:-1] or [float("nan")])  # the last mark ends the run


def check_same(t: SimpleNamespace) -> float:
    """Assert in float64 that a few categories end up where the plain loop takes them."""
    few = slice(0, 6)
    part = SimpleNamespace(
        weight=t.weight[few].double(),
        bias=t.bias[few].double(),
        features=t.features[:4_000].double(),
        codes=t.codes[:4_000, few],
        features_valid=t.features_valid[:2_000].double(),
        codes_valid=t.codes_valid[:2_000, few],
    )
    worst = 0.0
    for loss in LOSSES_RUN:
        theirs = plain_loop(part, epochs=CHUNK, loss=loss)
        ours = fit_backprop(
            part.weight,
            part.bias,
            TuningData(part.features, part.codes),
            TuningData(part.features_valid, part.codes_valid),
            BackpropConfig(loss=loss, max_steps=CHUNK, dtype=torch.float64, metric=_last_step()),
        )
        tuned = torch.tensor([why is None for why in ours.skipped], device=part.weight.device)
        gap = ((ours.weight - theirs.weight) / theirs.weight).abs()[tuned]
        worst = max(worst, float(gap.max()))
    assert worst < 1e-6, f"float64 heads differ by {worst:.1e}"
    return worst


def _last_step():
    """A metric that always rises, so that the best step is the last."""
    count = iter(range(10**9))
    return Metric(
        "last", "Last", lambda z, _: torch.full((len(z),), float(next(count)), device=z.device)
    )


def epoch(task: Task, scale: Scale, device: torch.device, *, loss: str) -> dict[str, object]:
    """Compare one epoch of all categories, ours and the peers'."""
    t = on(task, device)
    known = int((t.codes >= 0).sum()), int((t.codes_valid >= 0).sum())
    least = floor(scale, known, device)
    result, ours = our_epochs(t, loss=loss, max_steps=CHUNK * (LAPS + 1))
    out: dict[str, object] = {
        "loss": loss,
        "regime": result.layout.name,
        "floor": least,
        "ours": ours,
        "float64_gap": check_same(t),
    }
    exact, _ = our_epochs(t, loss=loss, max_steps=EPOCHS, metric=_last_step())
    final = partial(_validation_scores, t, device)
    peers = {"plain": plain_loop}
    mlcpl = import_mlcpl()
    if isinstance(mlcpl, str):
        print(f"  mlcpl is not measured: {mlcpl}")
    else:
        peers["mlcpl"] = partial(mlcpl_loop, mlcpl)
    for name, peer in peers.items():
        theirs = peer(t, epochs=EPOCHS, loss=loss)
        gap = (final(exact.weight, exact.bias) - theirs.scores.to(device)).abs()
        gap = float(gap[~gap.isnan()].max())
        assert gap < 2e-3, f"AP after {EPOCHS} epochs differs from {name}'s by {gap:.1e}"
        out[name] = {"seconds": float(theirs.seconds.sum()), "ap_gap": gap}
        out[f"_{name}_each"] = theirs.seconds
    return out


def _validation_scores(t: SimpleNamespace, device, weight, bias):
    plan = RankingPlan(t.codes_valid.T.contiguous())
    return plan.average_precision((t.features_valid @ weight.T + bias).T).to(device)


def show_epoch(out: dict) -> None:
    """Print the table of (a)."""
    ours, least = out["ours"], out["floor"]
    print(f"\none epoch of all categories with validation AP, {out['loss']}")
    rates = [least[f"{k}_multiply_adds_per_second"] / 1e9 for k in ("dense", "known")]
    print(
        f"  measured: {rates[0]:.0f} G multiply-adds/s dense, {rates[1]:.0f} G one by one, "
        f"{least['bytes_per_second'] / 1e9:.1f} GB/s"
    )
    for part in ("train", "valid"):
        ways = " ".join(
            f"{way} {least[f'{part}_{way}_multiply_adds'] / 1e9:.2f} G multiply-adds "
            f"{least[f'{part}_{way}_seconds'] * 1e3:.1f} ms,"
            for way in ("dense", "known")
        )
        print(f"  floor, {part}: {ways} the less counts")
    print(f"  floor, every row read once: {least['memory_seconds'] * 1e3:.1f} ms")
    print(f"  floor in all        {least['seconds'] * 1e3:9.1f} ms")
    print(
        f"  ours, {out['regime']:<10} {ours * 1e3:9.1f} ms   "
        f"{ours / least['seconds']:.2f} x the floor (bar: under 2)"
    )
    for name, bar in (("plain", 4), ("mlcpl", 15)):
        if name in out:
            seconds = out[name]["seconds"]
            print(
                f"  {name:<15} {seconds * 1e3:9.1f} ms   {seconds / ours:.1f} x ours "
                f"(bar: {bar}); AP within {out[name]['ap_gap']:.0e}"
            )
    print(f"  heads in float64 within {out['float64_gap']:.0e} of the plain loop's")


# --------------------------------------------------------------- (b) from start to finish


def end_to_end(
    task: Task, device: torch.device, each: dict, losses: list[str]
) -> dict[str, object]:
    """`default` against the published recipe: epochs of the peers times steps really run."""
    t = on(task, device)
    test, truth = task.test.features.to(device), task.test.truth.T.to(torch.int8).contiguous()
    plan = RankingPlan(truth)

    def score(weight, bias) -> float:
        return float(plan.average_precision((test @ weight.T + bias).T).nanmean())

    out: dict[str, object] = {"base": score(t.weight, t.bias)}
    print(f"\nfrom start to finish; mean AP on a clean test split (base head {out['base']:.4f})")
    train, valid = TuningData(t.features, t.codes), TuningData(t.features_valid, t.codes_valid)
    for loss in losses:
        start = time.perf_counter()
        paper = fit_backprop(t.weight, t.bias, train, valid, BackpropConfig(loss=loss))
        synchronise(device)
        out[loss] = {
            "seconds": time.perf_counter() - start,
            "score": score(paper.weight, paper.bias),
            "steps": float(paper.steps.double().mean()),
            **{k: float((v[loss] * paper.steps.cpu()).sum()) for k, v in each.items()},
        }
        show_paper(loss, out[loss], each)
    out["default"] = default(t, task, score)
    show_default(out, each, losses)
    return out


def default(t: SimpleNamespace, task: Task, score) -> dict[str, float] | None:
    """Run the `default` preset from Python, as a user would."""
    try:
        from catwise import Head, PartialLabels, tune
    except ImportError as error:
        print(f"  catwise.tune is not there ({error}): default is not measured")
        return None
    train, valid = (
        PartialLabels.from_array(s.codes.numpy(), encoding="minus_one_unknown")
        for s in (task.train, task.valid)
    )
    synchronise(t.features.device)
    start = time.perf_counter()
    result = tune(
        Head(t.weight, t.bias), train=(t.features, train), valid=(t.features_valid, valid), seed=0
    )
    synchronise(t.features.device)
    seconds = time.perf_counter() - start
    head = result.head.to(t.features.device)
    return {"seconds": seconds, "score": score(head.weight, head.bias)}


def show_paper(loss: str, row: dict, each: dict) -> None:
    """Print the published recipe's run: ours, and what the peers would take for it."""
    print(
        f"  paper, {loss:<14} {row['seconds']:8.1f} s   AP {row['score']:.4f}   "
        f"{row['steps']:.0f} steps a category, batched"
    )
    for name in each:
        ratio = row[name] / row["seconds"]
        print(f"    {name}'s epochs x steps {row[name]:8.1f} s   {ratio:.1f} x batched")


def show_default(out: dict, each: dict, losses: list[str]) -> None:
    """Print the `default` preset's run beside the published recipe."""
    ours = out["default"]
    if ours is None:
        return
    print(f"  default               {ours['seconds']:8.1f} s   AP {ours['score']:.4f}")
    better = max(losses, key=lambda loss: out[loss]["score"])
    for name, bar in (("plain", 40), ("mlcpl", 150)):
        if name in each:
            ratio = out[better][name] / ours["seconds"]
            print(f"    {ratio:.0f} x faster than {name}'s paper, {better} (bar: {bar})")
    verdict = "equal or better" if ours["score"] >= out[better]["score"] else "WORSE"
    print(f"    AP {verdict} than the better paper run's, {out[better]['score']:.4f}")


# --------------------------------------------------------------------- (c) MS-COCO's size


def write_coco(scale: Scale, folder: Path) -> None:
    """Put a task of MS-COCO's size on disk with fp16 features."""
    task = make_task(scale, dtype=torch.float16)
    for name in ("train", "valid", "test"):
        split = getattr(task, name)
        np.save(folder / f"{name}_features.npy", split.features.numpy())
        np.save(folder / f"{name}_codes.npy", split.codes.numpy())
        np.save(folder / f"{name}_truth.npy", split.truth.numpy().astype(np.int8))
    np.save(folder / "weight.npy", task.weight.numpy())
    np.save(folder / "bias.npy", task.bias.numpy())


def coco_child(folder: Path, validation: str, device: str) -> None:
    """In a process of its own: read by memory map, tune, print one line of JSON."""
    import catwise

    def read(name: str, **options):
        return np.load(folder / f"{name}.npy", **options)

    head = catwise.Head(torch.from_numpy(read("weight")), torch.from_numpy(read("bias")))
    splits = {}
    for name in ("train", "valid", "test"):
        codes = read("test_truth" if name == "test" else f"{name}_codes")
        labels = catwise.PartialLabels.from_array(codes, encoding="minus_one_unknown")
        splits[name] = (read(f"{name}_features", mmap_mode="r"), labels)
    start = time.perf_counter()
    result = catwise.tune(
        head,
        train=splits["train"],
        valid=splits["valid"],
        validation=validation,
        device=None if device == "cpu" else device,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    score = {
        name: catwise.evaluate(h, splits["test"]).means["average_precision"]["macro"]
        for name, h in (("base", head), ("tuned", result.head))
    }
    passes = result.summary["passes"]
    print(
        json.dumps(
            {
                "validation": validation,
                "seconds": seconds,
                "peak_rss_bytes": peak,
                "passes": passes if passes is None else str(passes),
                **{k: float(v) for k, v in score.items()},
            }
        )
    )


def coco(device: str, folder: Path) -> list[dict[str, object]]:
    """Tune at MS-COCO's size in child processes; print seconds and peak memory."""
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    # Written by a process of its own too: a child's peak memory starts at its parent's.
    run = partial(subprocess.run, check=False, text=True, stdout=subprocess.PIPE)
    me = [sys.executable, str(Path(__file__).resolve()), "--scale", "coco", "--device", device]
    run([*me, "--folder", str(folder), "--child", "write"]).check_returncode()
    print(
        f"\nMS-COCO's size, fp16 features on disk (written in {time.perf_counter() - start:.0f} s)"
    )
    rows = []
    for validation, bar in (("select", 60), ("fit_and_select", 180)):
        done = run([*me, "--folder", str(folder), "--child", validation])
        if done.returncode:
            print(f"  {validation}: failed with exit code {done.returncode}")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"  {validation:<15} {row['seconds']:7.1f} s (bar: {bar})   peak RSS "
            f"{row['peak_rss_bytes'] / 2**30:.2f} GiB (bar: 4)   passes {row['passes']}   "
            f"test AP {row['base']:.4f} -> {row['tuned']:.4f}"
        )
    return rows


# ------------------------------------------------------------------------------- the run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--losses", nargs="+", choices=LOSSES_RUN, default=list(LOSSES_RUN))
    parser.add_argument("--only", choices=["epoch"], help="leave the runs from start to finish out")
    parser.add_argument("--valid-known", type=float, help="share of validation labels known")
    parser.add_argument("--folder", type=Path, help="where to put the files of --scale coco")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    scale = SCALES[args.scale]
    if args.valid_known is not None:
        scale = scale._replace(known_valid=args.valid_known)
    if args.child == "write":
        write_coco(scale, args.folder)
        return
    if args.child:
        coco_child(args.folder, args.child, args.device)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}; {scale}")
    report: dict[str, object] = {"scale": scale._asdict(), "device": args.device}
    if args.scale == "coco":
        with tempfile.TemporaryDirectory() as folder:
            report["coco"] = coco(args.device, args.folder or Path(folder))
    else:
        device = torch.device(args.device)
        task = make_task(scale)
        each: dict[str, dict] = {}
        rows = []
        for loss in args.losses:
            out = epoch(task, scale, device, loss=loss)
            for name in ("plain", "mlcpl"):
                if name in out:
                    each.setdefault(name, {})[loss] = out[f"_{name}_each"]
            rows.append({k: v for k, v in out.items() if not k.startswith("_")})
            show_epoch(rows[-1])
        report["epoch"] = rows
        if args.only != "epoch":
            report["end_to_end"] = end_to_end(task, device, each, args.losses)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
