"""Whether a head's rows and the labels' columns belong together, seen from the scores.

The commonest mistake is that head, features and columns are not of one model. It shows in three
ways, each with a test of its own:

- *chance*: the features are of other rows or of another model, or all columns are in another
  order. The mean AUROC is no better than chance, and clearly below that of a usable head.
- *exchange*: two columns have changed places. Row i ranks column j, and row j column i, so much
  better than the columns' own rows do that it is 20 times as likely as all the exchanges that
  chance could show together; or that sound rows would hardly ever show such a gain.
- *order*: several columns have changed places. The order of the head's rows that fits best on one
  half of the images ranks the other half clearly better than the given order.

Categories that are merely correlated do none of that. A strong row may rank a related column
better than that column's weak row, but then the weak row ranks the strong row's column worse:
where every row is used once, the quality of rows and columns cancels. How much better row i could
rank column j is also bounded by how much the logits of i and j differ, which is known without
labels.

The mean AUROC is of ranks. Rows are compared with one another by normal scores of the ranks, scaled
to the variance of ranks: where logits are near normal they see a difference somewhat better.

Source: Mann & Whitney, Ann. Math. Stat. 18, 1947 (variance of AUROC by chance); Efron & Morris,
JASA 70, 1975 (effects of many categories as draws from one distribution); Kuhn, Naval Research
Logistics Quarterly 2, 1955 (the best order); van der Waerden, Indagationes Mathematicae 14, 1952
(normal scores).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from catwise.errors import MismatchError
from catwise.labels import PartialLabels
from catwise.metrics.bootstrap import category_names
from catwise.metrics.inputs import Array, coerced_codes, label_shape

#: Rows and categories that are looked at, and categories that are compared with one another:
#: enough to see a mix-up, in well under a second.
_ROWS: Final = 8192
_CATEGORIES: Final = 1024
_CROSSED: Final = 256
#: Known positives and negatives that a category needs among them.
_ENOUGH: Final = 10
#: A mean AUROC is no better than chance if it lies less than so many standard errors above 0.5,
#: and more than so many below that of a usable head, 0.62.
_ABOVE: Final = 1.8
_BELOW: Final = 2.33
_USABLE: Final = 0.12
#: Exchanges that are put together, log odds at which they are believed, and an allowance for the
#: spread of own effects, which a few of them do not tell well.
_EXCHANGES: Final = 4
_ODDS: Final = math.log(20.0)
#: Pairs beyond which an exchange is held against more than their number, and by what power: true
#: effects have heavier tails than the normal ones of the model, into which many pairs reach.
_PAIRS: Final = 1000
_TAIL: Final = 0.7
_SPREAD: Final = 1.3
#: An exchange among no more pairs than that is also believed if it is more likely than all the
#: others by chance, and so few heads in which nothing is exchanged would show its gain anywhere.
_RARE: Final = 0.002
#: Gain in AUROC, a category, and in standard errors, of an exchange or another order: names of one
#: thing may gain less than that by chance of training.
_GAIN: Final = 0.075
_CERTAIN: Final = 4.0


class _Table(NamedTuple):
    """How well each row of the head ranks each column."""

    effect: NDArray[np.float64]  # (C, C) AUROC of row i on column j, less 0.5; or by normal scores
    variance: NDArray[np.float64]  # (C,) of a column's effects, by chance
    correlation: NDArray[np.float64]  # (C, C) of what the rows give

    @property
    def own(self) -> NDArray[np.float64]:
        """(C,) effects of the columns' own rows."""
        return np.asarray(np.diag(self.effect))

    @property
    def gain(self) -> NDArray[np.float64]:
        """(C, C) by how much row i ranks column j better than that column's own row."""
        return self.effect - self.own

    @property
    def gain_variance(self) -> NDArray[np.float64]:
        """(C, C) of the gains: rows that rank alike err alike."""
        different = np.maximum(1.0 - self.correlation, 1e-3)
        return np.asarray(2.0 * different * self.variance)


