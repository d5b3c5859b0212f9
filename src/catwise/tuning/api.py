"""`tune`: a head, features and partly known labels in; a better head and its account out."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from catwise._json import number
from catwise._version import __version__
from catwise.errors import ConfigError, InSampleWarning, LabelError
from catwise.joining import source_ids
from catwise.metrics.intervals import LEVEL
from catwise.metrics.per_category import undefined_reason
from catwise.progress import Progress
from catwise.tuning.account.held_out import compare_on, evaluation_of, open_test
from catwise.tuning.account.memorisation import MemorisationGap, memorisation_gap
from catwise.tuning.account.records import Scores, add_test_scores, make_records
from catwise.tuning.account.results import FoldArtifacts, TuneResult, changed_head
from catwise.tuning.choice.folds import assign_folds
from catwise.tuning.choice.gains import Corrected, levels
from catwise.tuning.choice.rules import MIN_POSITIVES
from catwise.tuning.inputs import Data, Work, check_logits, check_sources, open_work
from catwise.tuning.plan import Plan, make_plan
from catwise.tuning.presets import paper
from catwise.tuning.presets.crossfit import (
    DefaultConfig,
    DefaultResult,
    fit_and_select,
    only_select,
)
from catwise.tuning.rows.coordinates import (
    Coordinates,
    OwnCoordinates,
    fit_coordinates,
    outlying_rows,
    read_rows,
)
from catwise.tuning.rows.tuning_rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from catwise.heads import Head
    from catwise.labels import LabelPolicy, PartialLabels
    from catwise.metrics import Metric, PairedComparison
    from catwise.progress import ProgressCallback

__all__ = ["tune"]


Validation = Literal["fit_and_select", "select"]


def tune(
    head: Head,
    train: tuple[Any, PartialLabels],
    valid: tuple[Any, PartialLabels] | None = None,
    *,
    test: tuple[Any, PartialLabels] | None = None,
    metric: str | Metric = "average_precision",
    preset: str = "default",
    methods: Sequence[str] | None = None,
    validation: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    logits: Any = None,
    policy: LabelPolicy | None = None,
    force: bool = False,
    config: DefaultConfig | paper.PaperConfig | None = None,
    progress: ProgressCallback | None = None,
) -> TuneResult:
    """Tune every category's row of a head on the labels that are really known.

    Args:
        head: the trained model's last layer.
        train: features (N, D) of the images that the backbone was trained on, and their labels
            (N, C). Rows are joined by id where both have ids, columns by name.
        valid: the same of other images, or None: then the known training labels are
            cross-fitted, which tells less, since the backbone has memorised their images.
        test: the same of rows that fit and choose nothing: both heads are scored on them in the
            end, and they are what the result says first.
        metric: name in `catwise.metrics.METRICS`, or a `Metric`; chooses and scores.
        preset: "default", or "paper": category-wise fine-tuning as published.
        methods: for "paper": "bp_bce" (its default), "bp_asl" or "ga"; of several, validation
            takes the best per category. None for "default".
        validation: "fit_and_select" or "select", what validation labels are used for. None is
            the preset's own: "fit_and_select" for "default", "select" for "paper", which takes
            no other.
        seed: of the folds, of soft targets and of the genetic algorithm.
        device: where to compute; None: where the training features are.
        logits: (N, C) the model's own logits of the training rows, in the labels' order, to check
            that the head and the features reproduce them.
        policy: what uncertain and blank labels count as in fitting; by default they are left
            out. Scores use hard known labels only.
        force: go on although head, features and columns look mismatched.
        config: `DefaultConfig` or `PaperConfig`; the preset's own if None.
        progress: called now and then with a `Progress`.

    Returns:
        The tuned head, records, summary and all that cross-fitting left.

    Raises:
        ConfigError: If an option, or a combination of options, is not possible.
        ShapeError: If head, features and labels do not fit together.
        IdError: If ids do not match, an id or group is in two sources, or a test row fitted the
            head that is given.
        CategoryError: If the head lacks a category of the labels.
        FeatureError: If a feature is NaN or infinite.
        LabelError: If no label is known in one of the sources, or labels are raw values.
        MismatchError: If head, features and columns look as if they did not belong together.

    >>> import numpy as np, catwise
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(200, 4)); y = (z[:, :2] > 0.5).astype(float)
    >>> head = catwise.Head(np.eye(4)[:2] + 0.5, np.zeros(2))
    >>> labels = catwise.PartialLabels.from_array(y, encoding="nan")
    >>> result = catwise.tune(head, (z[:100], labels.take_rows(range(100))),
    ...                       (z[100:], labels.take_rows(range(100, 200))))
    >>> [record["status"] for record in result.records]
    ['replaced', 'replaced']
    """
    began = time.perf_counter()
    plan = make_plan(preset, methods, validation, metric, config, has_valid=valid is not None)
    if progress is not None:
        progress(Progress("read", 0, 1, "checking head, features and labels"))
    work = open_work(head, train, valid, policy=policy, seed=seed, device=device)
    check_logits(work, logits)
    others = {"training": train, "validation": valid}
    held_out, notes = open_test(work, test, others, plan.metric, force=force)
    if progress is not None:
        progress(Progress("read", 1, 1, "everything fits"))
    run = _run_paper if plan.preset == "paper" else _run_default
    outcome = run(work, plan, force=force, progress=progress)
    outcome.notes.extend(notes)
    return _result(work, plan, outcome, policy, held_out, began=began)


# -------------------------------------------------------------------------------- default


@dataclass(frozen=True)
class _Outcome:
    """What a preset found, in the terms of the records."""

    head: Head
    scores: Scores
    scored_on: str
    mean_gain: tuple[float, float, float]  # and its interval
    gap: MemorisationGap | None
    choice: dict[str, Any]
    passes: dict[str, int]
    history: list[dict[str, Any]]
    folds: FoldArtifacts | None
    notes: list[str]


def _rows(work: Work, data: Data, coordinates: Coordinates | OwnCoordinates) -> Rows:
    x, logits = read_rows(data.features, work.scored, coordinates, device=work.device)
    move = work.device
    return Rows(
        x,
        logits,
        data.codes.to(move),
        work.scored.bias is not None,
        None if data.target is None else data.target.to(move),
        None if data.weight is None else data.weight.to(move),
    )


def _run_default(
    work: Work, plan: Plan, *, force: bool, progress: ProgressCallback | None
) -> _Outcome:
    config = plan.config
    if not isinstance(config, DefaultConfig):  # checked in make_plan
        raise ConfigError("the preset 'default' takes a DefaultConfig.")
    source = work.train if work.valid is None else work.valid
    coordinates = fit_coordinates(
        source.features,
        n_categories=work.scored.n_categories,
        centred=work.scored.bias is not None,
        device=work.device,
    )
    fresh = _rows(work, source, coordinates)
    train = None if work.valid is None else _rows(work, work.train, coordinates)
    name = "train" if work.valid is None else "valid"
    notes = check_sources(
        work, (fresh if train is None else train).logits.T, fresh.logits.T, force=force
    ) + outlying_rows(coordinates, fresh.logits.shape[1])
    if work.valid is None:
        note = (
            "No validation data: the known training labels were cross-fitted. The backbone has "
            "memorised these images, so the scores are too high and the head is worth less."
        )
        warnings.warn(note, InSampleWarning, stacklevel=4)
        notes.append(note)
    n_folds = min(config.n_folds, _n_units(source.labels, name))
    fold = assign_folds(source.labels, n_folds=n_folds, seed=work.seed, digests=source.digests)
    gap = None if train is None or work.valid is None else _gap(work, train, fresh)
    if plan.validation == "select":
        if train is None:  # checked in make_plan
            raise ConfigError("validation='select' needs validation data.")
        found = only_select(
            fresh,
            train,
            fold,
            plan.metric,
            config,
            variance=coordinates.variance_of,
            groups=source.labels.groups,
            progress=progress,
        )
        scored_on = f"validation, chosen without each of {n_folds} folds"
    else:
        found = fit_and_select(
            fresh,
            train,
            fold,
            plan.metric,
            config,
            groups=source.labels.groups,
            progress=progress,
        )
        what = "training labels" if work.valid is None else "validation"
        scored_on = f"{what}, cross-fitted in {n_folds} folds"
    tuned = _add(work, found, coordinates)
    if bool((found.scale != 1).any()):
        notes.append(
            f"{plan.metric.label} is blind to scale and offset, so both were refitted on "
            "out-of-fold logits after the metric stage. No rank changed."
        )
    return _Outcome(
        tuned,
        _scores(found, fresh, name=name, metric=plan.metric),
        scored_on,
        found.corrected.gains.mean,
        gap,
        _choice(found),
        {**found.passes, "coordinates": 1, "read": 1},
        _history(found),
        _folds(work, found, fold, coordinates, source),
        notes,
    )


def _n_units(labels: PartialLabels, name: str) -> int:
    """How many rows or groups there are to deal to folds."""
    n_rows = labels.shape[0]
    n_units = n_rows if labels.groups is None else int(np.unique(labels.groups).size)
    if n_units < 2:
        raise LabelError(
            f"{name}: one {'row' if labels.groups is None else 'group'} cannot be cross-fitted.",
            found=f"{n_rows:,} rows" + ("" if labels.groups is None else " of one group"),
            expected="two rows or groups at least: one part fits, the other judges",
        )
    return n_units


def _gap(work: Work, train: Rows, fresh: Rows) -> MemorisationGap | None:
    if work.valid is None:
        return None
    return memorisation_gap(
        train.logits.T.cpu(), work.train.labels, fresh.logits.T.cpu(), work.valid.labels
    )


def _add(work: Work, found: DefaultResult, coordinates: Coordinates | OwnCoordinates) -> Head:
    """The base head with the changes of the replaced categories."""
    rows = np.flatnonzero(found.decision.chosen > 0)
    at = torch.from_numpy(rows)
    weight, bias = _changed(work, found, coordinates.fold_back(found.delta, found.intercept))
    return changed_head(work.base, work.index[rows], weight[at], None if bias is None else bias[at])


def _changed(
    work: Work, found: DefaultResult, change: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(C, D) float64 weights and (C,) biases after a change, scale and offset."""
    scale, offset = found.scale.cpu(), found.offset.cpu()
    weight = scale[:, None] * (work.scored.weight.double().cpu() + change[0].cpu())
    if work.scored.bias is None:
        return weight, None
    return weight, scale * (work.scored.bias.double().cpu() + change[1].cpu()) + offset


