"""The anchor of the `default` preset: heads of training labels, weighed beside the original one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from catwise.engines.base import Shared
from catwise.labels.draws import category_keys, uniform
from catwise.tuning.fits.directions import fit_directions, with_drawn_negatives
from catwise.tuning.fits.shared import SharedRows, fit_shared
from catwise.tuning.presets.default_config import DefaultConfig
from catwise.tuning.presets.task import Task
from catwise.tuning.rows.known import LabelledRows, lay_out
from catwise.tuning.rows.tuning_rows import Counter, TuningRows, category_blocks, updated_logits

#: Known labels that weigh the anchor and choose the penalty; of more, a keyed share of the rows.
_ENOUGH: Final = 1 << 18


class Anchor(NamedTuple):
    """Heads that training labels made, and what they weigh beside the original one."""

    heads: Tensor  # (J − 1, C, k)
    slopes: Tensor  # (F + 1, J) without each fold, and of all rows; the first of the original head
    rows: Tensor  # (m,) of the rows that judge, those that chose the slopes
    passes: int
    intercepts: Tensor  # (J − 1, C) of the heads where they were fitted

    @classmethod
    def weighed(cls, task: Task, config: DefaultConfig, bank: Bank) -> Anchor:
        """Fit the slopes of the heads on the labels that judge."""
        heads, intercepts, passes = bank
        if task.held is not None:
            return cls(
                heads, task.held.slopes, torch.empty(0, dtype=torch.int64), passes, intercepts
            )
        rows = _enough_rows(task)
        if task.train is None:  # the original head's logits are memorised: its slope would be, too
            ones = heads.new_ones(task.n_folds + 1, 1)
            return cls(heads, ones, rows, passes, intercepts)
        parts = []
        for block in category_blocks(task.valid, task.known_train, task.entries):
            part = task.valid.take(block, rows)
            own = [updated_logits(part.without_logits(), head[block]) for head in heads]
            parts.append(shared_rows(task, part, torch.stack([part.logits, *own]), rows))
        whole = fit_shared(parts, ridge=config.anchor_ridge)
        folds = [
            fit_shared([p.without(f) for p in parts], ridge=config.anchor_ridge, start=whole)
            for f in range(task.n_folds)
        ]
        slopes = torch.stack([fit.slopes for fit in (*folds, whole)])
        return cls(heads, slopes, rows, passes, intercepts)

    def at(self, folds: range, block: slice) -> tuple[Tensor, Tensor]:
        """Without each of some folds (−1: with all rows), (F · B, …).

        The original head's slope, and in coordinates what the others add.
        """
        own = self.slopes[list(folds)]
        rest = torch.einsum("fj,jck->fck", own[:, 1:], self.heads[:, block])
        return own[:, 0].repeat_interleave(rest.shape[1]), rest.flatten(0, 1)


class Bank(NamedTuple):
    """Heads of training labels alone."""

    heads: Tensor  # (J − 1, C, k)
    intercepts: Tensor  # (J − 1, C)
    passes: int


def fit_bank(task: Task, config: DefaultConfig) -> Bank:
    """Fit the heads of the anchor on training labels."""
    valid, passes = task.valid, 0
    shape = len(valid.logits), valid.x.shape[1]
    if task.known_train is None:
        return Bank(valid.logits.new_zeros(0, *shape), valid.logits.new_zeros(0, shape[0]), 0)
    count = len(config.anchor_penalties) + len(config.negative_penalties)
    heads = valid.logits.new_zeros(count, *shape)
    intercepts = valid.logits.new_zeros(count, shape[0])
    blocks = list(category_blocks(valid, task.known_train, task.entries))
    counter = Counter(task.progress, "anchor", len(blocks))
    if not count:
        blocks = []
    work = partial(_block_of_bank, task.shared, config, task.engine.share(_Draws.of(task)))
    for block, found in zip(blocks, task.engine.map(work, blocks), strict=True):
        heads[:, block], intercepts[:, block] = found[:2]
        passes += found[2]
        counter.step("heads of the training labels")
    return Bank(heads, intercepts, passes)


def _block_of_bank(
    shared: Shared[Task], config: DefaultConfig, drawn: Shared[_Draws], block: slice
) -> tuple[Tensor, Tensor, int]:
    """What `fit_bank` finds for a block of categories."""
    task, heads, intercepts, passes = shared.value, [], [], 0
    known = cast("TuningRows", task.train_of(block))
    for source, path, starts in _sources_of(task, config, drawn.value, block, known):
        for fit in fit_directions(known.codes, source, path, starts=starts, **config.fitting):
            heads.append(fit.delta)
            intercepts.append(fit.intercepts[0])
            passes += fit.passes
    return torch.stack(heads), torch.stack(intercepts), passes


def _sources_of(
    task: Task, config: DefaultConfig, draws: _Draws, block: slice, known: TuningRows
) -> Iterator[tuple[LabelledRows, Sequence[float], Any]]:
    """Known labels, then with unknown ones as negatives: rows, penalties, where fits start."""
    penalties = config.anchor_penalties, config.negative_penalties
    starts: list[Any] = [None, None]
    if task.held is not None:
        at = task.held.starts.heads[:, block]
        starts = [[*part] for part in at.tensor_split([len(penalties[0])])]
    sources = [lay_out(known)]
    if penalties[1]:
        own = cast("TuningRows", task.known_train).take(block)
        options = {"per_known": config.negative_draw, "weight": config.negative_weight}
        sources.append(with_drawn_negatives(own, draws.of_block(block), **options))
    yield from zip(sources, penalties, starts, strict=False)


class _Draws(NamedTuple):
    """A number in [0, 1) for each training row and category, keyed by both; NaN: not drawn."""

    rows: Tensor  # (n,)
    categories: Tensor  # (C,)

    @classmethod
    def of(cls, task: Task) -> _Draws:
        inputs = task.inputs
        keys = category_keys(inputs.seed, "unknown as negative", inputs.categories)
        digests = inputs.train.digests[task.known_train_rows.cpu().numpy()]
        device = task.valid.logits.device
        rows, own = (torch.from_numpy(uniform(a)).float().to(device) for a in (digests, keys))
        return cls(rows if task.labelled is None else rows.where(task.labelled, torch.nan), own)

    def of_block(self, block: slice) -> Tensor:
        """(B, n): each category starts elsewhere in the same sequence."""
        return (self.rows + self.categories[block, None]) % 1.0


def _enough_rows(task: Task) -> Tensor:
    """(m,) the rows that judge, or a keyed share of them that knows labels enough."""
    known = int((task.valid.codes >= 0).sum())
    drawn = uniform(task.inputs.judging.digests) < _ENOUGH / max(known, 1)
    return torch.from_numpy(np.flatnonzero(drawn)).to(task.valid.logits.device)


def shared_rows(task: Task, part: TuningRows, logits: Tensor, rows: Tensor) -> SharedRows:
    """(J, B, m) logits at the known labels of a block of categories."""
    source = lay_out(part)
    at = source.rows.at
    fold = torch.from_numpy(task.fold).to(rows.device)[rows].expand(len(part.codes), -1)
    weight = torch.ones_like(source.target) if source.weight is None else source.weight
    return SharedRows.of(torch.stack([at(z) for z in logits]), source.target, weight, at(fold))
