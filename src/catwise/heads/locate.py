"""Finding the head among the tensors of a checkpoint."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from catwise._text import some
from catwise.errors import HeadError, nearest
from catwise.heads.account import (
    Doubt,
    doubts_after,
    doubts_beside,
    head_stem,
    is_plain_float,
    unusual_words,
)
from catwise.heads.catalog import Catalog, Entry, open_catalog
from catwise.heads.families import ELSEWHERE, MORE, family_of, remedy_for

_EMA: Final = re.compile(r"(?:^|[._:])(?:ema|averaged|swa|teacher)(?:[._:]|$)", re.IGNORECASE)
_STAND_INS: Final = (
    *("weight_v", "parametrizations.weight.original1", "parametrizations.weight.original"),
    *("weight_orig", "qweight", "weight_packed"),
)
_SHOWN: Final = 12
_NUMBER: Final = re.compile(r"(?<!\d)(?:0|[1-9]\d*)(?!\d)")
SLOT: Final = "{}"
"""Stands for the number in the names of layers of one category each, as in ``fc_{}.weight``."""


@dataclass(frozen=True, slots=True)
class HeadLocation:
    """Where a head, or what may be one, lies in a checkpoint.

    Attributes:
        key: the weight's key within its container.
        bias_key: the bias's key, or None where there is none.
        container: the tables that lead to it (``"state_dict"``), or ``""``.
        n_categories: C.
        n_features: D.
        dtype: as stored, such as ``"float16"``.
        note: what is special about it, or ``""``.
        problem: why it cannot be used, or ``""``.
    """

    key: str
    bias_key: str | None
    container: str
    n_categories: int
    n_features: int
    dtype: str
    note: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """What to give as `key=` to mean this head and no other."""
        return f"{self.container}:{self.key}" if self.container else self.key

    @property
    def usable(self) -> bool:
        """Whether it can be read and written."""
        return not self.problem

    def __str__(self) -> str:
        bias = f"bias {self.bias_key!r}" if self.bias_key else "no bias"
        extra = "".join(f"; {text}" for text in (self.note, self.problem) if text)
        return (
            f"{self.name!r} ({self.n_categories:,} categories × {self.n_features:,} features, "
            f"{self.dtype}, {bias}{extra})"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A head's tensors within a catalog; those of the first of `parts`, if any.

    `parts` are layers of one category each, in order.
    """

    weight: Entry
    bias: Entry | None
    location: HeadLocation
    parts: tuple[Found, ...] = ()

    @property
    def bias_name(self) -> str | None:
        """What to give as `bias_key=`."""
        if self.bias is None or not self.parts:
            return self.bias.name if self.bias else None
        lead = f"{self.bias.container}:" if self.bias.container else ""
        return f"{lead}{self.location.bias_key}"


def list_heads(source: str | os.PathLike[str] | Mapping[str, Any]) -> list[HeadLocation]:
    """List what may be the head of a checkpoint or state_dict, every copy of it (EMA, `module.` …).

    Layers with the usual names (`fc`, `classifier`, `head` …) come alone where there are any;
    otherwise every matrix named `….weight` is listed. Those that cannot be used say why in
    `problem`. Of layers that follow one another the last stands first. CheckpointError if the file
    cannot be read.

    >>> import torch
    >>> for place in list_heads({"fc.weight": torch.ones(3, 8), "fc.bias": torch.ones(3)}):
    ...     print(place)
    'fc.weight' (3 categories × 8 features, float32, bias 'fc.bias')
    """
    catalog = open_catalog(source)
    candidates = _candidates(catalog)
    likely = [entry for group in _groups(candidates) for entry in reversed(group)]
    likely = _decoders(catalog) + likely
    return [_describe(catalog, entry).location for entry in likely or _matrices(candidates)]


