"""Reading the pickle inside a checkpoint without executing anything.

A pickle is a program for a small stack machine. This module runs that program on inert values: a
name (`torch._utils._rebuild_tensor_v2`) stays a name, nothing is imported, called or looked up.
What comes out says which key holds which part of which storage. Names that a plain `state_dict`
does not need are refused, so that a checkpoint which torch's `weights_only=True` would refuse for
its danger is refused here too.

Source: Python's `pickletools` (the opcodes) and `torch._utils` (the arguments of the rebuilders).
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, cast

from catwise._limits import MAX_STEPS, check_depth, check_shape, is_whole


class RefusedName(ValueError):  # noqa: N818  # a fact about the file; the boundary makes the error
    """The pickle names something that a state_dict does not need."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that the pickle would import: 'module name'."""

    text: str


class Opaque:
    """A value whose content is of no interest here."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return f"Opaque({self.what!r})"


class Pushed(int):
    """A whole number, and where the instruction lies that pushes it."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Storage:
    """A record of the archive: `kind` is the storage class's name, `n_items` its length."""

    key: str
    kind: str
    n_items: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage; offset and strides count items."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    quantised: bool = False


_SAFE: Final = re.compile(
    r"""
    torch\._utils\ _rebuild_\w+
    | torch\._tensor\ _rebuild_from_type_v2
    | torch\ \w+Storage | torch\.storage\ \w+Storage
    | torch\ (?:u?int\d+|float\d+\w*|bfloat16|half|double|long|bool|complex\d+|q\w+|quint\w+)
    | torch\ (?:Size|device|Tensor|strided|per_tensor_affine|per_channel_affine)
    | torch\.serialization\ _get_layout
    | torch\.nn\.parameter\ (?:Parameter|Buffer)
    | torch\.torch_version\ TorchVersion
    | collections\ (?:OrderedDict|defaultdict|Counter)
    | (?:builtins|__builtin__)\ (?:set|frozenset|list|dict|tuple|int|float|bool|complex|str|bytes|
        bytearray|slice|range)
    | numpy(?:\._core|\.core)?\.multiarray\ (?:scalar|_reconstruct)
    | numpy\ (?:dtype|ndarray|float\d+|int\d+|bool_)
    | numpy\.dtypes\ \w+DType
    | _codecs\ encode
    | argparse\ Namespace
    | pathlib(?:\._local)?\ (?:Pure)?(?:Posix|Windows)?Path
    | datetime\ (?:datetime|date|time|timedelta|timezone)
    # options of training, as tables of several packages: they stay inert
    | omegaconf\.\w+\ \w+ | typing\ \w+ | enum\ \w+ | types\ SimpleNamespace
    | (?:ml_collections|yacs|easydict|addict|box|mmengine|mmcv)(?:\.\w+)*\ \w+
    | (?:pytorch_lightning|lightning|lightning_fabric)(?:\.\w+)*\ AttributeDict
    | copy_?reg\ _reconstructor | (?:builtins|__builtin__)\ object
    """,
    re.VERBOSE,
)
_DICTS: Final = {"collections OrderedDict", "collections defaultdict", "collections Counter"}
_PARAMETERS: Final = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
_TENSORS: Final = {
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor",
}  # fmt: skip
_MARK: Final = object()


def interpret(data: bytes, *, places: bool = False) -> Any:
    """Run a pickle on inert values; RefusedName where it calls what is not known.

    With `places` its whole numbers say where they are pushed.
    """
    value = _run(data, places=places)
    if isinstance(value, (dict, list, tuple)):
        check_depth(value)
    return value


def _run(data: bytes, *, places: bool) -> Any:
    """What is on the stack at the end."""
    machine = _Machine()
    number: Pushed | None = None
    try:
        for opcode, argument, at in islice(pickletools.genops(data), MAX_STEPS):
            if number is not None:
                number.stop, number = cast("int", at), None
            if opcode.name == "STOP":
                return machine.pop()
            if places and type(argument) is int and opcode.name in _NUMBERS:
                argument = number = Pushed(argument)  # noqa: PLW2901  # the same with a place
                number.start = cast("int", at)
            machine.step(opcode.name, argument)
    except RefusedName:
        raise
    except Exception as error:  # damaged instructions make the machine raise anything
        raise ValueError(f"damaged pickle ({type(error).__name__}: {error})") from error
    raise ValueError(f"damaged pickle (it does not end within {MAX_STEPS:,} instructions)")