def _scores(found: DefaultResult, fresh: Rows, *, name: str, metric: Metric) -> Scores:
    corrected, gains = found.corrected, found.corrected.gains
    reasons = undefined_reason(fresh.codes.T.cpu().numpy())
    positives = (fresh.codes == 1).sum(1).cpu().numpy()
    status, why, candidate = [], [], []
    for c, taken in enumerate(corrected.decision.chosen):
        if reasons[c] is not None and not taken:
            status.append("skipped")
            why.append(f"{reasons[c]}_in_{name}")
        elif taken:
            status.append("replaced")
            better = metric.sign * gains.gain[c] > 0
            few = positives[c] < MIN_POSITIVES
            others = "pooled_gain" if few else "shared_gain"
            if not gains.has_mean_gain(metric):
                others = "gain_in_folds"
            why.append("gain" if better and not few else others)
        else:
            status.append("kept")
            why.append(_kept_because(corrected, c))
        candidate.append(found.settings[int(taken)].name)
    kept = corrected.decision.chosen == 0
    before, after = levels(gains.before, np.where(kept, 0.0, gains.gain), metric)
    _, selected_on = levels(before, corrected.selected_on, metric)
    low, high = (np.where(kept, np.nan, end) for end in (gains.low, gains.high))
    without = [
        "unchanged" if kept[c] and not np.isnan(before[c]) else reason
        for c, reason in enumerate(gains.why)
    ]
    return Scores(status, why, candidate, before, after, selected_on, low, high, without)


