"""Lineage: which run's bytes an object was computed on.

16 bytes, xxh3_128 over the parent's lineage and the object's checksum, so two chains share a lineage only if
every row below is the same, bit for bit. A state carries the lineage of the rows under it. Against accidents and
differing runs, not against adversaries.
"""

from __future__ import annotations

import xxhash

from kvstore.core.keys import CHECKSUM_BYTES, LINEAGE_BYTES

ROOT_LINEAGE = bytes(LINEAGE_BYTES)  # below block 0 nothing was computed


def child_lineage(parent: bytes, checksum: bytes) -> bytes:
    """Lineage of rows with this content checksum, computed on rows of lineage `parent`."""
    assert len(parent) == LINEAGE_BYTES and len(checksum) == CHECKSUM_BYTES
    return bytes(xxhash.xxh3_128_digest(parent + checksum))


def chain_lineages(parent: bytes, checksums: bytes) -> bytes:
    """Lineages of consecutive rows from their packed content checksums (16 bytes each), packed likewise."""
    lineages = []
    for offset in range(0, len(checksums), CHECKSUM_BYTES):
        parent = child_lineage(parent, checksums[offset : offset + CHECKSUM_BYTES])
        lineages.append(parent)
    return b"".join(lineages)
