"""The logits among what a model returns: the tensor that equals what its layer gives.

Models return tensors, tuples, tables, dataclasses and nests of these, under any names. Names are
not trusted where the layer's own output is at hand: the values decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from catwise._text import some
from catwise.errors import HeadError
from catwise.heads.core import Head
from catwise.models.packages import FAILS

TOLERANCE: Final = {
    torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2,
}  # fmt: skip
"""What rounding explains, as a share of the largest logit."""
ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(1),
    "log-softmax": lambda logits: logits.log_softmax(1),
}
"""What models put behind their logits, which are still these."""
TRANSPOSE: Final = "the transpose of"
_EDGES: Final = (0.001, 0.1)  # of probabilities that are turned back; in half precision
_SURE: Final = 0.1
_DEPTH: Final = 6
_PARTS: Final = 10_000
_SHOWN: Final = 6
_CLOSED: Final = (str, bytes, bytearray, int, float, complex, type, ModuleType, nn.Module)


class Match(NamedTuple):
    """A tensor of a model's output beside what its layer gives."""

    path: str  # where it is in the output, such as ``"logits"`` or ``"aux[1]"``; "" is the output
    logits: Tensor  # (N, C)
    gap: float  # the largest difference, divided by the layer's largest logit; infinity for NaN
    is_same: bool  # whether rounding explains the gap


def settled(output: object) -> object:
    """Run a model that gives its output piece by piece to its end: an iterator becomes a list."""
    return list(output) if isinstance(output, Iterator) else output


def tensors_in(output: object) -> dict[str, Tensor]:
    """Every float tensor in what a model returns, by its place; the least nested come first."""
    found: dict[str, Tensor] = {}
    seen: dict[int, object] = {}  # kept, so that no other object gets the number of one of them
    ahead: list[tuple[str, object, int]] = [("", output, 0)]
    for path, part, depth in ahead:
        if isinstance(part, Tensor):
            if part.is_floating_point() and part.layout == torch.strided:
                found[path] = part.detach()
        elif depth < _DEPTH and id(part) not in seen and len(ahead) < _PARTS:
            seen[id(part)] = part
            ahead += [(path + mark, inner, depth + 1) for mark, inner in _parts(part, path)]
    return found


def _parts(part: Any, path: str) -> list[tuple[str, object]]:
    """What an object holds, with how its place is written behind that of the object."""
    if part is None or isinstance(part, (*_CLOSED, Iterator)) or callable(part):
        return []
    if isinstance(part, (list, tuple)) and not hasattr(part, "_fields"):
        named = {f"[{at}]": inner for at, inner in enumerate(part)}
    else:
        told: Any = getattr(part, "_fields", None) or getattr(part, "__slots__", ())
        fields: list[str] = [told] if isinstance(told, str) else list(told)
        named = {name: _attribute(part, name) for name in ("logits", *fields)}
        named |= getattr(part, "__dict__", {})
        if isinstance(part, Mapping) or (hasattr(part, "keys") and hasattr(part, "__getitem__")):
            named |= {str(key): part[key] for key in part.keys()}  # noqa: SIM118  # no Mapping
        elif isinstance(part, Iterable) and not fields and not getattr(part, "__dict__", {}):
            named |= {f"[{at}]": inner for at, inner in enumerate(part)}
    dot = "." if path else ""
    return [(mark if mark[:1] == "[" else dot + mark, inner) for mark, inner in named.items()]


def _attribute(part: object, name: str) -> object:
    """An attribute, or None where there is none or it cannot be computed."""
    with suppress(*FAILS):
        return getattr(part, name, None)
    return None


def nearest_logits(
    output: object, wanted: Tensor, *, dtype: torch.dtype | None = None
) -> Match | None:
    """The tensor of a model's output that equals what its layer gives, `wanted`, or comes nearest.

    Sizes of 1 do not count. The dtype, by default that of `wanted`, decides what rounding explains.
    """
    column = (wanted.numel(), 1) if len(wanted) == 1 < wanted.numel() else None
    fits = [
        _compared(path, part, wanted, dtype or wanted.dtype)
        for path, part in tensors_in(output).items()
        if _bare(part) == _bare(wanted) and part.shape != column  # one image's categories as rows
    ]
    return min(fits, key=lambda match: match.gap, default=None)


def _bare(part: Tensor) -> list[int]:
    return [size for size in part.shape if size != 1]


def _compared(path: str, part: Tensor, wanted: Tensor, dtype: torch.dtype) -> Match:
    logits = part.reshape(wanted.flatten(1).shape)
    right = wanted.detach().flatten(1).cpu().double()  # not every device has float64
    given = logits.cpu().double()
    gap = float("inf")
    if given.numel():
        share = float((right - given).abs().max() / right.abs().max().clamp_min(1e-30))
        gap = share if share >= 0 else gap  # NaN
    near = max(TOLERANCE.get(kind, 0.0) for kind in (dtype, part.dtype, torch.float32))
    return Match(path, logits, gap, gap <= near)


def described(output: object, wanted: Tensor) -> str:
    """What a model makes of its layer's output, in words: its sigmoid, 0.5 times it, … or ''."""
    if word := activation_in(output, wanted):
        return f"the {word} of"
    if turned := {path: part.T for path, part in tensors_in(output).items() if part.ndim == 2}:
        match = nearest_logits(turned, wanted)
        if match is not None and match.is_same:
            return TRANSPOSE
        if word := activation_in(turned, wanted):
            return f"{TRANSPOSE} the {word} of"
    return f"{factor:.4g} times" if (factor := factor_in(output, wanted)) else ""


