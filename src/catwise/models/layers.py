"""The classification layer of a model in memory: found, read, written to, its input caught."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from catwise.errors import (
    CatwiseError,
    ConfigError,
    HeadError,
    MismatchError,
    ShapeError,
    nearest,
    reason_of,
)
from catwise.heads.catalog import open_catalog
from catwise.heads.core import Head
from catwise.heads.families import family_of, remedy_for
from catwise.heads.fit import fitting_bias, fitting_numbers
from catwise.heads.locate import find_head
from catwise.models.logits import (
    TOLERANCE,
    check_logits,
    logits_gap,
    nearest_logits,
    settled,
    tensors_in,
)

Forward = Callable[[Tensor, "torch.dtype | None"], tuple[Tensor, object]]
"""Images and the dtype of autocast, or None → features and what the model returned."""

_STAND_INS: Final = ("weight_g", "weight_v", "weight_orig")
_KINDS: Final = "a Linear, a 1×1 Conv2d, or a layer with one vector for each category"
_OTHERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LayerNorm)
_PROBES: Final = 4
_SHOWN: Final = 12


# Finding


def find_layer(
    module: nn.Module, name: str | None = None, *, run: Callable[[], object] | None = None
) -> tuple[str, nn.Module]:
    """Find the layer whose output are the logits.

    Without a name, the layer that ends an `nn.Sequential` or has a head's usual name (`fc`,
    `classifier`, `head` …) is taken, or the only linear layer. Where that leaves a choice, `run`
    decides: the layer whose output the model returns.
    """
    for search in (_tail, _by_name, functools.partial(_by_running, run=run)):
        name = search(module) if name is None else name
    if name is None:
        raise _ambiguous(module)
    layers = dict(module.named_modules(remove_duplicate=False))
    if name not in layers:
        raise HeadError(
            f"{_label(module)} has no layer {name!r}{nearest(name, layers)}.",
            found=_show(_candidates(module)),
        )
    layer = layers[name]
    _parts(layer, name)
    if other := _tied_to(module, layer):
        raise HeadError(
            f"the layer {name!r} is tied: it shares its numbers with {other!r}.",
            expected="numbers of its own",
            remedy="untie it: layer.weight = torch.nn.Parameter(layer.weight.clone())",
        )
    return name, layer


def _label(module: nn.Module) -> str:
    return f"the {type(module).__name__}"


def _is_conv(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding in {(0, 0), "valid", "same"}
    )


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or _is_conv(layer) or _own_rows(layer) is not None
    }


def _own_rows(layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer that takes (N, C, D): a vector and a number for each category."""
    parts = list(layer.parameters(recurse=False))
    nested = next(layer.children(), None) is not None
    if isinstance(layer, _OTHERS) or nested or len(parts) not in {1, 2} or any(map(is_lazy, parts)):
        return None
    weight, *rest = sorted(parts, key=lambda part: part.squeeze().ndim, reverse=True)
    rows = weight.squeeze()
    if rows.ndim != 2 or any(part.squeeze().shape != rows.shape[:1] for part in rest):
        return None
    return weight, rest[0] if rest else None


def row_names(layer: nn.Module) -> tuple[str, str | None] | None:
    """What a layer that takes (N, C, D) calls its vectors and numbers; None for other layers."""
    own = _own_rows(layer)
    if own is None:
        return None
    names = {id(part): name for name, part in layer.named_parameters(recurse=False)}
    return names[id(own[0])], None if own[1] is None else names[id(own[1])]


def _tail(module: nn.Module) -> str | None:
    """The last layer of a chain of layers, if nothing behind it changes numbers."""
    path = []
    while isinstance(module, nn.Sequential) and len(module):
        quiet = (nn.Identity, nn.Flatten, nn.Dropout)
        kept = [(key, part) for key, part in module.named_children() if not isinstance(part, quiet)]
        name, module = kept[-1] if kept else ("0", module[0])
        path.append(name)
    return ".".join(path) if isinstance(module, nn.Linear) or _is_conv(module) else None


def _by_name(module: nn.Module) -> str | None:
    """The layer that a checkpoint of the module would be searched for; None if not clear."""
    shapes = {  # stand-ins that are never written to take no memory
        f"{name}.weight".lstrip("."): torch.empty(rows.shape, dtype=torch.float16)
        for name, layer in _candidates(module).items()
        if isinstance(rows := getattr(layer, "weight", None), Tensor) and not is_lazy(rows)
    }
    try:
        key = find_head(open_catalog(shapes), at_hand=True).location.key
    except CatwiseError:
        return None
    return key.removesuffix("weight").removesuffix(".")


