"""One answer of several models: checkpoints, backbones, seeds, or views of an image.

Every member's outputs become calibrated logits, or ranks through the distribution functions of the
rows that calibrated; the ensemble is their mean. A mean of ranks is calibrated, and so is what is
pooled over the images of a study or patient; a mean of calibrated members is left as it is, since
a second calibration is worth nothing (measured in docs/decisions.md). With the "probability" method

    logit(Σ_m w_m σ(a_m z_m + b_m))

is computed from log-sigmoids, so that no probability rounds to 0 or 1. Only a mean of logits of
heads that share their features is itself a head: `Ensemble.collapse`. Every other mean of such
heads takes one layer more: `Ensemble.module`.

Source: Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017 (the mean of probabilities).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from catwise._json import number
from catwise._reported import Reported
from catwise._version import __version__
from catwise.decisions.calibrate import Calibration
from catwise.decisions.document import Document, read_document
from catwise.decisions.maps import CalibrationModule, CategoryMap
from catwise.decisions.outputs import Columns, as_outputs, is_pair, read_members
from catwise.errors import ConfigError, HeadError, nearest
from catwise.heads import Head
from catwise.joining import match_categories
from catwise.labels import PartialLabels
from catwise.labels.codes import UNKNOWN
from catwise.metrics import PairedComparison
from catwise.metrics.pooling import By, Pooling

FORMAT: Final = "1"


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    Attributes:
        name: of the member.
        kind: of its outputs: "logits", "probabilities" or "scores".
        maps: C maps of its outputs (as logits) to calibrated logits, or to logits of ranks; None
            for a category that it lacks.
    """

    name: str
    kind: str
    maps: tuple[CategoryMap | None, ...]


