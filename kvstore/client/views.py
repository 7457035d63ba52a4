"""Read-only views straight into the daemon's memory, made when asked for: nothing is copied, nothing is counted twice.

What a view shows is right as long as the lease holds; that it has been is said by `Views.are_valid`, asked after the
last use. A component whose sections lie at several distances in its object has no one view and is copied.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np

from kvstore.client.arena import Arena, Slots
from kvstore.client.buffers import Bytes
from kvstore.client.packing import Packing
from kvstore.client.runs import block_runs
from kvstore.client.target import join
from kvstore.core.keys import PAGE_BYTES


class Views:
    """The rows of blocks [first, end) of a sequence where they lie."""

    def __init__(
        self,
        arena: Arena,
        packing: Packing,
        slots: Slots,
        first: int,
        end: int,
        states: tuple[Slots, ...],
        valid_until: float,
    ) -> None:
        self.arena, self.packing = arena, packing
        self._slots, self._first, self._end = slots, first - slots.first_block, end - slots.first_block
        self.states, self._valid_until = states, valid_until

    def __len__(self) -> int:
        return self._end - self._first

    @property
    def contents(self) -> bytes:
        """Packed content checksums of the sequence's rows from block 0 on."""
        return self._slots.contents

    @property
    def are_valid(self) -> bool:
        """Attached, leased, and every object still there: about 0.1 ms for 1,000 blocks."""
        if time.monotonic() >= self._valid_until or not self.arena.is_alive:
            return False
        rows_are_whole = self.arena.whole(self._slots, self._first, self._end) == len(self)
        return rows_are_whole and all(self.arena.whole(state, 0, 1) for state in self.states)

    def rows(self) -> dict[str, ComponentViews]:
        return {name: ComponentViews(self, name) for name in self.packing.components}

    def row(self, name: str, index: int) -> Bytes:
        """One component of one block, (layers having it, section bytes)."""
        at = self._first + index
        if self._slots.pages.shape[1] == 1:
            data, offset = self.arena.at(int(self._slots.pages[at, 0]))
            array: Bytes = self._run(name, data, offset, 0, 1)[0]
            return array
        whole: Bytes = np.empty((1, self.packing.object_bytes), np.uint8)
        join(self.arena.pieces(self._slots, at), whole[0])
        array = self.packing.unpack(name, whole)[0]
        array.flags.writeable = False
        return array

    def runs(self) -> Iterator[tuple[int, Mapping[str, Bytes]]]:
        """Evenly spaced blocks together: number of the first, component -> (blocks, layers, section bytes)."""
        first_block = self._slots.first_block + self._first
        if self._slots.pages.shape[1] > 1:
            for index in range(len(self)):
                yield first_block + index, {name: self.row(name, index)[None] for name in self.packing.components}
            return
        for run in block_runs(self._slots.pages[self._first : self._end, 0], self.arena.region_pages):
            data, offset = self.arena.at(run.page)
            spacing = run.step * PAGE_BYTES
            arrays = {name: self._run(name, data, offset, spacing, run.objects) for name in self.packing.components}
            yield first_block + run.first, arrays

    def _run(self, name: str, data: Bytes, offset: int, spacing: int, blocks: int) -> Bytes:
        sections = list(self.packing.sections(name, data, offset, spacing, blocks))
        if len(sections) == 1:
            return sections[0][1]
        whole: Bytes = np.empty(self.packing.shape(name, blocks), np.uint8)
        for run, view in sections:
            whole[:, run.first : run.first + run.layers] = view
        whole.flags.writeable = False
        return whole


class ComponentViews:
    """One component of all blocks: a light sequence that makes each block's view when it is asked for."""

    def __init__(self, views: Views, name: str) -> None:
        self._views, self._name = views, name

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> Bytes:
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        return self._views.row(self._name, index % len(self))

    def __iter__(self) -> Iterator[Bytes]:
        return (self[index] for index in range(len(self)))
