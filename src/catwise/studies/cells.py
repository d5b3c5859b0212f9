"""The cells of a study, and the keys by which what they gave is found again."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from catwise._json import json_ready
from catwise._version import __version__
from catwise.errors import ConfigError, check_choice
from catwise.studies.declared import AXES, Study
from catwise.training.schemes import scheme_options

_KEY: Final = 16
_SPEED: Final = ("workers", "device", "save_every")
"""Options of `train` that change no result."""


class Cell(NamedTuple):
    """One combination: what its axes are."""

    data: str
    known: float
    reserve: float
    scheme: str
    backbone: str
    method: str
    seed: int

    @property
    def label(self) -> str:
        """A line for people."""
        reserve = f" reserve {self.reserve:.0%}" if self.reserve else ""
        known = f"{self.known:.0%}"
        return (
            f"{self.data} {known}{reserve} {self.scheme} {self.backbone} {self.method} "
            f"seed {self.seed}"
        )

    @property
    def base(self) -> Cell:
        """The model that it tunes, for all methods."""
        return self._replace(method="")

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Whether it has all these values, each one or a list."""
        return all(_fits(getattr(self, axis), value) for axis, value in where.items())


def _fits(own: Any, wanted: Any) -> bool:
    return own in wanted if isinstance(wanted, (list, tuple)) else own == wanted


def cells_of(study: Study) -> list[Cell]:
    """Every cell of the grids once; seeds change slowest, methods of one model stand together."""
    found: dict[Cell, None] = {}
    seeds = sorted({seed for grid in study.grids for seed in grid.seed})
    for seed in seeds:
        for grid in study.grids:
            axes = grid.data, grid.known, grid.reserve, grid.scheme, grid.backbone, grid.method
            if seed in grid.seed:
                found |= dict.fromkeys(Cell(*one, seed) for one in itertools.product(*axes))
    together: dict[Cell, list[Cell]] = {}
    for cell in found:
        together.setdefault(cell.base, []).append(cell)
    return [cell for own in together.values() for cell in own]


def base_key(study: Study, cell: Cell, data_digest: str, checkpoint: str) -> str:
    """Of all that the model of a cell depends on, before it is tuned."""
    scheme, backbone = study.schemes[cell.scheme], study.backbones[cell.backbone]
    train = {k: v for k, v in study.training(cell.scheme, cell.backbone).items() if k not in _SPEED}
    about = {
        "catwise": __version__,
        "torch": torch.__version__,
        "data": data_digest,
        "known": cell.known,
        "reserve": cell.reserve,
        "scheme": scheme.scheme,
        "options": _scheme_options(scheme.scheme, scheme.options),
        "train": train,
        "backbone": {**dataclasses.asdict(backbone), "train": None, "checkpoint": checkpoint},
        "metric": study.metric,
        "seed": cell.seed,
    }
    return _digest(about)


def _scheme_options(scheme: str | None, options: Mapping[str, Any]) -> str:
    return "" if scheme is None or scheme == "as_given" else str(scheme_options(scheme, options))


def cell_key(study: Study, cell: Cell, base: str) -> str:
    """Of all that a cell depends on."""
    data, config = study.data[cell.data], study.methods[cell.method].config(study.metric, cell.seed)
    scored = {"by": data.by, "pool": data.pool, "level": study.level}
    return _digest({"base": base, "method": dataclasses.asdict(config), **scored})


def _digest(about: Mapping[str, Any]) -> str:
    text = json.dumps(json_ready(about), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY]


def chosen_cells(cells: Sequence[Cell], only: Iterable[str], numbers: str | None) -> list[Cell]:
    """A piece of the cells: those with ``AXIS=VALUE``, and of these the numbers ``FIRST-LAST``.

    Values of one axis are alternatives. ConfigError for a name or number that fits no cell.

    >>> cells = [Cell("cats", known, 0.0, "asl", "neck", "default", 0) for known in (0.1, 0.2, 0.5)]
    >>> [cell.known for cell in chosen_cells(cells, ["known=0.1", "known=0.5"], None)]
    [0.1, 0.5]
    >>> [cell.known for cell in chosen_cells(cells, [], "2-3")]
    [0.2, 0.5]
    """
    wanted: dict[str, list[Any]] = {}
    for text in only:
        axis, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("a choice of cells is AXIS=VALUE.", found=text, expected="seed=0")
        check_choice("axis", axis, AXES)
        there = {str(getattr(cell, axis)): getattr(cell, axis) for cell in cells}
        number = next((own for key, own in there.items() if _same(key, value)), None)
        if number is None:
            check_choice(axis, value, tuple(there))
        wanted.setdefault(axis, []).append(number)
    found = [cell for cell in cells if cell.matches(wanted)]
    if numbers is None:
        return found
    first, dash, last = numbers.partition("-")
    try:
        start, stop = int(first), int(last) if dash else int(first)
    except ValueError:
        start, stop = 0, 0
    if not 1 <= start <= stop or start > len(cells):
        raise ConfigError(
            "numbers of cells are N or FIRST-LAST.",
            found=numbers,
            expected=f"from 1 to {len(cells):,}, as --dry-run numbers them",
        )
    piece = set(cells[start - 1 : stop])
    return [cell for cell in found if cell in piece]


def _same(own: str, given: str) -> bool:
    """Whether two texts name one value; shares may be given as 10%."""
    if own == given:
        return True
    try:
        share = given.endswith("%")
        return float(own) == float(given.rstrip("%")) / (100 if share else 1)
    except ValueError:
        return False
