"""A model's weights out of a training checkpoint: bare, wrapped, averaged, or Lightning's.

Trainers store a model's tensors under names of their own: in a table (`state_dict`, `model`,
`ema`), led by an attribute (`module.`, `model.`, `net.`), or both. Lightning's `.ckpt` files hold
the optimizer, the loops and the options beside them. All are read by the inert reader of
`catwise.heads`: nothing in a file is executed, and a file that asks for more is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import nn

from catwise._text import some
from catwise.errors import CheckpointError, ConfigError, HeadError, nearest
from catwise.heads.archive import Archive
from catwise.heads.catalog import Catalog, Entry, load_tensor, open_catalog
from catwise.heads.families import harmless
from catwise.heads.locate import find_head, series_in
from catwise.heads.provenance import KEY

_KNOWN_LEADS: Final = re.compile(r"(?:(?:module|model|net|_orig_mod)\.)*")
_COMPILED: Final = re.compile(r"(?<![^.:])_orig_mod\.")  # what torch.compile puts into a path
_VERSION_KEYS: Final = ("pytorch-lightning_version", "lightning_version")
_OPTIONS: Final = ("hyper_parameters", "hparams")
_NAME_OPTIONS: Final = ("categories", "class_names", "classes", "label_names", "labels")
_SHOWN: Final = 5


class Placed(NamedTuple):
    """Where a model's tensors lie in a checkpoint."""

    prefix: str  # what leads the model's keys, container first: ``"state_dict:model."``, or ``""``
    names: dict[str, str]  # the model's key → the tensor's name in the checkpoint
    notes: list[str]  # what to know, a sentence each


def open_weights(checkpoint: str | os.PathLike[str]) -> Catalog:
    """List the tensors of a checkpoint file; none is read and nothing is executed."""
    path = Path(checkpoint)
    if path.is_dir():
        raise CheckpointError(
            f"the checkpoint '{path}' is a folder.",
            expected="a file: .safetensors, .pt, .pth or .ckpt",
            remedy="name the file in it; a transformers folder is loaded as transformers:FOLDER",
        )
    return open_catalog(path)


def is_lightning(catalog: Catalog) -> bool:
    """Whether a checkpoint says that Lightning wrote it."""
    content = _content(catalog)
    return any(key in content for key in _VERSION_KEYS)


def stored_categories(catalog: Catalog, n_categories: int) -> list[str] | None:
    """Category names among the options that a training checkpoint remembers."""
    content = _content(catalog)
    for table in [content, *(content.get(key) for key in _OPTIONS)]:
        if not isinstance(table, Mapping):
            continue
        for option in _NAME_OPTIONS:
            names = table.get(option)
            if not isinstance(names, (list, tuple)) or len(names) != n_categories:
                continue
            if all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
                return list(names)
    return None


def _content(catalog: Catalog) -> Mapping[Any, Any]:
    origin = catalog.origin
    if isinstance(origin, Archive) and isinstance(origin.content, Mapping):
        return origin.content
    return {}


def count_categories(
    catalog: Catalog, *, layer: str | None = None, prefix: str | None = None
) -> int:
    """Count the rows of a checkpoint's head."""
    counts: set[int] = set()
    if layer is not None:
        key = f"{layer}.weight"
        counts = {
            entry.shape[0]
            for entry in catalog.entries
            if (lead := _lead(entry, key)) is not None
            and entry.shape
            and (lead == prefix if prefix is not None else _is_known(lead))
        }
    if not counts:
        containers = {entry.container for entry in catalog.entries}
        for container in sorted(containers):
            inside = tuple(e for e in catalog.entries if e.container == container)
            part = dataclasses.replace(catalog, entries=inside)
            with contextlib.suppress(HeadError):
                counts.add(find_head(part, at_hand=True).location.n_categories)
    rows = [e.name for e in catalog.entries if e.layout == "matrix" and e.rows[0] == 1]
    if not counts:  # a layer for each category
        counts = {len(each) for each in series_in(rows).values()}
    if len(counts) == 1:
        return counts.pop()
    raise ConfigError(
        f"{catalog.label} does not tell how many categories the model has.",
        found=f"heads with {sorted(counts)} rows" if counts else "no layer that is its head",
        remedy="give their names, categories=[…] (--head-categories FILE), or name the layer: "
        "layer='…'",
    )


def load_weights(
    module: nn.Module, catalog: Catalog, *, prefix: str | None = None, loaded: bool = False
) -> Placed:
    """Load a checkpoint into a model: every tensor of the one is one of the other.

    Tables of any name, and the leading attributes `module.`, `model.`, `net.` and `_orig_mod.`,
    are found. Another lead, or one of several copies (such as an EMA), is named with `prefix`:
    ``"state_dict_ema:"``, ``"encoder."``. Weights that are in the model already (`loaded`) are
    left, whatever differs. CheckpointError lists all tensors that are missing, left over or of
    another shape, or the copies.
    """
    state = module.state_dict()
    own = {key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")}
    lead = _choose_lead(catalog, own) if prefix is None else prefix
    entries = {entry.name: entry for entry in catalog.entries}
    plain = {_plain(name): name for name in entries}
    names = {key: name for key in own if (name := _stored_name(catalog, plain, lead, key))}
    container, _, attribute = lead.rpartition(":")
    inside = [entry for entry in catalog.entries if entry.container == container]
    ours = [entry for entry in inside if entry.key.startswith(attribute)]
    taken = set(names.values())
    idle = [e for e in ours if e.name not in taken and _is_idle(e, own)]
    ours = [entry for entry in ours if entry not in idle]
    beside = [entry for entry in inside if not entry.key.startswith(attribute)]
    placed = Placed(lead, names, _notes(catalog, lead, [*beside, *idle]))
    if loaded:
        return placed
    _check_match(
        catalog,
        lead,
        # PyTorch before 0.4 stored no counters; they start again from 0
        missing=[k for k in own if k not in names and not k.endswith("num_batches_tracked")],
        unexpected=[entry.name for entry in ours if entry.name not in taken],
        shapes=[
            f"{name!r} is {entries[name].shape} and the model's {own[key]}"
            for key, name in names.items()
            if entries[name].shape != own[key]
        ],
    )
    values: Any = OrderedDict((key, _load(catalog, entries[name])) for key, name in names.items())
    values._metadata = getattr(state, "_metadata", None)  # noqa: SLF001  # layouts are the present ones
    try:
        module.load_state_dict(values, strict=False)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the model does not take the weights of {catalog.label}.", found=str(error)
        ) from error
    return placed


