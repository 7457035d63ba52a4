"""The part of a frame that says where each section lies and how it is encoded.

Component names once each (u16 count, then u16 length and UTF-8 for each), then one 24-byte record per section:
layer u16, component u16 (index into the names), codec u8, 3 zero bytes, raw length u32, stored length u32,
xxh3_64 of the stored bytes u64. Pure; any thread; little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from kvstore.codec.lossless import Codec
from kvstore.core.errors import CorruptFrame
from kvstore.core.layout import Section

_RECORD = struct.Struct("<HHB3xIIQ")
RECORD_BYTES = _RECORD.size
_CODEC_OFFSET = 4  # in a record
_LENGTH = struct.Struct("<H")
_LAYOUTS_KEPT = 64  # a daemon serves a few layouts of two or three groups each


class SectionRecord(NamedTuple):
    """One section of a frame."""

    layer: int
    component: str
    codec: Codec
    raw_bytes: int
    stored_bytes: int
    checksum: int  # xxh3_64 of the stored bytes


class Table(NamedTuple):
    """A section table in columns, each in section order: what decoding needs, without an object per section."""

    layers: tuple[int, ...]
    components: tuple[int, ...]
    codecs: tuple[int, ...]
    raw_sizes: tuple[int, ...]
    stored_sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def is_raw(self) -> bool:
        return not any(self.codecs)

    def records(self) -> list[SectionRecord]:
        names = (self.names[index] for index in self.components)
        codecs = map(Codec, self.codecs)
        rows = zip(self.layers, names, codecs, self.raw_sizes, self.stored_sizes, self.checksums, strict=True)
        return [SectionRecord(*row) for row in rows]


def pack_table(
    sections: Sequence[Section], codecs: Sequence[Codec], stored_sizes: Sequence[int], checksums: Sequence[int]
) -> tuple[int, bytes]:
    """Bytes of the names, and the whole table."""
    fixed = _fixed_of(sections)
    columns = zip(fixed.layers, fixed.components, codecs, fixed.raw_sizes, stored_sizes, checksums, strict=True)
    return len(fixed.names), fixed.names + fixed.all_records.pack(*chain.from_iterable(columns))


def unpack_table(table: memoryview, sections: int, names_bytes: int) -> Table:
    """The table in `table`, whose checksum the caller has verified. CorruptFrame if it contradicts itself."""
    records = table[names_bytes : names_bytes + sections * RECORD_BYTES]
    if not sections or len(records) != sections * RECORD_BYTES:
        raise CorruptFrame("the section table is cut short")
    layers, components, codecs, raw_sizes, stored_sizes, checksums = zip(*_RECORD.iter_unpack(records), strict=True)
    names = _names_in(bytes(table[:names_bytes]))
    if max(components) >= len(names):
        raise CorruptFrame("a section names a component that the frame does not list")
    unknown = set(codecs) - set(Codec)
    if unknown:
        raise CorruptFrame(f"a section is encoded by codec {min(unknown)}, which this version does not know")
    return Table(layers, components, codecs, raw_sizes, stored_sizes, checksums, names)


def is_raw(table: memoryview, sections: int, names_bytes: int) -> bool:
    """Whether every section in `table`, whose checksum the caller has verified, is stored as it is."""
    codecs = table[names_bytes + _CODEC_OFFSET : names_bytes + sections * RECORD_BYTES : RECORD_BYTES]
    return len(codecs) == sections and not any(codecs.tobytes())


def table_bytes(sections: Sequence[Section]) -> int:
    """Length of the table for these sections, whatever their codecs."""
    return len(_fixed_of(sections).names) + len(sections) * RECORD_BYTES


def raw_sizes(sections: Sequence[Section]) -> tuple[int, ...]:
    """Raw bytes of each section."""
    return _fixed_of(sections).raw_sizes


class _Fixed(NamedTuple):
    """What tables of one group have in common. Keeps `sections` alive, so that its id stays its own."""

    sections: Sequence[Section]
    names: bytes
    layers: tuple[int, ...]
    components: tuple[int, ...]
    raw_sizes: tuple[int, ...]
    all_records: struct.Struct


# by id: hashing a tuple of 91 sections would take longer than the rest of the table
_FIXED: dict[int, _Fixed] = {}


def _fixed_of(sections: Sequence[Section]) -> _Fixed:
    known = _FIXED.get(id(sections))
    if known is not None and known.sections is sections:
        return known
    names = list(dict.fromkeys(section.component for section in sections))
    encoded = [name.encode() for name in names]
    packed = b"".join([_LENGTH.pack(len(names)), *(_LENGTH.pack(len(name)) + name for name in encoded)])
    fixed = _Fixed(
        sections,
        packed,
        tuple(section.layer for section in sections),
        tuple(names.index(section.component) for section in sections),
        tuple(section.nbytes for section in sections),
        struct.Struct("<" + _RECORD.format[1:] * len(sections)),
    )
    assert fixed.all_records.size == len(sections) * RECORD_BYTES
    if isinstance(sections, tuple):  # a list could change under its id
        if len(_FIXED) >= _LAYOUTS_KEPT:
            _FIXED.clear()
        _FIXED[id(sections)] = fixed
    return fixed


@lru_cache(maxsize=_LAYOUTS_KEPT)
def _names_in(packed: bytes) -> tuple[str, ...]:
    names, position = [], _LENGTH.size
    try:
        for _ in range(_LENGTH.unpack_from(packed)[0]):
            (length,) = _LENGTH.unpack_from(packed, position)
            position += _LENGTH.size + length
            names.append(packed[position - length : position].decode())
    except (struct.error, UnicodeDecodeError) as error:
        raise CorruptFrame("the component names do not decode") from error
    if position != len(packed):
        raise CorruptFrame("the component names do not end where the section table begins")
    return tuple(names)
