"""Which blocks at the root of the tree many conversations share: system prompts, tool definitions. Bounded memory."""

from __future__ import annotations

from kvstore.core.keys import Chain

POPULAR_SHARE = 1 / 64  # of the lookups: what fewer ask for belongs to one conversation, or few
HALF_LIFE_LOOKUPS = 4096
MOST_BLOCKS = 4096
DEEPEST = 256  # blocks of a chain that are looked at, 0.1 ms under the lock: a longer common start is one conversation
COUNT_EVERY = 64  # lookups


class Popular:
    """Counts lookups of blocks, from the root down as far as they are popular."""

    def __init__(self) -> None:
        self._counts: dict[bytes, float] = {}
        self._lookups = 0.0
        self._until_count = 0
        self.blocks = 0  # that are popular, as of some lookups ago

    def __len__(self) -> int:
        """Blocks that are counted."""
        return len(self._counts)

    def shared(self, chain: Chain) -> int:
        """One lookup: how many of its first blocks are popular."""
        self._lookups += 1
        if self._lookups > 2 * HALF_LIFE_LOOKUPS or len(self._counts) > MOST_BLOCKS:
            self._lookups /= 2
            self._counts = {prefix: count / 2 for prefix, count in self._counts.items() if count >= 2}
        least = max(POPULAR_SHARE * self._lookups, 2.0)
        self._until_count -= 1
        if self._until_count < 0:
            self._until_count = COUNT_EVERY
            self.blocks = sum(count >= least for count in self._counts.values())
        for index in range(min(chain.blocks, DEEPEST)):
            prefix = chain.hash_at(index)
            count = self._counts[prefix] = self._counts.get(prefix, 0.0) + 1
            if count < least:
                return index
        return min(chain.blocks, DEEPEST)
