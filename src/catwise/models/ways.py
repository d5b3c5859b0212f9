"""The way a model is run: exactly or fast, by rules that a stopwatch has no part in.

On a CPU a model with convolutions runs on a copy in which each batch norm that directly follows a
convolution is folded into it, with images in channels-last memory, a few at a time, so that what
lies between two layers stays in the processor's caches. Made-up images go through both: where the
copy's features are further than a fifth of `EXACT` from the model's, steps are left out.
Models of other kinds run as they are, and so do all on a GPU.

`fast` adds autocast: bfloat16 on processors that compute in it, float16 on a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from catwise.errors import CatwiseError, ConfigError, FeatureError, check_choice, reason_of
from catwise.models import layers
from catwise.models.logits import check_logits

Precision = Literal["exact", "fast"]

EXACT: Final = 1e-5
"""How far features may be from those of the model itself, as a share of the largest."""
_FAST: Final = 0.5  # half precision is off by up to 0.2; beyond this something is wrong
_TRIED: Final = 8
_MARGIN: Final = 0.2  # real images were up to five times as far off as made-up ones
_ROWS: Final = 8
_ROWS_OF_A_THREAD: Final = 2
_HALF_FLAGS: Final = ("avx512_bf16", "amx_bf16", "bf16")
_SECONDS_OF_A_LAYER: Final = 0.1
_COMPILED: Final = {None: 1.3, torch.bfloat16: 1.6, torch.float16: 1.3}


@dataclass(frozen=True)
class Way:
    """How a model is run, as far as it is known before an image is seen.

    Attributes:
        device: where.
        half: the dtype of autocast; None for none.
        rows: images at a time; None: whole batches.
        channels_last: whether the copy and the images lie in memory with channels last.
        folds: whether batch norms are folded into the convolutions before them.
        compiled: whether the model is compiled.
        notes: what to know, a sentence each.
    """

    device: torch.device
    half: torch.dtype | None = None
    rows: int | None = None
    channels_last: bool = False
    folds: bool = False
    compiled: bool = False
    notes: tuple[str, ...] = ()

    def items(self) -> dict[str, Any]:
        """What of it decides the bytes of features; JSON-ready."""
        return {
            "precision": "exact" if self.half is None else "fast",
            "computed in": str(self.half or "the model's own").removeprefix("torch."),
            "rows at a time": self.rows,
            "compiled": self.compiled,
            "processor": processor(self.device),
        }


@functools.cache
def _half_flags() -> tuple[str, ...]:
    """What lets this machine's processor compute in bfloat16, as Linux names it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    lines = (line.partition(":") for line in text.splitlines())
    flags = {
        f for key, _, rest in lines if key.strip() in {"flags", "Features"} for f in rest.split()
    }
    return tuple(flag for flag in _HALF_FLAGS if flag in flags)


def processor(device: torch.device) -> str:
    """What a device can do that decides how sums are rounded."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return device.type
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *_half_flags()])


def choose_way(
    module: nn.Module,
    device: str | torch.device | None = None,
    precision: Precision = "exact",
    *,
    compiled: bool = False,
) -> Way:
    """The way that follows from the model's layers and from the machine; no image is run."""
    check_choice("precision", precision, ("exact", "fast"))
    place = layers.choose_device(module, device)
    half, notes = _half_of(module, place) if precision == "fast" else (None, ())
    if place.type != "cpu":
        return Way(place, half, compiled=compiled, notes=notes)
    kinds = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    floats = {part.dtype for part in module.parameters() if part.is_floating_point()}
    if not kinds or floats != {torch.float32}:
        return Way(place, half, compiled=compiled, notes=notes)
    spatial = [conv for conv in kinds if max(conv.kernel_size) > 1]
    patches = all(conv.kernel_size == conv.stride for conv in spatial)
    norms = any(_left_of(part) is not None for part in module.modules())
    rows = max(_ROWS, _ROWS_OF_A_THREAD * torch.get_num_threads())
    return Way(place, half, rows, not patches, norms, compiled, notes)


