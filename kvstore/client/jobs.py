"""One put as the writer's thread knows it: packed objects, their places, and how it is cut into parts. Any thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from kvstore.client.staging import Extent
from kvstore.core.checksum import content_checksum
from kvstore.core.keys import CHECKSUM_BYTES, HASH_BYTES, LINEAGE_BYTES, PAGE_BYTES, Chain
from kvstore.core.lineage import chain_lineages
from kvstore.core.match import Hints
from kvstore.rpc.convert import chain_to_wire, hints_to_wire
from kvstore.rpc.generated import kvstore_pb2 as pb

# The store copies each object to a page of its arena. A copy between other offsets in a page runs up to ten times
# slower (MEASURED section 1, "alignment trap"), so objects start at pages too, unless that would waste an eighth.
ALIGNED_FROM_BYTES = 8 * PAGE_BYTES
CACHE_LINE_BYTES = 64


class Piece(NamedTuple):
    """One packed object: index of its block in the chain, its group, and where it lies in the job's buffer."""

    block: int
    group: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class PutJob:
    """One put, waiting for the writer. Owns its bytes."""

    root: bytes  # of the namespace the chain belongs to
    chain: Chain
    lineage: bytes | None  # of the rows under the chain's first block; None: an earlier put that is queued will tell
    pieces: tuple[Piece, ...]  # in chain order, rows of a block before its states
    buffer: memoryview  # of the packed bytes, with what lies between the objects
    hints: Hints
    extent: Extent | None = None  # where `buffer` is in the staging region; None: it is elsewhere
    is_end: bool = True  # False: the first parts of a put that goes to the store in parts

    @property
    def nbytes(self) -> int:
        """Of the objects, without what lies between them."""
        return sum(piece.length for piece in self.pieces)

    def bytes_of(self, piece: Piece) -> memoryview:
        return self.buffer[piece.start : piece.start + piece.length]

    def contents(self) -> bytes:
        """Checksums of the objects, packed. Reads all bytes; lets go of the interpreter meanwhile."""
        return b"".join(content_checksum((self.bytes_of(piece),)) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class SummedPut:
    """A job whose checksums and lineage are known, without its bytes: what announces it."""

    root: bytes
    chain: Chain
    lineage: bytes  # of the rows under the chain's first block
    pieces: tuple[Piece, ...]
    contents: bytes  # checksum of each, packed
    hints: Hints
    lineages: bytes  # of the rows, block by block, packed

    @property
    def end_lineage(self) -> bytes:
        return self.lineages[-LINEAGE_BYTES:]

    def request(self, namespace: bytes, worker_id: bytes) -> pb.ReserveRequest:
        return pb.ReserveRequest(
            namespace_id=namespace,
            worker_id=worker_id,
            chain=chain_to_wire(self.chain),
            lineage=self.lineage,
            objects=[
                pb.ObjectSpec(
                    block=piece.block,
                    group=piece.group,
                    length=piece.length,
                    content=self.contents[index * CHECKSUM_BYTES : (index + 1) * CHECKSUM_BYTES],
                )
                for index, piece in enumerate(self.pieces)
            ],
            hints=hints_to_wire(self.hints),
        )


def summed(job: PutJob, lineage: bytes, contents: bytes) -> SummedPut:
    """The job with its lineage and the checksums of its objects, packed."""
    rows = b"".join(
        contents[index * CHECKSUM_BYTES : (index + 1) * CHECKSUM_BYTES]
        for index, piece in enumerate(job.pieces)
        if piece.group == 0
    )
    return SummedPut(job.root, job.chain, lineage, job.pieces, contents, job.hints, chain_lineages(lineage, rows))


def cut(pieces: Sequence[Piece], part_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """Parts of whole blocks that take at most so many bytes when packed anew; of one block where it takes more."""
    part: list[Piece] = []
    end = 0
    for _, of_block in groupby(pieces, key=lambda piece: piece.block):
        block = list(of_block)
        longer = packed_bytes(block, end)
        if part and longer > part_bytes:
            yield tuple(part)
            part, longer = [], packed_bytes(block)
        part += block
        end = longer
    yield tuple(part)


def packed_bytes(pieces: Iterable[Piece], end: int = 0) -> int:
    """Where these objects end when they are packed behind others."""
    for piece in pieces:
        end = place(end, piece.length) + piece.length
    return end


def part_of(job: PutJob, pieces: Sequence[Piece], lineage: bytes | None, extent: Extent | None) -> PutJob:
    """The blocks of these pieces as a job of its own; with an extent, copied into it."""
    first, end = pieces[0].block, pieces[-1].block + 1
    parent = job.chain.hash_at(first - 1) if first else job.chain.parent
    chain = Chain(job.chain.first_block + first, parent, job.chain.hashes[first * HASH_BYTES : end * HASH_BYTES])
    placed, buffer, at = [piece._replace(block=piece.block - first) for piece in pieces], job.buffer, 0
    if extent is not None:
        buffer = extent.bytes.data
        for index, piece in enumerate(pieces):
            at = place(at, piece.length)
            target = buffer[at : at + piece.length]
            np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(job.bytes_of(piece), np.uint8))
            placed[index] = placed[index]._replace(start=at)
            at += piece.length
    is_end = job.is_end and end == job.chain.blocks
    return PutJob(job.root, chain, lineage, tuple(placed), buffer, job.hints, extent, is_end)


def step_bytes(object_bytes: int) -> int:
    """From the start of one packed object to that of the next of its size."""
    return -(-object_bytes // _unit(object_bytes)) * _unit(object_bytes)


def place(end: int, object_bytes: int) -> int:
    """Where an object starts that is packed behind others."""
    return -(-end // _unit(object_bytes)) * _unit(object_bytes)


def _unit(object_bytes: int) -> int:
    return PAGE_BYTES if object_bytes >= ALIGNED_FROM_BYTES else CACHE_LINE_BYTES
