"""Options stated once: a field of a dataclass, with its help, range and default.

Such a dataclass documents and checks itself, and the command line is made from it
(`catwise.cli.building`).

>>> @described
... @dataclasses.dataclass(frozen=True)
... class Steps:
...     "Options of a fit."
...     n: int = option(5, low=1, help="Most steps.")
...     def __post_init__(self): check_options("options of a fit", self)
>>> print(Steps.__doc__.splitlines()[-1].strip())
n: Most steps. (n >= 1)
>>> Steps(n=0)
Traceback (most recent call last):
catwise.errors.ConfigError: options of a fit are out of range.
  found:    n=0
  expected: n >= 1
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, get_args, get_origin

from catwise.errors import ConfigError, check_choice, check_rules, nearest

Kind = TypeVar("Kind", bound=type)

_OPTION: Final = "catwise.option"
_GROUP: Final = "catwise.group"


class Option(NamedTuple):
    """What is known of an option beside its name, type and default."""

    help: str = ""  # a sentence, for the command line and the docstring
    names: str = ""  # on the command line, such as "-q --quiet"; by default the field's own
    metavar: str | None = None  # what stands for its value on the command line
    choices: Collection[str] = ()  # the texts that it may be
    low: float | None = None  # least value
    above: float | None = None  # what it must be larger than
    high: float | None = None
    below: float | None = None
    group: str = ""  # heading in the help; by default that of its dataclass
    first: bool = False  # whether most users need it: it stands first in the help
    prefixed: bool = False  # whether the prefix of the group goes before its name
    positional: bool = False  # on the command line given without a name, once or more

    def rule(self, name: str) -> str:
        """The range in words; empty where there is none."""
        low = self.low if self.above is None else self.above
        high = self.high if self.below is None else self.below
        if low is not None and high is not None:
            ends = f"{'[' if self.above is None else '('}{low:g}, {high:g}"
            return f"{name} in {ends}{']' if self.below is None else ')'}"
        if low is not None:
            return f"{name} {'>=' if self.above is None else '>'} {low:g}"
        return "" if high is None else f"{name} {'<=' if self.below is None else '<'} {high:g}"

    def holds(self, value: float) -> bool:
        """Whether a number is finite and in the range."""
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
            and (self.below is None or value < self.below)
        )


class Group(NamedTuple):
    """Options that stand together: a field whose type is a dataclass of options."""

    title: str
    prefix: str


def option(default: Any = dataclasses.MISSING, **about: Any) -> Any:
    """A field of a dataclass that is an option: `about` it says what `Option` holds.

    Without a default it is required; `dict` stands for an empty table of its own.
    """
    metadata = {_OPTION: Option(**about)}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(title: str, default: Callable[[], Any] | None = None, *, prefix: str = "") -> Any:
    """A field that is a dataclass of options, under a heading; `prefix` goes before their names."""
    metadata = {_GROUP: Group(title, prefix)}
    if default is None:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default_factory=default, metadata=metadata)


class OptionField(NamedTuple):
    """A field of a dataclass: its name, type and default, and what is known of it."""

    name: str
    kind: Any
    default: Any
    about: Option | Group


def option_fields(kind: type) -> Iterator[OptionField]:
    """The options and groups of a dataclass, in the order of its fields."""
    homes = {name: base for base in kind.__mro__[::-1] for name in inspect.get_annotations(base)}
    for item in dataclasses.fields(kind):
        about = item.metadata.get(_OPTION) or item.metadata.get(_GROUP)
        if about is not None:
            scope = vars(sys.modules[homes[item.name].__module__])
            hint = eval(item.type, scope) if isinstance(item.type, str) else item.type  # noqa: S307
            yield OptionField(item.name, hint, item.default, about)


def check_options(what: str, options: Any) -> None:
    """Refuse options that are none of their choices or out of range; names all the rules broken.

    `what` they are, such as "options of the genetic algorithm", in a dataclass made by `option`.
    """
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    rules: dict[str, bool] = {}
    for item in dataclasses.fields(options):
        about, value = item.metadata.get(_OPTION), values[item.name]
        if about is None or value is None:
            continue
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if about.choices:
                check_choice(item.name, one, about.choices)
            if rule := about.rule(item.name):
                rules[rule] = rules.get(rule, True) and about.holds(one)
    check_rules(what, values, rules)


def kinds_of(hint: Any) -> set[Any]:
    """The types in a type: of `tuple[str, ...] | None` tuple, str and None's, among others."""
    return {get_origin(hint) or hint}.union(*map(kinds_of, get_args(hint)))


def take_options(
    kind: type, table: object, where: str, *, leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """The options of a dataclass that a table of a file gives, as the dataclass takes them.

    ConfigError for a name that is none of its options, and for a value of another type; lists
    become tuples and texts paths where that is what the option is.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Steps:
    ...     n: int = option(5)
    ...     names: tuple[str, ...] = option(())
    >>> take_options(Steps, {"n": 3, "names": ["a"]}, "[steps]")
    {'n': 3, 'names': ('a',)}
    """
    own = {item.name: item.kind for item in option_fields(kind) if item.name not in leave_out}
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"{where} is not a table of options.",
            found=type(table).__name__,
            expected=", ".join(own),
        )
    found = {}
    for name, value in table.items():
        if name not in own:
            raise ConfigError(
                f"{where} has no option {name!r}{nearest(str(name), own)}.",
                expected=", ".join(own),
            )
        kinds = kinds_of(own[name])
        if not _is_of(value, kinds):
            names = sorted({"list" if k is tuple else k.__name__ for k in kinds & _FILE_TYPES})
            raise ConfigError(
                f"{where}: {name!r} has a value of another type.",
                found=repr(value),
                expected=" or ".join("a text" if k in {"str", "Path"} else k for k in names),
            )
        found[name] = _as_kind(value, kinds)
    return found


_FILE_TYPES: Final = frozenset({bool, int, float, str, Path, tuple, Mapping})


def _is_of(value: object, kinds: set[Any]) -> bool:
    """Whether a value of a file may be one of these types."""
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, (list, tuple)):
        inner = kinds - {tuple}
        return tuple in kinds and all(_is_of(one, inner) for one in value)
    if isinstance(value, int):
        return bool(kinds & {int, float})
    if isinstance(value, str):
        return bool(kinds & {str, Path})
    return isinstance(value, tuple(kinds & {float, Mapping}))


def _as_kind(value: Any, kinds: set[Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_as_kind(one, kinds) for one in value)
    return Path(value) if isinstance(value, str) and Path in kinds and str not in kinds else value


def described(kind: Kind) -> Kind:
    """Give a dataclass of options the "Args" of its docstring, ahead of what it raises."""
    lines = ["Args:"]
    for item in dataclasses.fields(kind):
        about = item.metadata.get(_OPTION)
        if about is not None:
            more = [about.rule(item.name), " or ".join(map(repr, about.choices))]
            text = ", ".join(filter(None, more))
            lines.append(f"    {item.name}: {about.help}{f' ({text})' if text else ''}")
        elif _GROUP in item.metadata:
            lines.append(f"    {item.name}: the options of `{item.type}`.")
    what, *raises = inspect.cleandoc(kind.__doc__ or "").partition("\n\nRaises:")
    kind.__doc__ = what + "\n\n" + "\n".join(lines) + "".join(raises)
    return kind
