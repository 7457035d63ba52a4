"""The queue of promotions: fair between requests, and for those that ask for it, layer before layer.

Copies of one request are a flow. Threads take steps from the flows in turn, so that a long cold prefix of one worker
does not delay three blocks of another. A copy is one step, or, loaded by layers, one step a group of layers: then the
flow gives out the first groups of all its copies before the second ones. Any thread; its lock is a leaf.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from kvstore.core.actions import Copy


class Promotion:
    """One copy to the host, from `put` to `ended`."""

    def __init__(self, copy: Copy, number: int) -> None:
        self.copy = copy
        self.number = number  # order of submission
        self.has_failed = False
        self.layers = 0  # leading layers that are verified
        self._left = 1  # steps that were given out or are to be
        self._loaded: set[int] = set()  # groups of layers whose bytes are here
        self._claimed = 0  # groups that were given out to be verified, from the first on
        self._verified: dict[int, int] = {}  # group -> leading layers when it and all before it are verified
        self._reached = 0  # groups that are verified, from the first on


class Step(NamedTuple):
    """What a thread is to do: group 0 is the first of a copy, and the only one of most."""

    promotion: Promotion
    group: int


class _Flow:
    def __init__(self, id: int) -> None:
        self.id = id
        self.steps: list[tuple[int, int, Promotion]] = []  # a heap: group, number
        self.copies = 0  # that have not ended
        self.layers: Counter[int] = Counter()  # leading layers -> copies that have so many

    def least(self) -> int:
        return min(layers for layers, copies in self.layers.items() if copies)

    def move(self, promotion: Promotion, layers: int) -> bool:
        before = self.least()
        self.layers[promotion.layers] -= 1
        if not self.layers[promotion.layers]:
            del self.layers[promotion.layers]
        promotion.layers = layers
        self.layers[layers] += 1
        return self.least() != before


class Promotions:
    """Holds at most `limit` copies."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._flows: dict[int, _Flow] = {}
        self._turns: deque[_Flow] = deque()  # flows that have steps, next one first
        self._copies = 0
        self._numbers = 0
        self._bytes = 0

    @property
    def queued_bytes(self) -> int:
        """Of copies that were submitted and have not ended, as they lie on disk."""
        return self._bytes

    def layers_done(self, flow: int) -> int | None:
        """Leading layers of which every section of all copies of a flow is verified; None where none is under way.

        A copy that failed holds the flow where it was.
        """
        with self._changed:
            known = self._flows.get(flow)
            return known.least() if known is not None else None

    def put(self, copy: Copy) -> bool:
        """False where there are too many already."""
        return self.put_all([copy]) == 1

    def put_all(self, copies: Sequence[Copy]) -> int:
        """Take over the first so many, all where there is room.

        At once: a lookup puts thousands under the store's lock, and a thread that is woken by the first would contend
        for the interpreter with it (150 ms for 1,200 copies one by one, measured, 25 ms at once).
        """
        with self._changed:
            taken = min(len(copies), self._limit - self._copies)
            for copy in copies[:taken]:
                flow = self._flows.get(copy.flow)
                if flow is None:
                    flow = self._flows[copy.flow] = _Flow(copy.flow)
                self._numbers += 1
                promotion = Promotion(copy, self._numbers)
                flow.copies += 1
                flow.layers[0] += 1
                self._copies += 1
                self._bytes += copy.source_bytes
                self._push(flow, 0, promotion)
            self._changed.notify(taken)
        return taken

    def next(self, timeout: float) -> Step | None:
        """The next step of the flow whose turn it is."""
        with self._changed:
            if not self._turns and not self._changed.wait_for(lambda: bool(self._turns), timeout):
                return None
            flow = self._turns.popleft()
            group, _, promotion = heapq.heappop(flow.steps)
            if flow.steps:
                self._turns.append(flow)
            return Step(promotion, group)

    def split(self, promotion: Promotion, groups: int) -> None:
        """The copy has so many groups; the first is being loaded, the others are to be."""
        with self._changed:
            flow = self._flows[promotion.copy.flow]
            for group in range(1, groups):
                self._push(flow, group, promotion)
            promotion._left += groups - 1
            self._changed.notify(groups - 1)

    def loaded(self, promotion: Promotion, group: int) -> range:
        """A group's bytes are here: groups that this thread is to verify, if any.

        Those before them are here too, which matters where a section starts on the last page of the group before.
        """
        with self._changed:
            first = promotion._claimed
            promotion._loaded.add(group)
            while promotion._claimed in promotion._loaded:
                promotion._claimed += 1
            return range(first, promotion._claimed)

    def verified(self, promotion: Promotion, group: int, layers: int) -> bool:
        """A group is whole: `layers` leading ones are, if those before it are. True if its flow got further."""
        with self._changed:
            promotion._verified[group] = layers
            leading = promotion.layers
            while promotion._reached in promotion._verified:
                leading = promotion._verified[promotion._reached]
                promotion._reached += 1
            return self._flows[promotion.copy.flow].move(promotion, leading)

    def is_last(self, step: Step) -> bool:
        """A step is done. Whether no other of its copy is under way or to come: nobody writes its slots any more."""
        with self._changed:
            step.promotion._left -= 1
            return step.promotion._left == 0

    def ended(self, promotion: Promotion, layers: int | None) -> bool:
        """The copy was reported; it has `layers` layers, None where it failed. True if its flow goes on, further."""
        with self._changed:
            flow = self._flows[promotion.copy.flow]
            has_moved = layers is not None and flow.move(promotion, layers)
            flow.copies -= 1
            self._copies -= 1
            self._bytes -= promotion.copy.source_bytes
            if not flow.copies:
                del self._flows[flow.id]
            return has_moved and flow.copies > 0

    def _push(self, flow: _Flow, group: int, promotion: Promotion) -> None:
        if not flow.steps:
            self._turns.append(flow)
        heapq.heappush(flow.steps, (group, promotion.number, promotion))
