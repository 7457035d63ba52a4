"""The bytes of a handoff: a model's exact cache at any token, the tails of unfinished entries included. Version 1.

Little-endian. Everything but the header follows from the layout, the model's dtype, `tokens` and `base`, and is written
down all the same: a taker that expects other parts, whatever the reason, does not read on.

    header     8  magic "KVHANDO" 1A      4  tokens that the cache holds     8  bytes of all parts
               2  version = 1             4  base, a multiple of a block    16  lineage of the rows below base
               2  parts
    records    for each part: u16 layer, u8 what, u8 name, u32 rows, u32 bytes a row
    parts      their rows, one part after another

    window     all layers      min(tokens, window_rows) entries in their stored format
    entries    CSA, HCA        compressed entries behind `base`, as they were computed, in their stored format
    tail       CSA, HCA        kv, then gate, of the tokens % ratio tokens that have no entry yet, in the model's dtype
    overlap    CSA             kv, then gate, of the last whole entry's tokens, in the model's dtype

Rows below `base` are not here: the taker fetches them, and goes on only if their lineage says that they are the same
bytes. Entries that decoding made are never left out: a prefill would make others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvstore.codec.v4_formats import MAIN, EntryCodec
from kvstore.core.layout import LayerKind
from kvstore.engines.transformers.cache import Bytes, CacheForm, LayerSnapshot, Snapshot

MAGIC = b"KVHANDO\x1a"
VERSION = 1
_HEADER = struct.Struct("<8sHHIIQ16s")
_RECORD = struct.Struct("<HBBII")
_NAMES = ("compressor", "indexer")  # transformers' names, by number


class What(IntEnum):
    WINDOW = 0
    ENTRIES = 1
    TAIL_KV = 2
    TAIL_GATE = 3
    OVERLAP_KV = 4
    OVERLAP_GATE = 5


class _Part(NamedTuple):
    layer: int
    what: What
    name: str
    rows: int
    width: int  # values a row
    codec: EntryCodec | None  # None: kept in the model's dtype

    def row_bytes(self, form: CacheForm) -> int:
        return self.width * form.dtype.itemsize if self.codec is None else self.codec.entry_bytes


@dataclass(frozen=True, slots=True)
class Handed:
    """A payload that was read: the cache but for the rows of `base` tokens, which are of this lineage."""

    tokens: int
    base: int
    lineage: bytes
    layers: tuple[LayerSnapshot, ...]

    def on(self, rows: Sequence[Mapping[str, Tensor]] | None) -> Snapshot:
        """The whole cache; `rows` are the entries below `base` of each layer, by name, None where base is 0."""
        if rows is None:
            return Snapshot(self.tokens, self.layers)
        joined = []
        for layer, below in zip(self.layers, rows, strict=True):
            whole = dict(below)
            for name, entries in layer.rows.items():
                whole[name] = torch.cat([below[name], entries], 1)
            joined.append(LayerSnapshot(layer.window, whole, layer.overlaps, layer.tails))
        return Snapshot(self.tokens, tuple(joined))


def pack(form: CacheForm, snapshot: Snapshot, base: int, lineage: bytes) -> list[memoryview]:
    """The payload, in pieces. `base` tokens' rows are left out; they were loaded, and `lineage` is theirs."""
    assert 0 <= base <= snapshot.tokens and base % form.layout.block_tokens == 0
    parts = list(_parts(form, snapshot.tokens, base))
    pieces = []
    for part in parts:
        if part.rows:
            values = _values(snapshot.layers[part.layer], part)
            assert values.shape[1] >= part.rows and values.shape[2] == part.width
            values = values[:, values.shape[1] - part.rows :]  # entries behind the base; of all else there are no more
            if part.codec is not None:
                packed = part.codec.to_sections(values)
            else:
                packed = values.to(form.dtype).contiguous().view(torch.uint8)
            pieces.append(packed.numpy().reshape(-1).data)
    nbytes = sum(piece.nbytes for piece in pieces)
    head = _HEADER.pack(MAGIC, VERSION, len(parts), snapshot.tokens, base, nbytes, lineage)
    return [memoryview(head + _records(form, parts)), *pieces]


