"""Commands and their options, made from dataclasses of options (`catwise._options`)."""

from __future__ import annotations

import contextlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Final

import click

from catwise._options import Group, Option, OptionField, kinds_of, option_fields
from catwise.errors import CatwiseError

MOST_USED: Final = "Used most"
OWN: Final = "Options"
_ARGUMENT: Final = re.compile(
    r"(?<!--model-arg )(?<!--option )(?<![\w-])(\w+)="
    r"('[^'\n]*'|\"[^\"\n]*\"|True|False|…|\[[^\]\n]*\]|-?\d[\d.e+-]*)(?![\w'])"
)
_MODEL_ARGUMENT: Final = re.compile(r"model_args=\{'(\w+)': ('[^'\n]*'|\"[^\"\n]*\"|[^\s'}]+)\}")
_CALL: Final = r"[\w.]+\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)"
_VALUE: Final = r"\w+=(?:'[^'\n]*'|\"[^\"\n]*\"|\[[^\]\n]*\]|\{[^}\n]*\}|[^\s'\",;:]+)"
_BOTH: Final = re.compile(rf"(?:{_CALL}|{_VALUE}) \(((?:--|catwise )[^()\n]*)\)")
"""What Python says, and then in brackets what the command line says."""


class _Place(click.Path):
    """A path, or an URL that stays as it was typed."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, str) and ("://" in value or "::" in value):
            return value
        return super().convert(value, param, ctx)


class _Option(click.Option):
    """An option that knows under which heading of the help it stands."""

    def __init__(self, *arguments: Any, heading: str, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.heading = heading


class _Command(click.Command):
    """A command whose help shows its options in groups, those that most users need first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {MOST_USED: [], OWN: []}
        for parameter in sorted(self.get_params(ctx), key=lambda one: not one.required):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = getattr(parameter, "heading", "Output")
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def make_command(name: str, short_help: str) -> Callable[[Callable[[Any], None]], click.Command]:
    """Make a command of a function that takes one dataclass of options.

    The function's docstring is the command's help; its options are those of the dataclass by which
    its argument is annotated.
    """

    def make(function: Callable[[Any], None]) -> click.Command:
        annotations = inspect.get_annotations(function, eval_str=True)
        (kind,) = (hint for argument, hint in annotations.items() if argument != "return")
        return _Command(
            name,
            callback=lambda **values: function(_built(kind, values)),
            params=list(_made(kind, OWN)),
            help=function.__doc__,
            short_help=short_help,
        )

    return make


def option_names(command: click.Command | None) -> dict[str, str]:
    """The option for each argument of a command: its first long name, by the argument's name.

    What says no has the name "not" and the argument's.
    """
    parameters = command.params if command is not None else []
    options = [one for one in parameters if isinstance(one, click.Option)]
    names = {str(p.name): next(o for o in p.opts if o.startswith("--")) for p in options}
    no = {f"not {p.name}": p.secondary_opts[0] for p in options if p.secondary_opts}
    if "overwrite" not in names and "force" in names:
        names["overwrite"] = names["force"]
    if any("--head-key" in one.opts for one in options):
        names["key"] = "--head-key"
    return names | no


def given_options(*groups: Any, leave_out: Sequence[str] = ()) -> list[str]:
    """The options of these groups that are not as by default, to be given to another command."""
    found: list[str] = []
    for options in groups:
        for item in option_fields(type(options)):
            value = getattr(options, item.name)
            about = item.about
            if not isinstance(about, Option) or item.name in leave_out or value == item.default:
                continue
            name = about.names.split()[:1] or [f"--{item.name.replace('_', '-')}"]
            if isinstance(value, bool):
                yes, _, no = name[0].partition("/")
                found += [yes if value else no]
                continue
            for one in value if isinstance(value, tuple) else (value,):
                found += [f"{name[0]}={one}"] if str(one).startswith("-") else [name[0], str(one)]
    return found


