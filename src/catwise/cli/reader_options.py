"""Options of a data set's reader, as texts: their values by the types that the reader wants."""

from __future__ import annotations

import ast
import contextlib
from typing import Any, Final

from catwise.errors import ConfigError, nearest

_TRUTHS: Final = {"true": True, "false": False, "yes": True, "no": False}


def option_value(name: str, texts: list[str], annotation: str) -> Any:
    """What the texts of a reader's option are, by the type that the reader wants.

    >>> option_value("year", ["2017"], "Literal[2014, 2017]")
    2017
    >>> option_value("categories", ["Edema"], "Literal['all'] | Sequence[str]")
    ['Edema']
    >>> option_value("tables", ["train=a.csv"], "Mapping[str, str] | None")
    {'train': 'a.csv'}
    """
    literals, kinds = _annotated(annotation)
    if "Mapping" in kinds:
        pairs = [text.partition("=") for text in texts]
        if all(equals for _, equals, _ in pairs):
            return {key: value for key, _, value in pairs}
    elif len(texts) == 1:
        with contextlib.suppress(ValueError):
            return _one_value(texts[0], literals, kinds)
    elif "Sequence" in kinds:
        return texts
    choices = [*map(str, literals), *(_TRUTHS if "bool" in kinds else ())]
    words = {"float": "a number", "Mapping": "NAME=VALUE", "str": "one text", "None": "none"}
    choices += [text for kind, text in words.items() if kind in kinds]
    raise ConfigError(
        f"the option {name!r} has no such value.",
        found=" and ".join(texts) + nearest(texts[0].lower(), choices),
        expected=" or ".join(choices),
    )


def _one_value(text: str, literals: list[Any], kinds: set[str]) -> Any:
    """The value of one text."""
    for value in literals:
        if str(value).lower() == text.lower():
            return value
    if "None" in kinds and text.lower() == "none":
        return None
    if "Sequence" in kinds:
        return [text]
    if kinds & {"str", "Storage"}:
        return text
    if "bool" in kinds and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    if "float" in kinds:
        return float(text)
    raise ValueError(text)


def _annotated(annotation: str) -> tuple[list[Any], set[str]]:
    """The literal values that a type allows, and the names that are in it."""
    literals: list[Any] = []
    kinds: set[str] = set()

    def look(node: ast.AST) -> None:
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            values = ast.literal_eval(node.slice)
            literals.extend(values if isinstance(values, tuple) else [values])
            return
        if isinstance(node, ast.Subscript):
            kinds.add(ast.unparse(node.value))
            return
        if isinstance(node, (ast.Name, ast.Constant)):
            kinds.add(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            look(child)

    look(ast.parse(annotation, mode="eval").body)
    return literals, kinds