def _by_running(module: nn.Module, run: Callable[[], object] | None) -> str | None:
    """The layer whose output the model returns, bit for bit; None unless it is one.

    Beside it nothing may be returned that could be the logits: features are those that go into the
    layer. Where something is called `logits`, that is meant.
    """
    if run is None:
        return None
    calls: dict[str, list[tuple[Any, Any]]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(module))
        for name, layer in _candidates(module).items():
            seen = calls.setdefault(name, [])
            hook = layer.register_forward_hook(  # a copy: what follows may work in place
                lambda _, args, out, seen=seen: seen.append(
                    (args, out.clone() if isinstance(out, Tensor) else out)
                )
            )
            stack.enter_context(hook)
        returned = {path: part for path, part in tensors_in(run()).items() if part.ndim > 1}
    fits, named = [], []
    for name, seen in calls.items():
        args, out = seen[0] if len(seen) == 1 else ((), None)
        left = {path for path, part in returned.items() if not _same_rows(part, out)}
        features = args[0] if args else None
        unclear = {at for at in left if returned[at].ndim == 2}
        unclear = {at for at in unclear if not _same_rows(returned[at], features)}
        if len(left) < len(returned):
            fits += [(name, unclear)]
            named += [name] if "logits" in returned.keys() - left else []
    if len(named) == 1:
        return named[0]
    return fits[0][0] if len(fits) == 1 and not fits[0][1] else None


def _same_rows(part: Tensor, other: object) -> bool:
    """Whether two tensors hold the same rows, bit for bit."""
    if not isinstance(other, Tensor) or other.ndim < 2:
        return False
    return torch.equal(part.flatten(1), other.flatten(1))


def _ambiguous(module: nn.Module) -> HeadError:
    found = _candidates(module)
    return HeadError(
        f"{len(found)} layers of {_label(module)} may be the classification layer.",
        found=_show(found),
        expected=f"one: {_KINDS}",
        remedy=f"name the one that is meant, such as layer={next(reversed(found), 'fc')!r}",
    )


def _show(layers: Mapping[str, nn.Module]) -> str:
    """The last layers, which are nearest to the output."""
    texts = [f"{name!r} ({layer})" for name, layer in layers.items()]
    more = f"{len(texts) - _SHOWN:,} others; " if len(texts) > _SHOWN else ""
    return more + "; ".join(texts[-_SHOWN:]) or "no linear layer"


def _tied_to(module: nn.Module, layer: nn.Module) -> str:
    """The name of a parameter elsewhere in the model that shares the layer's memory, or ''."""

    def place(part: Tensor) -> range:
        return range(part.data_ptr(), part.data_ptr() + part.numel() * part.element_size())

    inside = {id(part) for part in layer.modules()}
    own = [place(part) for part in layer.parameters()]
    for name, other in module.named_modules():
        parts = () if id(other) in inside else other.named_parameters(recurse=False)
        for key, part in parts:
            there = range(0) if is_lazy(part) else place(part)
            if any(max(a.start, there.start) < min(a.stop, there.stop) for a in own):
                return f"{name}.{key}".lstrip(".")
    return ""


# Reading and writing


def head_of(layer: nn.Module, *, name: str = "") -> Head:
    """Read the head out of a classification layer.

    The layer is a `Linear`, a 1×1 `Conv2d`, or any layer that holds one vector and maybe one number
    for each category and takes (N, C, D). It is run on a few random rows to see that it computes
    what its numbers say.
    """
    weight, bias = _parts(layer, name)
    n_rows = len(weight) if _own_rows(layer) is None else len(weight.squeeze())
    rows = weight.detach().reshape(n_rows, -1)
    head = Head(rows, None if bias is None else bias.detach().reshape(-1))
    _probe(layer, head, name)
    return head


def put_head(layer: nn.Module, head: Head, *, name: str = "") -> None:
    """Write a head into a classification layer, in place."""
    weight, bias = _parts(layer, name)
    shown = _shown_name(layer, name)
    if head.weight.numel() != weight.numel() or head.n_features not in weight.shape[1:]:
        raise ShapeError(
            f"the head does not fit {shown}.",
            found=f"{head.n_categories:,} categories × {head.n_features:,} features",
            expected=f"a weight of shape {tuple(weight.shape)}",
        )
    values = fitting_bias(head, None if bias is None else "bias", what=shown)
    new = [(weight, fitting_numbers(head.weight, weight.dtype, what=shown))]
    if bias is not None and values is not None:
        new.append((bias, fitting_numbers(values, bias.dtype, what=shown)))
    with torch.no_grad():
        for part, numbers in new:
            part.copy_(numbers.reshape(part.shape))


def _shown_name(layer: nn.Module, name: str) -> str:
    return f"the layer {name!r}" if name else f"the layer {layer}"


