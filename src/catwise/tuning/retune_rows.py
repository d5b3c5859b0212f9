"""The rows of a run, read once for `retune`, and whether what is given belongs to the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from catwise._text import some
from catwise.errors import CategoryError, ConfigError, IdError, MismatchError
from catwise.joining import open_source, require_known
from catwise.labels import PartialLabels
from catwise.tuning.account.results import TuneResult
from catwise.tuning.account.shared import Shared
from catwise.tuning.inputs import LabelledSource, Pair, TuningInputs, prepare_inputs
from catwise.tuning.rows.coordinates import OwnCoordinates, read_rows

_SHOWN: Final = 5
_TOLERANCE: Final = 1e-2


@dataclass(frozen=True, eq=False, repr=False)
class RetuneRows:
    """Features of a run, read once for many calls of `retune`; made by `read_retune_rows`.

    Of N training and M validation rows, k coordinates (at most 512) and C categories it holds
    ``4 (N + M) (k + C)`` bytes, and it refers to the features that were given.
    """

    given: tuple[Any, ...]  # features of training and validation, as they were given
    labels: tuple[PartialLabels, ...]  # as given, too: whose ids and groups later ones must have
    inputs: TuningInputs  # of all categories
    # coordinates (n, k) and logits (C, n) of each source; None for category-specific features
    rows: tuple[tuple[Any, Tensor], ...] | None
    coordinates: Any  # those of the run


def read_retune_rows(run: TuneResult, train: Pair, valid: Pair | None = None) -> RetuneRows:
    """Check, join and project a run's rows once, for many calls of `retune`.

    Args:
        run: a result of `tune` with the preset "default".
        train: features and labels of the run's training rows, in its order.
        valid: the same of its validation rows, or None where it had none.

    Returns:
        What `retune` takes as `rows`.

    Raises:
        CatwiseError: As `retune`.
    """
    inputs = join_again(run, train, valid)
    given = tuple(pair[0] for pair in (train, valid) if pair is not None)
    labels = tuple(open_source(pair, name="data")[1] for pair in (train, valid) if pair is not None)
    return project_again(shared_of(run), inputs, given, labels)


def join_again(run: TuneResult, train: Pair, valid: Pair | None) -> TuningInputs:
    """Check and join what is given as the rows of a run."""
    shared = shared_of(run)
    inputs = prepare_inputs(
        run.base,
        train,
        valid,
        policy=shared.policy,
        seed=run.config["seed"],
        device=run.config["device"],
    )
    _check_rows(shared, sources_of(inputs))
    if inputs.categories != shared.categories:
        raise CategoryError(
            "these are not the categories of the run.",
            found=some([repr(name) for name in inputs.categories], _SHOWN),
            expected=f"{some([repr(name) for name in shared.categories], _SHOWN)}, in this order",
            remedy="give the run's columns; other categories need a new run of tune",
        )
    return inputs


def project_again(
    shared: Shared,
    inputs: TuningInputs,
    given: tuple[Any, ...],
    labels: tuple[PartialLabels, ...],
) -> RetuneRows:
    """Read rows in the run's coordinates."""
    coordinates = shared.fits.coordinates
    if isinstance(coordinates, OwnCoordinates):
        return RetuneRows(given, labels, inputs, None, coordinates)
    rows = tuple(
        read_rows(source.features, inputs.scored, coordinates, device=inputs.device)
        for source in sources_of(inputs)
    )
    _check_features(rows[-1][0], coordinates.variance)
    return RetuneRows(given, labels, inputs, rows, coordinates)


def shared_of(run: Any) -> Shared:
    """What a run holds for its categories, or why it cannot be taken up."""
    if isinstance(run, TuneResult) and run.shared is not None:
        return run.shared
    config = getattr(run, "config", {})
    preset, validation = config.get("preset"), config.get("validation")
    raise ConfigError(
        "single categories of this result cannot be tuned again.",
        found=f"{type(run).__name__}, preset {preset!r}, validation={validation!r}",
        expected='a result of tune(preset="default"), returned or by TuneResult.load; what '
        "is extended, or chosen by validation alone, lacks what the categories share",
        remedy="tune all categories again",
    )