def _load(catalog: Catalog, entry: Entry) -> Any:
    if entry.dtype is None:
        raise CheckpointError(
            f"the tensor {entry.name!r} of {catalog.label} is of a kind that is not read.",
            found=entry.dtype_name,
            remedy="use the checkpoint from before it was quantised",
        )
    return load_tensor(catalog, entry)


def _plain(name: str) -> str:
    """A tensor's name without what torch.compile puts into it, wherever that is."""
    return _COMPILED.sub("", name)


def _is_idle(entry: Entry, own: Mapping[str, Any]) -> bool:
    """Whether a tensor beside the model's is of a kind that no logit depends on.

    Such as the weights of a loss, or a counter, that lie among the model's own.
    """
    widths = {shape[0] for key, shape in own.items() if key.endswith("weight") and shape}
    by_count = len(entry.shape) == 1 and entry.shape[0] in widths
    n_categories = entry.shape[0] if by_count else 0
    return harmless(entry.container, entry.key, entry.shape, n_categories)


def _stored_name(catalog: Catalog, plain: Mapping[str, str], lead: str, key: str) -> str | None:
    """The name of the model's tensor; safetensors keep one of several tied ones."""
    name = lead + key
    if plain.get(_plain(name)) is not None:
        return plain[_plain(name)]
    alias = catalog.metadata.get(name)
    return None if alias is None else plain.get(_plain(alias))


def _lead(entry: Entry, key: str) -> str | None:
    """What leads the model's key in an entry's name, or None where it is another tensor's."""
    if entry.key != key and not entry.key.endswith("." + key):
        return None
    return entry.name[: len(entry.name) - len(key)]


def _is_known(lead: str) -> bool:
    return _KNOWN_LEADS.fullmatch(lead.rpartition(":")[2]) is not None


def _choose_lead(catalog: Catalog, own: Mapping[str, Any]) -> str:
    """The known lead with which most keys are found; two that are as good are an error."""
    counts: Counter[str] = Counter()
    plain = set(map(_plain, own))
    for entry in catalog.entries:
        parts = entry.key.split(".")
        for start in range(len(parts)):
            key = ".".join(parts[start:])
            if parts[start] != "_orig_mod" and _plain(key) in plain:
                counts[entry.name[: len(entry.name) - len(key)]] += 1
    if not counts:
        return ""
    known = {lead: count for lead, count in counts.items() if _is_known(lead)}
    most = max(known.values(), default=0)
    best = [lead for lead, count in known.items() if count == most]
    if len(best) > 1:
        raise CheckpointError(
            f"{len(best)} copies of the model are in {catalog.label}.",
            found=", ".join(f"keys led by {lead!r}" for lead in best[:_SHOWN]),
            expected="one",
            remedy=f"name the one that is meant, such as prefix={best[-1]!r}",
        )
    other = max(counts, key=lambda lead: counts[lead])
    if counts[other] > most:
        raise CheckpointError(
            f"the model's keys in {catalog.label} are led by a name that is not known.",
            found=f"{counts[other]:,} of its {len(own):,} keys led by {other!r}",
            expected="module., model., net. or _orig_mod.",
            remedy=f"if that is the model, say prefix={other!r}",
        )
    return best[0]


def _check_match(
    catalog: Catalog,
    lead: str,
    *,
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[str],
) -> None:
    """Refuse a checkpoint that is not this model's, with all that differs."""
    parts = []
    if missing:
        near = nearest(lead + missing[0], [entry.name for entry in catalog.entries])
        parts.append(f"{len(missing):,} missing ({some(missing)}){near}")
    if unexpected:
        parts.append(f"{len(unexpected):,} unexpected ({some(unexpected)})")
    if shapes:
        parts.append(f"{len(shapes):,} of another shape ({'; '.join(shapes[:_SHOWN])})")
    if parts:
        where = f" under {lead!r}" if lead else ""
        raise CheckpointError(
            f"{catalog.label} is not a checkpoint of this model.",
            found=f"tensors{where}: " + "; ".join(parts),
            expected="every tensor of the model, and no other, in its shape",
            remedy="check the model's name, its options (model_args, --model-arg) and the number "
            "of categories; a model that was changed is loaded by a function of yours: "
            "python:MODULE:FUNCTION",
        )


def _notes(catalog: Catalog, lead: str, outside: Sequence[Entry]) -> list[str]:
    notes = []
    if lead:
        notes.append(f"the checkpoint's keys are led by {lead!r}.")
    if outside:
        found = some([entry.name for entry in outside])
        notes.append(f"{len(outside):,} tensors beside the model's are left as they are: {found}.")
    if KEY in catalog.metadata:
        notes.append(f"its head was written by catwise: {catalog.metadata[KEY]}")
    if is_lightning(catalog):
        content = _content(catalog)
        version = next(content[key] for key in _VERSION_KEYS if key in content)
        notes.append(f"written by Lightning {version}; only its tensors are used.")
    return notes
