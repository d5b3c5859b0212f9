"""The inputs of `tune`: head, features and labels of all sources, checked and joined."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from catwise._device import resolve_device
from catwise.engines.base import IN_PROCESS, Engine
from catwise.errors import CategoryError, ConfigError, IdError, MismatchError, ShapeError
from catwise.features import by_category, check_finite, of_categories
from catwise.features.digests import content_digests
from catwise.heads import Head
from catwise.joining import (
    COINCIDENCE,
    Aligned,
    align,
    check_disjoint,
    has_default_names,
    open_source,
    require_known,
    seen_rows,
    source_digests,
    source_ids,
)
from catwise.labels import LabelPolicy, PartialLabels, make_targets
from catwise.labels.audit import labelled_part
from catwise.labels.chosen import ChosenCells, chosen_note
from catwise.metrics import Metric
from catwise.metrics.inputs import as_tensor, check_head_logits
from catwise.metrics.intervals import has_interval
from catwise.metrics.mismatch import check_match
from catwise.metrics.registry import METRICS

Pair: TypeAlias = tuple[Any, PartialLabels]

_LOGITS_TOLERANCE: Final = 1e-2
#: Logits of test rows that are looked at before the work begins: 256 MiB as float32.
_ENTRIES: Final = 1 << 26


@dataclass(frozen=True)
class LabelledSource:
    """One source: features in the order of the labels, labels in the order of the head's rows."""

    features: Any  # (n, D), or (n, C, D)
    labels: PartialLabels  # (n, C)
    digests: NDArray[np.uint64]  # (n,) what each row is known by
    # (C, n) in [0, 1], what is fitted where a label policy says more than the labels
    target: torch.Tensor | None = None
    weight: torch.Tensor | None = None  # (C, n) of the targets, or None
    # (n, C) those that keep or replace and score, where cells that a model chose do not
    judged: PartialLabels | None = None

    @property
    def codes(self) -> torch.Tensor:
        """(C, n) int8."""
        return self.codes_of(self.labels)

    @staticmethod
    def codes_of(labels: PartialLabels) -> torch.Tensor:
        """(C, n) int8 of labels."""
        return torch.from_numpy(np.array(labels.codes.T, order="C"))

    @property
    def content(self) -> str:
        """A digest of features and groups; the features are read for it."""
        found = hashlib.sha256(content_digests(self.features).tobytes())
        if self.labels.groups is not None:
            found.update(self.labels.units().tobytes())
        return found.hexdigest()

    @property
    def digest(self) -> str:
        """A digest of features, rows and labels."""
        columns = self.labels.as_columns()
        parts = (self.digests, columns.starts, columns.rows.astype(np.int64), columns.codes)
        found = hashlib.sha256(self.content.encode())
        for part in parts:
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    @classmethod
    def of(
        cls,
        features: Any,
        labels: PartialLabels,
        policy: LabelPolicy | None,
        seed: int,
        *,
        digests: NDArray[np.uint64] | None = None,
    ) -> LabelledSource:
        """Features that are in the order of their labels, with what a policy makes of these."""
        digests = source_digests(features, labels) if digests is None else digests
        if policy is None:
            return cls(features, labels, digests)
        given = make_targets(labels, policy, seed)
        target, weight = (
            torch.from_numpy(np.array(a.T, order="C")) for a in (given.target, given.weight)
        )
        return cls(features, labels, digests, target, weight)


@dataclass(frozen=True)
class TuningInputs:
    """Everything checked and joined."""

    base: Head  # the head that was given
    scored: Head  # its C rows that the labels speak about
    index: NDArray[np.int64]  # (C,) which rows of the base these are
    categories: tuple[str, ...]  # their C names
    train: LabelledSource  # labelled rows that the backbone was trained on
    valid: LabelledSource | None  # labelled rows of other images, or None
    device: torch.device  # where to compute
    seed: int  # of everything that is drawn
    notes: list[str]  # what to know, a sentence each
    engine: Engine = IN_PROCESS  # where blocks of categories are worked on
    entries: int | None = None  # rows times categories of a block, where memory is bounded

    @property
    def judging(self) -> LabelledSource:
        """The rows that choose and score: validation, or training without it."""
        return self.train if self.valid is None else self.valid


