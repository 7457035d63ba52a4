"""Fingerprint of a layout, and the names of the fields in which two layouts differ.

The encoding is injective: every value is written as type tag, length, bytes, and every field under its name.
SHA-256 over it is the fingerprint. Golden vectors are in tests/core/golden_fingerprints.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum

from kvstore.core.layout import ModelLayout

_DOMAIN = b"kvstore layout fingerprint 1"


def fingerprint(layout: ModelLayout) -> bytes:
    """32 bytes that two layouts share only if they are equal in every field."""
    return hashlib.sha256(_framed(b"D", _DOMAIN) + encode(layout)).digest()


def differing_fields(ours: ModelLayout, theirs: ModelLayout) -> tuple[str, ...]:
    """Paths of the fields in which two layouts differ, e.g. ``block_tokens`` or ``layers[3].ratio``.

    Where a tuple's length differs, ``layers.count`` names it and only items that both have are compared.
    """
    return tuple(_differences(ours, theirs, ""))


def nearest_differing(layout: ModelLayout, others: Sequence[ModelLayout]) -> tuple[tuple[str, ...], ModelLayout | None]:
    """Fields in which the most similar other layout differs, and that layout; nothing without one."""
    return min(((differing_fields(layout, other), other) for other in others), key=_count, default=((), None))


def encode(value: object) -> bytes:
    """Injective bytes of a tree of frozen dataclasses, tuples, enums, str, int, float, bool and None."""
    if value is None:
        return _framed(b"N", b"")
    if isinstance(value, bool):
        return _framed(b"B", b"\1" if value else b"\0")
    if isinstance(value, Enum):
        return _framed(b"E", str(value.value).encode())
    if isinstance(value, int):
        return _framed(b"I", str(value).encode())
    if isinstance(value, float):
        return _framed(b"F", value.hex().encode())
    if isinstance(value, str):
        return _framed(b"S", value.encode())
    if isinstance(value, bytes):
        return _framed(b"Y", value)
    if isinstance(value, tuple):
        return _framed(b"T", b"".join(encode(item) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        parts = (_framed(b"K", field.name.encode()) + encode(getattr(value, field.name)) for field in fields(value))
        return _framed(b"O", b"".join(parts))
    raise TypeError(f"a layout holds no {type(value).__name__}")


def _count(found: tuple[tuple[str, ...], ModelLayout]) -> int:
    return len(found[0])


def _framed(tag: bytes, body: bytes) -> bytes:
    return tag + len(body).to_bytes(8, "little") + body


def _differences(ours: object, theirs: object, path: str) -> Iterator[str]:
    if is_dataclass(ours) and not isinstance(ours, type) and type(ours) is type(theirs):
        for field in fields(ours):
            inner = f"{path}.{field.name}" if path else field.name
            yield from _differences(getattr(ours, field.name), getattr(theirs, field.name), inner)
    elif isinstance(ours, tuple) and isinstance(theirs, tuple):
        if len(ours) != len(theirs):
            yield f"{path}.count"
        for index, (left, right) in enumerate(zip(ours, theirs, strict=False)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif encode(ours) != encode(theirs):
        yield path
