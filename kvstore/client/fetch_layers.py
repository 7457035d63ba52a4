"""Begins a fetch by layers: finds where all blocks of the plan lie, whole or being filled, and gets the state."""

from __future__ import annotations

from kvstore.client.buffers import BufferPool
from kvstore.client.fetch import Fetcher
from kvstore.client.layers import Arrived, LayeredBlocks, LayerSource
from kvstore.client.located import Located
from kvstore.client.match import Blocks, ClientMatch
from kvstore.client.wish import Wish
from kvstore.core.errors import HelloAgain, StoreUnavailable
from kvstore.core.layout import ModelLayout


class LayerFetcher:
    """Any thread."""

    def __init__(self, fetcher: Fetcher, layout: ModelLayout, pool: BufferPool) -> None:
        self._fetcher, self._layout, self._pool = fetcher, layout, pool

    def fetch(self, match: ClientMatch, deadline: float, *, can_abandon: bool) -> LayeredBlocks:
        """Layers from shared memory; where that does not go, all rows are fetched first."""
        source: LayerSource | None = None
        blocks: Blocks | None = None
        if match.plan.tokens and match.plan == match.found.plan and match.located is not None:
            try:
                source, blocks = self._begin(match, match.located, deadline, can_abandon=can_abandon)
            except (StoreUnavailable, HelloAgain, OSError):
                source = blocks = None
        if source is None or blocks is None:
            return LayeredBlocks(self._fetcher.fetch(match, Wish()), self._layout, None)
        return LayeredBlocks(blocks, self._layout, source)

    def _begin(
        self, match: ClientMatch, located: Located, deadline: float, *, can_abandon: bool
    ) -> tuple[LayerSource | None, Blocks | None]:
        shared, end = self._fetcher.shared, match.plan.tokens // self._layout.block_tokens
        found: Located | None = located
        slots, hot = located.rows, 0 if located.rows is None else len(located.rows)
        seen_layers = 0 if can_abandon else None
        while found is not None and (slots is None or slots.end_block < end):
            first_block = 0 if slots is None else slots.end_block
            found = shared.locate(match, found, first_block, end, deadline, seen_layers)
            if found is not None and found.rows is not None:
                slots = found.rows if slots is None else slots.joined(found.rows)
            elif found is not None and not found.is_loading:
                return None, None  # no room on the host for all of it
        if found is None or slots is None or slots.pages.shape[1] > 1:
            return None, None
        slots = slots.first(end)
        blocks = self._fetcher.states_only(match, slots, deadline)
        if blocks is None:
            return None, None
        arrived: Arrived | None = None
        if hot < end and can_abandon:

            def ask(seen: int, until: float) -> Located | None:
                return shared.locate(match, located, hot, end, until, seen)

            arrived = ask
        source = LayerSource(located.arena, slots, located.valid_until, self._pool, arrived)
        blocks.rows = source.rows
        return source, blocks