class Combined(NamedTuple):
    """What an ensemble says of images, studies or patients.

    Attributes:
        ids: (G,) names, or None.
        logits: (G, C) float64 calibrated logits.
    """

    ids: NDArray[np.str_] | None
    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(G, C) float64."""
        return torch.sigmoid(self.logits)


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble(Document, Reported):
    """Members, their maps and weights, and what the ensemble did on test rows.

    Attributes:
        categories: C names.
        method: "probability", "rank" or "logit".
        members: M of them.
        weights: (M, C) float64; each column adds up to 1, 0 where a member lacks the category.
        calibration: of the mean, where it has one.
        by: what is scored as one: "image", "study", "patient", or "groups" of one's own.
        pool: how images become one: "mean" or "max".
        scores: {metric: ((C,) of the ensemble on test rows, (C, 2) their intervals)}, or None.
        against: {member: {metric: PairedComparison}}: the ensemble against each member on test
            rows, in the member's categories; None without them.
        worth: {metric: PairedComparison}: the weights against equal ones, on rows that chose
            neither; None for equal weights.
        notes: what to know, a sentence each.
    """

    categories: tuple[str, ...]
    method: str
    members: tuple[Member, ...]
    weights: NDArray[np.float64]
    calibration: Calibration
    by: str = "image"
    pool: str = "mean"
    scores: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None
    against: Mapping[str, Mapping[str, PairedComparison]] | None = None
    worth: Mapping[str, PairedComparison] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        members = ", ".join(one.name for one in self.members)
        return f"Ensemble({self.method} of {members}; {len(self.categories)} categories)"

    def combine(
        self,
        members: Mapping[str, Any],
        *,
        ids: Any = None,
        groups: Any = None,
        by: By = None,
    ) -> Combined:
        """Combine the members' outputs for other rows, labelled or not.

        Args:
            members: name → `Outputs`, (N, C) numbers of the kind that was given, (head, features),
                or a tuning, whose out-of-fold logits are combined. Rows join by id where both
                have ids.
            ids: (N,) of the rows to combine; None: those of the first member that has ids.
            groups: (N,) patients of these rows, where the ensemble is by patient.
            by: {id: group}, where the ensemble's groups are one's own.

        Raises:
            ConfigError: If a member is missing or unknown.
            CatwiseError: As `ensemble`.
        """
        names = [one.name for one in self.members]
        wrong = [str(name) for name in members if str(name) not in names]
        lacking = [name for name in names if name not in members]
        if wrong or lacking:
            what = f"{wrong[0]!r} is not a member" if wrong else f"{lacking[0]!r} is missing"
            raise ConfigError(
                f"{what}{nearest(wrong[0], names) if wrong else ''}.",
                expected=", ".join(map(repr, names)),
            )
        members = {str(name): as_outputs(value) for name, value in members.items()}
        labels = _unlabelled(members, self.categories, ids, groups)
        kinds = {one.name: one.kind for one in self.members}
        columns, _ = read_members(members, labels, kinds, judged=False)
        pooling = Pooling.of(self.by if by is None else by, labels, self.pool)
        logits = self.calibration.logits(pooled(self.mean(columns), pooling))
        return Combined(labels.ids if pooling is None else pooling.names, logits)

    def mean(self, columns: Sequence[Columns]) -> Tensor:
        """(N, C) logits of the mean, before they are pooled and calibrated."""
        place = {one.name: at for at, one in enumerate(self.members)}
        maps = [self.members[place[one.name]].maps for one in columns]
        order = [place[one.name] for one in columns]
        parts = [mapped(one, own, self.method) for one, own in zip(columns, maps, strict=True)]
        return mean_logits(parts, self.weights[order], self.method)

    def collapse(self, heads: Mapping[str, Head]) -> Head:
        """The one head that is the mean, of heads that are fed by the same features.

        That is exact for a mean of logits (``method="logit"``) of single images, and for no other.

        Args:
            heads: of all members, whose logits were given, for the same features.

        Raises:
            ConfigError: If this ensemble is no head.
            HeadError: If heads differ in their number of features, or one lacks a bias it needs.
            CategoryError: If a head lacks a category.
        """
        self._check_collapse()
        own = self._heads(heads)
        final = self.calibration.categories
        weight = torch.zeros(len(self.categories), own[0][0].n_features, dtype=torch.float64)
        bias = torch.zeros(len(self.categories), dtype=torch.float64)
        for (head, rows), member, share in zip(own, self.members, self.weights, strict=True):
            w, b = head.weight.double().cpu(), head.bias
            for c, one in enumerate(member.maps):
                if one is None or not share[c]:
                    continue
                scale = float(share[c]) * one.scale
                weight[c] += scale * w[rows[c]]
                inner = 0.0 if b is None else float(b[rows[c]])
                bias[c] += scale * inner + float(share[c]) * one.offset
        for c, last in enumerate(final):
            weight[c] *= last.map.scale
            bias[c] = last.map.scale * bias[c] + last.map.offset
        return Head(weight.float(), bias.float(), categories=self.categories)

    def _check_collapse(self) -> None:
        kinds = {one.kind for one in self.members}
        if self.method != "logit" or kinds != {"logits"}:
            raise ConfigError(
                "only a mean of logits is one head.",
                found=f"method={self.method!r} of {' and '.join(sorted(kinds))}",
                remedy="method='logit', or ensemble.module(heads), which has a layer more",
            )
        if self.by != "image":
            raise ConfigError("a head speaks of single images.", found=f"an ensemble by {self.by}")

    def _heads(self, heads: Mapping[str, Head]) -> list[tuple[Head, NDArray[np.int64]]]:
        """Each member's head, and its row for each category (-1 where it lacks one)."""
        lacking = [one.name for one in self.members if one.name not in heads]
        if lacking:
            raise ConfigError(f"the head of {lacking[0]!r} is missing.", expected="all members'")
        found = []
        for one in self.members:
            head = heads[one.name]
            has = [c for c, own in enumerate(one.maps) if own is not None]
            index, _ = match_categories(
                head.categories,
                [self.categories[c] for c in has],
                name=f"member {one.name!r}",
            )
            rows = np.full(len(self.categories), -1)
            rows[has] = index
            found.append((head, rows))
        sizes = {head.n_features for head, _ in found}
        if len(sizes) > 1:
            raise HeadError(
                "heads of different features do not become one.",
                found=f"{sorted(sizes)} features",
                expected="heads that are fed by the same features",
            )
        return found

    def module(self, heads: Mapping[str, Head] | None = None) -> EnsembleModule:
        """A torch module of single images; it exports.

        Args:
            heads: of all members, for the same features: then the module takes (…, D) features,
                else (…, M, C) outputs, as logits, in the members' order, 0 where one lacks a
                category.

        Raises:
            ConfigError: If the ensemble is not of single images, or a head is missing.
            HeadError: If heads differ in their number of features.
        """
        if self.by != "image":
            raise ConfigError(
                "a module speaks of single images.", found=f"an ensemble by {self.by}"
            )
        return EnsembleModule(self, None if heads is None else self._heads(heads))

    def sentences(self) -> list[str]:
        """The ensemble against each member on test rows, and its weights against equal ones."""
        lines = []
        for name, found in (self.against or {}).items():
            lines += [f"against {name!r}: {_sentence(one)}" for one in found.values()]
        for one in (self.worth or {}).values():
            lines.append(f"weights against equal ones: {_sentence(one, 'labelled row')}")
        return lines

    def records(self) -> list[dict[str, Any]]:
        """One JSON-ready dict for each category: scores on test rows, of all and of each member."""
        records = []
        for c, category in enumerate(self.categories):
            last = self.calibration.categories[c]
            record: dict[str, Any] = {
                "category": category,
                "n_members": sum(one.maps[c] is not None for one in self.members),
                "n_positive": last.n_positive,
                "n_negative": last.n_negative,
                "reason": last.reason,
            }
            for metric, (values, ends) in (self.scores or {}).items():
                low, high = ends[c]
                record[metric] = number(values[c])
                record |= {f"{metric}_low": number(low), f"{metric}_high": number(high)}
            records.append(record)
        for name, found in (self.against or {}).items():
            place = {category: c for c, category in enumerate(self.categories)}
            for metric, one in found.items():
                for row in one.records():
                    record = records[place[row["category"]]]
                    record[f"{metric} of {name}"] = row["before"]
                    record[f"{metric} against {name}"] = row["outcome"]
        return records

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        members = [
            {
                "name": one.name,
                "kind": one.kind,
                "maps": [None if own is None else own.to_dict() for own in one.maps],
            }
            for one in self.members
        ]
        against = {
            name: {metric: _brief(one) for metric, one in found.items()}
            for name, found in (self.against or {}).items()
        }
        worth = {name: _brief(one, "labelled row") for name, one in (self.worth or {}).items()}
        return {
            "catwise_ensemble": FORMAT,
            "method": self.method,
            "by": self.by,
            "pool": self.pool,
            "against": against or None,
            "worth": worth or None,
            "notes": list(self.notes),
            "categories": self.records(),
            "members": members,
            "weights": self.weights.tolist(),
            "calibration": Calibration(
                self.calibration.categories, self.calibration.population
            ).to_dict(),
        }

    def page_document(self) -> dict[str, Any]:
        """What the page is made of, JSON-ready: the ensemble against its best member."""
        found = self.to_dict()
        del found["calibration"]
        found["members"] = [{"name": one.name, "kind": one.kind} for one in self.members]
        found["population"] = self.calibration.population
        best, comparisons = None, []
        if self.against:
            metric = next(iter(next(iter(self.against.values()))))
            firsts = {name: one[metric] for name, one in self.against.items()}
            sign = {name: 1 if one.higher_is_better else -1 for name, one in firsts.items()}
            known = [name for name, one in firsts.items() if one.n_scored]
            best = max(
                known or firsts, key=lambda name: float(sign[name] * firsts[name].mean_before)
            )
            comparisons = [one.to_dict() for one in self.against[best].values()]
        more = {"best": best, "comparisons": comparisons}
        return {"kind": "ensemble", "catwise": __version__, **found, **more}

    @classmethod
    def load(cls, path: str | Path) -> Ensemble:
        """Read the ensemble that `save` wrote; not what it did on test rows.

        Raises:
            ConfigError: If it is not such a file, or of another version.
        """
        by = "`Ensemble.save` or `catwise ensemble`"
        return read_document(path, _read, what="an ensemble", written_by=by)


