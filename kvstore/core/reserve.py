"""What a writer announces, and what it is told about each object. Pure values."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class ObjectSpec(NamedTuple):
    """One object that a writer wants to put: `block` is an index into the chain it sent."""

    block: int
    group: int
    length: int  # raw bytes; must be the group's length in the layout
    content: bytes  # xxh3_128 over the raw bytes, 16 bytes


class ReserveStatus(Enum):
    WANTED = "wanted"  # send the bytes
    EXISTS = "exists"  # the same bytes are stored, or on their way
    OTHER_LINEAGE = "other lineage"  # stored rows come from another run: stop publishing below here
    NO_PARENT = "no parent"  # the rows below it are not stored
    NO_ROOM = "no room"  # everything in the host tier is in use


class PutStatus(Enum):
    STORED = "stored"  # verified and readable
    CORRUPT = "corrupt"  # the bytes do not match the announced checksum
    DROPPED = "dropped"  # its parent or its room went away meanwhile


class Durability(Enum):
    NONE = "none"  # not stored, or dropped
    MEMORY = "memory"  # readable; lost when the daemon ends before it reached the disk
    DISK = "disk"  # synced: survives SIGKILL and power loss
