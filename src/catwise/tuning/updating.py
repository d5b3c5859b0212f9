"""A run brought up to date: the categories whose labels changed are tuned again, one by one.

What all categories share is held at the run's values (`retuning`). Each category is fitted by
itself, so that its bits depend on its own labels alone: not on which others changed with it, nor
on how many updates there were.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from catwise._configs import PaperConfig
from catwise._json import json_ready
from catwise._text import some
from catwise.errors import ConfigError, InSampleWarning, MismatchError
from catwise.heads import Head
from catwise.labels import ChosenCells, LabelPolicy, PartialLabels
from catwise.metrics import HeadComparison, Metric, compare_heads
from catwise.progress import ProgressCallback
from catwise.tuning.account.results import TuneResult
from catwise.tuning.account.shared import LabelChanges, changes_between
from catwise.tuning.inputs import Pair, TuningInputs, prepare_test
from catwise.tuning.plan import make_plan
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.retune_rows import join_again, project_again, shared_of, sources_of
from catwise.tuning.retuning import Again, fit_again, merged
from catwise.tuning.rows.tuning_rows import Counter

MANY: Final = 0.1
"""Share of changed labels over which a run of all categories is advised."""

_SHOWN: Final = 5
_NOW: Final = "(catwise tune --overwrite)"


class UpdatedRun(NamedTuple):
    """What an update did.

    Attributes:
        result: the run as it is now.
        changes: labels that changed since the run was last brought up to date.
        since: labels that changed since all categories were tuned together.
        categories: names of those that were tuned again.
        is_scored: whether test rows scored the head again.
    """

    result: TuneResult
    changes: LabelChanges
    since: LabelChanges
    categories: tuple[str, ...]
    is_scored: bool

    @property
    def is_unchanged(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.categories or self.is_scored)

    def done(self) -> dict[str, Any]:
        """Counts and names; JSON-ready."""
        counts = {
            name: int(getattr(self.changes, name).sum()) for name in ("added", "changed", "removed")
        }
        share = round(self.since.share, 6)
        return {**counts, "categories": list(self.categories), "share_since_all": share}

    def __str__(self) -> str:
        text = str(self.changes)
        return f"{text}: {some(list(self.categories), _SHOWN)}" if self.categories else text


def update_run(
    run: TuneResult,
    train: Pair,
    valid: Pair | None = None,
    *,
    test: Pair | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> UpdatedRun:
    """Bring a run up to date with its labels as they are now.

    Categories whose labels (of training or validation rows) were added, changed or removed are
    tuned again; what all categories share is held, as in :func:`catwise.retune`. All others stay,
    bit for bit. Where more than 10% of the labels changed since all categories were tuned
    together, a note advises to tune all of them.

    Args:
        run: a result of :func:`catwise.tune` with the preset "default", or
            :meth:`TuneResult.load`.
        train: features (N, D) and labels (N, C) of the run's training rows, in its order.
        valid: the same of its validation rows; None where the run had none.
        test: test rows as in `tune`, on which both heads are scored again.
        force: continue although the test rows look mismatched.
        progress: called after each category.

    Returns:
        The run as it is now, and what was done. Where nothing changed, it is the run itself.

    Raises:
        ConfigError: If the result cannot be taken up.
        CategoryError: If the categories are not those of the run.
        IdError: If rows were added or removed, or are in another order.
        MismatchError: If features or groups changed.
        CatwiseError: As :func:`catwise.tune`.

    >>> import catwise
    >>> from catwise.testing import make_task
    >>> task = make_task(seed=0)
    >>> run = catwise.tune(task.head, task.train.pair, task.valid.pair)
    >>> codes = task.valid.labels.codes.copy()
    >>> codes[3, 1] = 1 - codes[3, 1]
    >>> labels = catwise.PartialLabels(codes, categories=task.valid.labels.categories)
    >>> print(update_run(run, task.train.pair, (task.valid.features, labels)).changes)
    labels: 0 added, 1 changed, 0 removed, in 1 of 6 categories
    """
    return prepare_update(run, train, valid).run(test, force=force, progress=progress)


@dataclass(frozen=True, eq=False)
class PreparedUpdate:
    """Rows that are those of a run, and what changed in their labels."""

    before: TuneResult
    inputs: TuningInputs
    pairs: tuple[Pair, ...]
    changes: LabelChanges
    since: LabelChanges

    @property
    def at(self) -> NDArray[np.int64]:
        """Places of the categories whose labels changed."""
        return np.flatnonzero(self.changes.each)

    @property
    def categories(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.inputs.categories[c] for c in self.at)

    def run(
        self, test: Pair | None, *, force: bool = False, progress: ProgressCallback | None = None
    ) -> UpdatedRun:
        """Tune these categories again; arguments as `update_run`."""
        began = time.perf_counter()
        before, inputs = self.before, self.inputs
        shared, labels = shared_of(before), self._labels()
        others = dict(zip(("training", "validation"), (*self.pairs, None), strict=False))
        held_out, notes = prepare_test(inputs, test, others, shared.metric, force=force)
        digest = None if held_out is None else held_out.digest
        is_scored = digest != shared.test
        if not (len(self.at) or is_scored):
            return UpdatedRun(before, self.changes, self.since, (), is_scored=False)
        given = tuple(pair[0] for pair in self.pairs)
        rows = project_again(shared, inputs, given, tuple(pair[1] for pair in self.pairs))
        counter, parts = Counter(progress, "update", len(self.at)), list[Again]()
        for c in self.at.tolist():
            parts.append(fit_again(shared, rows, labels, np.array([c]), None))
            counter.step(f"{inputs.categories[c]!r} tuned again")
        notes = [*(note for part in parts for note in part.notes), *notes, *self._advice()]
        result = merged(before, rows, parts, labels, test=held_out, notes=notes, began=began)
        result = result.tested_on(digest)
        return UpdatedRun(result, self.changes, self.since, self.categories, is_scored=is_scored)

    def _labels(self) -> list[PartialLabels]:
        return [source.labels for source in sources_of(self.inputs)]

    def _advice(self) -> list[str]:
        """What to do where too much changed for what is held."""
        if self.since.share <= MANY:
            return []
        share = f"{self.since.share:.0%} of the labels have changed"
        since = "since all categories were tuned together, and what they share is of before"
        return [f"{share} {since}: tune all of them {_NOW}."]


def prepare_update(run: TuneResult, train: Pair, valid: Pair | None) -> PreparedUpdate:
    """Check that these are a run's rows, and find what changed; arguments as `update_run`."""
    shared = shared_of(run)
    inputs = join_again(run, train, valid)
    sources = sources_of(inputs)
    for name, source, content in zip(
        ("training", "validation"), sources, shared.content, strict=False
    ):
        if source.content != content:
            raise MismatchError(
                f"features or groups of the {name} rows have changed since the run.",
                found="the same rows, with other numbers",
                expected="the very features (and groups) of the run",
                remedy=f"tune all categories again {_NOW}",
            )
    labels = [source.labels for source in sources]
    changes = changes_between(shared.labels, labels)
    since = changes_between(shared.fresh, labels)
    pairs = tuple(pair for pair in (train, valid) if pair is not None)
    return PreparedUpdate(run, inputs, pairs, changes, since)