def find_head(
    catalog: Catalog,
    *,
    key: str | None = None,
    bias_key: str | None = None,
    n_categories: int | None = None,
    at_hand: bool = False,
) -> Found:
    """Find the one head that is meant; HeadError where it is not clear.

    `key` is the weight's, with or without its container and ``.weight``; `bias_key` is given where
    it is not named like that. `at_hand`: the model is run and its logits compared with the head's,
    to which is left what only the names of other tensors make doubtful.
    """
    if key is not None and SLOT in key:
        return _joined(catalog, key, bias_key, at_hand=at_hand)
    if key is None:
        entry = _choose(catalog, n_categories)
    else:
        entry = _named(catalog, key, suffix=".weight")
    found = _describe(catalog, entry, bias_key=bias_key)
    problem = found.location.problem
    if problem and not (at_hand and problem.startswith(MORE)):
        raise HeadError(
            f"the head {found.location.name!r} of {catalog.label} cannot be used: it is {problem}.",
            found=str(found.location),
            expected="a plain float weight (C, D) that nothing else shares",
            remedy=_remedy(problem),
        )
    if key is None and not at_hand and (doubts := doubts_after(catalog, entry, found.bias)):
        raise _unsure(catalog, found, doubts)
    return found


def number_in(key: str, name: str) -> int | None:
    """The number that makes a name of one with a `SLOT`; None where it is another name.

    >>> number_in("fc_{}.weight", "fc_10.weight"), number_in("fc_{}.weight", "fc_a.weight")
    (10, None)
    """
    lead, slot, tail = key.partition(SLOT)
    text = name[len(lead) : len(name) - len(tail)]
    fits = slot and name.startswith(lead) and name.endswith(tail) and _NUMBER.fullmatch(text)
    return int(text) if fits else None


