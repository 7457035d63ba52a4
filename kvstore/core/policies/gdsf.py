"""GreedyDual-Size-Frequency (Cherkasova, HP Labs 1998): keep what is dear to compute again for its bytes.

A use is worth what computing the block's tokens costs, over its bytes. A token costs 1 where a chain begins and one
more every 32,768 tokens, as attention and index scans grow with the position: the cost of MEASURED section 7.
A state is worth the tokens of its block, as if the boundary before had one: less is never recomputed without it.

Leaf-first order: `greedy.py`. It takes the deepest block of a chain first, which is the dearest one.
"""

from __future__ import annotations

from kvstore.core.index import Entry
from kvstore.core.policies.greedy import GreedyOrder

DOUBLES_AT_TOKENS = 32768  # a token there costs twice a first one


class GDSF:
    """Evict what saves the least computing a byte."""

    name = "gdsf"

    def order(self, capacity_bytes: int) -> GreedyOrder:
        return GreedyOrder(recompute_cost_per_byte)


def recompute_cost_per_byte(entry: Entry) -> float:
    """In first-token equivalents."""
    tokens = entry.node.namespace.layout.block_tokens
    return tokens * (1 + entry.node.block * tokens / DOUBLES_AT_TOKENS) / max(entry.facts.raw_bytes, 1)