def _kept_because(corrected: Corrected, c: int) -> str:
    if corrected.clearly_worse[c]:
        return "clearly_worse"
    if corrected.without_mean_gain[c]:
        return "no_mean_gain"
    nothing = corrected.decision.setting == 0 and not corrected.without_mean_gain.any()
    return "no_pooled_gain" if nothing else "no_gain"


def _choice(found: DefaultResult) -> dict[str, Any]:
    setting = found.decision.setting
    if setting >= 0:
        return {"candidate": found.settings[setting].name, **found.settings[setting].options}
    return {"candidate": "one for each category"}


def _history(found: DefaultResult) -> list[dict[str, Any]]:
    return [
        {"candidate": setting.name, **setting.options, "pooled_gain": number(float(gain))}
        for setting, gain in zip(found.settings, found.decision.pooled, strict=True)
    ]


def _folds(
    work: Work,
    found: DefaultResult,
    fold: NDArray[np.int8],
    coordinates: Coordinates | OwnCoordinates,
    source: Data,
) -> FoldArtifacts | None:
    if found.fold_delta is None or found.fold_intercept is None or found.logits is None:
        return None
    weights, biases = [], []
    for delta, intercept in zip(found.fold_delta, found.fold_intercept, strict=True):
        weight, bias = _changed(work, found, coordinates.fold_back(delta, intercept))
        weights.append(weight.float().numpy())
        if bias is not None:
            biases.append(bias.float().numpy())
    return FoldArtifacts(
        fold,
        np.ascontiguousarray(found.logits.T.float().cpu().numpy()),
        np.stack(weights),
        np.stack(biases) if biases else None,
        work.categories,
        source_ids(source.features, source.labels),
    )


