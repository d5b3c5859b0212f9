"""The `paper` preset: category-wise fine-tuning as published, by BP and by GA.

Source: Chong et al., arXiv 2401.16991 (CFT_BP, CFT_GA, and "Greedy" over several methods).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from catwise._configs import PaperConfig
from catwise._names import METHODS
from catwise.errors import ConfigError, nearest
from catwise.features import category_runs, feature_shape, iterate_blocks
from catwise.metrics.per_category import undefined_reason
from catwise.tuning.account.records import Scores
from catwise.tuning.fits.affine import fit_affine
from catwise.tuning.fits.backprop import BackpropConfig, ColumnMetric, TuningData, fit_backprop
from catwise.tuning.fits.genetic import GeneticConfig, GeneticResult, fit_genetic
from catwise.tuning.rows.tuning_rows import prepared_metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.heads import Head
    from catwise.metrics import Metric
    from catwise.progress import Progress, ProgressCallback
    from catwise.tuning.fits.backprop import BackpropResult

__all__ = ["METHODS", "PaperConfig", "PaperResult", "checked_methods", "run_paper", "step_notes"]

_LEAST_STEP: Final = 2e-5  # in logits; 5,000 of them move one by 0.1
_LARGEST_STEP: Final = 10.0


class PaperResult(NamedTuple):
    """What the methods found; scores are of validation, which chose.

    Attributes:
        weight: (C, D) of the best method's best step.
        bias: (C,), or None.
        replaced: (C,) bool.
        scores: for the records.
        history: a dict per method and step.
        passes: how often the rows were read.
        stopped: per method, how many categories stopped for which reason.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    replaced: NDArray[np.bool_]
    scores: Scores
    history: list[dict[str, Any]]
    passes: dict[str, int]
    stopped: dict[str, dict[str, int]]


def checked_methods(methods: Sequence[str] | None) -> tuple[str, ...]:
    """The methods asked for, or the preset's own.

    Raises:
        ConfigError: If one is unknown or given twice.
    """
    names = ("bp_bce",) if methods is None else tuple(methods)
    for name in names:
        if name not in METHODS:
            raise ConfigError(
                f"there is no method {name!r}{nearest(name, METHODS)}.",
                expected=" or ".join(METHODS),
            )
    if not names or len(set(names)) != len(names):
        raise ConfigError("name each method once.", found=f"methods={list(names)}")
    return names


def step_notes(features: Any, methods: Sequence[str], config: PaperConfig) -> list[str]:
    """A sentence for each method whose steps, fixed as published, do not suit the features.

    A step moves every weight by at most its size, so a logit by at most that times the sum of the
    absolute features of a row. On the published backbones that is about 0.1.

    Args:
        features: (N, D) training features, or `CategoryFeatures`.
        methods: keys of `METHODS`.
        config: their options.
    """
    vectors = getattr(features, "n_groups", 1)
    sums = [rows.double().abs().sum(1) for _, rows in iterate_blocks(features)]
    row = float(torch.cat(sums).median()) / vectors
    notes = []
    for name in methods:
        size = config.operators.mutation_scale if METHODS[name] is None else config.lr
        step = size * row
        if row and not _LEAST_STEP <= step <= _LARGEST_STEP:
            notes.append(
                f"The published steps of {name} are absolute and do not suit these features: one "
                f"moves a logit by at most {step:.2g} (published: about 0.1). That a category was "
                "kept says little; use the default preset, or scale the features and divide the "
                "head's weights by the same."
            )
    return notes


def run_paper(
    head: Head,
    train: tuple[Any, torch.Tensor],
    valid: tuple[Any, torch.Tensor],
    methods: Sequence[str],
    *,
    metric: Metric,
    config: PaperConfig,
    names: Sequence[str],
    seed: int,
    device: torch.device,
    progress: ProgressCallback | None = None,
) -> PaperResult:
    """Run the methods, and take per category the one that validation scores best.

    Every category is fitted alone, so category-specific features are worked through vector by
    vector, each with the categories that take it; nothing but the order of the work differs.

    Args:
        head: (C, D) rows that the labels speak about.
        train: features (N, D) or `CategoryFeatures`, and codes (C, N) int8.
        valid: features (M, D) or `CategoryFeatures`, and codes (C, M) int8.
        methods: keys of `METHODS`.
        metric: what chooses.
        config: options.
        names: of the categories; they key the random draws.
        seed: of the random draws.
        device: where to compute.
        progress: called now and then, in steps.
    """
    options: dict[str, Any] = {"metric": metric, "config": config, "seed": seed, "device": device}
    runs = [category_runs(features, head.n_categories) for features, _ in (train, valid)]
    parts = []
    for number, ((run, one), (_, other)) in enumerate(zip(*runs, strict=True)):
        index = range(run.start, run.stop)
        found = _run_shared(
            head if len(index) == head.n_categories else head.take_categories(index),
            (one, train[1][run]),
            (other, valid[1][run]),
            methods,
            names=[names[c] for c in index],
            progress=_part_of(progress, number, len(runs[0])),
            **options,
        )
        parts.append(found)
    return parts[0] if len(parts) == 1 else _joined(parts)