def way_notes(module: nn.Module | None, **options: Any) -> tuple[str, ...]:
    """What to know about the way that `choose_way` takes, a sentence each."""
    if module is None:
        return ()
    way = choose_way(module, **options)
    if not way.compiled:
        return way.notes
    n_layers = _count_layers(module)
    note = (
        f"compiling {n_layers:,} layers takes about {n_layers * _SECONDS_OF_A_LAYER:,.0f} s before "
        "the first image, more on a busy machine; the progress says from how many images on it "
        "pays."
    )
    return (*way.notes, note)


def _count_layers(module: nn.Module) -> int:
    return sum(next(part.children(), None) is None for part in module.modules())


def _half_of(module: nn.Module, device: torch.device) -> tuple[torch.dtype | None, tuple[str, ...]]:
    """The dtype of autocast, or None and why there is none."""
    own = layers.float_of(module)
    if own != torch.float32:
        name = str(own).removeprefix("torch.")
        return None, (f"precision fast: the model's own numbers are {name}; it runs as it is.",)
    if device.type == "cuda":
        return torch.float16, ()
    if device.type == "cpu" and _half_flags():
        return torch.bfloat16, ()
    why = (
        f"precision fast: {processor(device)} does not compute in bfloat16 (avx512_bf16, "
        "amx_bf16), so fast gives nothing here; the model runs exactly."
    )
    return None, (why,)


# ------------------------------------------------------------------------------ the copy


def _left_of(norm: nn.Module) -> nn.Module | None:
    """What is left of a batch norm that was folded; None for what cannot be folded."""
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) or norm.running_mean is None:
        return None
    if norm._forward_hooks or norm._forward_pre_hooks:  # noqa: SLF001  # somebody watches it
        return None
    if type(norm) in {nn.BatchNorm2d, nn.SyncBatchNorm}:
        return nn.Identity()
    if type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm."):
        left: Any = norm
        return nn.Sequential(left.drop, left.act)
    return None


def _folding(part: nn.Module) -> bool:
    """Whether a convolution computes its weight times its input, plus its bias."""
    plain = type(part) is nn.Conv2d
    padded = type(part).__name__ == "Conv2dSame" and type(part).__module__.startswith("timm.")
    return plain or padded


