"""Scores of studies and patients from those of their images.

The logit of a group is the largest of its images' (``pool="max"``), or that of their mean
probability (``pool="mean"``). Its label is positive where that of one image is, negative where
those of all are; else uncertain where that of one image is, and unknown where none is known to be.

Source: Irvin et al., "CheXpert", AAAI 2019 (a study counts as one, with all of its views).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._names import POOLS, UNIT_NOUNS, UNITS
from catwise._text import plural, some
from catwise.errors import ConfigError, IdError, ShapeError, check_choice
from catwise.labels import PartialLabels
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Codes

By: TypeAlias = str | Mapping[str, str] | NDArray[Any] | None
"""What is scored: None or "image", "study", "patient", {id: group}, or (N,) groups of the rows."""

Named: TypeAlias = str | Mapping[str, str] | None
"""The same of rows that have ids and no labels."""


class Pooling(NamedTuple):
    """Which rows are scored as one.

    Attributes:
        names: (G,) groups, in the order of their first rows.
        of_row: (N,) int64 number of each row's group.
        how: "mean" or "max".
        noun: what one group is called, and what several are.
    """

    names: NDArray[np.str_]
    of_row: NDArray[np.int64]
    how: str
    noun: tuple[str, str] = ("group", "groups")

    @classmethod
    def of(cls, by: By, labels: PartialLabels, how: str) -> Pooling | None:
        """How the rows of labels are pooled; None where every image is scored by itself.

        Args:
            by: "study": images whose ids lie in one folder; "patient": the groups of the labels;
                a mapping from ids; or (N,) names.
            labels: (N, C).
            how: "mean" or "max".

        Raises:
            ConfigError: If an option is not possible.
            IdError: If ids or groups that tell are not there.
            ShapeError: If the names are not one for each row.

        >>> labels = PartialLabels([[1], [0], [0]], ids=["p1/a.png", "p2/a.png", "p1/b.png"])
        >>> found = Pooling.of("study", labels, "max")
        >>> found.names.tolist(), found.of_row.tolist()
        (['p1', 'p2'], [0, 1, 0])
        """
        check_choice("pool", how, POOLS)
        return None if is_image(by) else cls._of_names(_names(by, labels), by, how)

    @classmethod
    def of_ids(cls, by: Named, ids: NDArray[np.str_], how: str) -> Pooling | None:
        """How rows without labels are pooled, by their ids; else as :meth:`of`.

        Args:
            by: "study": images whose ids lie in one folder; or a mapping from ids.
            ids: (N,).
            how: "mean" or "max".

        Raises:
            ConfigError: If an option is not possible; "patient" takes groups, which ids have not.
            IdError: If an id has no group.

        >>> Pooling.of_ids({"a": "x", "b": "x"}, np.array(["b", "a"]), "max").names.tolist()
        ['x']
        """
        check_choice("pool", how, POOLS)
        return None if is_image(by) else cls._of_names(group_names(by, ids), by, how)

    @classmethod
    def _of_names(cls, names: NDArray[np.str_], by: By, how: str) -> Pooling:
        found, first, number = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        noun = UNIT_NOUNS[by] if isinstance(by, str) else ("group", "groups")
        return cls(found[order], place[number.reshape(-1)], how, noun)

    @property
    def note(self) -> str:
        """What was done, in a sentence."""
        n, g = self.of_row.size, self.names.size
        over = "the largest logit" if self.how == "max" else "the mean probability"
        return f"scores are of {plural(g, *self.noun)}: {over} over {plural(n, 'image')}."

    def logits(self, logits: Tensor) -> Tensor:
        """(G, C) logits of the groups from (N, C) of the images.

        >>> pooling = Pooling(np.array(["a"]), np.zeros(2, np.int64), "mean")
        >>> logits = torch.logit(torch.tensor([[0.2], [0.6]], dtype=torch.float64))
        >>> torch.sigmoid(pooling.logits(logits))
        tensor([[0.4000]], dtype=torch.float64)
        """
        pool = RunningPool(self.how)
        pool.add(torch.from_numpy(self.of_row), logits)
        return pool.take(self.names.size)

    def labels(self, labels: PartialLabels) -> PartialLabels:
        """(G, C) labels of the groups; their groups are those of the images, such as patients.

        Raises:
            IdError: If images of one group are of two patients.
        """
        size = np.bincount(self.of_row, minlength=self.names.size)
        codes: Codes = np.empty((self.names.size, labels.n_categories), dtype=np.int8)
        for j in range(labels.n_categories):
            rows, own = labels.entries(j)
            counts = {
                code: np.bincount(self.of_row[rows[own == code]], minlength=size.size)
                for code in (POSITIVE, NEGATIVE, UNCERTAIN)
            }
            codes[:, j] = np.select(
                [counts[POSITIVE] > 0, counts[UNCERTAIN] > 0, counts[NEGATIVE] == size],
                [POSITIVE, UNCERTAIN, NEGATIVE],
                UNKNOWN,
            )
        groups = self._groups(labels)
        return PartialLabels(codes, self.names, labels.categories, groups)

    def _groups(self, labels: PartialLabels) -> NDArray[np.str_] | None:
        if labels.groups is None:
            return None
        _, first = np.unique(self.of_row, return_index=True)
        groups = labels.groups[first]
        wrong = np.flatnonzero(groups[self.of_row] != labels.groups)
        if wrong.size:
            at = self.of_row[wrong[0]]
            found = groups[at], labels.groups[wrong[0]], self.names[at]
            raise IdError(
                "images that are scored as one are of two groups.",
                found="{!r} and {!r} in {!r}".format(*map(str, found)),
                expected="one patient in a study",
            )
        return groups


class RunningPool:
    """Logits of groups whose rows come a few at a time, as :meth:`Pooling.logits` gives them.

    Groups are counted from the first that has not been taken. A group of one row has the logits of
    that row, to the last bit.

    Args:
        how: "mean" or "max".
    """

    def __init__(self, how: str) -> None:
        self._how = how
        self._rows: Tensor | None = None  # (G,) rows of each group so far
        self._parts: list[Tensor] = []  # (G, C) each

    @property
    def n_groups(self) -> int:
        """Groups that have been begun and not been taken."""
        return 0 if self._rows is None else len(self._rows)

    def add(self, index: Tensor, logits: Tensor) -> None:
        """Add rows.

        Args:
            index: (n,) int64, the number of each row's group.
            logits: (n, C).
        """
        values = logits if self._how == "max" else logits.double()
        index = index.to(values.device)
        if self._rows is None:
            empty = values.new_empty(0, values.shape[1])
            self._rows, self._parts = index.new_empty(0), [empty] * (1 if self._how == "max" else 5)
        n = max(self.n_groups, int(index.max()) + 1 if len(index) else 0)
        more = n - self.n_groups
        new = [torch.nn.functional.pad(one, (0, 0, 0, more), value=-torch.inf)
               for one in self._parts]  # fmt: skip
        self._rows = torch.nn.functional.pad(self._rows, (0, more)).index_add(
            0, index, torch.ones_like(index)
        )
        new[0] = _largest(new[0], index, values)
        if self._how == "mean":
            new[1], new[2] = _log_sum(new[1], new[2], index, values)
            new[3], new[4] = _log_sum(new[3], new[4], index, -values)
        self._parts = new

    def take(self, n: int) -> Tensor:
        """(n, C) logits of the first n groups, which are forgotten.

        Raises:
            ValueError: If fewer have been begun.
        """
        if self._rows is None or n > self.n_groups:
            raise ValueError(f"{n} groups of {self.n_groups}")
        rows, self._rows = self._rows[:n], self._rows[n:]
        done, self._parts = [one[:n] for one in self._parts], [one[n:] for one in self._parts]
        if self._how == "max":
            return done[0]
        mean = (done[1] + done[2].log()) - (done[3] + done[4].log())
        return torch.where(rows[:, None] == 1, done[0], mean)


def _largest(so_far: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return so_far.scatter_reduce(0, index[:, None].expand_as(values), values, "amax")


def _log_sum(top: Tensor, total: Tensor, index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log probability of each group, and the sum of all as shares of it."""
    share = torch.nn.functional.logsigmoid(values)
    high = _largest(top, index, share)
    old = torch.where(top.isinf(), 0.0, total * torch.exp(top - high))
    return high, old.index_add(0, index, torch.exp(share - high[index]))


