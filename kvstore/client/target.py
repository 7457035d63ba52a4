"""Where the rows of one fetch go: one packed array, or the caller's arrays by component.

Rows arrive in two ways: out of mapped memory, many evenly spaced objects in one strided copy, or from a stream, one
object after another through `place` and `landed`. Rows are counted from the fetch's first block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import local
from typing import Protocol

import numpy as np

from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.jobs import step_bytes
from kvstore.client.packing import Packing, check_array
from kvstore.client.rows_view import RowsView
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import InvalidInput

Into = Mapping[str, Bytes] | Bytes  # what a caller may pass


class Target(Protocol):
    """One fetch, one thread; but `copy` and `checksum` of different rows from any."""

    def place(self, row: int) -> memoryview:
        """Writable bytes of one object for a stream to fill; places may share memory: each is landed before
        the next is filled."""

    def landed(self, row: int) -> None:
        """What is in `place(row)` is whole."""

    def copy(self, row: int, count: int, data: Bytes, offset: int, spacing: int) -> None:
        """Take `count` objects that start at `offset` in `data` and then every `spacing` bytes (may be negative)."""

    def assemble(self, row: int, pieces: Sequence[Bytes]) -> None:
        """Take one object that lies in pieces."""

    def checksum(self, row: int) -> bytes:
        """Content checksum of one object, over the bytes that the caller will read."""

    def arrays(self, rows: int) -> Mapping[str, Bytes]:
        """The first `rows` rows by component, (rows, layers having it, section bytes)."""


def target_of(into: Into | None, packing: Packing, rows: int, pool: BufferPool) -> Target:
    """Raises InvalidInput for arrays that do not fit, OSError where memory is out."""
    if into is None:
        # page-aligned, each object of some size too, and used before: see buffers.py for what either is worth
        step = step_bytes(packing.object_bytes)
        return PackedTarget(packing, pool.take(rows * step).reshape(rows, step)[:, : packing.object_bytes])
    if isinstance(into, Mapping):
        return ComponentTarget(packing, _checked_arrays(into, packing, rows), pool)
    room = max(rows, len(into)) if getattr(into, "ndim", 0) else rows
    check_array(into, (room, packing.object_bytes), "into")
    is_whole = not rows or (into.strides[1] == 1 and into.strides[0] >= packing.object_bytes)
    if not into.flags.writeable or not is_whole:
        raise InvalidInput("into is read-only or its objects are not contiguous: pass a writable array of whole rows")
    return PackedTarget(packing, into)


class PackedTarget:
    """Objects one after another in one array, (rows or more, object bytes), at any distance.

    Those of 64 to 256 KiB are copied up to ten times as fast where they start at pages, as the store's slots do, on a
    machine that has the "alignment trap" (MEASURED section 1).
    """

    def __init__(self, packing: Packing, objects: Bytes) -> None:
        self._packing, self._objects = packing, objects

    def place(self, row: int) -> memoryview:
        place: memoryview = self._objects[row].data
        return place

    def landed(self, row: int) -> None:
        """It is where it belongs."""

    def copy(self, row: int, count: int, data: Bytes, offset: int, spacing: int) -> None:
        shape = (count, self._packing.object_bytes)
        np.copyto(self._objects[row : row + count], np.ndarray(shape, np.uint8, data, offset, (spacing, 1)))

    def assemble(self, row: int, pieces: Sequence[Bytes]) -> None:
        join(pieces, self._objects[row])

    def checksum(self, row: int) -> bytes:
        return content_checksum((self.place(row),))

    def arrays(self, rows: int) -> Mapping[str, Bytes]:
        return RowsView(self._packing, self._objects[:rows])


class ComponentTarget:
    """The caller's arrays, each (rows or more, layers having it, section bytes), of any strides."""

    def __init__(self, packing: Packing, arrays: Mapping[str, Bytes], pool: BufferPool) -> None:
        self._packing, self._arrays = packing, arrays
        self._pool, self._threads = pool, local()

    @property
    def _object(self) -> Bytes:
        """Room for one object, (1, object bytes), of this thread: it stays in its CPU's cache."""
        if not hasattr(self._threads, "room"):
            self._threads.room = self._pool.take(self._packing.object_bytes).reshape(1, -1)
        room: Bytes = self._threads.room
        return room

    def place(self, row: int) -> memoryview:
        place: memoryview = self._object[0].data
        return place

    def landed(self, row: int) -> None:
        for name, array in self._arrays.items():
            self._packing.unpack_into(name, self._object, array[row : row + 1])

    def copy(self, row: int, count: int, data: Bytes, offset: int, spacing: int) -> None:
        for name, array in self._arrays.items():
            for run, view in self._packing.sections(name, data, offset, spacing, count):
                np.copyto(array[row : row + count, run.first : run.first + run.layers], view)

    def assemble(self, row: int, pieces: Sequence[Bytes]) -> None:
        join(pieces, self._object[0])
        self.landed(row)

    def checksum(self, row: int) -> bytes:
        # packed again: hashing section by section costs a call for each of a hundred, this a copy within the cache
        room = self._object
        self._packing.pack({name: array[row : row + 1] for name, array in self._arrays.items()}, room)
        return content_checksum((room[0].data,))

    def arrays(self, rows: int) -> Mapping[str, Bytes]:
        return {name: array[:rows] for name, array in self._arrays.items()}


def join(pieces: Sequence[Bytes], whole: Bytes) -> None:
    """Copy an object's pieces, one after another, into `whole`."""
    start = 0
    for piece in pieces:
        np.copyto(whole[start : start + len(piece)], piece)
        start += len(piece)


def _checked_arrays(into: Mapping[str, Bytes], packing: Packing, rows: int) -> Mapping[str, Bytes]:
    for name in packing.components:
        if name not in into:
            raise InvalidInput(f"into lacks component {name!r}")
        array = into[name]
        room = max(rows, len(array)) if getattr(array, "ndim", 0) else rows
        check_array(array, packing.shape(name, room), f"component {name!r} of into")
        if not array.flags.writeable:
            raise InvalidInput(f"component {name!r} of into is read-only: pass a writable array")
    return {name: into[name] for name in packing.components}
