"""What a classifier says of images: in memory, and as a table of rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from catwise.decisions import SETS, DecisionRules, Decisions

_SET_NAMES: Final = np.array(SETS)


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Probabilities and decisions of N images and C categories.

    Attributes:
        ids: N texts, in the order of the rows.
        categories: C names.
        logits: (N, C) as the layer gives them, before calibration: float32, or float64 of a
            head that has such numbers.
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