def series_in(names: Iterable[str]) -> dict[str, list[str]]:
    """Names that differ in one number alone, which counts from 0 or 1, by that name with a `SLOT`.

    >>> series_in(["fc_1", "conv1", "fc_0", "fc_2"])
    {'fc_{}': ['fc_0', 'fc_1', 'fc_2']}
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        for match in _NUMBER.finditer(name):
            key = name[: match.start()] + SLOT + name[match.end() :]
            found.setdefault(key, {})[int(match[0])] = name
    return {
        key: [by_number[number] for number in sorted(by_number)]
        for key, by_number in found.items()
        if len(by_number) > 1 and _counts(by_number)
    }


def _counts(numbers: Iterable[int]) -> bool:
    """Whether numbers count from 0 or 1 and leave none out."""
    given = sorted(numbers)
    return given[0] in {0, 1} and given == list(range(given[0], given[0] + len(given)))


def _joined(catalog: Catalog, key: str, bias_key: str | None, *, at_hand: bool) -> Found:
    """The layers of one category each that a name with a `SLOT` means, as one head."""
    own, numbered = _numbered(catalog, key)
    biases = (bias_key and bias_key.replace(SLOT, str(number)) for number in numbered)
    parts = tuple(
        find_head(catalog, key=entry.name, bias_key=bias, at_hand=at_hand)
        for entry, bias in zip(numbered.values(), biases, strict=True)
    )
    places = [part.location for part in parts]
    shapes = {(place.n_categories, place.n_features, place.dtype) for place in places}
    slots = bias_key is None or SLOT in bias_key
    if len(shapes) > 1 or places[0].n_categories != 1 or len({p.bias is None for p in parts}) > 1 \
            or not slots:  # fmt: skip
        raise HeadError(
            f"the layers {key!r} of {catalog.label} are not one layer for each category.",
            found=some([str(place) for place in places], _SHOWN, sep="; "),
            expected="weights (1, D) of one D and dtype, all with a bias each, or none",
            remedy="name the head's layers alone with key=…; list_heads shows what there is",
        )
    first, lead = parts[0], _prefix(own)
    bias = (bias_key or f"{lead}bias") if first.bias else None
    if first.bias is not None and bias is not None:
        bias = bias.removeprefix(f"{first.bias.container}:")
    location = replace(
        places[0], key=own, bias_key=bias, n_categories=len(parts), note="a layer for each category"
    )
    return Found(first.weight, first.bias, location, parts)


def _numbered(catalog: Catalog, key: str) -> tuple[str, dict[int, Entry]]:
    """The weights that a name with a `SLOT` means, by number in order; that name as a key."""
    numbered: list[tuple[int, Entry]] = []
    wanted = key
    for wanted, attribute in itertools.product((key, f"{key}.weight"), ("name", "key")):
        pairs = [(number_in(wanted, getattr(e, attribute)), e) for e in catalog.entries]
        if numbered := [(number, entry) for number, entry in pairs if number is not None]:
            break
    if not numbered:
        names = [entry.name for entry in catalog.entries]
        raise HeadError(
            f"{catalog.label} has no tensors {key!r} with a number for {SLOT}"
            f"{nearest(key, series_in(names))}.",
            found=f"{len(names):,} tensors",
            remedy="list_heads shows what may be the head",
        )
    containers = {entry.container for _, entry in numbered}
    if len(containers) > 1:
        raise _ambiguous(catalog, [entry for _, entry in numbered])
    if not _counts(number for number, _ in numbered):
        raise HeadError(
            f"the layers {key!r} of {catalog.label} do not count from 0 or 1.",
            found=some([entry.name for _, entry in sorted(numbered, key=_first)], _SHOWN),
            expected="a number for each category, none left out",
            remedy="save the checkpoint with the layers numbered so",
        )
    return wanted.removeprefix(f"{containers.pop()}:"), dict(sorted(numbered, key=_first))


def _first(pair: tuple[int, Entry]) -> int:
    return pair[0]


def _remedy(problem: str) -> str:
    if problem.startswith("tied"):
        return "untie it: save the checkpoint with a copy of the tensor, weight.clone()"
    other = "name another one with key=…; list_heads shows what there is"
    return remedy_for(problem) or other


def _unsure(catalog: Catalog, found: Found, doubts: Sequence[Doubt]) -> HeadError:
    """A head that may not be the last layer: which tensors say so, and what would make it sure."""
    words = {doubt.word for doubt in doubts if doubt.word}
    first = "; ".join(text for word in sorted(words) if (text := remedy_for(word)))
    sure = (
        "give the model too (--model KIND:NAME; in Python load_model), which is then run and "
        "compared; or, if you know that it is the last, name it: "
        f"key={found.location.name!r} (--head-key {found.location.name})"
    )
    return HeadError(
        f"the head of {catalog.label} cannot be told: {found.location.name!r} may not be the last "
        "of its layers.",
        found="may come behind it, or beside it: "
        + ", ".join(map(str, doubts[:_SHOWN]))
        + (f" and {len(doubts) - _SHOWN:,} more" if len(doubts) > _SHOWN else ""),
        expected="every tensor to be the backbone's, the head's, or of a kind that no logit "
        "depends on (optimizer, buffers of losses, counters)",
        remedy=f"{first}; or {sure}" if first else sure,
    )


def _choose(catalog: Catalog, n_categories: int | None) -> Entry:
    """The only head that fits; several or none are an error that shows them."""
    candidates = _candidates(catalog)
    likely = [group[-1] for group in _groups(candidates)]
    for pool in (_decoders(catalog), likely, _matrices(candidates)):
        fits = [e for e in pool if n_categories in {None, _n_rows(catalog, e)}]
        if len(fits) == 1:
            return fits[0]
        if len(fits) > 1:
            raise _ambiguous(catalog, fits)
        if pool and n_categories is None:
            break
    every, words = likely or _matrices(candidates), unusual_words(catalog)
    rows = f" with {n_categories:,} rows" if n_categories is not None and every else ""
    name = "name it with key='…' (and give its row names if it has further categories)"
    raise HeadError(
        f"no head{rows} was found in {catalog.label}.",
        found=(
            _show(catalog, every)
            if every
            else f"{len(catalog.entries):,} tensors, no matrix named '….weight'"
        )
        + _said(words),
        expected="a plain float weight (C, D) of the last layer",
        remedy="; ".join([*(text for w in words if (text := remedy_for(w))), name]),
    )


def _ambiguous(catalog: Catalog, fits: Sequence[Entry]) -> HeadError:
    problems = [_describe(catalog, entry).location.problem for entry in fits[:_SHOWN]]
    packed = unusual_words(catalog)
    first = next((problem for problem in problems if problem), "")
    mend = [text for word in packed if (text := remedy_for(word))]
    series = series_in(entry.name for entry in fits if entry.rows[0] == 1)
    name = f"name the one that is meant, such as key={fits[0].name!r}"
    if series:
        slotted = next(iter(series))
        name = f"if each is the layer of one category, in the order of its number, key={slotted!r}"
    return HeadError(
        f"{len(fits)} layers of {catalog.label} may be the head.",
        found=_show(catalog, fits) + _said(packed),
        expected="one",
        remedy=_remedy(first) if first else "; or ".join([*mend, name]),
    )


def _said(words: Mapping[str, str]) -> str:
    return "".join(f"; {names} ({word})" for word, names in words.items())


def _show(catalog: Catalog, entries: Sequence[Entry]) -> str:
    return some([str(_describe(catalog, entry).location) for entry in entries], _SHOWN, sep="; ")


def _named(catalog: Catalog, key: str, *, suffix: str) -> Entry:
    """The one tensor that a name means."""
    for wanted in (key, key + suffix):
        fits = [e for e in catalog.entries if e.name == wanted]
        fits = fits or [e for e in catalog.entries if e.key == wanted]
        if len(fits) > 1:
            raise _ambiguous(catalog, fits)
        if fits:
            return fits[0]
    names = [entry.name for entry in catalog.entries]
    of_kind = _candidates(catalog) if suffix == ".weight" else catalog.entries
    fitting = [entry.name for entry in of_kind if entry.name.endswith(suffix)]
    raise HeadError(
        f"{catalog.label} has no tensor {key!r}{nearest(key, names)}.",
        found=f"{len(names):,} tensors; a head's {suffix[1:]} may be {some(fitting[::-1], 5)}"
        if fitting
        else f"{len(names):,} tensors, none of which can be a head's {suffix[1:]}",
        expected="a tensor of the checkpoint by its full name, or no name: then it is looked for",
    )


def _candidates(catalog: Catalog) -> list[Entry]:
    """Every weight that has a head's shape, and what stands in for one."""
    return [
        entry
        for entry in catalog.entries
        if entry.layout == "matrix"
        and not ELSEWHERE.search(entry.container)
        and _prefix(entry.key) is not None
    ]