def factor_in(output: object, wanted: Tensor) -> float:
    """By what a model multiplies its layer's output; 0 where it returns no multiple of that."""
    rows = wanted.detach().flatten(1).cpu().double()
    match = nearest_logits(output, wanted)
    if match is None or not rows.numel():
        return 0.0
    factor = float((match.logits.to(rows) * rows).sum() / rows.square().sum().clamp_min(1e-30))
    scaled = nearest_logits(output, rows * factor) if factor else None
    return factor if scaled is not None and scaled.is_same else 0.0


def activation_in(output: object, wanted: Tensor) -> str:
    """Which of `ACTIVATIONS` of its layer's output a model returns, or ''."""
    rows = wanted.detach().flatten(1).cpu().double()
    for word, function in ACTIVATIONS.items():
        match = nearest_logits(output, function(rows).to(wanted.dtype))
        if match is not None and match.is_same:
            return word
    return ""


def sigmoid_gap(output: object, wanted: Tensor) -> float | None:
    """How far the logits of the probabilities that a model returns are from what its layer gives.

    None where it returns no sigmoid of these: probabilities are turned back where they are neither
    near 0 nor near 1, which a tenth of them must not be, so that saturated ones prove nothing.
    """
    right = wanted.detach().flatten(1).cpu().double()
    gaps = []
    for part in tensors_in(output).values():
        if _bare(part) != _bare(wanted) or not part.numel():
            continue
        given = part.reshape(right.shape).cpu().double()
        rounded = part.dtype in {torch.float16, torch.bfloat16}
        edge = _EDGES[rounded]
        sure = (given > edge) & (given < 1 - edge)
        if bool((given < 0).any() | (given > 1).any()) or float(sure.double().mean()) < _SURE:
            continue
        off = (torch.logit(given) - right)[sure].abs().max()
        gap = float(off / right.abs().max().clamp_min(1e-30))
        near = max(TOLERANCE.get(kind, 0.0) for kind in (wanted.dtype, part.dtype, torch.float32))
        gaps += [gap] if gap <= near else []
    return min(gaps, default=None)


def logits_of(output: object, wanted: Tensor | None = None) -> Tensor:
    """The logits in what a model returns: (N, C)."""
    if wanted is not None:
        match = nearest_logits(output, wanted)
        if match is not None and match.is_same:
            return match.logits
        if sigmoid_gap(output, wanted) is not None:
            return wanted.flatten(1)
        if described(output, wanted).startswith(TRANSPOSE):
            raise HeadError(
                "the model returns its logits transposed.",
                found=_listed(output),
                expected=f"{tuple(wanted.shape)}: a row for each image",
                remedy="return logits.T from its forward",
            )
        if match is not None:
            return match.logits
    held = {} if wanted is not None else tensors_in(output)
    rows = {path: part.flatten(1) for path, part in held.items() if part.ndim >= 2}
    named = [part for path, part in rows.items() if path.rpartition(".")[2] == "logits"]
    candidates = named[:1] or list(rows.values())
    if len(candidates) == 1:
        return candidates[0]
    raise HeadError(
        "the model returns several tensors that may be its logits."
        if candidates
        else "the model returns no logits.",
        found=_listed(output),
        expected="a tensor (N, C)"
        + ("" if wanted is None else f" such as its layer gives, {tuple(wanted.shape)}"),
        remedy="return them alone, or as `logits`" if candidates else None,
    )


def _listed(output: object) -> str:
    """The kind of an output, and its tensors with their shapes."""
    parts = list(tensors_in(output).items())
    texts = some([f"{path or 'a tensor'} {tuple(part.shape)}" for path, part in parts], _SHOWN)
    kind = "" if isinstance(output, Tensor) else type(output).__name__
    return kind + (": " if kind and texts else "") + texts


def logits_gap(head: Head, features: Tensor, output: object) -> float:
    """How far a model's logits are from what the head gives for (N, D) or (N, C, D) features.

    The largest difference, divided by the largest logit; infinity if no shape is right.
    """
    match = nearest_logits(output, head.logits(features))
    return float("inf") if match is None else match.gap


def check_logits(head: Head, features: Tensor, output: object, *, name: str) -> float:
    """Refuse a layer, called `name`, whose output the model does not return; give the gap."""
    wanted = head.logits(features)
    match = nearest_logits(output, wanted, dtype=head.dtype)
    if match is not None and match.is_same:
        return match.gap
    if (gap_behind := sigmoid_gap(output, wanted)) is not None:
        return gap_behind
    if not tensors_in(output):
        logits_of(output, wanted)
    made = described(output, wanted)
    gap = "no tensor of that shape" if match is None else f"{match.gap:.2g} of the largest apart"
    raise HeadError(
        f"the layer {name!r} does not make the model's logits.",
        found=f"{_listed(output)}; the layer gives {tuple(wanted.shape)}: "
        + (f"the model returns {made} that" if made else gap),
        expected="features @ weight.T + bias, to float tolerance",
        remedy="name the right layer with layer='…'; take out a sigmoid, a scaling, a "
        "transposition or a mean of heads behind it",
    )
