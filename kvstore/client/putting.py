"""What one put is made of: checked arrays -> packed objects, to be summed up and announced by the writer's thread.

Packing is all that a worker's thread does: one copy. Checksums and lineages are made later, where nobody waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvstore.client.buffers import Bytes
from kvstore.client.hashing import HashedTokens
from kvstore.client.jobs import Piece, PutJob, place, step_bytes
from kvstore.client.packing import Packing
from kvstore.client.staging import Extent
from kvstore.core.errors import InvalidInput
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_OBJECTS
from kvstore.rpc.wire import frame_put

States = Mapping[int, Mapping[str, Bytes]]  # boundary in tokens -> component -> array


@dataclass(frozen=True, slots=True)
class PutArrays:
    """The caller's arrays, checked: nothing below here can be the caller's mistake."""

    first_block: int
    blocks: int
    rows: Mapping[str, Bytes]
    states: tuple[tuple[int, int, Mapping[str, Bytes]], ...]  # (index of the block, group, arrays), in chain order

    def nbytes(self, packings: Sequence[Packing]) -> int:
        """Of the objects."""
        states = sum(packings[group].object_bytes for _, group, _ in self.states)
        return self.blocks * packings[0].object_bytes + states

    def room_bytes(self, packings: Sequence[Packing]) -> int:
        """Bytes that the packed objects take, with what lies between them."""
        end = self.blocks * step_bytes(packings[0].object_bytes)
        for _, group, _ in self.states:
            end = place(end, packings[group].object_bytes) + packings[group].object_bytes
        return end


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
    arrays: PutArrays,
    packings: Sequence[Packing],
    hashed: HashedTokens,
    lineage: bytes | None,
    hints: Hints,
    buffer: Bytes,
    extent: Extent | None,
) -> PutJob:
    """Copies the arrays, once, into `buffer` of `arrays.room_bytes(packings)` bytes that begins at a page."""
    length, step = packings[0].object_bytes, step_bytes(packings[0].object_bytes)
    end = arrays.blocks * step
    packings[0].pack(arrays.rows, buffer[:end].reshape(arrays.blocks, step))
    pieces = [Piece(index, 0, index * step, length) for index in range(arrays.blocks)]
    for index, group, state in arrays.states:
        length = packings[group].object_bytes
        start = place(end, length)
        end = start + length
        packings[group].pack({name: array[None] for name, array in state.items()}, buffer[start:end].reshape(1, length))
        pieces.append(Piece(index, group, start, length))
    return PutJob(
        root=hashed.root,
        chain=hashed.chain(arrays.first_block, arrays.first_block + arrays.blocks),
        lineage=lineage,
        pieces=tuple(sorted(pieces, key=lambda piece: piece[:2])),
        buffer=buffer.data,
        hints=hints,
        extent=extent,
    )


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
