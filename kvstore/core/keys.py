"""The names of things: tiers, blocks, objects. Shared by every room of the house."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

HASH_BYTES = 32  # SHA-256; identity is never truncated (CVE-2025-25183 is what short or weak hashes cost)
LINEAGE_BYTES = 16  # xxh3_128
CHECKSUM_BYTES = 16  # xxh3_128
PAGE_BYTES = 4096  # unit of space on every tier: memory page and disk sector multiple


class Tier(Enum):
    """Where bytes can lie, nearest first."""

    GPU = "gpu"
    HOST = "host"
    DISK = "disk"
    REMOTE = "remote"

    __hash__ = object.__hash__  # members are one of a kind; Enum's own is a Python call, some 170 of them a lookup


class BlockKey(NamedTuple):
    """Names one object for ever: what it holds never changes.

    `prefix` is the chained hash of every token from position 0 to the block's end (32 bytes), `group` the
    index into `ModelLayout.groups`. Prefix hashes of two namespaces differ by their root, so a key
    needs no namespace to be unique.
    """

    prefix: bytes
    group: int


class Chain(NamedTuple):
    """Consecutive blocks of one token sequence, as calls name them.

    A hash does not reveal its parent, so `parent` is sent along: the hash of block `first_block - 1`, the
    namespace's root where `first_block` is 0. `hashes` is packed: 32 bytes a block, in order.
    """

    first_block: int
    parent: bytes
    hashes: bytes

    @property
    def blocks(self) -> int:
        return len(self.hashes) // HASH_BYTES

    def hash_at(self, index: int) -> bytes:
        """Prefix hash of the chain's `index`-th block (block number `first_block + index`)."""
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
