"""Chosen categories of a run, tuned again; what all categories share is held.

A label that was corrected changes its own category most. So a run of the preset `default` keeps
what its categories have in common (`SharedFits`), and with that held a category is fitted, judged
and calibrated by itself: with the labels of the run its row is the run's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._text import some
from catwise.errors import CategoryError
from catwise.features import CategoryFeatures, category_runs, of_categories
from catwise.heads import Head
from catwise.labels import LabelPolicy, PartialLabels, make_targets
from catwise.labels.names import category_positions
from catwise.progress import ProgressCallback
from catwise.tuning.account.documents import Account, Record, Summary
from catwise.tuning.account.held_out import curves_document, evaluation_of, fold_curves
from catwise.tuning.account.records import (
    Scores,
    make_records,
    make_summary,
    mean_of,
    on_test_rows,
)
from catwise.tuning.account.results import FoldArtifacts, TuneResult, changed_head
from catwise.tuning.account.shared import Shared, SharedFits, changes_between
from catwise.tuning.api import compare_both
from catwise.tuning.choice.rules import Floats
from catwise.tuning.inputs import LabelledSource, Pair, TuningInputs, prepare_test
from catwise.tuning.presets.outcome import Outcome
from catwise.tuning.presets.pooled_anchor import fit_and_choose, scored_on
from catwise.tuning.presets.task import Task, outcome_of
from catwise.tuning.retune_rows import (
    RetuneRows,
    check_read_for,
    current_labels,
    read_retune_rows,
    shared_of,
    sources_of,
)
from catwise.tuning.rows.coordinates import OwnCoordinates, read_rows
from catwise.tuning.rows.tuning_rows import TuningRows

_SHOWN: Final = 5
_AGAIN: Final = "Tuned again: "
_HELD: Final = (
    "Held at the run's values, which all categories share: coordinates, weights of the anchor, "
    "penalties, folds, the mean gain that keep or replace is shrunk to, and the pooled slope of "
    "the calibration. The mean gain has no interval."
)


def retune(
    run: TuneResult,
    train: Pair,
    valid: Pair | None = None,
    *,
    categories: Iterable[str],
    test: Pair | None = None,
    rows: RetuneRows | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> TuneResult:
    """Tune chosen categories of a run again, after some of their labels were corrected or added.

    What all categories share is held at the run's values: coordinates, the weights of the anchor,
    the penalties (of all rows and without each fold), folds, the mean gain that keep or replace is
    shrunk to, and the pooled slope of the calibration. The rest is fitted, chosen and scored again
    for these categories, as `tune` does it; with unchanged labels that gives the run's numbers
    again. All other categories are the run's, bit for bit: rows of the head and of the fold heads,
    out-of-fold logits, records. With many changed labels tune anew: what is shared would change.

    Args:
        run: a result of :func:`catwise.tune` with the preset "default", of this session.
        train: features (N, D) and labels (N, C) of the run's training rows, in its order, with the
            labels as they are now.
        valid: the same of its validation rows; None where the run had none.
        categories: names of those to tune again; labels of others are not looked at.
        test: test rows as in `tune`, on which both heads are scored again; without them the result
            has no test scores.
        rows: what :func:`read_retune_rows` made of the same features. It leaves out reading and
            checking them, which takes most of the time.
        force: continue although the test rows look mismatched.
        progress: called now and then.

    Returns:
        The run with these categories in place of its own; a note says what was held.

    Raises:
        ConfigError: If the result cannot be taken up: of "paper" or ``validation="select"``,
            loaded, extended, or of another version; or if `rows` are of other features.
        CategoryError: If a category is not one of the run's, or the labels have others.
        IdError: If the rows are not those of the run.
        MismatchError: If the features are not those of the run.
        CatwiseError: As :func:`catwise.tune`.

    >>> import numpy as np, catwise
    >>> from catwise.testing import make_task
    >>> task = make_task(seed=0)
    >>> run = catwise.tune(task.head, task.train.pair, task.valid.pair)
    >>> codes = task.valid.labels.codes.copy()
    >>> codes[3, 1] = 1 - codes[3, 1]  # a label of the second category was wrong
    >>> labels = catwise.PartialLabels(codes, categories=task.valid.labels.categories)
    >>> name = labels.categories[1]
    >>> new = catwise.retune(run, task.train.pair, (task.valid.features, labels), categories=[name])
    >>> [a == b for a, b in zip(new.records, run.records)]
    [True, False, True, True, True, True]
    """
    began = time.perf_counter()
    shared = shared_of(run)
    given = read_retune_rows(run, train, valid) if rows is None else rows
    check_read_for(shared, given)
    labels = current_labels(given, train, valid)
    at = np.sort(category_positions(shared.categories, _names(categories)))
    others = {"training": train, "validation": valid}
    held_out, notes = prepare_test(given.inputs, test, others, shared.metric, force=force)
    again = fit_again(shared, given, labels, at, progress)
    notes = [*again.notes, *_others_changed(shared, labels, at), *notes]
    return merged(run, given, [again], labels, test=held_out, notes=notes, began=began)


def _names(categories: Iterable[str]) -> list[str]:
    names = [categories] if isinstance(categories, str) else list(categories)
    if not names:
        raise CategoryError("no category was named.", expected="categories=[name, …]")
    return names


def _others_changed(
    shared: Shared, labels: Sequence[PartialLabels], at: NDArray[np.int64]
) -> list[str]:
    """A note where labels of categories changed that were not to be tuned."""
    changed = changes_between(shared.labels, labels).each > 0
    changed[at] = False
    if not changed.any():
        return []
    names = [repr(shared.categories[c]) for c in np.flatnonzero(changed)]
    shown = some(names, _SHOWN)
    return [
        f"Labels of {len(names):,} other categories changed, too; they stay as before: {shown}."
    ]


# ---------------------------------------------------------------------------------- task


def _task(
    shared: Shared,
    given: RetuneRows,
    labels: Sequence[PartialLabels],
    at: NDArray[np.int64],
    progress: ProgressCallback | None,
) -> Task:
    """The chosen categories as a task of their own, with what is held."""
    whole = given.inputs
    sources = [
        LabelledSource.of(
            of_categories(source.features, at.tolist(), len(shared.categories)),
            own.take_categories(at.tolist()),
            shared.policy,
            whole.seed,
            digests=source.digests,
        )
        for source, own in zip(sources_of(whole), labels, strict=True)
    ]
    inputs = replace(
        whole,
        scored=whole.scored.take_categories(at.tolist()),
        index=whole.index[at],
        categories=tuple(shared.categories[c] for c in at),
        train=sources[0],
        valid=sources[1] if len(sources) > 1 else None,
        notes=[],
    )
    fits = _fits_of(shared.fits, sources[-1].features, at)
    laid_out = _rows(inputs, given, fits, at)
    return Task(
        inputs,
        shared.metric,
        fits.coordinates,
        laid_out[-1],
        laid_out[0] if len(laid_out) > 1 else None,
        fits.fold,
        [],
        progress,
        held=fits,
        labelled=_labelled(labels[0], shared.policy, whole.seed).to(whole.device),
    )


def _fits_of(fits: SharedFits, features: Any, at: NDArray[np.int64]) -> SharedFits:
    """With the starts of the chosen categories, and their coordinates where each has its own."""
    own, fits = fits.coordinates, replace(fits, starts=fits.starts.take(at))
    if not isinstance(own, OwnCoordinates) or not isinstance(features, CategoryFeatures):
        return fits
    runs = [run for run, _ in category_runs(features, len(at))]
    made = [(run, own.of(slice(int(at[run.start]), int(at[run.start]) + 1))) for run in runs]
    return replace(fits, coordinates=OwnCoordinates(made))


def _rows(
    task: TuningInputs, given: RetuneRows, fits: SharedFits, at: NDArray[np.int64]
) -> list[TuningRows]:
    """The sources in coordinates; category-specific features are read here."""
    found = []
    for number, source in enumerate(sources_of(task)):
        if given.rows is None:
            own = source.features
            x, logits = read_rows(own, task.scored, fits.coordinates, device=task.device)
        else:
            x, logits = given.rows[number]
            logits = logits[torch.from_numpy(at).to(logits.device)]
        target, weight = (
            None if one is None else one.to(task.device) for one in (source.target, source.weight)
        )
        codes, intercept = source.codes.to(task.device), task.scored.bias is not None
        found.append(TuningRows(x, logits, codes, intercept, target, weight))
    return found


def _labelled(labels: PartialLabels, policy: LabelPolicy | None, seed: int) -> Tensor:
    """(N,) whether a row has a label to fit in any category; as `TuningRows.known`."""
    if policy is not None:
        return torch.from_numpy((make_targets(labels, policy, seed).weight > 0).any(1))
    return torch.cat([torch.from_numpy((codes >= 0).any(1)) for _, codes in labels.blocks()])


# -------------------------------------------------------------------------------- merging


class Again(NamedTuple):
    """What was found for (K,) categories that were tuned again."""

    at: NDArray[np.int64]  # (K,) their places among the run's
    rows: NDArray[np.int64]  # (K,) their rows of the head
    weight: Tensor  # (K, D)
    bias: Tensor | None  # (K,)
    scores: Scores
    gains: Floats
    folds: FoldArtifacts | None
    records: tuple[Record, ...]
    passes: dict[str, int]
    notes: list[str]


def fit_again(
    shared: Shared,
    given: RetuneRows,
    labels: Sequence[PartialLabels],
    at: NDArray[np.int64],
    progress: ProgressCallback | None,
) -> Again:
    """Fit, choose and score (K,) categories with what is held."""
    task = _task(shared, given, labels, at, progress)
    outcome = outcome_of(task, fit_and_choose(task, shared.config), scored_on(task))
    inputs, head = task.inputs, outcome.head
    rows = torch.from_numpy(inputs.index).to(head.weight.device)
    fits = outcome.shared or shared.fits
    return Again(
        at,
        inputs.index,
        head.weight[rows],
        None if head.bias is None else head.bias[rows],
        outcome.scores,
        fits.gains,
        outcome.folds,
        _records(task, outcome),
        outcome.passes,
        outcome.notes,
    )


def _records(task: Task, outcome: Outcome) -> tuple[Record, ...]:
    inputs = task.inputs
    return make_records(
        inputs.categories,
        inputs.index.tolist(),
        outcome.scores,
        metric=task.metric.name,
        scored_on=outcome.scored_on,
        train=inputs.train.labels.counts(),
        valid=None if inputs.valid is None else inputs.valid.labels.counts(),
        gaps=None if outcome.gap is None else outcome.gap.records(),
    )


def merged(
    run: TuneResult,
    given: RetuneRows,
    parts: Sequence[Again],
    labels: Sequence[PartialLabels],
    *,
    test: LabelledSource | None,
    notes: Sequence[str],
    began: float,
) -> TuneResult:
    """The run with categories that were tuned again in place of its own, scored on test rows."""
    shared = shared_of(run)
    for part in parts:
        shared = shared.updated(part.at, part.scores, part.gains, labels)
    head = _head(run, parts)
    tested = compare_both(given.inputs, shared.metric, head, test)
    evaluation = None if tested is None else evaluation_of(tested)
    if test is None and run.evaluation is not None:
        notes = [*notes, "No test rows were given, so the new head has no test scores."]
    folds = run.folds
    if folds is not None:
        folds = folds.updated([(part.at, part.folds) for part in parts if part.folds is not None])
    curves = curves_document("test", None if tested is None else tested.curves)
    if curves is None and run.evaluation is None:
        inputs = given.inputs
        where = "training" if inputs.valid is None else "validation"
        curves = fold_curves(inputs.judging, inputs.scored, folds, where=where)
    names = [shared.categories[c] for part in parts for c in part.at.tolist()]
    names = list(dict.fromkeys([*run.config.get("retuned", []), *names]))
    held = [f"{_AGAIN}{some(names, _SHOWN)}. {_HELD}"] if names else []
    before = [note for note in run.notes if not note.startswith(_AGAIN)]
    return replace(
        run,
        head=head,
        account=Account(
            _merged_records(run, parts, evaluation), _summary(run, shared, parts, began)
        ),
        config={**run.config, "retuned": names} if names else run.config,
        folds=folds,
        notes=list(dict.fromkeys([*before, *held, *notes])),
        test=None if tested is None else tested.first,
        evaluation=evaluation,
        curves=curves,
        shared=shared,
    )


def _head(run: TuneResult, parts: Sequence[Again]) -> Head:
    """The run's head with the rows of these categories."""
    if not parts:
        return run.head
    biases = [part.bias for part in parts if part.bias is not None]
    index = np.concatenate([part.rows for part in parts])
    weight = torch.cat([part.weight for part in parts])
    return changed_head(run.head, index, weight, torch.cat(biases) if biases else None)