def check_same_options(
    folder: Path,
    config: Mapping[str, Any],
    *,
    has_valid: bool,
    preset: str = "default",
    methods: Any = None,
    validation: str | None = None,
    metric: str | Metric = "average_precision",
    seed: int = 0,
    device: Any = None,
    policy: LabelPolicy | None = None,
    options: DefaultConfig | PaperConfig | None = None,
) -> None:
    """Refuse an update with other options than those of the run."""
    plan = make_plan(preset, methods, validation, metric, options, has_valid=has_valid)
    now = {
        "preset": plan.preset,
        "methods": list(plan.methods),
        "validation": plan.validation if has_valid else None,
        "metric": plan.metric.name,
        "seed": seed,
        "policy": None if policy is None else policy.to_dict(),
        "options": json_ready(asdict(plan.config)),
        "device": config.get("device") if device is None else str(device),
    }
    found = [
        f"{name} {config.get(name)!r} before, {value!r} now"
        for name, value in now.items()
        if json_ready(config.get(name)) != value
    ]
    if found:
        raise ConfigError(
            f"'{folder}' was tuned with other options.",
            found="; ".join(found),
            expected="the options of the run: an update takes other labels alone",
            remedy="repeat its options, or tune all categories again with --overwrite "
            "(overwrite=True)",
        )


def compare_with_previous(
    before: Head,
    head: Head,
    test: Pair | None,
    metric: str | Metric,
    *,
    chosen: ChosenCells | None = None,
) -> HeadComparison | None:
    """The head before an update, and the new one, on the same test rows; None without any."""
    if test is None or before.categories != head.categories:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=InSampleWarning)
        return compare_heads(before, head, test, metrics=[metric], chosen=chosen, force=True)
