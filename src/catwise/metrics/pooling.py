"""Scores of studies and patients from those of their images.

The logit of a group is the largest of its images' (``pool="max"``), or that of their mean
probability (``pool="mean"``). Its label is positive where that of one image is, negative where
those of all are; else uncertain where that of one image is, and unknown where none is known to be.

Source: Irvin et al., "CheXpert", AAAI 2019 (a study counts as one, with all of its views).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise._names import POOLS, UNITS
from catwise._text import plural, some
from catwise.errors import ConfigError, IdError, ShapeError, check_choice
from catwise.labels import PartialLabels
from catwise.labels.codes import NEGATIVE, POSITIVE, UNCERTAIN, UNKNOWN, Codes

By: TypeAlias = str | Mapping[str, str] | NDArray[Any] | None
"""What is scored: None or "image", "study", "patient", {id: group}, or (N,) groups of the rows."""

_NOUNS: Final = {"study": ("study", "studies"), "patient": ("patient", "patients")}


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
        if by is None or (isinstance(by, str) and by == "image"):
            return None
        names = _names(by, labels)
        found, first, number = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        noun = _NOUNS[by] if isinstance(by, str) else ("group", "groups")
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
        index = torch.from_numpy(self.of_row).to(logits.device)
        if self.how == "max":
            return self._largest(logits, index)
        sides = []
        for side in (logits.double(), -logits.double()):
            share = torch.nn.functional.logsigmoid(side)
            top = self._largest(share, index)
            parts = torch.exp(share - top[index])
            sides.append(top + torch.zeros_like(top).index_add(0, index, parts).log())
        return sides[0] - sides[1]

    def _largest(self, values: Tensor, index: Tensor) -> Tensor:
        out = values.new_full((self.names.size, values.shape[1]), -torch.inf)
        return out.scatter_reduce(0, index[:, None].expand_as(values), values, "amax")

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
        return folders(_ids(labels, "studies"))
    if isinstance(by, Mapping):
        ids = _ids(labels, "groups")
        lacking = [str(one) for one in ids if one not in by]
        if lacking:
            raise IdError(
                f"{len(lacking):,} images have no group.",
                found=some([repr(one) for one in lacking], 3),
                expected="a group for each id",
            )
        return np.array([str(by[one]) for one in ids.tolist()], dtype=np.str_)
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
            remedy="ids that are paths, or in Python by={id: study, …}",
        )
    return np.array(found, dtype=np.str_)
