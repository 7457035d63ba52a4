"""A layout as JSON and back, for the folder that remembers namespaces. Pure.

Reading goes through `ModelLayout`'s own checks; anything that is not exactly a layout is InvalidLayout.
"""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, fields, is_dataclass
from enum import Enum

from kvstore.core.errors import InvalidLayout
from kvstore.core.layout import ModelLayout


def dump_layout(layout: ModelLayout) -> bytes:
    """UTF-8 JSON with every field under its name."""
    return json.dumps(asdict(layout), default=_enum_value, sort_keys=True).encode()


def load_layout(blob: bytes) -> ModelLayout:
    """InvalidLayout for anything but what `dump_layout` wrote."""
    try:
        layout = _build(ModelLayout, json.loads(blob))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidLayout(f"a saved layout cannot be read: {error}") from error
    assert isinstance(layout, ModelLayout)
    return layout


def _enum_value(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a layout holds no {type(value).__name__}")


def _build(kind: object, value: object) -> object:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (kind,) = (choice for choice in typing.get_args(kind) if choice is not type(None))
        return _build(kind, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("a list is expected")
        (item, _) = typing.get_args(kind)
        return tuple(_build(item, part) for part in value)
    assert isinstance(kind, type)
    if is_dataclass(kind):
        if not isinstance(value, dict) or set(value) != {field.name for field in fields(kind)}:
            raise TypeError(f"the fields of {kind.__name__} are expected")
        hints = typing.get_type_hints(kind)
        return kind(**{name: _build(hints[name], part) for name, part in value.items()})
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} is expected, not {value!r}")
    return value
