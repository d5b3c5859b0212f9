"""Whether a head is the whole of the model's last layer: every tensor of a checkpoint assigned.

A weight and a bias say what a model computes only if nothing else does. So each tensor of the
checkpoint is the head's, the backbone's, or of a kind that no logit depends on (`families`). What
is none of these is told by its name, and the head is refused:

- `doubts_beside`: what stands beside, below or around the head's own tensors, such as an adapter,
  the scale of packed numbers, or a gate. No choice of key makes such a head whole.
- `doubts_after`: what may come behind the layer, or beside it, in the model: a layer that takes as
  many numbers as there are categories, or one whose weight is packed. That is settled by naming the
  head, or by running the model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from catwise._safetensors import FileLayout
from catwise.heads.catalog import Catalog, Entry
from catwise.heads.families import ADAPTER, PACKED, family_of, harmless

_HEAD_NAMES: Final = frozenset(
    {
        "cls", "classif", "classifier", "classifiers", "classification_head", "fc", "fc_out",
        "head", "heads", "head_fc", "last_linear", "last_layer", "linear", "lin", "logit", "logits",
        "output", "out", "output_layer", "predictor", "prediction", "predictions", "probe", "score",
    }
)  # fmt: skip
_LEADS: Final = ("module", "model", "net", "_orig_mod", "base_model", "_forward_module")
_USUAL: Final = frozenset({"weight", "bias", "running_mean", "running_var"})
_BLOCK: Final = re.compile(r"(?:layer|block|stage)_?\d+$")
_SHOWN: Final = 5
_TOKENS: Final = re.compile(
    r"(?:^|[._])(?:\w*tokens?\w*|\w*embed\w*|(?:rel_)?pos|position\w*|query|queries|latents?|freqs)"
    r"(?:[._\d]|$)"
)


def is_plain_float(dtype: object) -> bool:
    """Whether a head can be of this dtype."""
    return str(dtype) in {"torch.float16", "torch.bfloat16", "torch.float32", "torch.float64"}


def head_stem(parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The parts of a layer's path up to the one with a head's name; None where there is none.

    A numbered part before it (`blocks.3.fc`) means that it lies inside the backbone; so does `aux`.
    """
    for position, part in enumerate(parts):
        lowered = part.lower()
        if lowered.isdigit() or "aux" in lowered:
            return None
        if lowered.rstrip("0123456789_") in _HEAD_NAMES:
            return (*parts[:position], re.sub(r"\d+$", "", lowered))
    return None