# ---------------------------------------------------------------------------------- paper


def _run_paper(
    work: Work, plan: Plan, *, force: bool, progress: ProgressCallback | None
) -> _Outcome:
    if work.valid is None or not isinstance(plan.config, paper.PaperConfig):  # checked in make_plan
        raise ConfigError("the preset 'paper' needs validation data and a PaperConfig.")
    logits = [work.scored.logits(d.features).cpu() for d in (work.train, work.valid)]
    notes = check_sources(work, *logits, force=force)
    codes = [_fitted_codes(d) for d in (work.train, work.valid)]
    found = paper.run_paper(
        work.scored,
        (work.train.features, codes[0]),
        (work.valid.features, work.valid.codes),
        plan.methods,
        metric=plan.metric,
        config=plan.config,
        names=work.categories,
        seed=work.seed,
        device=work.device,
        progress=progress,
    )
    notes += paper.step_notes(work.train.features, plan.methods, plan.config)
    notes.append(
        "As published, validation chose among all steps, so its scores are too high; no score "
        "of the tuned head is corrected for that. Score it on data that chose nothing."
    )
    if "ga" in plan.methods and plan.config.recalibrate and plan.metric.ranks_only:
        notes.append(
            f"{plan.metric.label} is blind to scale and offset, so both were refitted on "
            "validation labels after the genetic algorithm. No rank changed."
        )
    rows = np.flatnonzero(found.replaced)
    at = torch.from_numpy(rows)
    bias = None if found.bias is None else found.bias[at]
    tuned = changed_head(work.base, work.index[rows], found.weight[at], bias)
    return _Outcome(
        tuned,
        found.scores,
        "validation, which chose the step",
        (float("nan"), float("nan"), float("nan")),
        memorisation_gap(logits[0], work.train.labels, logits[1], work.valid.labels),
        {"methods": list(plan.methods), "stopped": found.stopped},
        found.passes,
        found.history,
        None,
        notes,
    )


