"""What a load came to, as the worker gets it: blocks of a plan whose rows are of the run that the store named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.counters import Counters
from kvstore.client.fetching import Load, coldest
from kvstore.client.lineages import Lineages
from kvstore.client.lookups import require_store
from kvstore.client.match import Blocks, ClientMatch
from kvstore.client.packing import Packing
from kvstore.client.rows_view import RowsView, StateView
from kvstore.client.shared import lineage_of
from kvstore.client.target import target_of
from kvstore.client.views import Views
from kvstore.client.wish import Wish
from kvstore.core.keys import CHECKSUM_BYTES, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import COLD_PLAN, Plan, PlanKind


class Outcomes:
    """For one layout. Any thread."""

    def __init__(
        self,
        counters: Counters,
        lineages: Lineages,
        layout: ModelLayout,
        packings: tuple[Packing, ...],
        pool: BufferPool,
    ) -> None:
        self._counters, self._lineages, self._layout = counters, lineages, layout
        self._packings, self._pool = packings, pool

    def of_load(self, plan: Plan, load: Load, wish: Wish) -> Blocks:
        """A plan that the load carries out."""
        blocks = plan.tokens // self._layout.block_tokens
        first, end = wish.part(blocks)
        lineage = self._proven(load.hashed.position(blocks), load.lineage(blocks), load.expected)
        if lineage is None:
            return self.nothing(wish, load)
        self._counters.add("fetched_blocks", end - first)
        rows = load.target.arrays(end - first)
        # what lay on disk at the lookup has been promoted since: it came from there all the same
        tier = coldest((plan.tier, load.tier))
        return Blocks(plan, rows, *self._states(load.states), tier, lineage, first)

    def of_views(
        self, match: ClientMatch, views: Views | None, states: Mapping[int, Bytes] | None, first: int
    ) -> Blocks | None:
        """The match's rows where they lie; None where they have to be copied."""
        plan = match.plan
        hashed, blocks = require_store(match), plan.tokens // self._layout.block_tokens
        if views is None or states is None:
            return None
        needs_no_state = plan.kind is not PlanKind.RESUME or first + len(views) < blocks
        if not needs_no_state and self._layout.state_group is not None and self._layout.state_group not in states:
            return None
        own = lineage_of(views.contents, blocks) if len(views.contents) >= blocks * CHECKSUM_BYTES else None
        lineage = self._proven(hashed.position(blocks), own, match.lineage)
        if lineage is None:
            return None
        self._counters.add("viewed_blocks", len(views))
        rows = cast(Mapping[str, Bytes], views.rows())  # sequences of the same arrays
        return Blocks(plan, rows, *self._states(states), coldest((plan.tier, Tier.HOST)), lineage, first, views)

    def nothing(self, wish: Wish | None = None, load: Load | None = None) -> Blocks:
        """Nothing, in the shape that was asked for."""
        if load is not None:
            rows = load.target.arrays(0)
        elif wish is not None and wish.into is not None:
            rows = target_of(wish.into, self._packings[0], 0, self._pool).arrays(0)
        else:
            rows = RowsView(self._packings[0], np.empty((0, self._layout.rows.nbytes), np.uint8))
        return Blocks(COLD_PLAN, rows, None, {}, None, ROOT_LINEAGE)

    def _proven(self, position: bytes, own: bytes | None, expected: bytes | None) -> bytes | None:
        """The rows' lineage, from what is here of them or by the store's word; None where the two differ."""
        if own is not None and expected is not None and own != expected:
            self._counters.add("fetch_lineage_mismatch")
            return None
        if own is not None:
            self._lineages.note(position, own)
        return own or expected

    def _states(
        self, states: Mapping[int, Bytes]
    ) -> tuple[Mapping[str, Bytes] | None, Mapping[str, Mapping[str, Bytes]]]:
        """The required state and the optional ones, by component."""
        seen = {group: StateView(self._packings[group], state) for group, state in states.items()}
        groups = self._layout.groups
        optional = {groups[index].name: view for index, view in seen.items() if groups[index].optional}
        required = self._layout.state_group
        return None if required is None else seen.get(required), optional