class _Head(NamedTuple):
    """A head's place among the tensors of its checkpoint."""

    entries: tuple[Entry, ...]
    container: str
    path: tuple[str, ...]
    shape: tuple[int, int]

    @property
    def core(self) -> tuple[str, ...]:
        """The path without what wrappers lead it by."""
        parts = self.path
        while parts and parts[0] in _LEADS:
            parts = parts[1:]
        return parts or self.path

    @property
    def wrap(self) -> tuple[str, ...]:
        """The path of what holds the head and its helpers: `classifier` of `classifier.1`."""
        for n in range(len(self.path)):
            if head_stem(self.path[: n + 1]) is not None:
                return self.path[: n + 1]
        return self.path

    def branch(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The part of another layer's path up to where it leaves the head's."""
        pairs = enumerate(zip(path, self.path, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), len(self.path))
        return path[: same + 1]


def _head(weight: Entry, bias: Entry | None) -> _Head:
    entries = (weight,) if bias is None else (weight, bias)
    path = tuple(weight.key.split(".")[:-1])
    return _Head(entries, weight.container, path, weight.rows)


def _others(catalog: Catalog, head: _Head) -> Iterator[tuple[Entry, tuple[str, ...], str]]:
    """All tensors but the head's and the harmless ones, each with its layer's path and its name."""
    own = {id(entry) for entry in head.entries}
    for entry in catalog.entries:
        if id(entry) in own or harmless(entry.container, entry.key, entry.shape, head.shape[0]):
            continue
        *path, leaf = entry.key.split(".")
        yield entry, tuple(path), leaf


# Beside


def doubts_beside(catalog: Catalog, weight: Entry, bias: Entry | None) -> str:
    """What makes a head more than its weight and bias, or ''."""
    head = _head(weight, bias)
    if weight.key.rpartition(".")[2] != "weight" and weight.layout == "matrix":
        return ""
    if wrapped := ADAPTER.search(".".join(head.path)):
        return f"adapted ({weight.key!r} is one part of it: {wrapped[0].strip('._:')!r})"
    found = [e for e, path, leaf in _others(catalog, head) if _is_beside(e, path, leaf, head)]
    if not found:
        return ""
    others = _whole_copies(catalog, head)
    found = [e for e in found if (e.container, _lead(e, head)) not in others]
    if not found:
        return ""
    lead = ".".join((*head.path, ""))
    words = [
        family_of(e.name if e.container != head.container else e.key.removeprefix(lead))
        for e in found
    ]
    first = min(range(len(found)), key=lambda i: (words[i] != "adapted", i))
    more = f" and {len(found) - 1:,} more stand" if len(found) > 1 else " stands"
    return f"{words[first]} ({found[first].name!r}{more} beside it)"


def _is_beside(entry: Entry, path: tuple[str, ...], leaf: str, head: _Head) -> bool:
    """Whether a tensor belongs to the head's own layer, by its name."""
    if entry.container == head.container:
        size = len(head.path)
        if path[:size] == head.path and (size or len(path) == 0 or head.entries[0].key == "weight"):
            return head.entries[0].layout != "groups" or len(path) == size
        in_wrap = path[: len(head.wrap)] == head.wrap and head_stem(head.path) is not None
        if in_wrap and (ADAPTER.search(entry.key) or _acts_on_logits(entry, path, head)):
            return True
    return _names_it(entry, path, leaf, head)


def _acts_on_logits(entry: Entry, path: tuple[str, ...], head: _Head) -> bool:
    """Whether a tensor held by what also holds the head has a shape that a logit could meet."""
    n_categories, n_features = head.shape
    if path != head.path[: len(path)] or _TOKENS.search(entry.key):
        return False
    sizes = {size for size in entry.shape if size != 1}
    return not sizes or (n_categories in sizes and n_categories != n_features)


def _names_it(entry: Entry, path: tuple[str, ...], leaf: str, head: _Head) -> bool:
    """Whether a tensor elsewhere is about the head's layer: `lycoris_classifier.alpha`."""
    core, parts = head.core, tuple(re.split(r"[.:]", entry.key))
    if not core:
        return False
    runs = [i for i in range(len(parts) - len(core)) if parts[i : i + len(core)] == core]
    flat = re.compile(rf"_{'_'.join(map(re.escape, core))}$")
    about = any(not any(p.isdigit() for p in parts[:i]) for i in runs)
    about = about or any(flat.search(part) for part in path)
    if not about:
        return False
    return leaf not in _USUAL or bool(ADAPTER.search(f"{entry.container}.{entry.key}"))


def _lead(entry: Entry, head: _Head) -> str:
    """What stands before the head's own name in a tensor's key."""
    return entry.key.partition(".".join(head.core))[0]


def _whole_copies(catalog: Catalog, head: _Head) -> set[tuple[str, str]]:
    """Where other copies of the head lie, such as a moving average's: container and lead."""
    weight, size = head.entries[0], len(head.core)
    name = (*head.core, weight.key.rpartition(".")[2])
    found = {
        (entry.container, _lead(entry, head))
        for entry in catalog.entries
        if tuple(entry.key.split("."))[-size - 1 :] == name and entry.shape == weight.shape
    }
    return found - {(head.container, _lead(weight, head))}


# Behind


class Doubt(NamedTuple):
    """A layer that may come behind the head: one of its tensors, and what makes it unusual."""

    name: str
    word: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.word})" if self.word else repr(self.name)


