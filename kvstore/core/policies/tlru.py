"""Tail-optimized LRU (arXiv 2510.15152): room for what makes the slowest prefills slow, at the cost of the others.

A prefill that computes no more than a threshold of tokens is quick enough. Chains go from their end, so the end of a
chain may go first, without regard to age, as long as its next request would still compute no more than that; all other
blocks go by last use. Requests with long prompts lose nothing but their last few blocks, short prompts go whole: it
gives a little of the mean for the tail.

The paper's threshold is a service objective. Here it is learned: nine of ten requests compute fewer new tokens, so that
the rule is about the tenth that makes the tail. What a request computed is how far the chain that it announced reached.

Leaf-first order is what the paper's rule needs. An object knows how deep its chain once was from the child that went.
"""

from __future__ import annotations

from kvstore.core.index import Entry, Node
from kvstore.core.keys import BlockKey
from kvstore.core.policies.chain import stands_on
from kvstore.core.policies.quantile import Quantile
from kvstore.core.policies.ranked import RankedOrder

QUICK_SHARE = 0.9  # of the requests; the paper reports the 90th percentile's latency
BEFORE_ALL = 1e12  # seconds, beyond any clock: ranks of ends come before all ranks by age


class TLRU:
    """Evict first what no slow prefill would miss, then what was used longest ago."""

    name = "tlru"

    def order(self, capacity_bytes: int) -> RankedOrder:
        return TlruOrder()


class TlruOrder(RankedOrder):
    def __init__(self) -> None:
        super().__init__(self._order)
        self._threshold = Quantile(QUICK_SHARE)  # tokens
        self._reach: dict[BlockKey, int] = {}  # tokens of the deepest chain that stood on it, where that went
        self._stored: dict[BlockKey, Entry] = {}
        self._last: Node | None = None  # block that was announced last
        self._run_blocks = 0  # that were announced one after another up to there

    def admitted(self, entry: Entry) -> None:
        self._stored[entry.facts.key] = entry
        if not entry.is_rows:
            return
        node = entry.node
        if node.parent is not self._last or self._last is None:
            self._threshold.add(self._run_blocks * node.namespace.layout.block_tokens)
            self._run_blocks = 0
        self._last = node
        self._run_blocks += 1

    def used(self, entry: Entry) -> None:
        """As deep as this is what is asked for now; what the request adds is announced."""
        self._reach.pop(entry.facts.key, None)

    def pop(self) -> BlockKey | None:
        key = super().pop()
        if key is not None:
            entry = self._stored[key]
            below = stands_on(entry) if entry.is_rows else None
            if below is not None and below.facts.key in self._stored:
                reach = max(self._reach.get(key, 0), entry.node.end_tokens)
                self._reach[below.facts.key] = max(self._reach.get(below.facts.key, 0), reach)
        return key

    def removed(self, entry: Entry, nbytes: int) -> None:
        self.withdraw(entry.facts.key)
        self._reach.pop(entry.facts.key, None)
        self._stored.pop(entry.facts.key, None)

    def _order(self, entry: Entry, last_used: float) -> float:
        if not entry.is_rows or self._threshold.value is None:
            return last_used
        node = entry.node
        reach = max(self._reach.get(entry.facts.key, 0), node.end_tokens)
        lost = reach - node.block * node.namespace.layout.block_tokens
        return last_used - BEFORE_ALL if lost <= self._threshold.value else last_used