def _part_of(progress: ProgressCallback | None, number: int, total: int) -> ProgressCallback | None:
    """Progress of one vector's categories as a part of all of them."""
    if progress is None or total == 1:
        return progress

    def tell(now: Progress) -> None:
        progress(now._replace(done=number * now.total + now.done, total=total * now.total))

    return tell


def _joined(parts: Sequence[PaperResult]) -> PaperResult:
    """What was found for runs of categories, as one result; passes are of the longest."""
    biases = [part.bias for part in parts if part.bias is not None]
    columns = [asdict(part.scores) for part in parts]
    scores: dict[str, Any] = {
        name: [text for column in columns for text in column[name]]
        if isinstance(columns[0][name], list)
        else np.concatenate([column[name] for column in columns])
        for name in columns[0]
    }
    return PaperResult(
        torch.cat([part.weight for part in parts]),
        torch.cat(biases) if biases else None,
        np.concatenate([part.replaced for part in parts]),
        Scores(**scores),
        _joined_history([part.history for part in parts]),
        {key: max(part.passes[key] for part in parts) for key in parts[0].passes},
        {
            method: dict(sum((Counter(part.stopped[method]) for part in parts), Counter()))
            for method in parts[0].stopped
        },
    )


def _joined_history(parts: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over the categories that were moving; "best" over all that were tuned."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    tuned: dict[tuple[str, int], int] = {}  # by method and part
    last: dict[tuple[str, int], float] = {}
    for number, history in enumerate(parts):
        for row in history:
            rows.setdefault((row["method"], row["step"]), []).append({**row, "part": number})
            tuned.setdefault((row["method"], number), row["active"])
    found = []
    for (method, step), group in sorted(rows.items(), key=lambda item: item[0][1]):
        active = sum(row["active"] for row in group)
        merged: dict[str, Any] = {"method": method, "step": step, "active": active}
        for key in group[0].keys() - {"method", "step", "active", "part", "best"}:
            merged[key] = sum(row["active"] * row[key] for row in group) / active
        if "best" in group[0]:
            last |= {(method, row["part"]): row["best"] for row in group}
            total = sum(n for key, n in tuned.items() if key in last and key[0] == method)
            merged["best"] = sum(tuned[k] * v for k, v in last.items() if k[0] == method) / total
        found.append({key: merged[key] for key in group[0] if key != "part"})
    order = list(dict.fromkeys(row["method"] for history in parts for row in history))
    return sorted(found, key=lambda row: (order.index(row["method"]), row["step"]))


def _run_shared(
    head: Head,
    train: tuple[Any, torch.Tensor],
    valid: tuple[Any, torch.Tensor],
    methods: Sequence[str],
    *,
    metric: Metric,
    config: PaperConfig,
    names: Sequence[str],
    seed: int,
    device: torch.device,
    progress: ProgressCallback | None,
) -> PaperResult:
    """`run_paper` for categories that share their (N, D) features."""
    known = (train[1] >= 0).any(0).nonzero().flatten()
    data = TuningData(
        _dense(train[0], head.compute_dtype, device, known), train[1][:, known].T.contiguous()
    )
    fresh = TuningData(_dense(valid[0], head.compute_dtype, device), valid[1].T.contiguous())
    scored = ColumnMetric(
        metric.name,
        lambda codes: prepared_metric(metric, codes),
        higher_is_better=metric.higher_is_better,
    )
    base = BackpropConfig(
        metric=scored,
        lr=config.lr,
        max_steps=config.max_steps,
        patience=config.patience,
        dtype=head.compute_dtype,
    )
    results: dict[str, BackpropResult | GeneticResult] = {}
    for name in methods:
        start = head.weight, head.bias
        loss = METHODS[name]
        if loss is None:
            options = GeneticConfig(
                metric=metric,
                operators=config.operators,
                max_generations=config.max_steps,
                patience=config.patience,
                dtype=head.compute_dtype,
                seed=seed,
            )
            evolved = fit_genetic(*start, data, fresh, options, names=names, progress=progress)
            settle = config.recalibrate and metric.ranks_only
            results[name] = _recalibrated(evolved, fresh) if settle else evolved
            continue
        given = replace(base, loss=loss)
        results[name] = fit_backprop(*start, data, fresh, given, progress=progress)
    return _best(results, metric, _skip_reasons(data.codes, fresh.codes))


def _recalibrated(found: GeneticResult, fresh: TuningData) -> GeneticResult:
    """Scale and offset of what has moved, refitted on the validation labels."""
    logits = found.weight @ fresh.features.T
    if found.bias is not None:
        logits += found.bias[:, None]
    scale, offset = fit_affine(logits, fresh.codes.T, free_offset=found.bias is not None)
    moved = (found.best_step > 0).to(scale.device)
    scale = torch.where(moved, scale, 1.0)
    weight = (found.weight.double() * scale[:, None]).to(found.weight.dtype)
    if found.bias is None:
        return found._replace(weight=weight)
    bias = found.bias.double() * scale + torch.where(moved, offset, 0.0)
    return found._replace(weight=weight, bias=bias.to(found.bias.dtype))


def _dense(
    features: Any, dtype: torch.dtype, device: torch.device, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """All features, or some rows of them, in memory."""
    n, d = feature_shape(features)
    keep = torch.ones(n, dtype=torch.bool)
    if rows is not None:
        keep = torch.zeros(n, dtype=torch.bool).index_fill_(0, rows, value=True)
    out = torch.empty(int(keep.sum()), d, dtype=dtype, device=device)
    at = 0
    for start, block in iterate_blocks(features, dtype=dtype):
        part = block[keep[start : start + len(block)].to(block.device)]
        out[at : at + len(part)] = part.to(device)
        at += len(part)
    return out


def _skip_reasons(train: torch.Tensor, valid: torch.Tensor) -> list[str | None]:
    """Why a category cannot be tuned, as the records say it, from (N, C) codes; else None."""
    sides = [undefined_reason(codes.cpu().numpy()) for codes in (train, valid)]
    return [
        f"{one}_in_train" if one else f"{other}_in_valid" if other else None
        for one, other in zip(*sides, strict=True)
    ]


def _best(
    results: dict[str, BackpropResult | GeneticResult], metric: Metric, reasons: list[str | None]
) -> PaperResult:
    """Per category the best method on validation; ties go to the first."""
    names, found = list(results), list(results.values())
    sign = 1.0 if metric.higher_is_better else -1.0
    first = found[0]
    gains = torch.stack([sign * (r.best_score - r.base_score) for r in found]).nan_to_num(0.0)
    pick = gains.argmax(0)
    index = torch.arange(len(pick), device=pick.device)
    weight = torch.stack([r.weight for r in found])[pick, index]
    biases = [r.bias for r in found if r.bias is not None]
    bias = torch.stack(biases)[pick, index] if biases else None
    replaced = (gains.amax(0) > 0).cpu().numpy()
    best = torch.stack([r.best_score for r in found])[pick, index].cpu().numpy()
    before = first.base_score.cpu().numpy()
    status, reason, candidate = [], [], []
    for c, why in enumerate(reasons):
        status.append("skipped" if why else ("replaced" if replaced[c] else "kept"))
        reason.append(why or ("best_step" if replaced[c] else "base_best"))
        candidate.append(names[int(pick[c])] if replaced[c] else "base")
    nothing = np.full(len(status), np.nan)
    after = np.where(replaced | np.isnan(before), np.nan, before)
    history = [{"method": n, **step} for n, r in results.items() for step in r.history]
    passes = {
        "train": sum(r.passes.train for r in found),
        "valid": sum(r.passes.valid for r in found),
    }
    without = {"replaced": "not_corrected", "kept": "unchanged", "skipped": None}
    told = [without[word] for word in status]
    scores = Scores(status, reason, candidate, before, after, best, nothing, nothing, told)
    stopped = {n: dict(Counter(sorted(r.stop_reason))) for n, r in results.items()}
    return PaperResult(
        weight.cpu(),
        None if bias is None else bias.cpu(),
        replaced,
        scores,
        history,
        passes,
        stopped,
    )