def prepare_inputs(
    head: Head,
    train: Pair,
    valid: Pair | None,
    *,
    policy: LabelPolicy | None,
    seed: int,
    device: str | torch.device | None,
    chosen: ChosenCells | None = None,
    fits: bool = True,
) -> TuningInputs:
    """Check and join the sources that `tune` fits and chooses on; arguments and errors as there.

    `fits` says whether validation labels fit; where they only choose, chosen cells have no part.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ConfigError("the seed must be a whole number.", found=f"seed={seed!r}")
    train = features, labels = open_source(train, name="train")
    features = by_category(features) or features
    where = getattr(features, "device", None) if device is None else resolve_device(device)
    aligned = align(head, features, labels, name="train")
    taken = aligned.take(features)
    check_finite(taken, name="train features", for_fitting=True)
    rows = LabelledSource.of(taken, labels, policy, seed)
    if rows.weight is None or not rows.weight.any():
        require_known(labels, "training label")
    held_out, notes = None, list(aligned.notes)
    if valid is not None:
        held_out, more = _join_valid(head, train, valid, aligned, policy=policy, seed=seed)
        notes += more
    rows, held_out, more = _without_chosen(rows, held_out, chosen, fits=fits)
    notes += more
    notes += _fitted_before(head, rows, held_out)
    notes += labelled_part((held_out or rows).labels)
    uncertain = any(one.labels.counts().uncertain.any() for one in (rows, held_out) if one)
    if policy is not None or uncertain:
        notes.append(f"fitting: {policy or LabelPolicy()}")
    return TuningInputs(
        base=head,
        scored=aligned.scored,
        index=aligned.head_index,
        categories=aligned.categories,
        train=rows,
        valid=held_out,
        device=where if isinstance(where, torch.device) else torch.device("cpu"),
        seed=seed,
        notes=notes,
    )


def _without_chosen(
    train: LabelledSource,
    valid: LabelledSource | None,
    chosen: ChosenCells | None,
    *,
    fits: bool,
) -> tuple[LabelledSource, LabelledSource | None, list[str]]:
    """Both sources; cells that a model chose judge nothing in the one that judges; what to know."""
    if chosen is None:
        return train, valid, []
    if valid is None:
        own, notes = _only_fitting(train, chosen, fits=True)
        return own, None, notes
    own, notes = _only_fitting(valid, chosen, fits=fits)
    return train, own, notes


def _only_fitting(
    data: LabelledSource, chosen: ChosenCells, *, fits: bool
) -> tuple[LabelledSource, list[str]]:
    """A source in which cells that a model chose judge nothing, and what to know."""
    rest = chosen.without(data.labels)
    what = (
        "they fit and are weighted in the calibration, and judge nothing"
        if fits
        else "they are left out"
    )
    notes = chosen_note(data.labels, rest, what)
    if not notes:
        return data, ["None of the chosen cells is a known label of the rows that judge."]
    require_known(rest, "label that no model chose")
    if not fits:
        return replace(data, labels=rest), notes
    return replace(data, judged=rest), notes


def _join_valid(
    head: Head,
    train: Pair,
    valid: Pair,
    aligned: Aligned,
    *,
    policy: LabelPolicy | None,
    seed: int,
) -> tuple[LabelledSource, list[str]]:
    """Validation rows with the training labels' columns, and what to know."""
    valid = features, labels = open_source(valid, name="valid")
    check_kinds(train[0], features, "validation")
    notes = check_disjoint(train, valid)
    own = align(head, *valid, name="valid")
    require_known(labels, "validation label")
    ordered = same_categories(aligned, own, "validation")
    taken = replace(own, head_index=aligned.head_index).take(features)
    check_finite(taken, name="valid features", for_fitting=True)
    return LabelledSource.of(taken, ordered, policy, seed), [*notes, *own.notes]


