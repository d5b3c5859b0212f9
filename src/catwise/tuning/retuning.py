"""Chosen categories of a run, tuned again; what all categories share is held.

A label that was corrected changes its own category most. So a run of the preset `default` keeps
what its categories have in common (`SharedFits`), and with that held a category is fitted, judged
and calibrated by itself: with the labels of the run its row is the run's.
"""

from __future__ import annotations

import time
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
from catwise.metrics import HeadComparison
from catwise.progress import ProgressCallback
from catwise.tuning.account.documents import Account, Record, Summary
from catwise.tuning.account.held_out import curves_document, evaluation_of
from catwise.tuning.account.records import make_records, make_summary, mean_of, on_test_rows
from catwise.tuning.account.results import TuneResult, changed_head
from catwise.tuning.account.shared import Shared, SharedFits
from catwise.tuning.api import compare_both
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
    task = _task(shared, given, labels, at, progress)
    others = {"training": train, "validation": valid}
    held_out, notes = prepare_test(given.inputs, test, others, shared.metric, force=force)
    outcome = outcome_of(task, fit_and_choose(task, shared.config), scored_on(task))
    outcome.notes.extend([*_others_changed(run, labels, at), *notes])
    if test is None and run.test is not None:
        outcome.notes.append("No test rows were given, so the new head has no test scores.")
    head = _with_rows(run, task, outcome)
    tested = compare_both(given.inputs, task.metric, head, held_out)
    new = shared.updated(at, outcome.scores, outcome.shared or shared.fits)
    return _merged(run, _Again(task, outcome, at, new, tested), head, began)


def _names(categories: Iterable[str]) -> list[str]:
    names = [categories] if isinstance(categories, str) else list(categories)
    if not names:
        raise CategoryError("no category was named.", expected="categories=[name, …]")
    return names


def _others_changed(
    run: TuneResult, labels: Sequence[PartialLabels], at: NDArray[np.int64]
) -> list[str]:
    """A note where labels of categories changed that were not to be tuned."""
    changed = np.zeros(len(run.account.records), dtype=bool)
    for part, one in zip(("train", "valid"), labels, strict=False):
        counts = one.counts()
        for sign, found in (("positive", counts.positive), ("negative", counts.negative)):
            key = f"n_{sign}_{part}"
            changed |= found != [getattr(record, key) for record in run.account.records]
    changed[at] = False
    if not changed.any():
        return []
    names = [repr(run.account.records[c].category) for c in np.flatnonzero(changed)]
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


class _Again(NamedTuple):
    """What was found for the chosen categories."""

    task: Task
    outcome: Outcome
    at: NDArray[np.int64]  # (K,) their places among the run's
    shared: Shared  # the run's with their scores
    tested: HeadComparison | None


def _merged(run: TuneResult, again: _Again, head: Head, began: float) -> TuneResult:
    """The run with the chosen categories in place of its own."""
    folds, outcome = run.folds, again.outcome
    if folds is not None and outcome.folds is not None:
        folds = folds.updated(again.at, outcome.folds)
    evaluation = None if again.tested is None else evaluation_of(again.tested)
    names = list(again.task.inputs.categories)
    held = f"Tuned again: {some(names, _SHOWN)}. {_HELD}"
    return replace(
        run,
        head=head,
        account=Account(_records(run, again, evaluation), _summary(run, again, began)),
        config={**run.config, "retuned": [*run.config.get("retuned", []), *names]},
        folds=folds,
        notes=[*run.notes, held, *outcome.notes],
        test=None if again.tested is None else again.tested.first,
        evaluation=evaluation,
        curves=curves_document("test", None if again.tested is None else again.tested.curves),
        shared=again.shared,
    )


def _with_rows(run: TuneResult, task: Task, outcome: Outcome) -> Head:
    """The run's head with the rows of the chosen categories."""
    index, tuned = task.inputs.index, outcome.head
    rows = torch.from_numpy(index).to(tuned.weight.device)
    bias = None if tuned.bias is None else tuned.bias[rows]
    return changed_head(run.head, index, tuned.weight[rows], bias)


def _records(
    run: TuneResult, again: _Again, evaluation: dict[str, Any] | None
) -> tuple[Record, ...]:
    """The run's but for the chosen ones, with scores on test rows where there are any now."""
    inputs, outcome = again.task.inputs, again.outcome
    made = make_records(
        inputs.categories,
        inputs.index.tolist(),
        outcome.scores,
        metric=again.task.metric.name,
        scored_on=outcome.scored_on,
        train=inputs.train.labels.counts(),
        valid=None if inputs.valid is None else inputs.valid.labels.counts(),
        gaps=None if outcome.gap is None else outcome.gap.records(),
    )
    records = list(run.account.records)
    for c, one in zip(again.at.tolist(), made, strict=True):
        records[c] = one
    if run.test is not None or evaluation is not None:
        rows = [None] * len(records) if evaluation is None else evaluation["categories"]
        tests = (None if row is None else on_test_rows(row) for row in rows)
        records = [replace(one, test=test) for one, test in zip(records, tests, strict=True)]
    return tuple(records)


def _summary(run: TuneResult, again: _Again, began: float) -> Summary:
    """Of all categories; the mean gain has no interval."""
    scores, gains = again.shared.scores, again.shared.fits.gains
    mean = mean_of(gains) if "replaced" in scores.status else 0.0
    return make_summary(
        again.task.metric.name,
        scores,
        (mean, float("nan"), float("nan")),
        choice=run.account.summary.choice,
        passes=again.outcome.passes,
        seconds=time.perf_counter() - began,
        rows=run.account.summary.rows,
    )
