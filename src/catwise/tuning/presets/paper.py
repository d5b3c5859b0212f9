"""The `paper` preset: category-wise fine-tuning as published, by BP and by GA.

Source: Chong et al., arXiv 2401.16991 (CFT_BP, CFT_GA, and "Greedy" over several methods).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._configs import PaperConfig
from catwise._names import METHODS
from catwise.errors import ConfigError, nearest
from catwise.features import category_runs, feature_shape, iterate_blocks
from catwise.heads import Head
from catwise.metrics import Metric
from catwise.progress import ProgressCallback
from catwise.tuning.account.records import Scores
from catwise.tuning.fits.adam import BackpropConfig, run_backprop
from catwise.tuning.fits.affine import fit_affine
from catwise.tuning.fits.genetic import GeneticConfig, run_genetic
from catwise.tuning.fits.loop import (
    ColumnLoop,
    HeadColumns,
    LoopConfig,
    LoopResult,
    skip_reasons,
)

_LEAST_STEP: Final = 2e-5  # in logits; 5,000 of them move one by 0.1
_LARGEST_STEP: Final = 10.0


class PaperResult(NamedTuple):
    """What the methods found; scores are of validation, which chose.

    Attributes:
        weight: (C, D) of the best method's best step.
        bias: (C,), or None.
        replaced: (C,) bool.
        scores: for the records.
        history: a dict per method and step, then one per method and category with its curves.
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
    dtype = head.compute_dtype
    skipped = skip_reasons(train[1], valid[1])
    loops = {
        method: ColumnLoop(
            HeadColumns.copied(head.weight, head.bias, device, dtype),
            skipped,
            _options(method, config, metric, dtype, seed),
        )
        for method in methods
    }
    runs = [category_runs(features, head.n_categories) for features, _ in (train, valid)]
    for (run, features), (_, features_valid) in zip(*runs, strict=True):
        own = [c for c in range(run.start, run.stop) if skipped[c] is None]
        if not own:
            continue
        index = torch.tensor(own, device=device)
        codes = train[1][own]
        known = (codes >= 0).any(0).nonzero().flatten()
        fitted = _dense(features, dtype, device, known), codes[:, known].to(device)
        judging = _dense(features_valid, dtype, device), valid[1][own].to(device)
        for loop in loops.values():
            if isinstance(loop.config, BackpropConfig):
                run_backprop(loop, index, fitted, judging, loop.config, progress=progress)
            elif isinstance(loop.config, GeneticConfig):
                run_genetic(
                    loop, index, fitted, judging, loop.config, names=names, progress=progress
                )
                if config.recalibrate and metric.ranks_only:
                    _recalibrate(loop, index, *judging)
    return _best({method: loop.result() for method, loop in loops.items()}, metric, names)


def _options(
    method: str, config: PaperConfig, metric: Metric, dtype: torch.dtype, seed: int
) -> LoopConfig:
    shared: dict[str, Any] = {
        "metric": metric,
        "max_steps": config.max_steps,
        "patience": config.patience,
        "dtype": dtype,
    }
    loss = METHODS[method]
    if loss is None:
        return GeneticConfig(operators=config.operators, seed=seed, **shared)
    return BackpropConfig(loss=loss, lr=config.lr, **shared)


def _recalibrate(
    loop: ColumnLoop, index: torch.Tensor, features: torch.Tensor, codes: torch.Tensor
) -> None:
    """Scale and offset of what has moved, refitted on the validation labels."""
    weight, bias = loop.head.select_categories(index)
    logits = weight @ features.T
    if bias is not None:
        logits += bias[:, None]
    scale, offset = fit_affine(logits, codes, free_offset=bias is not None)
    moved = (loop.best_step[index] > 0).to(scale.device)
    scale = torch.where(moved, scale, 1.0)
    loop.head.weight[index] = (weight.double() * scale[:, None]).to(weight.dtype)
    if bias is not None and loop.head.bias is not None:
        shifted = bias.double() * scale + torch.where(moved, offset, 0.0)
        loop.head.bias[index] = shifted.to(bias.dtype)


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


def _best(results: dict[str, LoopResult], metric: Metric, categories: Sequence[str]) -> PaperResult:
    """Per category the best method on validation; ties go to the first."""
    names, found = list(results), list(results.values())
    gains = torch.stack([metric.sign * (r.best_score - r.base_score) for r in found])
    gain, pick = gains.nan_to_num(0.0).max(0)
    index = torch.arange(len(pick), device=pick.device)
    biases = [r.bias for r in found if r.bias is not None]
    replaced = (gain > 0).cpu().numpy()
    chosen = [names[k] if taken else None for k, taken in zip(pick.tolist(), replaced, strict=True)]
    return PaperResult(
        torch.stack([r.weight for r in found])[pick, index].cpu(),
        torch.stack(biases)[pick, index].cpu() if biases else None,
        replaced,
        _scores(found[0], chosen, torch.stack([r.best_score for r in found])[pick, index]),
        [
            *({"method": n, **step} for n, r in results.items() for step in r.history),
            *(
                {"method": n, "category": categories[curve["index"]], **curve}
                for n, r in results.items()
                for curve in r.curves
            ),
        ],
        {
            "train": sum(r.passes.train for r in found),
            "valid": sum(r.passes.valid for r in found),
        },
        {n: dict(Counter(sorted(r.stop_reason))) for n, r in results.items()},
    )


def _scores(first: LoopResult, chosen: list[str | None], best: torch.Tensor) -> Scores:
    """For the records; `chosen` is each category's method, None where the original head is kept."""
    before = first.base_score.cpu().numpy()
    skipped = first.skipped
    kept = np.array([method is None for method in chosen])
    after = np.where(kept & ~np.isnan(before), before, np.nan)
    nothing = np.full(len(chosen), np.nan)
    status = [
        "skipped" if why else "replaced" if method else "kept"
        for why, method in zip(skipped, chosen, strict=True)
    ]
    without = {"replaced": "not_corrected", "kept": "unchanged", "skipped": None}
    return Scores(
        status=status,
        reason=[
            why or ("best_step" if method else "base_best")
            for why, method in zip(skipped, chosen, strict=True)
        ],
        candidate=[method or "base" for method in chosen],
        before=before,
        after=after,
        selected_on=best.cpu().numpy(),
        low=nothing,
        high=nothing,
        interval_reason=[without[word] for word in status],
    )
