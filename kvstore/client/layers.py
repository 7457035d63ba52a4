"""A match's rows layer by layer: the first layers of all blocks can be used before the last ones are here.

A worker that can abandon a step takes layers out of copies that are still being filled; each layer's sections were
verified, the copies as wholes are not yet. `LayeredBlocks.finish` says at the end whether all became whole: until then
nothing that was computed may leave the step. Other workers get layers of whole copies only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from kvstore.client.arena import Arena, Slots
from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.located import Located
from kvstore.client.match import Blocks
from kvstore.client.runs import block_runs
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.keys import PAGE_BYTES
from kvstore.core.layout import ModelLayout

Arrived = Callable[[int, float], Located | None]  # (layers seen, monotonic deadline) -> what is there now


class LayerSource:
    """Copies layers of blocks [0, n) out of shared memory as they become whole there. One thread."""

    def __init__(
        self,
        arena: Arena,
        slots: Slots,
        valid_until: float,
        pool: BufferPool,
        arrived: Arrived | None,
    ) -> None:
        """`arrived` waits for more layers; None: all are there. Raises OSError where memory is out."""
        self._arena, self._slots, self._valid_until, self._arrived = arena, slots, valid_until, arrived
        self._layers = 0 if arrived is not None else len(arena.layout.layers)
        group, blocks = arena.layout.rows, len(slots)
        buffer, start = pool.take(blocks * group.nbytes), 0
        self._sections: dict[int, dict[str, tuple[int, Bytes]]] = {}  # layer -> component -> (offset, destination)
        self.rows: dict[str, Bytes] = {}
        for name in group.components():
            offsets = [
                (section, offset)
                for section, offset in zip(group.sections, group.offsets(), strict=False)
                if section.component == name
            ]
            nbytes = offsets[0][0].nbytes
            # layer-major: what is copied at once lies together
            array = buffer[start : start + len(offsets) * blocks * nbytes].reshape(len(offsets), blocks, nbytes)
            start += array.size
            self.rows[name] = array.transpose(1, 0, 2)
            for index, (section, offset) in enumerate(offsets):
                self._sections.setdefault(section.layer, {})[name] = (offset, array[index])

    def layer(self, index: int, deadline: float) -> Mapping[str, Bytes] | None:
        if not self._wait(index + 1, deadline):
            return None
        taken = {}
        runs = list(block_runs(self._slots.pages[:, 0], self._arena.region_pages))
        for name, (offset, target) in self._sections.get(index, {}).items():
            for run in runs:
                data, start = self._arena.at(run.page)
                shape, strides = (run.objects, target.shape[1]), (run.step * PAGE_BYTES, 1)
                source = np.ndarray(shape, np.uint8, data, start + offset, strides)
                np.copyto(target[run.first : run.first + run.objects], source)
            taken[name] = target
        return taken if self._is_there(or_filling=self._arrived is not None) else None

    def finish(self, deadline: float) -> bool:
        """Whether every copy that layers were taken from has become whole and verified, unmoved."""
        return self._wait(len(self._arena.layout.layers), deadline) and self._is_there(or_filling=False)

    def _wait(self, layers: int, deadline: float) -> bool:
        while self._layers < layers:
            if self._arrived is None or not self._is_there(or_filling=True, unless_unmarked=True):
                return False
            found = self._arrived(self._layers, deadline)
            if found is None:
                return False
            if not found.is_loading and self._is_there(or_filling=False):
                self._arrived, self._layers = None, len(self._arena.layout.layers)
            elif found.layers > self._layers:
                self._layers = found.layers
            elif not found.is_loading or time.monotonic() >= deadline:
                return False
        return True

    def _is_there(self, *, or_filling: bool, unless_unmarked: bool = False) -> bool:
        if time.monotonic() >= self._valid_until or not self._arena.is_alive:
            return False
        return unless_unmarked or self._arena.whole(self._slots, 0, len(self._slots), or_filling=or_filling) == len(
            self._slots
        )


class LayeredBlocks(Blocks):
    """Blocks whose rows come layer by layer. `rows` holds what was asked for with `layer` so far."""

    def __init__(self, blocks: Blocks, layout: ModelLayout, source: LayerSource | None) -> None:
        """`source` None: the rows of `blocks` are all here."""
        super().__init__(blocks.plan, blocks.rows, blocks.state, blocks.optional, blocks.tier, blocks.lineage)
        self._layout, self._source = layout, source

    def layer(self, index: int, timeout: float) -> Mapping[str, Bytes] | None:
        """Rows of one layer, component -> (blocks, section bytes); none where the layer keeps no rows.

        None: it is not to be had (in time). The worker goes on without this match, from where it was.
        """
        if not 0 <= index < len(self._layout.layers):
            raise InvalidInput(f"layer {index} does not exist: this layout has {len(self._layout.layers)}")
        if self._source is not None:
            try:
                return self._source.layer(index, time.monotonic() + timeout)
            except (StoreUnavailable, HelloAgain):
                return None
        taken = {}
        for name in self._layout.rows.components():
            having = [section.layer for section in self._layout.rows.sections if section.component == name]
            if index in having:
                taken[name] = self.rows[name][:, having.index(index)]
        return taken

    def finish(self, timeout: float) -> bool:
        """Whether all that `layer` gave is what was stored. Where it is not, the step has to be abandoned."""
        if self._source is None:
            return True
        try:
            return self._source.finish(time.monotonic() + timeout)
        except (StoreUnavailable, HelloAgain):
            return False