def _pairs(module: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their output as it is."""
    made: dict[int, tuple[str, Tensor, int]] = {}
    calls: dict[str, int] = {}
    found: dict[str, str | None] = {}

    def out_of(name: str, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        made[id(output)] = (name, output, output._version)  # noqa: SLF001  # changed in place?

    def into(name: str, given: Tensor) -> None:
        conv, _, version = made.get(id(given), ("", given, -1))
        calls[name] = calls.get(name, 0) + 1
        found[name] = conv if version == given._version else None  # noqa: SLF001

    with contextlib.ExitStack() as stack:
        for name, part in module.named_modules():
            if _folding(part):
                hook = part.register_forward_hook(lambda _, __, out, name=name: out_of(name, out))
                stack.enter_context(hook)
            elif _left_of(part) is not None:
                before = part.register_forward_pre_hook(
                    lambda _, args, name=name: into(name, args[0])
                )
                stack.enter_context(before)
        run()
    once = {name for name, number in calls.items() if number == 1}
    pairs = [(conv, norm) for norm, conv in found.items() if conv and {conv, norm} <= once]
    convs = [conv for conv, _ in pairs]
    return [pair for pair in pairs if convs.count(pair[0]) == 1]


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what a batch norm behind it did."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    bias = -mean if conv.bias is None else conv.bias.detach().double() - mean
    shift = 0 if norm.bias is None else norm.bias.detach().double()
    weight = conv.weight.detach().double() * scale.view(-1, 1, 1, 1)
    return weight.float(), (bias * scale + shift).float()


def _fold(module: nn.Module, pairs: list[tuple[str, str]]) -> int:
    """Fold batch norms into convolutions, in place; how many."""
    shared: dict[int, int] = {}
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor):
            shared[id(weight)] = shared.get(id(weight), 0) + 1
    folded = 0
    for conv_name, norm_name in pairs:
        conv: Any = module.get_submodule(conv_name)
        norm: Any = module.get_submodule(norm_name)
        if shared[id(conv.weight)] > 1:
            continue
        weight, bias = _folded(conv, norm)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        parent, _, leaf = norm_name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, _left_of(norm))
        folded += 1
    return folded


# ------------------------------------------------------------------------------- running


class Runner:
    """Runs a model in its way; `plain` runs it as it is. Made by :func:`running`."""

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        way: Way,
        argument: str | None,
        *,
        stack: contextlib.ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self._module, self._layer, self.way, self._argument = module, layer, way, argument
        self._stack, self._say = stack, say
        self._untouched: nn.Module | None = None
        if way.channels_last or way.folds or way.compiled:
            with contextlib.suppress(Exception):  # a model of any kind; else it runs as it is
                self._untouched = copy.deepcopy(module)  # before hooks that it should not have
        self.plain, self.head = stack.enter_context(
            layers.running(module, layer, way.device, argument)
        )
        self._forward: Callable[[Tensor], tuple[Tensor, object]] | None = None
        self.described = ""

    def __call__(self, images: Tensor) -> tuple[Tensor, object]:
        """Features of at most `way.rows` images, and what the model returned."""
        if self._forward is None:
            self._forward = self._prepared(images)
        return self._forward(images)

    def check(self, images: Tensor, features: Tensor, output: object) -> tuple[float, float]:
        """Compare the layer with the model's logits: how far they are from one another.

        And how far features in half precision are from those of a plain pass of the same images.
        """
        if self.way.half is None:
            return check_logits(self.head, features, output, name=self._layer), 0.0
        exact, output = self.plain(images, None)
        off = distance(features, exact)
        if not off <= _FAST:
            raise FeatureError(
                "the model does not keep its features in half precision.",
                found=f"features that differ by {off:.2g} of the largest",
                expected=f"at most {_FAST:g}",
                remedy="run it with precision='exact'",
            )
        return check_logits(self.head, exact, output, name=self._layer), off

    def _prepared(self, images: Tensor) -> Callable[[Tensor], tuple[Tensor, object]]:
        """The pass that is to be used, for images of this shape."""
        way, text = self.way, list[str]()
        module, channels_last = self._module, False
        if self._untouched is not None and (way.channels_last or way.folds):
            module, text, channels_last = self._copy(self._untouched, _made_up(images))
        if way.rows is not None:
            text.append(f"{way.rows} images at a time")
        forward = self._pass(module, channels_last=channels_last)
        if way.compiled:
            text.append("compiled")
            forward = self._compiled(module, images, forward, channels_last=channels_last)
        self._untouched = None
        self.described = ", ".join(text) or "as it is"
        return forward

    def _copy(self, untouched: nn.Module, images: Tensor) -> tuple[nn.Module, list[str], bool]:
        """The furthest copy whose features are the model's, what was done, and its memory."""
        way = self.way
        wanted, _ = self.plain(images, None)
        for folds in dict.fromkeys((way.folds, False)):
            module, folded = untouched, 0
            if folds:
                module = copy.deepcopy(untouched)
                with layers.evaluating(module):
                    run = functools.partial(layers.call, module, images, self._argument)
                    folded = _fold(module, _pairs(module, run))
            if way.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            with contextlib.ExitStack() as stack:
                trial = self._pass(module, channels_last=way.channels_last, stack=stack, half=None)
                near = distance(trial(images)[0], wanted) <= _MARGIN * EXACT
            if near:
                text = ["channels last"] if way.channels_last else []
                text += [f"{folded} batch norms folded"] if folded else []
                return module, text, way.channels_last
        return self._module, [], False

    def _pass(
        self,
        module: nn.Module,
        *,
        channels_last: bool,
        stack: contextlib.ExitStack | None = None,
        half: torch.dtype | Literal["way"] | None = "way",
        called: Any = None,
    ) -> Callable[[Tensor], tuple[Tensor, object]]:
        """A pass through a model of the same layers; its features are caught until the end."""
        half = self.way.half if half == "way" else half
        device = self.way.device
        if module is self._module and called is None:
            return lambda images: self.plain(images, half)
        captured = (stack or self._stack).enter_context(
            layers.capture(module, self._layer, pool=True)
        )

        def forward(images: Tensor) -> tuple[Tensor, object]:
            if channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, half, enabled=half is not None):
                output = layers.call(called or module, images, self._argument)
            features = captured.take()
            if captured.is_pooled:
                captured.check_mean(self.head, features, output, name=self._layer)
            return features, output

        return forward

    def _compiled(
        self,
        module: nn.Module,
        images: Tensor,
        eager: Callable[[Tensor], tuple[Tensor, object]],
        *,
        channels_last: bool,
    ) -> Callable[[Tensor], tuple[Tensor, object]]:
        """The pass of a compiled copy, all batches of one size; says from when on it pays."""
        eager(images)
        seconds = _seconds(eager, images)
        predicted = _SECONDS_OF_A_LAYER * _count_layers(module)
        faster = _COMPILED[self.way.half]
        self._say(f"compiling: about {predicted:,.0f} s; should pay from "
                 f"{_break_even(predicted, seconds, seconds / faster):,} images on")  # fmt: skip
        if module is self._module and self._untouched is not None:
            module = self._untouched.to(self.way.device)
        begun = time.perf_counter()
        with _compiling():
            compiled = torch.compile(module, dynamic=False, options={"freezing": True})
        size = self.way.rows or len(images)
        inner = self._pass(module, channels_last=channels_last, called=compiled)

        def forward(images: Tensor) -> tuple[Tensor, object]:
            lack = size - len(images)
            if lack <= 0:
                return inner(images)
            features, output = inner(
                torch.cat([images, images[-1:].expand(lack, *images.shape[1:])])
            )
            return _first(features, len(images)), _first(output, len(images))

        with _compiling():
            forward(images)
        took = time.perf_counter() - begun
        paid = _break_even(took, seconds, _seconds(forward, images))
        self._say(f"compiled in {took:,.0f} s, which pays from {paid:,} images on")
        return forward


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Make one error of whatever the compiler raises, and leave out what it says of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CatwiseError:
            raise
        except Exception as error:
            raise ConfigError(
                "the model cannot be compiled.",
                found=reason_of(error, named=True),
                remedy="leave out compiled=True",
            ) from error