def _fitted_before(head: Head, train: LabelledSource, valid: LabelledSource | None) -> list[str]:
    """Say so where the rows that choose fitted the head that was given."""
    name, chooses = ("training", train) if valid is None else ("validation", valid)
    n_seen = int(seen_rows(head, chooses.digests)[0].sum())
    if not n_seen:
        return []
    rows = f"{n_seen:,} of {chooses.digests.size:,} {name} rows fitted or selected the head given"
    return [f"{rows}: what it scores there is too good, and a gain over it is too small."]


def prepare_test(
    inputs: TuningInputs,
    test: Pair | None,
    others: dict[str, Pair | None],
    metric: Metric,
    *,
    force: bool,
    chosen: ChosenCells | None = None,
) -> tuple[LabelledSource | None, list[str]]:
    """Check and join test rows as training and validation rows are, without chosen cells.

    Returns:
        The rows in the order of the labels, and what to know, a sentence each.
    """
    if test is None:
        return None, []
    _check_metric(metric)
    features, labels = open_source(test, name="test")
    check_kinds(inputs.train.features, features, "test")
    notes: list[str] = []
    for name, source in others.items():
        if source is not None:
            notes += check_disjoint(source, (features, labels), names=(name, "test"))
    if chosen is not None:
        every, labels = labels, chosen.without(labels)
        notes += [f"test: {note}" for note in chosen_note(every, labels, "they are not scored")]
    aligned = align(inputs.base, features, labels, name="test")
    require_known(labels, "test label")
    train = Aligned(inputs.base, None, inputs.train.labels, inputs.index, [])
    ordered = same_categories(train, aligned, "test")
    taken = replace(aligned, head_index=inputs.index).take(features)
    check_finite(taken, name="test features")
    rows = LabelledSource.of(taken, ordered, None, inputs.seed)
    notes += aligned.notes
    notes += _check_test_logits(inputs, rows, force=force)
    return rows, [*notes, *_fitted_head(inputs, rows)]


def _check_metric(metric: Metric) -> None:
    """Refuse what has no interval before the work begins, not after."""
    if not has_interval(metric):
        raise ConfigError(
            "test rows cannot be compared by this metric.",
            found=metric.name,
            expected="one of " + ", ".join(METRICS),
            remedy="another metric, or no test rows: evaluate both heads afterwards",
        )