def is_image(by: Any) -> bool:
    """Whether every image is one by itself."""
    return by is None or (isinstance(by, str) and by == "image")


def group_names(by: Named, ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """(N,) the group of each row, by ids alone.

    Raises:
        ConfigError: If `by` is neither "study" nor a mapping, or paths tell no study.
        IdError: If an id has no group.
    """
    if isinstance(by, Mapping):
        lacking = [str(one) for one in ids if one not in by]
        if lacking:
            raise IdError(
                f"{len(lacking):,} images have no group.",
                found=some([repr(one) for one in lacking], 3),
                expected="a group for each id",
            )
        return np.array([str(by[one]) for one in ids.tolist()], dtype=np.str_)
    if not isinstance(by, str):
        raise ConfigError(
            "by is a name or a mapping from ids.",
            found=type(by).__name__,
            expected='"image", "study" or {id: group, …}',
        )
    check_choice("by", by, UNITS)
    if by == "patient":
        raise ConfigError(
            "ids do not tell patients.",
            found="by='patient'",
            expected="by={id: patient, …}",
            remedy="name the patients: by={id: patient, …} (--table FILE --group-column NAME)",
        )
    return folders(ids)


def _names(by: Any, labels: PartialLabels) -> NDArray[np.str_]:
    """(N,) the group of each row."""
    if isinstance(by, str):
        check_choice("by", by, UNITS)
        if by == "patient":
            if labels.groups is None:
                raise IdError(
                    "labels without groups do not tell patients.",
                    expected="PartialLabels(…, groups=patients)",
                )
            return labels.groups
    if isinstance(by, (str, Mapping)):
        return group_names(by, _ids(labels, "studies" if isinstance(by, str) else "groups"))
    names = np.asarray(by).astype(np.str_)
    if names.shape != (labels.n_rows,):
        raise ShapeError(
            "by does not fit the rows.",
            found=f"shape {names.shape}",
            expected=f"({labels.n_rows},)",
        )
    return names


def _ids(labels: PartialLabels, what: str) -> NDArray[np.str_]:
    if labels.ids is None:
        raise IdError(f"labels without ids do not tell {what}.", expected="PartialLabels(…, ids=…)")
    return labels.ids


def units_by_paths(by: Any, ids: NDArray[np.str_] | None, paths: NDArray[np.str_]) -> Any:
    """What `by` names: studies by the images' paths, where these are known and the ids are none."""
    if by != "study" or ids is None or not all(paths) or all("/" in one for one in ids):
        return by
    return dict(zip(ids.tolist(), folders(paths).tolist(), strict=True))


def folders(ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """The folder of each path, by which images are told to be of one study.

    Raises:
        ConfigError: If a path has none.

    >>> folders(np.array(["valid/patient1/study1/view1_frontal.jpg"])).tolist()
    ['valid/patient1/study1']
    """
    found = [str(one).rpartition("/")[0] for one in ids]
    if "" in found:
        raise ConfigError(
            "ids do not tell studies.",
            found=repr(str(ids[found.index("")])),
            expected="paths, the images of a study in one folder",
            remedy="by='image', ids that are paths, or in Python by={id: study, …}",
        )
    return np.array(found, dtype=np.str_)