def _sentence(one: PairedComparison, rows: str = "test row") -> str:
    """The comparison; what is not shown is undecided."""
    return one.sentence(rows).replace("No difference shown:", "Undecided:")


def _brief(one: PairedComparison, rows: str = "test row") -> dict[str, Any]:
    sentence = _sentence(one, rows)
    return {"verdict": one.verdict, **one.mean(), "level": one.level, "sentence": sentence}


def _read(table: Mapping[str, Any]) -> Ensemble:
    if table.get("catwise_ensemble") != FORMAT:
        raise ValueError(f"version {table.get('catwise_ensemble')!r}, not {FORMAT!r}")
    calibration = Calibration.from_dict(table["calibration"])
    names = calibration.names
    members = tuple(_read_member(one, names) for one in table["members"])
    weights = np.array(table["weights"], dtype=np.float64)
    has = np.array([[one is not None for one in member.maps] for member in members])
    fits = weights.shape == has.shape and bool((weights[~has] == 0.0).all())
    if not fits or not (weights >= 0).all() or not np.allclose(weights.sum(axis=0), 1.0):
        raise ValueError("the weights do not fit the members")
    method, by, pool = (str(table[key]) for key in ("method", "by", "pool"))
    notes = tuple(table["notes"])
    return Ensemble(names, method, members, weights, calibration, by, pool, notes=notes)


def _read_member(table: Mapping[str, Any], names: Sequence[str]) -> Member:
    maps = [
        None if one is None else CategoryMap.from_dict(one, name)
        for one, name in zip(table["maps"], names, strict=True)
    ]
    return Member(str(table["name"]), str(table["kind"]), tuple(maps))