def _check_test_logits(inputs: TuningInputs, test: LabelledSource, *, force: bool) -> list[str]:
    """Whether the head, the features and the columns look as if they belonged together."""
    head, labels = inputs.scored, test.labels
    index = range(min(head.n_categories, max(1, _ENTRIES // max(labels.n_rows, 1))))
    own = of_categories(test.features, index, head.n_categories)
    names = inputs.categories[: len(index)]
    logits = check_head_logits(head.take_categories(index).logits(own), names, name="test")
    some = labels.take_categories(index)
    return check_match(logits, some, name="test", categories=names, force=force)


def _fitted_head(inputs: TuningInputs, test: LabelledSource) -> list[str]:
    """Refuse rows that fitted the head that was given: its score before would be too good.

    Without ids a few may be equal images, as in `check_disjoint`.
    """
    seen = np.flatnonzero(seen_rows(inputs.base, test.digests)[0])
    if not seen.size:
        return []
    text = f"{seen.size:,} of {test.digests.size:,} test rows fitted or selected the head given"
    ids = source_ids(test.features, test.labels)
    if ids is None and seen.size <= COINCIDENCE * test.digests.size:
        return [f"{text}, by the content of their features."]
    first = f"row {seen[0]:,}" if ids is None else repr(str(ids[seen[0]]))
    raise IdError(
        f"{text}, so they cannot judge it.",
        found=f"first {first}",
        expected="rows that neither that head nor this tuning has seen",
        remedy="other test rows, or the head as it was before these were used",
    )


def check_kinds(train: Any, other: Any, name: str) -> None:
    """Training features and those of another source have one vector for an image, or as many."""
    kinds = [by_category(features) for features in (train, other)]
    counts = [0 if kind is None else kind.n_groups for kind in kinds]
    if counts[0] != counts[1]:
        texts = [f"{n:,} vectors an image" if n else "one vector an image" for n in counts]
        raise ShapeError(
            f"training and {name} features are not of one kind.",
            found=f"{texts[0]} in training, {texts[1]} in {name}",
            expected="features of one model",
        )


def same_categories(train: Aligned, other: Aligned, name: str) -> PartialLabels:
    """Labels of another source with their columns in the order of the training labels'.

    By name where both have names; else by the row of the head that a column belongs to.
    """
    sides = (train, other)
    named = not any(has_default_names(side.labels.categories) for side in sides)
    wanted, have = (
        list(side.labels.categories if named else side.head_index.tolist()) for side in sides
    )
    place = {key: column for column, key in enumerate(have)}
    lacking = [train.categories[i] for i, key in enumerate(wanted) if key not in place]
    if lacking:
        raise CategoryError(
            f"the {name} labels lack {len(lacking):,} of the training labels' "
            f"{len(wanted):,} categories.",
            found=f"not there: {', '.join(map(repr, lacking[:3]))}",
            expected="the same categories in both, in any order",
            remedy="add the columns, with unknown labels, or leave them out of both",
        )
    index = [place[key] for key in wanted]
    if index == list(range(other.labels.shape[1])):
        return other.labels
    return other.labels.take_categories(index)


def check_sources(inputs: TuningInputs, train: Any, valid: Any, *, force: bool) -> list[str]:
    """Head, features and columns must look as if they belonged together, in either source.

    Shapes:
        train: (N, C) logits of the training rows.
        valid: (M, C) logits of the validation rows, or None without them.
    """
    notes = []
    for name, data, logits in (("valid", inputs.valid, valid), ("train", inputs.train, train)):
        if data is not None:
            check_head_logits(logits, inputs.categories, name=name)
            names = inputs.categories
            notes += check_match(logits, data.labels, name=name, categories=names, force=force)
    return notes


def check_logits(inputs: TuningInputs, logits: Any) -> None:
    """The model's own logits must be the head's on these features."""
    if logits is None:
        return
    given = as_tensor(logits, "the logits").cpu().double()
    own = inputs.scored.logits(inputs.train.features).cpu().double()
    if given.shape[1:] == (inputs.base.n_categories,):
        given = given[:, torch.from_numpy(inputs.index)]
    if given.shape != own.shape:
        raise MismatchError(
            "the logits given do not have the shape of the head's on the training features.",
            found=f"logits {tuple(given.shape)}",
            expected=f"{tuple(own.shape)}",
        )
    probable = (
        "these look like probabilities, not logits; "
        if bool(((given >= 0) & (given <= 1)).all())
        else ""
    )
    error = (given - own).abs()
    scale = _LOGITS_TOLERANCE * (1 + own.abs())
    if not bool((error <= scale).all()):  # NaN is not equal either
        row, column = divmod(int((error / scale).argmax()), own.shape[1])
        raise MismatchError(
            "the logits given are not those of this head on these features.",
            found=f"row {row}, {inputs.categories[column]!r}: given {given[row, column]:.4g}, "
            f"head {own[row, column]:.4g}",
            expected=f"equal to {_LOGITS_TOLERANCE:g} (relative)",
            remedy=("these look like probabilities, not logits; " if probable else "")
            + "use the input of the classification layer as features, in evaluation mode",
        )
