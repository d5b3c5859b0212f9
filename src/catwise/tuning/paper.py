"""The `paper` preset: category-wise fine-tuning as published, by BP and by GA.

Source: Chong et al., arXiv 2401.16991 (CFT_BP, CFT_GA, and "Greedy" over several methods).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from catwise.errors import ConfigError, nearest
from catwise.features.blocks import feature_shape, iterate_blocks
from catwise.metrics.per_category import undefined_reason
from catwise.tuning.backprop import BackpropConfig, ColumnMetric, TuningData, fit_backprop
from catwise.tuning.evolution import EvolutionConfig
from catwise.tuning.genetic import GeneticConfig, GeneticResult, fit_genetic
from catwise.tuning.recalibrate import fit_affine
from catwise.tuning.records import Scores
from catwise.tuning.rows import prepared_metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.heads import Head
    from catwise.metrics import Metric
    from catwise.progress import ProgressCallback
    from catwise.tuning.backprop import BackpropResult

__all__ = ["METHODS", "PaperConfig", "PaperResult", "checked_methods", "run_paper"]

METHODS: Final = {"bp_bce": "bce", "bp_asl": "asl_published", "ga": None}
"""The published methods, and the loss of those by back-propagation."""


@dataclass(frozen=True)
class PaperConfig:
    """Options of the `paper` preset; the defaults are the published ones.

    Args:
        lr: Adam's step size.
        max_steps: bound on the steps (generations) of every category.
        patience: a category stops that many steps after its best one.
        operators: of the genetic algorithm.
        recalibrate: after the genetic algorithm, whose metric is blind to scale and offset, refit
            both on the validation labels. Ranks, and so AP and AUROC, stay what they are.
    """

    lr: float = 1e-4
    max_steps: int = 5_000
    patience: int = 300
    operators: EvolutionConfig = field(default_factory=EvolutionConfig)
    recalibrate: bool = True


class PaperResult(NamedTuple):
    """What the methods found; scores are of validation, which chose.

    Attributes:
        weight: (C, D) of the best method's best step.
        bias: (C,), or None.
        replaced: (C,) bool.
        scores: for the records.
        history: a dict per method and step.
        passes: how often the rows were read.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    replaced: NDArray[np.bool_]
    scores: Scores
    history: list[dict[str, Any]]
    passes: dict[str, int]


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

    Args:
        head: (C, D) rows that the labels speak about.
        train: features (N, D) and codes (C, N) int8.
        valid: features (M, D) and codes (C, M) int8.
        methods: keys of `METHODS`.
        metric: what chooses.
        config: options.
        names: of the categories; they key the random draws.
        seed: of the random draws.
        device: where to compute.
        progress: called now and then, in steps.
    """
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
    scores = Scores(status, reason, candidate, before, after, best, nothing, nothing)
    return PaperResult(
        weight.cpu(), None if bias is None else bias.cpu(), replaced, scores, history, passes
    )