def unpack(form: CacheForm, payload: memoryview, tokens: int) -> Handed | None:
    """A payload for exactly `tokens` tokens of this model; None for any other bytes. Copies."""
    if payload.nbytes < _HEADER.size:
        return None
    magic, version, count, held, base, nbytes, lineage = _HEADER.unpack_from(payload)
    if (magic, version, held) != (MAGIC, VERSION, tokens) or not tokens:
        return None
    if base > tokens or base % form.layout.block_tokens:
        return None
    parts = list(_parts(form, tokens, base))
    records = _records(form, parts)
    at = _HEADER.size + len(records)
    expected = sum(part.rows * part.row_bytes(form) for part in parts)
    if (count, nbytes, payload.nbytes) != (len(parts), expected, at + expected) or payload[
        _HEADER.size : at
    ] != records:
        return None
    read: dict[tuple[int, What, str], Tensor] = {}
    for part in parts:
        if part.rows:
            end = at + part.rows * part.row_bytes(form)
            values = _read(form, part, np.array(np.frombuffer(payload[at:end], np.uint8)))  # own and aligned
            if not bool(torch.isfinite(values).all()):  # no model computes such, and every later token would be lost
                return None
            read[part.layer, part.what, part.name] = values
            at = end
    return Handed(tokens, base, lineage, tuple(_layer(read, index) for index in range(len(form.kinds))))


def _parts(form: CacheForm, tokens: int, base: int) -> Iterator[_Part]:
    """Everything that such a payload has, in its order; also what is empty."""
    for layer, kind in enumerate(form.kinds):
        yield _Part(layer, What.WINDOW, _NAMES[0], min(tokens, form.layout.window_rows), MAIN.width, MAIN)
        ratio = form.layout.layers[layer].ratio
        for name, codec in form.codecs(kind).items():
            is_sparse = kind is LayerKind.CSA
            yield _Part(layer, What.ENTRIES, name, tokens // ratio - base // ratio, codec.width, codec)
            width = codec.width * 2 if is_sparse else codec.width  # CSA projects this block's half and the next one's
            for what in (What.TAIL_KV, What.TAIL_GATE):
                yield _Part(layer, what, name, tokens % ratio, width, None)
            if is_sparse:
                rows = ratio if tokens >= ratio else 0
                for what in (What.OVERLAP_KV, What.OVERLAP_GATE):
                    yield _Part(layer, what, name, rows, codec.width, None)


def _records(form: CacheForm, parts: Sequence[_Part]) -> bytes:
    return b"".join(
        _RECORD.pack(part.layer, part.what, _NAMES.index(part.name), part.rows, part.row_bytes(form)) for part in parts
    )


def _values(layer: LayerSnapshot, part: _Part) -> Tensor:
    """The part's tensor in a cache, (1, rows, width)."""
    if part.what is What.WINDOW:
        return layer.window[0]
    if part.what is What.ENTRIES:
        return layer.rows[part.name]
    pairs = layer.tails if part.what in (What.TAIL_KV, What.TAIL_GATE) else layer.overlaps
    return pairs[part.name][part.what in (What.TAIL_GATE, What.OVERLAP_GATE)]


def _read(form: CacheForm, part: _Part, packed: Bytes) -> Tensor:
    section = torch.from_numpy(packed)
    if part.codec is not None:
        return part.codec.from_sections(section[None], form.dtype)
    return section.view(form.dtype).view(1, part.rows, part.width)


def _layer(read: Mapping[tuple[int, What, str], Tensor], layer: int) -> LayerSnapshot:
    def pairs(kv: What, gate: What) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (read[layer, kv, name], read[layer, gate, name]) for name in _NAMES if (layer, kv, name) in read}

    return LayerSnapshot(
        window=read[layer, What.WINDOW, _NAMES[0]][None],
        rows={name: read[layer, What.ENTRIES, name] for name in _NAMES if (layer, What.ENTRIES, name) in read},
        overlaps=pairs(What.OVERLAP_KV, What.OVERLAP_GATE),
        tails=pairs(What.TAIL_KV, What.TAIL_GATE),
    )