def _fitted_codes(data: Data) -> torch.Tensor:
    """(C, n) codes to fit, with the label policy applied; soft targets are refused."""
    if data.target is None or data.weight is None:
        return data.codes
    hard = (data.target == 0) | (data.target == 1) | (data.weight == 0)
    if not bool(hard.all()):
        raise ConfigError(
            "the preset 'paper' fits hard labels only.",
            found="a label policy with soft targets",
            remedy="uncertain labels as 'unknown', 'negative' or 'positive', or preset='default'",
        )
    return torch.where(data.weight > 0, data.target, -1.0).to(torch.int8)


# --------------------------------------------------------------------------------- result


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _result(
    work: Work,
    plan: Plan,
    outcome: _Outcome,
    policy: LabelPolicy | None,
    held_out: Data | None,
    *,
    began: float,
) -> TuneResult:
    scores = outcome.scores
    gaps = None if outcome.gap is None else outcome.gap.records()
    records = make_records(
        work.categories,
        scores,
        metric=plan.metric.name,
        scored_on=outcome.scored_on,
        train=work.train.labels.counts(),
        fresh=None if work.valid is None else work.valid.labels.counts(),
        gaps=gaps,
    )
    for record, row in zip(records, work.index, strict=True):
        record["index"] = int(row)
    tested = _tested(work, plan, outcome.head, held_out)
    evaluation = evaluation_of(tested) if tested else None
    if evaluation is not None:
        add_test_scores(records, evaluation)
    config = {
        "preset": plan.preset,
        "methods": list(plan.methods),
        "validation": plan.validation if work.valid is not None else None,
        "metric": plan.metric.name,
        "seed": work.seed,
        "device": str(work.device),
        "policy": None if policy is None else policy.to_dict(),
        "options": asdict(plan.config),
        "catwise": __version__,
        "torch": torch.__version__,
        "base": work.base.digest,
    }
    before, (gain, low, high) = _mean(scores.before), outcome.mean_gain
    summary = {
        "metric": plan.metric.name,
        "n_categories": len(records),
        **{f"n_{word}": scores.status.count(word) for word in ("replaced", "kept", "skipped")},
        "n_scored": int(np.isfinite(scores.before).sum()),
        "before": number(before),
        "after": number(before + gain),
        "gain": number(gain),
        "gain_low": number(low),
        "gain_high": number(high),
        "level": LEVEL,
        "selected_on": number(_mean(scores.selected_on)),
        "choice": outcome.choice,
        "seconds": round(time.perf_counter() - began, 3),
        "passes": outcome.passes,
    }
    digests = [work.train.digests] + ([] if work.valid is None else [work.valid.digests])
    provenance = {
        **work.base.provenance,
        "catwise": {key: config[key] for key in ("catwise", "preset", "metric", "seed", "base")},
    }
    head = outcome.head.replace(provenance=provenance).with_fitted_on(np.concatenate(digests))
    return TuneResult(
        head,
        work.base,
        records,
        summary,
        config,
        None if outcome.gap is None else outcome.gap.to_dict(),
        outcome.history,
        outcome.folds,
        [*work.notes, *outcome.notes],
        tested[0] if tested else None,
        evaluation,
    )


def _tested(work: Work, plan: Plan, head: Head, held_out: Data | None) -> list[PairedComparison]:
    """Both heads on the test rows; nothing without any."""
    if held_out is None:
        return []
    heads = work.scored, head.take_categories(work.index.tolist())
    base, tuned = (one.replace(categories=work.categories) for one in heads)
    return compare_on((held_out.features, held_out.labels), base, tuned, plan.metric)
