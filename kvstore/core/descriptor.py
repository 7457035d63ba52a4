"""Where an object lies in host memory, as workers on the same host are told: slots, stamp, checksum.

A copy on the host has a stamp that no other copy of this run of the daemon has. The region's stamp table says, at each
of the copy's slots, whether its bytes are there: a reader compares before it believes what it has copied. It is the
copy's number and not the object's generation, because an object may leave a slot and come back to it while a reader
that was held up is still copying.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kvstore.core.keys import CHECKSUM_BYTES

EMPTY = 0  # nothing, or nothing any more
_STRUCTS: dict[int, struct.Struct] = {}


def whole_word(stamp: int) -> int:
    """What the stamp table says where a copy is whole and verified."""
    return 2 * stamp


def filling_word(stamp: int) -> int:
    """What it says while the copy is being filled."""
    return 2 * stamp + 1


def record_bytes(slots: int) -> int:
    """Length of a descriptor record of an object of so many slots."""
    return 4 * slots + 8 + CHECKSUM_BYTES


def pack_record(slots: Sequence[int], stamp: int, content: bytes) -> bytes:
    """Page of each slot (u32), stamp (u64), content checksum (16 bytes); little-endian.

    >>> len(pack_record((5,), 1, bytes(16))) == record_bytes(1)
    True
    """
    known = _STRUCTS.get(len(slots))
    if known is None:
        known = _STRUCTS[len(slots)] = struct.Struct(f"<{len(slots)}IQ{CHECKSUM_BYTES}s")
    return known.pack(*slots, stamp, content)
