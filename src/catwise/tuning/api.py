"""`tune`: a head, features and partly known labels in; a better head and its account out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from catwise._configs import PaperConfig
from catwise._version import __version__
from catwise.engines.base import IN_PROCESS, Engine
from catwise.errors import InSampleWarning
from catwise.heads import Head
from catwise.labels import LabelPolicy
from catwise.labels.chosen import ChosenCells
from catwise.metrics import HeadComparison, Metric
from catwise.progress import Progress, ProgressCallback
from catwise.tuning.account.documents import Account
from catwise.tuning.account.held_out import (
    compare_on,
    curves_document,
    evaluation_of,
    fold_curves,
)
from catwise.tuning.account.records import make_records, make_summary
from catwise.tuning.account.results import TuneResult
from catwise.tuning.account.shared import Shared
from catwise.tuning.inputs import (
    LabelledSource,
    Pair,
    TuningInputs,
    check_logits,
    check_sources,
    prepare_inputs,
    prepare_test,
)
from catwise.tuning.memory import bounded
from catwise.tuning.plan import Plan, check_engine, make_plan
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.presets.outcome import Outcome
from catwise.tuning.presets.task import NO_VALIDATION


def tune(
    head: Head,
    train: Pair,
    valid: Pair | None = None,
    *,
    test: Pair | None = None,
    metric: str | Metric = "average_precision",
    preset: str = "default",
    methods: Sequence[str] | None = None,
    validation: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    logits: Any = None,
    policy: LabelPolicy | None = None,
    chosen: ChosenCells | None = None,
    memory: int | None = None,
    force: bool = False,
    config: DefaultConfig | PaperConfig | None = None,
    engine: Engine | None = None,
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
        chosen: cells whose labels were asked for because a model was unsure of them, as
            `catwise.suggest` marks them: they fit and are weighted in the
            calibration, and judge nothing; in test rows they are left out.
        memory: bytes that tuning may hold beyond what the process holds when it begins: fewer
            categories are fitted at a time. For "default" on shared features. None: no bound.
        force: continue although head, features and columns look mismatched.
        config: `DefaultConfig` or `PaperConfig`; the preset's own if None.
        engine: what works on blocks of categories (`catwise.engines`); None: this process. For the
            preset "default" where validation fits; no byte depends on it.
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
    began, has_valid = time.perf_counter(), valid is not None
    plan = make_plan(preset, methods, validation, metric, config, has_valid=has_valid)
    check_engine(plan, engine, memory)
    _report(progress, 0, "checking head, features and labels")
    asked: dict[str, Any] = {"policy": policy, "seed": seed, "device": device, "chosen": chosen}
    inputs = prepare_inputs(head, train, valid, **asked, fits=plan.validation != "select")
    check_logits(inputs, logits)
    others = {"training": train, "validation": valid}
    held_out, notes = prepare_test(inputs, test, others, plan.metric, force=force, chosen=chosen)
    inputs = replace(bounded(inputs, plan.config, held_out, memory), engine=engine or IN_PROCESS)
    _report(progress, 1, "everything fits")
    if valid is None:
        warnings.warn(NO_VALIDATION, InSampleWarning, stacklevel=2)
    outcome = plan.run(inputs, plan.metric, force=force, progress=progress)
    outcome.notes.extend(notes)
    given: dict[str, Any] = {"policy": policy, "chosen": chosen, "test": held_out, "began": began}
    return _result(inputs, plan, outcome, **given)


def _report(progress: ProgressCallback | None, done: int, message: str) -> None:
    if progress is not None:
        progress(Progress("read", done, 1, message))


def _result(
    inputs: TuningInputs,
    plan: Plan,
    outcome: Outcome,
    *,
    policy: LabelPolicy | None,
    chosen: ChosenCells | None,
    test: LabelledSource | None,
    began: float,
) -> TuneResult:
    """What a preset found with its account, on test rows too."""
    config = _config(inputs, plan, policy, chosen)
    tested = compare_both(inputs, plan.metric, outcome.head, test)
    evaluation = None if tested is None else evaluation_of(tested)
    return TuneResult(
        head=_remembering(inputs, outcome.head, config),
        base=inputs.base,
        account=_account(inputs, plan, outcome, evaluation, began),
        config=config,
        gap=None if outcome.gap is None else outcome.gap.to_dict(),
        history=outcome.history,
        folds=outcome.folds,
        notes=[*inputs.notes, *outcome.notes],
        test=None if tested is None else tested.first,
        evaluation=evaluation,
        curves=_curves(inputs, outcome, tested),
        shared=_shared(inputs, plan, outcome, policy, test),
    )


def _curves(
    inputs: TuningInputs, outcome: Outcome, tested: HeadComparison | None
) -> dict[str, Any] | None:
    """What curves are drawn from: test rows, or the rows that were cross-fitted."""
    if tested is not None:
        return curves_document("test", tested.curves)
    where = "training" if inputs.valid is None else "validation"
    return fold_curves(inputs.judging, inputs.scored, outcome.folds, where=where)


def _shared(
    inputs: TuningInputs,
    plan: Plan,
    outcome: Outcome,
    policy: LabelPolicy | None,
    test: LabelledSource | None,
) -> Shared | None:
    """What `retune` takes up; None where the preset keeps nothing for it, or cells were chosen."""
    if outcome.shared is None or inputs.judging.judged is not None:
        return None
    sources = [rows for rows in (inputs.train, inputs.valid) if rows is not None]
    labels = tuple(rows.labels.as_columns() for rows in sources)
    return Shared(
        fits=outcome.shared,
        categories=inputs.categories,
        scores=outcome.scores,
        metric=plan.metric,
        config=plan.config,
        policy=policy,
        digests=tuple(rows.digests for rows in sources),
        content=tuple(rows.content for rows in sources),
        labels=labels,
        fresh=labels,
        test=None if test is None else test.digest,
    )


def check_tune(
    head: Head,
    train: Pair,
    valid: Pair | None = None,
    *,
    test: Pair | None = None,
    metric: str | Metric = "average_precision",
    preset: str = "default",
    methods: Sequence[str] | None = None,
    validation: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    logits: Any = None,
    policy: LabelPolicy | None = None,
    chosen: ChosenCells | None = None,
    memory: int | None = None,
    force: bool = False,
    config: DefaultConfig | PaperConfig | None = None,
) -> list[str]:
    """All that `tune` checks before it starts; arguments and errors as there.

    Returns:
        What it would note, a sentence each.
    """
    plan = make_plan(preset, methods, validation, metric, config, has_valid=valid is not None)
    inputs = prepare_inputs(
        head,
        train,
        valid,
        policy=policy,
        seed=seed,
        device=device,
        chosen=chosen,
        fits=plan.validation != "select",
    )
    check_logits(inputs, logits)
    others = {"training": train, "validation": valid}
    held_out, notes = prepare_test(inputs, test, others, plan.metric, force=force, chosen=chosen)
    bounded(inputs, plan.config, held_out, memory)
    sides = (inputs.train, inputs.valid)
    own = [None if rows is None else inputs.scored.logits(rows.features) for rows in sides]
    return [*inputs.notes, *check_sources(inputs, *own, force=force), *notes]


def _config(
    inputs: TuningInputs, plan: Plan, policy: LabelPolicy | None, chosen: ChosenCells | None
) -> dict[str, Any]:
    """What was asked for or resolved, JSON-ready."""
    return {
        "preset": plan.preset,
        "methods": list(plan.methods),
        "validation": plan.validation if inputs.valid is not None else None,
        "metric": plan.metric.name,
        "seed": inputs.seed,
        "device": str(inputs.device),
        "policy": None if policy is None else policy.to_dict(),
        **({} if chosen is None else {"chosen": len(chosen)}),
        "options": asdict(plan.config),
        "catwise": __version__,
        "torch": torch.__version__,
        "base": inputs.base.digest,
        **({} if inputs.entries is None else {"block_entries": inputs.entries}),
    }


def _account(
    inputs: TuningInputs,
    plan: Plan,
    outcome: Outcome,
    evaluation: dict[str, Any] | None,
    began: float,
) -> Account:
    """Records of the categories and the summary."""
    records = make_records(
        inputs.categories,
        inputs.index.tolist(),
        outcome.scores,
        metric=plan.metric.name,
        scored_on=outcome.scored_on,
        train=inputs.train.labels.counts(),
        valid=None if inputs.valid is None else inputs.valid.labels.counts(),
        gaps=None if outcome.gap is None else outcome.gap.records(),
        evaluation=evaluation,
    )
    summary = make_summary(
        plan.metric.name,
        outcome.scores,
        outcome.mean_gain,
        choice=outcome.choice,
        passes=outcome.passes,
        seconds=time.perf_counter() - began,
        rows=rows_of(inputs),
    )
    return Account(records, summary)


def rows_of(inputs: TuningInputs) -> dict[str, int]:
    """How many labelled rows each source has."""
    sources = {"train": inputs.train, "valid": inputs.valid}
    return {name: rows.labels.n_rows for name, rows in sources.items() if rows is not None}


def _remembering(inputs: TuningInputs, head: Head, config: dict[str, Any]) -> Head:
    """The tuned head with how it was made and what fitted it."""
    sources = [rows.digests for rows in (inputs.train, inputs.valid) if rows is not None]
    keys = ("catwise", "preset", "metric", "seed", "base")
    provenance = {**inputs.base.provenance, "catwise": {key: config[key] for key in keys}}
    return head.replace(provenance=provenance).with_fitted_on(np.concatenate(sources))


def compare_both(
    inputs: TuningInputs, metric: Metric, head: Head, test: LabelledSource | None
) -> HeadComparison | None:
    """Both heads on the test rows; None without any."""
    if test is None:
        return None
    heads = inputs.scored, head.take_categories(inputs.index.tolist())
    base, tuned = (one.replace(categories=inputs.categories) for one in heads)
    return compare_on((test.features, test.labels), base, tuned, metric)
