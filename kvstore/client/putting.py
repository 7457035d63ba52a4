"""What one put is made of: checked arrays -> packed objects with checksums and lineages, ready to be announced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.hashing import HashedTokens
from kvstore.client.packing import Packing
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Chain
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import chain_lineages
from kvstore.core.match import Hints
from kvstore.core.reserve import ObjectSpec
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_OBJECTS
from kvstore.rpc.wire import frame_put

States = Mapping[int, Mapping[str, Bytes]]  # boundary in tokens -> component -> array


@dataclass(frozen=True, slots=True)
class PutJob:
    """One put, waiting for the writer. Owns its bytes."""

    root: bytes  # of the namespace the chain belongs to
    chain: Chain
    lineage: bytes  # of the rows under the chain's first block
    specs: tuple[ObjectSpec, ...]  # in chain order, rows of a block before its states
    objects: tuple[memoryview, ...]  # the packed bytes of each
    nbytes: int
    hints: Hints


@dataclass(frozen=True, slots=True)
class PutArrays:
    """The caller's arrays, checked: nothing below here can be the caller's mistake."""

    first_block: int
    blocks: int
    rows: Mapping[str, Bytes]
    states: tuple[tuple[int, int, Mapping[str, Bytes]], ...]  # (index of the block, group, arrays), in chain order

    def nbytes(self, packings: Sequence[Packing]) -> int:
        states = sum(packings[group].object_bytes for _, group, _ in self.states)
        return self.blocks * packings[0].object_bytes + states


def checked_arrays(
    layout: ModelLayout,
    packings: Sequence[Packing],
    tokens: int,
    first_block: int,
    rows: Mapping[str, Bytes],
    states: States,
    optional: Mapping[str, States],
) -> PutArrays:
    """Raises InvalidInput that names the component, what was expected and what came."""
    if not isinstance(first_block, int) or first_block < 0:
        raise InvalidInput(f"first_block={first_block!r}: pass a block number from 0")
    named = next((name for name in packings[0].components if isinstance(rows, Mapping) and name in rows), None)
    if named is None or getattr(rows[named], "ndim", 0) != 3:
        raise InvalidInput(
            f"rows need arrays of shape (blocks, layers, section bytes) for {', '.join(packings[0].components)}"
        )
    blocks = len(rows[named])
    packings[0].check(rows, blocks, "rows")
    if not blocks or (first_block + blocks) * layout.block_tokens > tokens:
        raise InvalidInput(
            f"rows hold blocks {first_block} to {first_block + blocks}, but {tokens} tokens make "
            f"{tokens // layout.block_tokens} whole blocks: pass the tokens from position 0 and at least one block"
        )
    placed = []
    by_group: list[tuple[int, str, States]] = []
    if states:
        if layout.state_group is None:
            raise InvalidInput("this layout has no states: leave them out")
        by_group.append((layout.state_group, "states", states))
    for name, given in optional.items():
        index = next(
            (index for index, group in enumerate(layout.groups) if group.optional and group.name == name), None
        )
        if index is None:
            raise InvalidInput(f"this layout has no optional group {name!r}")
        by_group.append((index, f"{name} states", given))
    for group, what, given in by_group:
        for boundary, arrays in given.items():
            whole = isinstance(boundary, int | np.integer) and boundary % layout.block_tokens == 0
            block = boundary // layout.block_tokens if whole else 0
            if not first_block < block <= first_block + blocks:
                raise InvalidInput(
                    f"{what} at {boundary!r} tokens: a state belongs to the end of a block whose rows are put with it, "
                    f"a multiple of {layout.block_tokens} in ({first_block * layout.block_tokens}, "
                    f"{(first_block + blocks) * layout.block_tokens}]"
                )
            packings[group].check(arrays, None, f"{what} at {boundary} tokens")
            placed.append((block - 1 - first_block, group, arrays))
    if blocks + len(placed) > MAX_OBJECTS:
        raise InvalidInput(f"{blocks} blocks and {len(placed)} states: put at most {MAX_OBJECTS} objects at once")
    placed.sort(key=lambda item: item[:2])
    return PutArrays(first_block, blocks, rows, tuple(placed))


def packed_job(
    arrays: PutArrays, packings: Sequence[Packing], hashed: HashedTokens, lineage: bytes, hints: Hints, pool: BufferPool
) -> tuple[PutJob, bytes]:
    """Copies the arrays, once. Also returns the lineages of the rows, packed.

    Checksums are made here and not by the writer's thread: the bytes are in the cache now, and the lineage of these
    rows is known when the next put names them as its parent.
    """
    buffer = pool.take(arrays.nbytes(packings))
    length = packings[0].object_bytes
    rows = buffer[: arrays.blocks * length].reshape(arrays.blocks, length)
    packings[0].pack(arrays.rows, rows)
    flat = rows.reshape(-1).data
    named = [(index, 0, flat[index * length : (index + 1) * length]) for index in range(arrays.blocks)]
    offset = arrays.blocks * length
    for index, group, state in arrays.states:
        end = offset + packings[group].object_bytes
        one = buffer[offset:end].reshape(1, -1)
        packings[group].pack({name: array[None] for name, array in state.items()}, one)
        named.append((index, group, one.reshape(-1).data))
        offset = end
    named.sort(key=lambda item: item[:2])
    specs = tuple(ObjectSpec(index, group, len(piece), content_checksum((piece,))) for index, group, piece in named)
    contents = b"".join(spec.content for spec in specs if spec.group == 0)
    job = PutJob(
        root=hashed.root,
        chain=hashed.chain(arrays.first_block, arrays.first_block + arrays.blocks),
        lineage=lineage,
        specs=specs,
        objects=tuple(piece for _, _, piece in named),
        nbytes=len(buffer),
        hints=hints,
    )
    return job, chain_lineages(lineage, contents)


def put_frames(header: pb.PutHeader, objects: Sequence[memoryview], chunk_bytes: int) -> Iterator[bytes]:
    """Serialised PutRequests: the objects as one byte stream in chunks, the header in the first."""
    first: pb.PutHeader | None = header
    pieces: list[memoryview] = []
    room = chunk_bytes
    for piece in objects:
        position = 0
        while position < len(piece):
            part = piece[position : position + room]
            pieces.append(part)
            position += len(part)
            room -= len(part)
            if not room:
                yield frame_put(first, pieces)
                first, pieces, room = None, [], chunk_bytes
    if pieces or first is not None:
        yield frame_put(first, pieces)