def _unlabelled(
    members: Mapping[str, Any], categories: Sequence[str], ids: Any, groups: Any
) -> PartialLabels:
    """Labels of which none is known, for rows with ids, else for those of a member."""
    if ids is not None:
        names = np.asarray(ids).astype(np.str_)
        codes = np.full((names.size, len(categories)), UNKNOWN, dtype=np.int8)
        return PartialLabels(codes, names, categories, groups)
    parts = [value[1] if is_pair(value) else value for value in members.values()]
    named = [one for one in parts if getattr(one, "ids", None) is not None]
    first = (named or parts)[0]
    n = len(getattr(first, "values", first)) if not hasattr(first, "shape") else first.shape[0]
    codes = np.full((n, len(categories)), UNKNOWN, dtype=np.int8)
    return PartialLabels(codes, getattr(first, "ids", None), categories, groups)


def mapped(
    columns: Columns, maps: Sequence[CategoryMap | None], method: str
) -> NDArray[np.float64]:
    """(N, C) a member's calibrated logits, or logits of ranks; 0 where it lacks the category."""
    values = columns.values if method == "rank" else columns.logits()
    out = np.zeros_like(values)
    for c, one in enumerate(maps):
        if one is not None:
            out[:, c] = one(values[:, c])
    return out


def mean_logits(
    parts: Sequence[NDArray[np.float64]], weights: NDArray[np.float64], method: str
) -> Tensor:
    """(N, C) logits of the mean of M parts; 64 bits.

    Args:
        parts: M times (N, C) logits.
        weights: (M, C), whose columns add up to 1.
        method: "logit" averages logits; else their probabilities are averaged.

    >>> parts = [np.array([[2.0]]), np.array([[-1.0]])]
    >>> weights = np.full((2, 1), 0.5)
    >>> torch.sigmoid(mean_logits(parts, weights, "probability")).round(decimals=4).item()
    0.5749
    >>> mean_logits(parts, weights, "logit").item()
    0.5
    """
    if method == "logit":
        return torch.from_numpy(sum(w * part for w, part in zip(weights, parts, strict=True)))
    sides = []
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    for sign in (1.0, -1.0):
        total = np.full_like(parts[0], -np.inf)
        for w, part in zip(log_weights, parts, strict=True):
            total = np.logaddexp(total, w - np.logaddexp(0.0, -sign * part))
        sides.append(total)
    return torch.from_numpy(sides[0] - sides[1])


def pooled(logits: Tensor, pooling: Pooling | None) -> Tensor:
    """Logits of images, or of what is scored as one."""
    return logits if pooling is None else pooling.logits(logits)


class EnsembleModule(nn.Module):
    """Calibrated logits of the mean, from the members' outputs or from features they share.

    Args:
        ensemble: of single images.
        heads: each member's head and its row for each category, or None.
    """

    log_weight: Tensor
    weight: Tensor

    def __init__(
        self, ensemble: Ensemble, heads: Sequence[tuple[Head, NDArray[np.int64]]] | None
    ) -> None:
        super().__init__()
        m, c = ensemble.weights.shape
        self.shape, self.by_logits = (m, c), ensemble.method == "logit"
        plain = CategoryMap()
        self.maps = nn.ModuleList(
            CalibrationModule([one or plain for one in member.maps]) for member in ensemble.members
        )
        self.final = CalibrationModule([one.map for one in ensemble.calibration.categories])
        weights = torch.from_numpy(ensemble.weights)
        self.register_buffer("weight", weights.float())
        # A member without the category adds a probability below any that float32 has.
        self.register_buffer("log_weight", weights.log().clamp_min(-1e4).float())
        self.heads: nn.Linear | None = None if heads is None else _stacked(heads, m * c)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) calibrated logits."""
        outputs = x if self.heads is None else self.heads(x).unflatten(-1, self.shape)
        parts = [one(outputs[..., m, :]) for m, one in enumerate(self.maps)]
        logits = torch.stack(parts, dim=-2)
        if self.by_logits:
            mean: Tensor = self.final((self.weight * logits).sum(-2))
            return mean
        log = nn.functional.logsigmoid
        up, down = ((self.log_weight + log(side)).logsumexp(-2) for side in (logits, -logits))
        found: Tensor = self.final(up - down)
        return found


def _stacked(heads: Sequence[tuple[Head, NDArray[np.int64]]], n: int) -> nn.Linear:
    """One layer that gives all members' logits, 0 where a member lacks the category."""
    layer = nn.Linear(heads[0][0].n_features, n)
    weight, bias = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    at = 0
    for head, rows in heads:
        for row in rows.tolist():
            if row >= 0:
                weight[at] = head.weight[row].float()
                bias[at] = 0.0 if head.bias is None else head.bias[row].float()
            at += 1
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
