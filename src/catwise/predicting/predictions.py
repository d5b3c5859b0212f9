"""What a classifier says of images: in memory, and as a table of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from catwise.decisions import SETS, DecisionRules, Decisions
from catwise.metrics.pooling import Named, Pooling, RunningPool

_SET_NAMES: Final = np.array(SETS)


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Probabilities and decisions of N images, or studies, and C categories.

    Attributes:
        ids: N texts, in the order of the rows.
        categories: C names.
        logits: (N, C) as the layer gives them, before calibration: float32, or float64 of a
            head that has such numbers. Calibrated ones, in float64, after `pooled(pool="mean")`.
        rules: how they become probabilities and decisions.
        skipped: ids of images that could not be decoded; they have no row.
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    logits: Tensor
    rules: DecisionRules
    skipped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Predictions(n_rows={len(self.ids)}, n_categories={len(self.categories)})"

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def decided(self) -> Decisions:
        """All that the rules say of the logits."""
        return self.rules.decide(self.logits)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, C) in [0, 1], calibrated."""
        return self.decided.probabilities

    @property
    def decisions(self) -> NDArray[np.int8]:
        """(N, C): 1 positive, 0 negative, -1 where the category has no threshold."""
        return self.decided.decisions

    @property
    def sets(self) -> NDArray[np.int8] | None:
        """(N, C) codes of `catwise.decisions.SETS`, or None without conformal sets."""
        return self.decided.sets

    @property
    def abstains(self) -> NDArray[np.bool_]:
        """(N, C) whether nothing should be decided: no threshold, or a set of none or both."""
        return self.decided.abstains

    def pooled(self, by: Named, pool: str = "mean") -> Predictions:
        """The same of studies or patients: their probabilities are pooled, then decided on.

        "mean" is the mean calibrated probability of a study's images, "max" the largest. Thresholds
        and sets are those of single images, and so is what they promise.

        Args:
            by: "study": images whose ids lie in one folder; or {id: group}; "image" changes
                nothing.
            pool: "mean" or "max".

        Returns:
            A row for each group, in the order of their first rows; ids are the groups' names.

        Raises:
            ConfigError: If an option is not possible, or ids tell no studies.
            IdError: If an id has no group.
        """
        pooling = Pooling.of_ids(by, np.array(self.ids, dtype=np.str_), pool)
        if pooling is None:
            return self
        (found,) = pooled_rows([self], pooling, self)
        return found

    def tags(self) -> list[list[str]]:
        """The positive categories of each image, the most probable first."""
        return [[self.categories[c] for c in row] for row in self._tagged()]

    def _tagged(self) -> list[list[int]]:
        """Numbers of the positive categories of each image, the most probable first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        called = np.take_along_axis(self.decisions == 1, order, axis=1)
        return [row[kept].tolist() for row, kept in zip(order, called, strict=True)]

    def table(self) -> pa.Table:
        """A row for each image: id; probability, decision, set and abstention of each category.

        Decisions are null where there is no threshold; sets are there with conformal sets only.
        """
        p, decided = self.probabilities.astype(np.float32), self.decisions
        columns: dict[str, Any] = {"id": pa.array(self.ids, pa.string())}
        for c, name in enumerate(self.categories):
            columns[f"probability:{name}"] = pa.array(p[:, c])
            columns[f"decision:{name}"] = pa.array(decided[:, c], mask=decided[:, c] < 0)
            if self.sets is not None:
                columns[f"set:{name}"] = pa.array(_SET_NAMES[self.sets[:, c]].tolist(), pa.string())
            columns[f"abstains:{name}"] = pa.array(self.abstains[:, c])
        return pa.table(columns)

    def tag_table(self) -> pa.Table:
        """A row for each image: id, its tags, and their probabilities."""
        p = self.probabilities.astype(np.float32)
        tagged = self._tagged()
        probabilities = [p[row, kept].tolist() for row, kept in enumerate(tagged)]
        return pa.table(
            {
                "id": pa.array(self.ids, pa.string()),
                "tags": pa.array(self.tags(), pa.list_(pa.string())),
                "probabilities": pa.array(probabilities, pa.list_(pa.float32())),
            }
        )


def pooled_rows(
    parts: Iterable[Predictions], pooling: Pooling, like: Predictions
) -> Iterator[Predictions]:
    """Predictions of groups from those of their rows, which come in parts.

    A group is given once its last row is there and those before it are. So memory grows with the
    groups that have been begun since the oldest that is not complete: not at all where the rows of
    a group follow one another, and to five numbers of 64 bits for each group and category (one for
    "max") where all groups end last.

    Args:
        parts: all rows, in order.
        pooling: of all rows.
        like: tells categories, rules and skipped.
    """
    last = np.zeros(pooling.names.size, dtype=np.int64)
    last[pooling.of_row] = np.arange(pooling.of_row.size)
    ends = np.maximum.accumulate(last)  # (G,) the row with which a group and all before it end
    rules = like.rules if pooling.how == "max" else like.rules.of_calibrated()
    pool = RunningPool(pooling.how)
    row = done = 0
    empty = True
    for part in parts:
        stop = row + len(part)
        index = torch.from_numpy(pooling.of_row[row:stop] - done)
        pool.add(index, _to_pool(part, pooling.how))
        row = stop
        ready = int(np.searchsorted(ends, row, side="left"))
        if ready > done or empty:
            names = tuple(pooling.names[done:ready].tolist())
            logits = pool.take(ready - done)
            yield Predictions(names, like.categories, logits, rules, like.skipped)
            done, empty = ready, False


def _to_pool(rows: Predictions, how: str) -> Tensor:
    """Logits that are pooled: where the largest is taken calibration makes no difference."""
    if how == "max":
        return rows.logits
    return torch.from_numpy(rows.rules.calibrated(rows.logits.double().cpu().numpy()))