def _parts(layer: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer that can be used."""
    problem, remedy = _problem(layer)
    if problem:
        raise HeadError(
            f"{_shown_name(layer, name)} cannot be used: it is {problem}.",
            found=type(layer).__name__,
            expected=_KINDS,
            remedy=remedy,
        )
    if (own := _own_rows(layer)) is not None:
        return own
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return weight, bias


def _problem(layer: nn.Module) -> tuple[str, str | None]:
    """Why a layer cannot be used, and what to do; empty if it can."""
    normed = next((family_of(key) for key in _STAND_INS if hasattr(layer, key)), "")
    parts = list(layer.parameters())
    if is_parametrized(layer) or normed:
        return normed or "weight-normed or otherwise parametrised", remedy_for("parametrised")
    if any(map(is_lazy, parts)):
        return "not initialised", "run the model once"
    if any(part.is_meta for part in parts):
        return "without numbers (on the meta device)", "load the weights first"
    weight = getattr(layer, "weight", None)
    quantised = "quantized" in type(layer).__module__ or callable(weight)
    floats = all(part.dtype in TOLERANCE for part in parts)
    if quantised or not floats or (isinstance(weight, Tensor) and weight.dtype not in TOLERANCE):
        return "quantised, or not a float tensor", "use the model from before it was quantised"
    if isinstance(layer, nn.Linear) or _is_conv(layer) or _own_rows(layer) is not None:
        return "", None
    return "of another kind", "name another one with layer='…'"


def _probe(layer: nn.Module, head: Head, name: str) -> None:
    """Refuse a layer that computes something else than its numbers say."""
    shape: tuple[int, ...] = (_PROBES, head.n_features)
    if _own_rows(layer) is not None:
        shape = (_PROBES, getattr(layer, "n_groups", head.n_categories), head.n_features)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = rows.to(head.device, head.dtype)
    given = rows[:, :, None, None] if isinstance(layer, nn.Conv2d) else rows
    try:
        with evaluating(layer), torch.autocast(head.device.type, enabled=False):
            gap = logits_gap(head, rows, layer(given))
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        gap, reason = float("inf"), reason_of(error, named=True)
    else:
        reason = f"outputs that differ by {gap:.2g} of the largest"
    if not gap <= TOLERANCE[head.dtype]:
        raise HeadError(
            f"{_shown_name(layer, name)} cannot be used: it is not linear.",
            found=reason,
            expected="features @ weight.T + bias",
            remedy="name another one with layer='…'",
        )


# Catching what goes in


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part's training flag is put back."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, was in flags:
            part.training = was


class Captured:
    """What went into the layer. Made by :func:`capture`."""

    __slots__ = ("_inputs", "_layer", "_maps", "_name", "_pool", "is_pooled")

    def __init__(self, layer: nn.Module, name: str, *, pool: bool = False) -> None:
        self._layer, self._pool, self.is_pooled = layer, pool, False
        self._maps: Tensor | None = None
        self._name = _shown_name(layer, name)
        self._inputs: list[Any] = []

    def catch(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Be the layer's hook."""
        self._inputs.append(args[0] if args else next(iter(kwargs.values()), None))

    def clear(self) -> None:
        """Forget what was caught, such as after a forward pass that failed."""
        self._inputs = []

    def take(self) -> Tensor:
        """Return the features of the last forward pass; call it after each one."""
        inputs, self._inputs = self._inputs, []
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            found = f"{len(inputs)} calls in one forward pass"
            raise HeadError(
                f"the input of {self._name} are not the features.",
                found=found if len(inputs) != 1 else f"a {type(inputs[0]).__name__}",
                expected="one call, with a tensor",
                remedy="name another one with layer='…'; a layer that two heads share, or that "
                "the model goes around, cannot be used",
            )
        features = inputs[0].detach()
        if _own_rows(self._layer) is not None and features.ndim == 3:
            return features
        if self._pool and features.ndim == 4 and features.shape[2:] != (1, 1):
            self.is_pooled, self._maps = True, features
            features = features.mean((2, 3))
        flat = features.flatten(1) if features.ndim > 1 else features
        width = flat.shape[-1]
        axis = 1 if isinstance(self._layer, nn.Conv2d) and features.ndim == 4 else -1
        if features.ndim < 2 or features.shape[axis] != width:
            raise HeadError(
                f"the input of {self._name} are not the features of an image.",
                found=f"shape {tuple(features.shape)}",
                expected="shape (N, D), (N, D, 1, 1), or (N, C, D) with one vector a category",
                remedy="the layer sees several positions of an image: pool before it",
            )
        return flat

    def check_mean(self, head: Head, features: Tensor, output: object, *, name: str) -> None:
        """Refuse a layer of maps whose mean over positions is not what the model returns."""
        try:
            check_logits(head, features, output, name=name)
        except HeadError as error:
            maps = self._maps
            if maps is None or len(maps) != len(features):
                raise
            rows = maps.flatten(2).transpose(1, 2)
            logits = head.logits(rows.reshape(-1, rows.shape[2]))
            highest = logits.reshape(len(rows), rows.shape[1], -1).amax(1)
            match = nearest_logits(output, highest, dtype=head.dtype)
            if match is None or not match.is_same:
                raise
            raise HeadError(
                f"the model returns a maximum over positions of what the layer {name!r} gives.",
                found=f"{rows.shape[1]:,} positions of an image",
                expected="a mean over positions, or a layer that is given one vector an image",
                remedy="pool before the layer, or by a mean behind it, and train the head so",
            ) from error


@contextlib.contextmanager
def capture(module: nn.Module, layer: str | nn.Module, *, pool: bool = False) -> Iterator[Captured]:
    """Catch the features, what goes into a layer, whenever the model runs in evaluation mode."""
    name = layer if isinstance(layer, str) else ""
    found = find_layer(module, layer)[1] if isinstance(layer, str) else layer
    captured = Captured(found, name, pool=pool)
    hook = found.register_forward_pre_hook(captured.catch, with_kwargs=True)
    with hook, evaluating(module):
        yield captured


# Running


def device_of(module: nn.Module | None) -> torch.device:
    """Where a model is, by its first parameter; the CPU for none."""
    parts = () if module is None else itertools.chain(module.parameters(), module.buffers())
    return next((part.device for part in parts), torch.device("cpu"))


def float_of(module: nn.Module) -> torch.dtype:
    """The dtype of a model's first float parameter."""
    floats = (part.dtype for part in module.parameters() if part.is_floating_point())
    return next(floats, torch.float32)


def choose_device(module: nn.Module | None, device: str | torch.device | None) -> torch.device:
    """Where to run a model; ``"cuda"`` is the process's own GPU."""
    try:
        place = device_of(module) if device is None else torch.device(device)
        if str(place) == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise ConfigError(f"the device {str(device)!r} cannot be used.", found=found) from error
    return place


def ranks_of() -> tuple[int, int]:
    """The number of this process and how many there are, as torchrun tells."""
    texts = [os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")]
    if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[1]):
        raise ConfigError("RANK and WORLD_SIZE are not possible.", found=" and ".join(texts))
    return int(texts[0]), int(texts[1])


def stacked(join: Callable[[list[Tensor]], Tensor], images: list[Tensor]) -> Tensor:
    """Make one tensor of images, or batches of images, of one shape."""
    shapes = {tuple(image.shape[1:] if join is torch.cat else image.shape) for image in images}
    if len(shapes) != 1:
        raise ShapeError(
            "the images of a batch have not one shape.",
            found=", ".join(sorted(map(str, shapes))[:_SHOWN]),
            remedy="resize them, as the model's preprocessing says",
        )
    return join(images)


def call(module: nn.Module, images: Tensor, argument: str | None = None) -> object:
    """Run a model on (N, …) images, moved to its device and, if they are floats, its dtype."""
    dtype = float_of(module) if images.is_floating_point() else images.dtype
    given = images.to(device_of(module), dtype, non_blocking=True)
    try:
        return settled(module(given) if argument is None else module(**{argument: given}))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, CatwiseError):
            raise
        raise MismatchError(
            f"the model {type(module).__name__} cannot take the images.",
            found=f"{tuple(images.shape)} {images.dtype}: {reason_of(error)}",
            remedy="prepare the images as the model expects them; fewer at once (batch_rows) if "
            "memory is short",
        ) from error


@contextlib.contextmanager
def running(
    module: nn.Module, layer: str, device: torch.device, argument: str | None = None
) -> Iterator[tuple[Forward, Head]]:
    """Run a model on a device, where its features are caught; afterwards all is as before."""
    home = device_of(module)
    try:
        if home != device:
            module.to(device)
        head = head_of(find_layer(module, layer)[1], name=layer)
        with capture(module, layer, pool=True) as captured:

            def forward(images: Tensor, half: torch.dtype | None) -> tuple[Tensor, object]:
                with torch.autocast(device.type, half, enabled=half is not None):
                    output = call(module, images, argument)
                features = captured.take()
                if captured.is_pooled:  # whether the mean is what counts is for the model to show
                    captured.check_mean(head, features, output, name=layer)
                return features, output

            yield forward, head
    finally:
        if home != device:
            module.to(home)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a model's text, parameters and buffers."""
    total = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(module)).encode())
    for name, part in itertools.chain(module.named_parameters(), module.named_buffers()):
        total.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        total.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
