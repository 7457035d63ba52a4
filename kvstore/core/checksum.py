"""Checksums against accidents: of an object's bytes, and of the bond between bytes and their name.

xxh3_128, 16 bytes. Never identity: that is SHA-256 (`prefix.py`), because xxh3 collides on purpose (RELIABILITY
section 5). Pure; any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TypeAlias

import xxhash

from kvstore.core.keys import CHECKSUM_BYTES, BlockKey

Buffer: TypeAlias = bytes | bytearray | memoryview

_NAME = struct.Struct("<32sBQQ16s")


def content_checksum(pieces: Iterable[Buffer]) -> bytes:
    """Checksum of an object's raw bytes, given in order in pieces of any length; where they are cut has no effect.

    >>> content_checksum([b"ab", b"c"]) == content_checksum([b"abc"])
    True
    """
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return bytes(state.digest())


def seal(key: BlockKey, generation: int, length: int, content: bytes, lineage: bytes = b"") -> bytes:
    """Checksum over key, generation, length and content: bytes that are whole but belong elsewhere do not match it.

    A state's covers also the lineage of the rows that it was computed on.
    """
    assert len(content) == CHECKSUM_BYTES
    return bytes(xxhash.xxh3_128_digest(_NAME.pack(key.prefix, key.group, generation, length, content) + lineage))
