"""A dataclass as a JSON object: its fields say what they mean, and a schema is made from that.

A field is annotated with its meaning: ``gain: Annotated[float, "score after less before"]``.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Union, get_args, get_origin, get_type_hints

from catwise._json import number

_TYPES: Final = {
    str: "string",
    int: "integer",
    float: "number",
    dict: "object",
    list: "array",
    types.NoneType: "null",
}


class JsonObject:
    """Base of dataclasses that are written as JSON objects, in the order of their fields.

    A field whose default is None is left out where it is None; one that is named in `_spread` is
    such an object itself, whose fields are written in its place.
    """

    __slots__ = ()
    _spread: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN is None."""
        result: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is None and value is None:
                continue
            if field.name in self._spread:
                result |= value.to_dict()
            else:
                result[field.name] = number(value) if isinstance(value, float) else value
        return result

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Any:
        """What `to_dict` wrote; names that are none of its fields are left out.

        ValueError if one is missing that is always there.
        """
        if missing := [name for name in cls.columns() if name not in table]:
            raise ValueError(f"it has no {missing[0]!r}")
        given: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name not in cls._spread:
                given[field.name] = table.get(field.name)
                continue
            (kind, *_) = _kinds(get_args(get_type_hints(cls, include_extras=True)[field.name])[0])
            there = all(name in table for name in kind.columns())
            given[field.name] = kind.from_dict(table) if there else None
        return cls(**given)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names that are always there, in their order."""
        return tuple(cls.schema()["required"])

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON schema: type and meaning of every name, and which are always there."""
        properties: dict[str, Any] = {}
        required: list[str] = []
        hints = get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            hint, *texts = get_args(hints[field.name])
            kinds = _kinds(hint)
            if field.name in cls._spread:
                properties |= kinds[0].schema()["properties"]
                continue
            names = [_TYPES[get_origin(kind) or kind] for kind in kinds]
            if field.default is None:
                names.remove("null")
            else:
                required.append(field.name)
            if "number" in names and "null" not in names:
                names.append("null")  # of NaN
            properties[field.name] = {
                "type": names[0] if len(names) == 1 else names,
                "description": texts[0],
            }
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": cls.__name__,
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }


def _kinds(hint: Any) -> list[Any]:
    """What a type may be: of a union its members, None last."""
    if get_origin(hint) in {types.UnionType, Union}:
        return list(get_args(hint))
    return [hint]