def as_options(text: str, names: Mapping[str, str]) -> str:
    """A text in which Python's arguments are written as the options of the command line.

    Where a text says both, Python's and then in brackets the command line's, the latter stays.

    >>> as_options("leave them out with undecodable='skip'", {"undecodable": "--undecodable"})
    'leave them out with --undecodable skip'
    >>> as_options("say layout='nhwc' (--model-arg layout=nhwc)", {"layout": "--layout"})
    'say --model-arg layout=nhwc'
    """

    def spelled(found: re.Match[str]) -> str:
        name, value = found.groups()
        if value == "False":
            return names.get(f"not {name}", found[0])
        if name not in names:
            return found[0]
        option, given = names[name], [value.strip("'\"")]
        if value[0] == "[":
            given = [one.strip(" '\"") for one in value[1:-1].split(",")]
        if value == "True" and not option.endswith("="):
            return option
        given = [shlex.quote(one) if re.search(r"\s", one) else one for one in given]
        return " ".join(option + ("" if option.endswith("=") else " ") + one for one in given)

    text = _BOTH.sub(r"\1", text)
    if "model_arg" in names:
        text = _MODEL_ARGUMENT.sub(lambda m: f"--model-arg {m[1]}={m[2].strip(chr(39))}", text)
    text = _ARGUMENT.sub(spelled, text)
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", text)


@contextlib.contextmanager
def spelled_as(
    names: Mapping[str, str], more: Callable[[str], str] = lambda text: text
) -> Iterator[None]:
    """Errors in the block name arguments of the library as what the command line has for them.

    `more` changes the texts further.
    """
    try:
        yield
    except CatwiseError as error:
        parts = {key: getattr(error, key) for key in ("what", "found", "expected", "remedy")}
        told = {key: text and more(as_options(text, names)) for key, text in parts.items()}
        raise type(error)(told.pop("what") or "", **told) from error


def _made(kind: type, heading: str, prefix: str = "") -> Iterator[click.Parameter]:
    """The options of a dataclass, and of those in it."""
    for item in option_fields(kind):
        if isinstance(item.about, Group):
            yield from _made(item.kind, item.about.title, item.about.prefix)
        else:
            yield _option(item, item.about, heading, prefix if item.about.prefixed else "")


def _built(kind: type, values: dict[str, Any]) -> Any:
    """The dataclass, of the values of its options; what was not given has its default."""
    found = {}
    for item in option_fields(kind):
        if isinstance(item.about, Group):
            found[item.name] = _built(item.kind, values)
        elif (value := values[item.name]) != ():
            found[item.name] = value
    return kind(**found)


def _option(item: OptionField, about: Option, heading: str, prefix: str) -> click.Parameter:
    if about.positional:
        kind = _type(about, kinds_of(item.kind))
        return click.Argument([item.name], nargs=-1, required=True, type=kind,
                              metavar=about.metavar)  # fmt: skip
    names = about.names.split() or [f"--{prefix}{item.name.replace('_', '-')}"]
    kinds = kinds_of(item.kind)
    is_switch = bool in kinds
    more: dict[str, Any] = {"is_flag": True} if is_switch else {"type": _type(about, kinds)}
    if tuple in kinds:
        more["multiple"] = True
    elif item.default is not MISSING:
        more["default"] = item.default
        more["show_default"] = bool(item.default) or type(item.default) is int
    return _Option(
        [*names, item.name],
        heading=MOST_USED if about.first else about.group or heading,
        required=item.default is MISSING,
        metavar=about.metavar or ("N" if int in kinds else "X" if float in kinds else None),
        help=about.help,
        **more,
    )


def _type(about: Option, kinds: set[Any]) -> click.ParamType[Any]:
    """What a value is; whether a path can be read is for the reader to say."""
    if about.choices:
        return click.Choice(tuple(about.choices))
    if Path in kinds:
        made = _Place if str in kinds else click.Path
        return made(path_type=Path, readable=False)
    low: Any = about.low if about.above is None else about.above
    high: Any = about.high if about.below is None else about.below
    if int in kinds:
        return click.IntRange(low, high)
    if float not in kinds:
        return click.STRING
    if low is None and high is None:
        return click.FLOAT
    return click.FloatRange(
        low, high, min_open=about.above is not None, max_open=about.below is not None
    )