def _decoders(catalog: Catalog) -> list[Entry]:
    """The heads of ML-Decoder: where one is, the matrices beside it are none."""
    return [
        e for e in catalog.entries if e.layout == "groups" and not ELSEWHERE.search(e.container)
    ]


def _n_rows(catalog: Catalog, entry: Entry) -> int:
    """How many categories a head has; those of ML-Decoder are as many as its biases."""
    if entry.layout == "groups":
        return _describe(catalog, entry).location.n_categories
    return entry.shape[0]


def _matrices(entries: Sequence[Entry]) -> list[Entry]:
    """Without the 1×1 convolutions, of which a backbone has many."""
    return [entry for entry in entries if len(entry.shape) == 2]


def _prefix(key: str) -> str | None:
    """What leads a weight's key: ``"a.fc."`` of ``"a.fc.weight"``; None for no weight."""
    for suffix in ("weight", *_STAND_INS):
        if key == suffix or key.endswith("." + suffix):
            return key[: len(key) - len(suffix)]
    return None


def _groups(candidates: Sequence[Entry]) -> list[list[Entry]]:
    """Layers with a head's name, those that follow one another in one list, the last one last."""
    stems: dict[tuple[str, ...], list[Entry]] = {}
    for entry in candidates:
        stem = _head_stem(entry)
        if stem is not None:
            stems.setdefault((entry.container, *stem), []).append(entry)
    groups: list[list[Entry]] = []
    for entries in stems.values():
        entries.sort(key=lambda entry: _natural(entry.key))
        chain = [entries[0]]
        for entry in entries[1:]:
            if entry.shape[1] == chain[-1].shape[0]:
                chain.append(entry)
            else:
                groups.append(chain)
                chain = [entry]
        groups.append(chain)
    return groups


def _head_stem(entry: Entry) -> tuple[str, ...] | None:
    """The parts of the key, or of its table's name, up to the one with a head's name."""
    parts = (_prefix(entry.key) or "").split(".")[:-1]
    return head_stem(tuple(parts or entry.container.split(".")[-1:]))


