"""Least frequently used, with ageing: LFU-DA (Arlitt et al., Performance Evaluation Review 27, 2000).

A use is worth 1, whatever the object's size: `greedy.py` tells the rest. Without the ageing agentic traffic, whose
old chains were used often and never come back, ruins LFU.
"""

from __future__ import annotations

from kvstore.core.policies.greedy import GreedyOrder


class LFU:
    """Evict what was used least often since the floor passed it."""

    name = "lfu"

    def order(self, capacity_bytes: int) -> GreedyOrder:
        return GreedyOrder(lambda entry: 1.0)