_PUSH_ARGUMENT: Final = frozenset({
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_NUMBERS: Final = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})
_IGNORED: Final = frozenset({"PROTO", "FRAME"})
_CONSTANTS: Final[dict[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": lambda items: Opaque(f"a set of {len(items)}"),
    "DICT": lambda items: _table(zip(items[::2], items[1::2], strict=True)),
}


class _Machine:
    """The stack machine of pickle, on inert values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        if name in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(items)))
        elif name in _FROM_MARK:
            self.stack.append(_FROM_MARK[name](self.pop_to_mark()))
        elif name not in _IGNORED:
            handler = getattr(self, f"do_{name.lower()}", None)
            if handler is None:
                raise RefusedName(f"the pickle instruction {name}")
            handler(argument)

    def do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def do_pop(self, _: Any) -> None:
        self.stack.pop()

    def do_pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def do_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_put = do_long_binput = do_binput

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_get = do_long_binget = do_binget

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def do_setitems(self, _: Any) -> None:
        self._set_items(self.pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(_table(zip(items[::2], items[1::2], strict=True)))
        elif not isinstance(target, Opaque):
            raise TypeError("items for what is not a table")

    def do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self.pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise TypeError("items for what is not a list")

    def do_additems(self, _: Any) -> None:
        self.pop_to_mark()

    def do_global(self, argument: str) -> None:
        self.stack.append(_name(argument))

    def do_stack_global(self, _: Any) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is not a text")  # noqa: TRY004  # a fact of the file
        self.stack.append(_name(f"{module} {attribute}"))

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(_storage(self.pop()))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(_apply(function, arguments))

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        self.pop()
        self.do_reduce(None)

    def do_build(self, _: Any) -> None:
        self.pop()


def _table(pairs: Iterable[Any]) -> dict[Any, Any]:
    """A table whose keys are single values: any other key is of no interest, nor looked into."""
    single = (str, bytes, int, float, type(None), Opaque)
    return {
        key if isinstance(key, single) else Opaque(f"a key, {type(key).__name__}"): value
        for key, value in pairs
    }


def _name(text: str) -> Name:
    if not _SAFE.fullmatch(text):
        raise RefusedName(text.replace(" ", "."))
    return Name(text)


def _storage(identifier: Any) -> Storage:
    """A persistent id: ('storage', class, key, location, number of items)."""
    if not (isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage"):
        raise ValueError("a reference that is not a storage")
    _, kind, key, _, n_items = identifier[:5]
    if not isinstance(kind, Name) or not isinstance(key, str) or not is_whole(n_items):
        raise ValueError("a storage without class, key or length")
    return Storage(key, kind.text.split()[-1], n_items)


def _apply(function: Any, arguments: Any) -> Any:
    """What a call would give, for the few calls that matter."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        return Opaque("a call")
    text = function.text
    if text in _DICTS:
        first = arguments[0] if arguments else None
        pairs = first if isinstance(first, (list, dict)) else []
        return _table(pairs.items() if isinstance(pairs, dict) else pairs)
    if text == "torch._tensor _rebuild_from_type_v2":
        rebuilt, inner = arguments[0], arguments[2]
        return Opaque(text) if rebuilt == function else _apply(rebuilt, inner)
    rebuild = text.removeprefix("torch._utils ")
    if rebuild in _PARAMETERS:
        return arguments[0]
    if rebuild in _TENSORS:
        return _tensor(rebuild, arguments)
    return Opaque(text)


def _tensor(rebuild: str, arguments: tuple[Any, ...]) -> StoredTensor:
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")  # noqa: TRY004  # a fact of the file
    dtype = storage.kind.removesuffix("Storage")
    if rebuild == "_rebuild_tensor_v3":
        dtype = arguments[6].text.split()[-1]
    check_shape(shape, "a tensor")
    for value in (offset, *stride):
        check_shape((value,), "a tensor's offset or stride")
    if len(shape) != len(stride):
        raise ValueError("a tensor whose strides do not fit its shape")
    quantised = rebuild == "_rebuild_qtensor"
    return StoredTensor(storage, offset, tuple(shape), tuple(stride), dtype, quantised)