def _merged_records(
    run: TuneResult, parts: Sequence[Again], evaluation: dict[str, Any] | None
) -> tuple[Record, ...]:
    """The run's but for the chosen ones, with scores on test rows where there are any now."""
    records = list(run.account.records)
    for part in parts:
        for c, one in zip(part.at.tolist(), part.records, strict=True):
            records[c] = one
    if run.evaluation is not None or evaluation is not None:
        rows = [None] * len(records) if evaluation is None else evaluation["categories"]
        tests = (None if row is None else on_test_rows(row) for row in rows)
        records = [replace(one, test=test) for one, test in zip(records, tests, strict=True)]
    return tuple(records)


def _summary(run: TuneResult, shared: Shared, parts: Sequence[Again], began: float) -> Summary:
    """Of all categories; the mean gain has no interval."""
    old, seconds = run.account.summary, time.perf_counter() - began
    if not parts:
        return replace(old, seconds=round(seconds, 3))
    scores = shared.scores
    mean = mean_of(shared.fits.gains) if "replaced" in scores.status else 0.0
    passes: Counter[str] = Counter()
    for part in parts:
        passes.update(part.passes)
    return make_summary(
        shared.metric.name,
        scores,
        (mean, float("nan"), float("nan")),
        choice=old.choice,
        passes=dict(passes),
        seconds=seconds,
        rows=old.rows,
    )