def sources_of(inputs: TuningInputs) -> list[LabelledSource]:
    """Training, and validation where there is one."""
    return [one for one in (inputs.train, inputs.valid) if one is not None]


def _check_rows(shared: Shared, sources: Sequence[LabelledSource]) -> None:
    """The rows must be those of the run, in its order."""
    names = ("training", "validation")
    if len(sources) != len(shared.digests):
        had = "had validation rows" if len(shared.digests) == 2 else "had none"
        raise IdError(
            "these are not the rows of the run.",
            found=f"{len(sources) - 1} validation sources; the run {had}",
            remedy="give the run's own rows; other rows need a new run of tune",
        )
    for name, source, digests in zip(names, sources, shared.digests, strict=False):
        if np.array_equal(source.digests, digests):
            continue
        n, n_run = source.digests.size, digests.size
        first = int(np.argmin(source.digests == digests)) if n == n_run else None
        raise IdError(
            f"the {name} rows are not those of the run, in its order.",
            found=f"{n:,} rows, not {n_run:,}" if first is None else f"another row {first:,}",
            expected="the run's rows: ids (features, where there are none) and order",
            remedy="give the run's own rows; other rows need a new run of tune",
        )


def _check_features(x: Any, variance: Tensor) -> None:
    """Coordinates must vary as the run's did: ids alone do not prove that features are the same."""
    found = x.double().var(0, correction=0).to(variance.device)
    worst = float((found - variance).abs().max() / variance.max().clamp_min(1e-300))
    if not worst <= _TOLERANCE:
        raise MismatchError(
            "these are not the features that the run was tuned on.",
            found=f"their variance differs by {worst:.1%} of its largest part",
            expected="features of the same model and images",
            remedy="give the run's features, or tune again with these",
        )


def check_read_for(shared: Shared, rows: Any) -> None:
    """Rows that were read for another run are in other coordinates."""
    if not isinstance(rows, RetuneRows) or rows.coordinates is not shared.fits.coordinates:
        raise ConfigError(
            "these rows were not read for this run.",
            found=type(rows).__name__,
            expected="what read_retune_rows made of this run, or of one that retune made of it",
            remedy="read_retune_rows(run, train, valid)",
        )


def current_labels(given: RetuneRows, train: Pair, valid: Pair | None) -> list[PartialLabels]:
    """The labels as they are now, in the order of the run's columns."""
    pairs = [pair for pair in (train, valid) if pair is not None]
    found = []
    if len(pairs) != len(given.given):
        raise ConfigError(
            "these rows are of other sources.",
            found=f"{len(pairs)} sources, rows of {len(given.given)}",
            remedy="read_retune_rows with the sources that are given here",
        )
    names = ("train", "valid")
    for name, pair, features, before, source in zip(
        names, pairs, given.given, given.labels, sources_of(given.inputs), strict=False
    ):
        if pair[0] is not features:
            raise ConfigError(
                f"the {name} features are not those that `rows` were read from.",
                expected="the very object that read_retune_rows was given",
                remedy="read_retune_rows(run, train, valid) again",
            )
        labels = open_source((features, pair[1]), name=name)[1]
        require_known(labels, f"{'training' if name == 'train' else 'validation'} label")
        _check_like(labels, before, name)
        if source.labels.categories != labels.categories:
            labels = labels.take_categories(list(source.labels.categories))
        found.append(labels)
    return found


def _check_like(labels: PartialLabels, before: PartialLabels, name: str) -> None:
    """Labels of the same rows, groups and categories."""
    if labels.categories != before.categories:
        raise CategoryError(
            f"the {name} labels have other categories than `rows`.",
            found=some([repr(one) for one in labels.categories], _SHOWN),
            expected=some([repr(one) for one in before.categories], _SHOWN),
        )
    for what in ("ids", "groups"):
        own, had = getattr(labels, what), getattr(before, what)
        if labels.n_rows != before.n_rows or not _same(own, had):
            raise IdError(
                f"the {name} labels have other {what} than `rows`.",
                expected="those of the labels that read_retune_rows was given, in their order",
                remedy="read_retune_rows(run, train, valid) again",
            )


def _same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or bool(np.array_equal(one, other))
