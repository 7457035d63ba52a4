"""Least recently used, leaf first."""

from __future__ import annotations

from kvstore.core.keys import BlockKey


class LRU:
    """Evict what was used longest ago. The planner's offer of leaves only makes it leaf-first."""

    name = "lru"

    def rank(self, key: BlockKey, nbytes: int, last_used: float) -> float:
        return last_used