def _natural(key: str) -> list[tuple[int, str]]:
    """Sorts 'fc.10' after 'fc.9'."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", key)]


def _describe(catalog: Catalog, entry: Entry, *, bias_key: str | None = None) -> Found:
    """Where an entry's bias is, and what is special or wrong about the two."""
    if not entry.layout:
        raise HeadError(
            f"the tensor {entry.name!r} of {catalog.label} is not the weight of a head.",
            found=f"shape {entry.shape}",
            expected="shape (C, D), (C, D, 1, 1) of a 1×1 convolution, (1, C, D) of a group-wise "
            "layer, or (K, D, C / K) of ML-Decoder's duplicate_pooling",
        )
    problem = _stands_in(entry) or _not_float(entry)  # whose shape says nothing of the bias
    bias = None if problem else _bias(catalog, entry, bias_key)
    problem = problem or _problem(catalog, entry, bias)
    kind = {4: "1×1 convolution", 3: "category-specific features"}.get(len(entry.shape))
    notes = [kind] if kind else []
    n_categories, n_features = entry.rows
    if entry.layout == "groups" and bias is not None:
        n_categories = math.prod(bias.shape)
    if _EMA.search(entry.name):
        notes.append("a moving average (EMA)")
    location = HeadLocation(
        entry.key,
        bias.key if bias else None,
        entry.container,
        n_categories,
        n_features,
        entry.dtype_name,
        ", ".join(notes),
        problem,
    )
    return Found(entry, bias, location)


def _bias(catalog: Catalog, entry: Entry, bias_key: str | None) -> Entry | None:
    if bias_key is not None:
        inside = [e for e in catalog.entries if e.container == entry.container]
        same = [e for e in inside if e.key in {bias_key, bias_key + ".bias"}]
        bias = same[0] if same else _named(catalog, bias_key, suffix=".bias")
    else:
        prefix = _prefix(entry.key)
        wanted = None if prefix is None else prefix + "bias"
        if entry.layout == "groups":
            wanted = entry.key + "_bias"
        beside = (e for e in catalog.entries if (e.container, e.key) == (entry.container, wanted))
        found = next(beside, None)
        if found is None:
            return None
        bias = found
    size, most = math.prod(bias.shape), entry.rows[0]
    fits = len(bias.shape) == 1 or (len(bias.shape) == 2 and bias.shape[0] == 1)
    if entry.layout == "groups":  # the last group may be short
        fits = fits and -(-size // entry.shape[0]) == entry.shape[2]
    elif size != most or (entry.layout == "matrix" and len(bias.shape) != 1):
        fits = False
    if not fits:
        raise HeadError(
            f"the bias {bias.name!r} does not fit the weight {entry.name!r}.",
            found=f"shapes {bias.shape} and {entry.shape}",
            expected=f"a bias of shape ({most},)",
            remedy="name the bias with bias_key='…'",
        )
    return bias


def _stands_in(weight: Entry) -> str:
    """What makes a tensor less than a weight, or ''."""
    prefix = _prefix(weight.key)
    name = "weight" if prefix is None else weight.key.removeprefix(prefix)
    if name not in _STAND_INS:
        return ""
    return f"{family_of(name)} ({weight.key!r} is not the weight itself)"


def _not_float(part: Entry) -> str:
    plain = is_plain_float(part.dtype)
    return "" if plain else f"quantised or no float tensor ({part.dtype_name})"


def _problem(catalog: Catalog, weight: Entry, bias: Entry | None) -> str:
    """Why a head cannot be used, or ''."""
    for part in (weight, bias):
        if part is None:
            continue
        if problem := _not_float(part):
            return problem
        if shared := _sharing(catalog, part):
            return f"tied: {part.key!r} shares its storage with {shared!r}"
        if _overlaps_itself(part):
            return f"tied: the rows of {part.key!r} share their numbers"
    return doubts_beside(catalog, weight, bias)


def _sharing(catalog: Catalog, part: Entry) -> str:
    """The name of another tensor that holds some of the same bytes, or ''."""
    alias = catalog.metadata.get(part.key)
    others = {key for key, value in catalog.metadata.items() if value == part.key}
    if others or (alias and any(entry.key == alias for entry in catalog.entries)):
        return next(iter(sorted(others)), alias or "")
    start, stop = part.extent
    for other in catalog.entries:
        if other is part or other.storage != part.storage or stop == start:
            continue
        other_start, other_stop = other.extent
        if other_start < stop and start < other_stop:
            return other.name
    return ""


def _overlaps_itself(part: Entry) -> bool:
    """Whether two positions of a tensor are one place in memory."""
    reach = 0
    for stride, size in sorted(zip(part.stride, part.shape, strict=True)):
        if size == 1:
            continue
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