def _seconds(run: Callable[[Tensor], object], images: Tensor) -> float:
    """How long an image takes; nothing but a message depends on it."""
    begun = time.perf_counter()
    run(images)
    return (time.perf_counter() - begun) / len(images)


def _break_even(cost: float, before: float, after: float) -> int | float:
    """From how many images on a cost of some seconds has come back."""
    saved = before - after
    return float("inf") if saved <= 0 else int(cost / saved) + 1


def _first(output: Any, n: int) -> Any:
    """The first rows of every tensor in an output."""
    if isinstance(output, Tensor):
        return output[:n] if output.ndim else output
    if isinstance(output, dict):
        return {key: _first(part, n) for key, part in output.items()}
    if isinstance(output, (list, tuple)):
        return [_first(part, n) for part in output]
    return output


def _made_up(images: Tensor) -> Tensor:
    """The same few images each time, so that what follows depends on the model alone."""
    shape = (_TRIED, *images.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if images.is_floating_point():
        return torch.randn(shape, generator=generator).to(images.dtype)
    return torch.randint(0, 128, shape, generator=generator).to(images.dtype)


def distance(features: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number; infinity where that is none."""
    first, second = features.double(), wanted.double()
    share = float((first - second).abs().max() / second.abs().max().clamp_min(1e-30))
    return share if share >= 0 else float("inf")


@contextlib.contextmanager
def running(
    module: nn.Module,
    layer: str,
    way: Way,
    argument: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Runner]:
    """Run a model in a way; the model itself is as before afterwards."""
    with contextlib.ExitStack() as stack:
        yield Runner(module, layer, way, argument, stack=stack, say=say or (lambda _: None))