def cross_auroc(logits: NDArray[np.floating], codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """(K, C) AUROC of each category's labels (N, C) by each of (N, K) logits; NaN without a class.

    Ranks are taken among all rows, so where labels are partly known this is close to, but not
    the same as, the AUROC over the known rows. Ties count half.
    """
    return np.asarray(0.5 + (_ranks(logits).T @ _contrasts(codes)), dtype=np.float64)


def check_match(
    logits: Array,
    labels: PartialLabels | Array,
    *,
    name: str = "data",
    categories: Sequence[str] | None = None,
    force: bool = False,
) -> list[str]:
    """Stop where head, features and labels look as if they did not belong together.

    That is so when the mean AUROC is no better than chance and clearly below 0.62; when two rows
    of the head rank each other's column better than their own; or when another order of the rows
    fits clearly better. Correlated categories, and rows that are merely poor, do not count. With
    `force`, what was seen is only returned, as notes.

    Looked at are up to 8,192 rows and 1,024 categories with at least 10 known positives and
    negatives (groups that hold one, where labels have groups) among them; crossed with one another
    are up to 256, those whose own row ranks them worst. A row whose logits are all equal ranks
    nothing and says nothing of where it belongs: it does not count.

    How often sound heads are stopped and faults seen: `benches/mismatch.py`, docs/design.md. Not
    seen are exchanges that hardly change the AUROC, and a few rows in another order.
    """
    n_rows, _ = label_shape(labels)
    rows = np.unique(np.linspace(0, max(n_rows - 1, 0), min(n_rows, _ROWS)).astype(np.int64))
    codes = _codes_of(labels, rows)
    units = _units_of(labels, rows)
    counts = _counts(codes, units)
    columns = np.sort(np.argsort(-counts.min(axis=0), kind="stable")[:_CATEGORIES])
    columns = columns[counts[:, columns].min(axis=0) >= _ENOUGH]
    if not columns.size:
        return []
    at = torch.from_numpy(rows), torch.from_numpy(columns)
    scores = torch.as_tensor(logits).detach().cpu()[at[0]][:, at[1]].float().numpy()
    ranked = scores.max(axis=0) > scores.min(axis=0)
    scores, columns = scores[:, ranked], columns[ranked]
    if not columns.size:
        return []
    names = category_names(labels) if categories is None else categories
    seen = _seen(_ranks(scores), codes[:, columns], units, [names[int(c)] for c in columns])
    if seen is None:
        return []
    if force:
        return [f"{name}: columns or features look mismatched: {seen}."]
    raise MismatchError(
        f"{name}: columns or features look mismatched.",
        found=seen,
        expected="features of the model that the head comes from, and its categories in its order",
        remedy="name the categories of head and labels so that they match by name; "
        "force=True (--force) continues anyway",
    )


def _seen(
    ranks: NDArray[np.float32],
    codes: NDArray[np.int8],
    units: NDArray[np.int64],
    names: list[str],
) -> str | None:
    """What looks mismatched, in words; None if nothing does."""
    contrasts = _contrasts(codes)
    variance = _chance_variance(_counts(codes, units))
    own = np.einsum("rc,rc->c", ranks, contrasts).astype(np.float64)
    if len(names) > 1:
        seen = _order_seen(ranks, codes, units, names, own=own, variance=variance)
        if seen is not None:
            return seen
    most = np.argsort(variance, kind="stable")[:_CROSSED]
    return _by_chance(own[most], ranks[:, most], contrasts[:, most], variance[most], codes[:, most])


def _order_seen(
    ranks: NDArray[np.float32],
    codes: NDArray[np.int8],
    units: NDArray[np.int64],
    names: list[str],
    *,
    own: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> str | None:
    """What another order of the rows would gain, in words; None if nothing."""
    worst = np.sort(np.argsort(own / np.sqrt(variance), kind="stable")[:_CROSSED])
    ranks, codes = ranks[:, worst], codes[:, worst]
    scores = _normal_scores(ranks)
    order = _exchanged(_table(scores, codes, units), np.delete(own, worst), variance)
    if order is None:
        order = _reordered(scores, codes, units)
    if order is None or (order == np.arange(len(order))).all():
        return None
    by_rank = _table(ranks, codes, units)
    return _in_words(by_rank, order, [names[int(c)] for c in worst], own.size)


# ------------------------------------------------------------------------------------ three tests


def _by_chance(
    own: NDArray[np.float64],
    ranks: NDArray[np.float32],
    contrasts: NDArray[np.float32],
    variance: NDArray[np.float64],
    codes: NDArray[np.int8],
) -> str | None:
    """Whether the mean AUROC is that of rows in any order.

    Its error is that over all orders of the rows, exactly, so that categories that go together
    count as they should; times what groups add.
    """
    weight = (1.0 / variance) / (1.0 / variance).sum()
    centred = ranks - ranks.mean(axis=0)
    weighted = contrasts * weight.astype(np.float32)
    total = float(((centred.T @ centred) * (weighted.T @ weighted)).sum(dtype=np.float64))
    rows = np.stack([(codes == one).sum(axis=0) for one in (1, 0)])
    grouped = float((weight * variance / _chance_variance(rows)).sum())
    error = math.sqrt(max(total, 0.0) / max(len(ranks) - 1, 1) * grouped)
    mean = float(weight @ own)
    if mean >= _ABOVE * error or mean + _BELOW * error >= _USABLE:
        return None
    number = "AUROC" if own.size == 1 else f"mean AUROC over {own.size:,} categories"
    what = f"the {number} is {0.5 + mean:.2f} (standard error {error:.3f})"
    if mean < -_CERTAIN * error:
        return f"{what}, worse than chance, as if the labels were turned round"
    return f"{what}, no better than chance"


def _exchanged(
    table: _Table, others: NDArray[np.float64], variance: NDArray[np.float64]
) -> NDArray[np.int64] | None:
    """The order in which rows change places two by two, if far more likely than the given one.

    A turn of three is two exchanges, of which the first alone may say little; so the evidence of
    a few is added up, each against all that there could be.
    """
    order = np.arange(len(table.variance))
    n_pairs = variance.size * (variance.size - 1) / 2
    certain = max(_CERTAIN, NormalDist().inv_cdf(1.0 - 0.01 / (2.0 * n_pairs)))
    against = math.log(n_pairs) + _TAIL * max(0.0, math.log(n_pairs / _PAIRS))
    evidence = 0.0
    for first in (True, *[False] * (_EXCHANGES - 1)):
        now = _Table(table.effect[order], table.variance, table.correlation[np.ix_(order, order)])
        gain = now.gain + now.gain.T
        error = np.sqrt(now.gain_variance + now.gain_variance.T)
        # both columns must then be ranked better than by chance, and the two together gain
        allowed = (now.effect > 0) & (now.effect.T > 0) & (gain > 2.0 * _GAIN)
        allowed &= np.tri(len(order), k=-1, dtype=bool)
        if not allowed.any():
            return None
        clear = allowed & (gain > certain * error)
        odds = _log_odds(now, others, float(variance.mean()))
        best = np.where(clear, gain / error, -np.inf) if clear.any() else odds
        best = np.where(allowed, best, -np.inf)
        i, j = np.unravel_index(int(best.argmax()), best.shape)
        if odds[i, j] <= 0 and not clear[i, j]:
            return None
        beyond = float(odds[i, j]) - against
        evidence += beyond
        order[[i, j]] = order[[j, i]]
        rare = first and beyond > 0 and _is_rare(now, others, variance, exchange=(int(i), int(j)))
        if clear[i, j] or rare or evidence > _ODDS:
            return order
    return None


def _is_rare(
    table: _Table,
    others: NDArray[np.float64],
    variance: NDArray[np.float64],
    *,
    exchange: tuple[int, int],
) -> bool:
    """Whether an exchange gains what sound rows would hardly ever show.

    The gain over two sound rows has twice their mean effect as its mean, below zero, as far as
    they do not correlate; and the spread of effects adds to its variance.
    """
    i, j = exchange
    n_pairs = variance.size * (variance.size - 1) / 2
    if n_pairs > _PAIRS:
        return False
    apart = 1.0 - float(table.correlation[i, j])
    gain = float(table.gain[i, j] + table.gain[j, i])
    by_chance = float(table.gain_variance[i, j] + table.gain_variance[j, i])
    own = np.concatenate([table.own, others])
    within = max(float(own.var(ddof=1) - variance.mean()), 0.0)
    distance = gain + 2.0 * max(float(own.mean()), 0.0) * apart
    error = math.sqrt(by_chance + 2.0 * within * apart**2)
    return distance > NormalDist().inv_cdf(1.0 - _RARE / n_pairs) * error


def _log_odds(table: _Table, others: NDArray[np.float64], variance: float) -> NDArray[np.float64]:
    """(C, C) log likelihood ratio of exchanging two rows against leaving them.

    Own effects are draws from one normal distribution, whose mean and variance are those that the
    exchange would leave; a row that correlates by r with the right one has r times its effect,
    give or take what is seen elsewhere in the table.

    For a column with effects x of one row and y of the other, both are normal with means (m, r m)
    where the first is right and (r m, m) where the second is; the two covariances mirror each
    other, so that their determinants cancel.
    """
    effect, noise, r = table.effect, table.variance, table.correlation
    change = table.gain + table.gain.T
    squares = effect**2 - table.own**2
    own = np.concatenate([table.own, others])
    n = own.size
    mean = (own.sum() + change) / n
    around = ((own**2).sum() + squares + squares.T) / n - mean**2
    within = np.maximum(_SPREAD * around * n / (n - 1) - variance, 0.0)
    mean = np.maximum(mean, 0.0)
    right = within + noise + 1e-4
    wrong = r**2 * within + (1.0 - r**2) * _other_variance(table) + noise + 1e-4
    both = r * (within + noise)

    def distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = x - mean, y - r * mean
        squares = wrong * x * x - 2.0 * both * x * y + right * y * y
        return np.asarray(squares / (right * wrong - both**2))

    given = np.broadcast_to(table.own, effect.shape)
    ratio = (distance(given, effect) - distance(effect, given)) / 2.0
    return np.asarray(ratio + ratio.T)


def _other_variance(table: _Table) -> float:
    """Of true effects of other rows beyond correlation; the largest, maybe exchanged, left out."""
    r = table.correlation
    beyond = (table.effect - r * table.own) ** 2 / (1.0 - r**2 + 1e-2)
    seen = np.sort(beyond[~np.eye(len(r), dtype=bool)])
    seen = seen[: max(seen.size - 3, seen.size // 2)]
    return max(0.0, float(seen.mean() - table.variance.mean()))


def _reordered(
    scores: NDArray[np.float32], codes: NDArray[np.int8], units: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """The best order of the rows, if it holds on images that did not choose it.

    Each half of the images chooses the order for the other half; rows move only where they gain
    more than a standard error.
    """
    halves = [units % 2 == half for half in (0, 1)]
    tables = [_table(scores[half], codes[half], units[half] // 2) for half in halves]
    total, spread, gains = 0.0, 0.0, []
    for chosen_on, judge in (tables, tables[::-1]):
        order = _best_order(chosen_on)
        moved = np.flatnonzero(order != np.arange(len(order)))
        moved = moved[np.isfinite(judge.variance[moved])]
        weight = 1.0 / judge.variance[moved]
        gain = judge.gain[order[moved], moved]
        total += float(weight @ gain)
        spread += float(weight**2 @ judge.gain_variance[order[moved], moved])
        gains += gain.tolist()
    if not gains or np.mean(gains) < _GAIN or total < _CERTAIN * math.sqrt(spread):
        return None
    return _best_order(_table(scores, codes, units))


def _best_order(table: _Table) -> NDArray[np.int64]:
    """(C,) the row for each column that gains most in all, in units of the columns' errors."""
    with np.errstate(invalid="ignore"):  # a column without a class in this half
        worth = (table.gain - np.sqrt(table.gain_variance)) / table.variance
    worth = np.where(np.isfinite(worth), worth, 0.0)
    np.fill_diagonal(worth, 0.0)
    if worth.max() <= 0.0:  # nothing gains, as nearly always; the import takes a second
        return np.arange(len(worth))
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worth, maximize=True)
    order = np.empty(len(worth), dtype=np.int64)
    order[columns] = rows
    return order


def _in_words(table: _Table, order: NDArray[np.int64], names: list[str], n_looked_at: int) -> str:
    """The exchange or the other order in words, with the column that gains most."""
    moved = np.flatnonzero(order != np.arange(len(order)))
    j = int(moved[np.argmax(table.gain[order[moved], moved])])
    i = int(order[j])
    auroc = 0.5 + table.effect
    text = (
        f"row {names[i]!r} of the head ranks column {names[j]!r} with AUROC {auroc[i, j]:.2f}, "
        f"its own row with {auroc[j, j]:.2f}"
    )
    if moved.size > 2:
        return f"{moved.size:,} of {n_looked_at:,} categories fit another order better: {text}"
    return (
        f"two columns look exchanged: {text}; "
        f"row {names[j]!r} ranks column {names[i]!r} with {auroc[j, i]:.2f}, "
        f"its own with {auroc[i, i]:.2f}"
    )


# ------------------------------------------------------------------------------- ranks and counts


def _table(
    scores: NDArray[np.float32], codes: NDArray[np.int8], units: NDArray[np.int64]
) -> _Table:
    effect = (scores.T @ _contrasts(codes)).astype(np.float64)
    centred = scores - scores.mean(axis=0)
    length = np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
    correlation = ((centred / length).T @ (centred / length)).astype(np.float64)
    return _Table(
        np.nan_to_num(effect),
        _chance_variance(_counts(codes, units)),
        np.clip(correlation, -1.0, 1.0),
    )


def _ranks(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, K) share of rows below each logit; those that are equal count half."""
    columns = np.ascontiguousarray(logits.T)
    order = np.argsort(columns, axis=1)
    ordered = np.take_along_axis(columns, order, axis=1)
    n_rows = len(logits)
    place = np.arange(n_rows, dtype=np.int32)
    new = np.ones(columns.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    middle = np.broadcast_to(place.astype(np.float32), columns.shape)
    tied = ~new.all(axis=1)
    if tied.any():
        new, middle = new[tied], middle.copy()
        last = np.ones(new.shape, dtype=bool)
        last[:, :-1] = new[:, 1:]
        first = np.maximum.accumulate(np.where(new, place, 0), axis=1)
        end = np.minimum.accumulate(np.where(last, place, n_rows)[:, ::-1], axis=1)[:, ::-1]
        middle[tied] = (first + end) / 2.0
    ranks = np.empty(columns.shape, dtype=np.float32)
    np.put_along_axis(ranks, order, middle / np.float32(n_rows), axis=1)
    by_row: NDArray[np.float32] = ranks.T
    return by_row


def _normal_scores(ranks: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, K) normal quantiles of ranks, with the variance of ranks, so that effects compare."""
    n_rows = len(ranks)
    halves = torch.arange(2 * n_rows, dtype=torch.float64) / 2  # ties lie halfway
    quantiles = (torch.special.ndtri((halves + 0.5) / n_rows) / math.sqrt(12.0)).float().numpy()
    scores: NDArray[np.float32] = quantiles[np.rint(ranks * (2.0 * n_rows)).astype(np.int32)]
    return scores


def _contrasts(codes: NDArray[np.int8]) -> NDArray[np.float32]:
    """(N, C) 1 over the positives in a positive, −1 over the negatives in a negative, else 0."""
    contrasts = np.zeros(codes.shape, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        for code, sign in ((1, 1.0), (0, -1.0)):
            held = codes == code
            contrasts += held * (sign / held.sum(axis=0)).astype(np.float32)
    return contrasts


def _counts(codes: NDArray[np.int8], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """(2, C) units with a positive, and with a negative."""
    n_units = int(units.max(initial=-1)) + 1
    if n_units == units.size:
        return np.stack([(codes == one).sum(axis=0) for one in (1, 0)])
    counts = np.zeros((2, codes.shape[1]), dtype=np.int64)
    for place, one in enumerate((1, 0)):
        for c in range(codes.shape[1]):
            held = np.bincount(units[codes[:, c] == one], minlength=n_units)
            counts[place, c] = np.count_nonzero(held)
    return counts


def _chance_variance(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(C,) of an AUROC by chance, from units with a positive and with a negative."""
    with np.errstate(divide="ignore"):
        return np.asarray((1.0 / counts[0] + 1.0 / counts[1]) / 12.0)


def _units_of(labels: PartialLabels | Array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows,) number of each row's group, or of itself where there are no groups."""
    groups = getattr(labels, "groups", None)
    if groups is None:
        return np.arange(rows.size)
    return np.unique(np.asarray(groups)[rows], return_inverse=True)[1].astype(np.int64)


def _codes_of(labels: PartialLabels | Array, rows: NDArray[np.int64]) -> NDArray[np.int8]:
    """(rows, C) codes, without making all labels dense."""
    if getattr(labels, "storage", "dense") == "columns":
        taken: NDArray[np.int8] = labels.take_rows(rows).codes  # type: ignore[union-attr]
        return taken
    return coerced_codes(labels)[rows]