def doubts_after(catalog: Catalog, weight: Entry, bias: Entry | None) -> list[Doubt]:
    """The layers that may come behind a head, or beside it, so that its logits are not the model's.

    Where the checkpoint keeps the order in which the layers were made (all but safetensors, which
    sorts), a layer made before the head is the backbone's. Otherwise, a layer is if it lies in
    numbered blocks, or if its sizes fit what comes before the head and nothing behind it.
    """
    head = _head(weight, bias)
    left = [entry for entry, _, _ in _others(catalog, head)]
    layers = [x for x in _layers(catalog, left) if x.container == head.container]
    sorts = isinstance(catalog.origin, FileLayout)
    around = _Around(
        head,
        None if sorts else next(i for i, e in enumerate(catalog.entries) if e is weight),
        {layer.place: head.branch(layer.path) for layer in layers if layer.gives(head.shape[0])},
        {head.branch(layer.path) for layer in layers if layer.is_filter},
        _firsts(layers, head),
    )
    return [
        Doubt(layer.name, layer.word)
        for layer in layers
        if layer.path[: len(head.path) or 1] != head.path  # what lies below stands beside it
        and not _copies(layer.path, head)
        and _is_doubtful(layer, around)
    ]


class _Around(NamedTuple):
    """What counts in judging where a layer stands."""

    head: _Head
    made: int | None  # the head's place in an order that tells how the model was made, or None
    # places and branches of the layers that give as many numbers as there are categories
    makers: dict[int, tuple[str, ...]]
    # the branches of the model with filters over images, which no logit meets
    filters: set[tuple[str, ...]]
    firsts: set[int]  # places of the first matrix of each branch

    def feeds(self, layer: _Layer) -> bool:
        """Whether something other than the head may give a layer its numbers."""
        own = self.head.branch(layer.path)
        others = {branch for place, branch in self.makers.items() if place != layer.place}
        return bool(others - {own}) or (own in others and layer.place not in self.firsts)


def _firsts(layers: Sequence[_Layer], head: _Head) -> set[int]:
    """The places of the first matrix of each branch, by the numbers in its name."""
    found: dict[tuple[str, ...], _Layer] = {}
    for layer in sorted(layers, key=lambda layer: [p.zfill(9) for p in layer.path]):
        if "weight" in layer.parts and len(layer.parts["weight"].shape) > 1:
            found.setdefault(head.branch(layer.path), layer)
    return {layer.place for layer in found.values()}


class _Layer(NamedTuple):
    """The tensors of a checkpoint that have one path, by their last names."""

    container: str
    path: tuple[str, ...]
    parts: dict[str, Entry]
    place: int

    @property
    def name(self) -> str:
        """The name of its first tensor."""
        return next(iter(self.parts.values())).name

    @property
    def is_numbered(self) -> bool:
        """Whether it lies in numbered blocks, as most of a backbone does."""
        inner = any(_BLOCK.search(part) for part in self.path[:-1])
        return inner or any(part.isdigit() for part in self.path)

    @property
    def is_packed(self) -> bool:
        """Whether it has numbers, but no plain weight."""
        if "weight" in self.parts:
            return not is_plain_float(self.parts["weight"].dtype)
        packed = bool(self.path) and any(PACKED.search(leaf) for leaf in self.parts)
        return "bias" in self.parts or packed

    @property
    def word(self) -> str:
        """What makes it unusual, or ''."""
        if ADAPTER.search(self.name):
            return "adapted"
        return "quantised" if self.is_packed else ""

    @property
    def others(self) -> list[Entry]:
        """Its tensors that are not called a weight."""
        return [part for leaf, part in self.parts.items() if leaf != "weight"]

    @property
    def is_filter(self) -> bool:
        """Whether its weight is a convolution over more than one place."""
        weight = self.parts.get("weight")
        return weight is not None and len(weight.shape) > 3 and set(weight.shape[2:]) != {1}

    def gives(self, n: int) -> bool:
        """Whether its weight makes `n` numbers."""
        weight = self.parts.get("weight")
        return weight is not None and len(weight.shape) > 1 and weight.shape[0] == n

    def is_beside(self, n: int) -> bool:
        """Whether it makes `n` numbers as another head would."""
        return self.gives(n) and len(self.parts["weight"].shape) == 2 and not self.is_numbered

    def takes(self, n: int) -> bool:
        """Whether it could work on `n` logits, by its shapes."""
        if _TOKENS.search(".".join(self.path)):
            return False
        weight = self.parts.get("weight")
        if weight is not None and len(weight.shape) > 1:
            stop = 3 if len(weight.shape) == 3 else 2
            return n in weight.shape[1:stop] and not self.is_filter
        if any(part.isdigit() for part in self.path[:-1]):  # such as a norm inside a block
            return False
        shapes = [e.shape for e in self.parts.values() if is_plain_float(e.dtype)]
        if n > 1 and any(n in shape for shape in shapes if len(shape) in {2, 3}):
            return True
        sizes = {size for shape in shapes for size in shape if size != 1}
        return bool(shapes) and (sizes == {n} or (not sizes and not self.is_numbered))


