"""The door of `tune`: head, features and labels of both sources, checked and joined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from catwise._device import resolve_device
from catwise.errors import (
    CategoryError,
    ConfigError,
    MismatchError,
    ShapeError,
)
from catwise.features import by_category, check_finite
from catwise.joining import (
    Aligned,
    align,
    check_disjoint,
    has_default_names,
    open_source,
    require_known,
    seen_rows,
    source_digests,
)
from catwise.labels import LabelPolicy
from catwise.labels.audit import labelled_part
from catwise.metrics.inputs import as_tensor, check_head_logits
from catwise.metrics.mismatch import check_match

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from catwise.heads import Head
    from catwise.labels import PartialLabels

__all__ = [
    "Data",
    "Work",
    "check_kinds",
    "check_logits",
    "check_sources",
    "make_data",
    "open_work",
    "same_categories",
]

_LOGITS_TOLERANCE: Final = 1e-2


@dataclass(frozen=True)
class Data:
    """One source at work: features in the order of the labels, labels in the order of `index`."""

    features: Any
    labels: PartialLabels
    digests: NDArray[np.uint64]
    target: torch.Tensor | None
    weight: torch.Tensor | None

    @property
    def codes(self) -> torch.Tensor:
        """(C, n) int8."""
        return torch.from_numpy(np.array(self.labels.codes.T, order="C"))


@dataclass(frozen=True)
class Work:
    """Everything checked and joined."""

    base: Head
    scored: Head
    index: NDArray[np.int64]
    categories: tuple[str, ...]
    train: Data
    valid: Data | None
    device: torch.device
    seed: int
    notes: list[str]


def open_work(
    head: Head,
    train: tuple[Any, PartialLabels],
    valid: tuple[Any, PartialLabels] | None,
    *,
    policy: LabelPolicy | None,
    seed: int,
    device: str | torch.device | None,
) -> Work:
    """Check and join everything that `tune` was given; arguments and errors as there."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ConfigError("the seed must be a whole number.", found=f"seed={seed!r}")
    train = features, labels = open_source(train, name="train")
    features = by_category(features) or features
    place = getattr(features, "device", None)
    where = resolve_device(device) if device is not None else place
    aligned = align(head, features, labels, name="train")
    notes = list(aligned.notes)
    taken = aligned.take(features)
    check_finite(taken, name="train features", for_fitting=True)
    data = make_data(taken, labels, policy, seed)
    if not (data.weight is not None and data.weight.any()):
        require_known(labels, "training label")
    fresh = None
    if valid is not None:
        valid = open_source(valid, name="valid")
        check_kinds(features, valid[0], "validation")
        notes += check_disjoint(train, valid)
        fresh_aligned = align(head, *valid, name="valid")
        require_known(valid[1], "validation label")
        notes += fresh_aligned.notes
        ordered = same_categories(aligned, fresh_aligned, "validation")
        taken = replace(fresh_aligned, head_index=aligned.head_index).take(valid[0])
        check_finite(taken, name="valid features", for_fitting=True)
        fresh = make_data(taken, ordered, policy, seed)
    notes += _fitted_before(head, data, fresh)
    notes += labelled_part(data.labels if fresh is None else fresh.labels)
    fitted = [source.labels.counts().uncertain.any() for source in (data, fresh) if source]
    if policy is not None or any(fitted):
        notes.append(f"fitting: {policy or LabelPolicy()}")
    return Work(
        head,
        aligned.scored,
        aligned.head_index,
        aligned.categories,
        data,
        fresh,
        where if isinstance(where, torch.device) else torch.device("cpu"),
        seed,
        notes,
    )


def _fitted_before(head: Head, train: Data, valid: Data | None) -> list[str]:
    """Say so where the rows that choose fitted the head that was given."""
    name, chooses = ("training", train) if valid is None else ("validation", valid)
    n_seen = int(seen_rows(head, chooses.digests)[0].sum())
    if not n_seen:
        return []
    rows = f"{n_seen:,} of {chooses.digests.size:,} {name} rows fitted or selected the head given"
    return [f"{rows}: what it scores there is too good, and a gain over it is too small."]


def check_kinds(train: Any, other: Any, name: str) -> None:
    """Training features and those of another source have one vector for an image, or as many."""
    kinds = [by_category(features) for features in (train, other)]
    counts = [0 if kind is None else kind.n_groups for kind in kinds]
    if counts[0] != counts[1]:
        told = [f"{n:,} vectors an image" if n else "one vector an image" for n in counts]
        raise ShapeError(
            f"training and {name} features are not of one kind.",
            found=f"{told[0]} in training, {told[1]} in {name}",
            expected="features of one model",
        )


def make_data(features: Any, labels: PartialLabels, policy: LabelPolicy | None, seed: int) -> Data:
    """A source whose features are in the order of its labels."""
    digests = source_digests(features, labels)
    if policy is None:
        return Data(features, labels, digests, None, None)
    given = labels.targets(policy, seed)
    target, weight = (
        torch.from_numpy(np.array(a.T, order="C")) for a in (given.target, given.weight)
    )
    return Data(features, labels, digests, target, weight)


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


def check_sources(work: Work, train: Any, valid: Any, *, force: bool) -> list[str]:
    """Head, features and columns must look as if they belonged together, in either source.

    Args:
        work: what was opened.
        train: (N, C) logits of the training rows.
        valid: (M, C) logits of the validation rows, or None without them.
        force: go on, and return what was seen as notes.

    Raises:
        FeatureError: If a logit is not finite.
        MismatchError: If they look mismatched.
    """
    notes = []
    for name, data, logits in (("valid", work.valid, valid), ("train", work.train, train)):
        if data is not None:
            check_head_logits(logits, work.categories, name=name)
            names = work.categories
            notes += check_match(logits, data.labels, name=name, categories=names, force=force)
    return notes


def check_logits(work: Work, logits: Any) -> None:
    """The model's own logits must be the head's on these features."""
    if logits is None:
        return
    given = as_tensor(logits, "the logits").cpu().double()
    own = work.scored.logits(work.train.features).cpu().double()
    if given.shape[1:] == (work.base.n_categories,):
        given = given[:, torch.from_numpy(work.index)]
    if given.shape != own.shape:
        raise MismatchError(
            "the logits given do not have the shape of the head's on the training features.",
            found=f"logits {tuple(given.shape)}",
            expected=f"{tuple(own.shape)}",
        )
    probable = "probabilities are no logits; " if bool(((given >= 0) & (given <= 1)).all()) else ""
    error = (given - own).abs()
    scale = _LOGITS_TOLERANCE * (1 + own.abs())
    if not bool((error <= scale).all()):  # NaN is not equal either
        row, column = divmod(int((error / scale).argmax()), own.shape[1])
        raise MismatchError(
            "the logits given are not those of this head on these features.",
            found=f"row {row}, {work.categories[column]!r}: given {given[row, column]:.4g}, "
            f"head {own[row, column]:.4g}",
            expected=f"equal to {_LOGITS_TOLERANCE:g} (relative)",
            remedy=f"{probable}use the input of the classification layer as features, "
            "in evaluation mode",
        )