def _layers(catalog: Catalog, entries: Iterable[Entry]) -> list[_Layer]:
    place = {id(entry): i for i, entry in enumerate(catalog.entries)}
    found: dict[tuple[str, ...], _Layer] = {}
    for entry in entries:
        *path, leaf = entry.key.split(".")
        new = _Layer(entry.container, tuple(path), {}, place[id(entry)])
        found.setdefault((entry.container, *path), new).parts[leaf] = entry
    return list(found.values())


def unusual_words(catalog: Catalog) -> dict[str, str]:
    """The layers of a checkpoint that an adapter or a quantisation made, by that word."""
    found: dict[str, list[str]] = defaultdict(list)
    for layer in _layers(catalog, catalog.entries):
        if layer.word:
            found[layer.word].append(repr(layer.name))
    return {word: ", ".join(names[:_SHOWN]) for word, names in found.items()}


def _copies(path: tuple[str, ...], head: _Head) -> bool:
    """Whether a layer lies in another copy of the model, or of its head."""
    lead = head.path[: len(head.path) - len(head.core)]
    return path[-len(head.core) :] == head.core or bool(lead and path[: len(lead)] != lead)


def _is_doubtful(layer: _Layer, around: _Around) -> bool:
    """Whether a layer may come behind the head, or beside it."""
    path, head, (n_categories, n_features) = layer.path, around.head, around.head.shape
    sure = layer.is_packed and head_stem(path) is not None
    sure = sure or _adapts(layer, n_categories)
    sure = sure or any(part.shape == head.entries[0].shape for part in layer.others)
    if not sure and path == head.path[: len(path)]:  # what holds the head
        return any(_may_scale(entry, head) for entry in layer.parts.values())
    branch = head.branch(path)
    beside = "".join(head.path[len(branch) - 1 : len(branch)])
    if not sure and branch[-1].isdigit() and beside.isdigit():
        return int(branch[-1]) > int(beside)
    before = n_categories == n_features and around.made is not None  # it may feed the head
    if sure or (layer.is_beside(n_categories) and not before):
        return True
    return (around.made is None or layer.place > around.made) and _may_follow(layer, around)


def _may_follow(layer: _Layer, around: _Around) -> bool:
    """Whether a layer that was not made before the head could take its logits, by its shapes."""
    n_categories, n_features = around.head.shape
    if layer.is_packed:
        bias = layer.parts.get("bias")
        feeds = n_features != n_categories and bias is not None and bias.shape == (n_features,)
        return not feeds and not layer.is_numbered
    sorts = around.made is None and head_stem(layer.path) is None
    if sorts and (around.head.branch(layer.path) in around.filters or around.feeds(layer)):
        return False
    return layer.takes(n_categories)


def _adapts(layer: _Layer, n_categories: int) -> bool:
    """Whether an adapter that lies in no numbered block makes as many numbers as there are rows."""
    word = ADAPTER.search(layer.name)
    if word is None or any(part.isdigit() for part in layer.name[: word.start()].split(".")):
        return False
    shapes = [part.shape for part in layer.parts.values() if len(part.shape) in {2, 3}]
    return any(n_categories in shape for shape in shapes)


def _may_scale(entry: Entry, head: _Head) -> bool:
    """Whether a tensor that the model itself holds could act on logits, by its shape and name."""
    sizes = {size for size in entry.shape if size != 1}
    if _TOKENS.search(entry.key) or not is_plain_float(entry.dtype):
        return False
    return sizes <= {head.shape[0]} or (len(sizes) == 2 and head.shape[0] in sizes)
