"""What no policy can beat on a trace: a cache without end, and MIN, the best any cache of so many blocks could do.

MIN is Belady's rule with bypass: of all blocks that are used again, keep those used again soonest; a block that is
not is never kept. For blocks of one size that is the most hits there can be. A hit counts only as part of the longest
cached prefix, which takes nothing away: a parent is never needed later than its child, so it is kept where the child is
(shown in tests/sim/test_bounds.py, which also tries every choice there is on tiny traces).

States weigh nothing here, so for a layout with states both are bounds from above. Two things are bounded, because a
prompt is never resumed at its very end: blocks found (`hit_blocks`, `hit_tokens`) and tokens resumed
(`resumed_tokens`), each by the MIN that is best for it.

Where a resume point must be a multiple of several blocks, MIN leaves that rule out for what it keeps and heeds it for
what it could use: still a bound, no longer reached.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from kvstore.sim.trace import Trace, TraceRequest

Positions = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bound:
    """Hits over one trace, the cold start included."""

    capacity_blocks: int | None  # None without end
    blocks: int  # referenced by prompts
    input_tokens: int
    hit_blocks: int
    hit_tokens: int
    resumed_tokens: int

    @property
    def block_hit_rate(self) -> float:
        return self.hit_blocks / self.blocks if self.blocks else 0.0

    @property
    def hit_token_rate(self) -> float:
        return self.hit_tokens / self.input_tokens if self.input_tokens else 0.0

    @property
    def resumed_token_rate(self) -> float:
        return self.resumed_tokens / self.input_tokens if self.input_tokens else 0.0


class References:
    """Every use of a block in a trace, in order: a request's prompt root to leaf, then what its output made.

    An output's block is there to be kept and nothing that could hit. With `count_partial` a last, partial block is a
    block like any other, and a prompt may be resumed behind it.
    """

    def __init__(self, trace: Trace, *, count_partial: bool = False, resume_alignment: int | None = None) -> None:
        self.block_tokens = trace.block_tokens
        self.alignment = resume_alignment or trace.block_tokens
        requests = trace.requests
        prompts = [request.ids if count_partial else _whole(request, trace.block_tokens) for request in requests]
        lengths = [len(prompt) + len(request.output_ids) for prompt, request in zip(prompts, requests, strict=True)]
        self.prompt_blocks = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self.starts = np.cumsum([0, *lengths], dtype=np.int64)[:-1]
        self.prompt_tokens = np.array([request.input_tokens for request in requests], dtype=np.int64)
        numbers: dict[int, int] = {}
        of_requests = (
            part for prompt, request in zip(prompts, requests, strict=True) for part in (prompt, request.output_ids)
        )
        ids = [numbers.setdefault(name, len(numbers)) for name in chain.from_iterable(of_requests)]
        self.count = len(ids)
        self.unique_blocks = len(numbers)
        self._next, self._is_seen = _next_and_seen(np.array(ids, dtype=np.int64))
        self._depth = np.arange(self.count) - np.repeat(self.starts, lengths)
        limits = self.prompt_blocks * self.block_tokens if count_partial else np.maximum(self.prompt_tokens - 1, 0)
        self._limits: Positions = np.minimum(limits, self.prompt_blocks * self.block_tokens)
        self._limits -= self._limits % self.alignment
        self._is_prompt = self._depth < np.repeat(self.prompt_blocks, lengths)
        self._is_resumable = self._depth < np.repeat(self._limits // self.block_tokens, lengths)

    def infinite(self) -> Bound:
        """What a cache that keeps everything finds."""
        depths = self._prefixes(self._is_seen & self._is_prompt)
        reached = np.minimum(depths * self.block_tokens, self._limits)
        return self._bound(None, depths, reached - reached % self.alignment)

    def minimum(self, capacity_blocks: int) -> Bound:
        """What the best cache of so many blocks finds. O(n log n), under a second for a million references."""
        capacity_blocks = max(capacity_blocks, 0)
        depths = self._prefixes(self._kept(capacity_blocks, self._is_prompt))
        is_same = bool((self._is_prompt == self._is_resumable).all())
        resumed = depths if is_same else self._prefixes(self._kept(capacity_blocks, self._is_resumable))
        return self._bound(capacity_blocks, depths, resumed * self.block_tokens)

    def _bound(self, capacity_blocks: int | None, depths: Positions, reached: Positions) -> Bound:
        return Bound(
            capacity_blocks=capacity_blocks,
            blocks=int(self.prompt_blocks.sum()),
            input_tokens=int(self.prompt_tokens.sum()),
            hit_blocks=int(depths.sum()),
            hit_tokens=int(np.minimum(depths * self.block_tokens, self.prompt_tokens).sum()),
            resumed_tokens=int(np.minimum(reached, self.prompt_tokens).sum()),
        )

    def _kept(self, capacity_blocks: int, is_worth: Flags) -> Flags:
        """Which uses find their block, where only those of `is_worth` count.

        Between two uses a block is either kept all the time or not at all. Each such span that ends in a use that
        counts is worth one hit, and at no time more than `capacity_blocks` spans may be open: of those open, the one
        that ends last is given up. (A use that does not count makes the block anew, so a span to it is worth nothing.)
        """
        is_kept = bytearray(self.count)
        ends: list[int] = []  # of open spans, negative: a heap whose first is the last to end
        opened = 0
        worth = np.zeros(self.count + 1, dtype=np.bool_)
        worth[:-1] = is_worth
        spans = np.where(worth[self._next], self._next, self.count)
        never = self.count
        for position, end in enumerate(spans.tolist()):
            if is_kept[position]:
                opened -= 1
            if end == never:
                continue
            if opened < capacity_blocks:
                opened += 1
                heapq.heappush(ends, -end)
                is_kept[end] = 1
            elif opened and -ends[0] > end:
                is_kept[-heapq.heapreplace(ends, -end)] = 0
                is_kept[end] = 1
        return np.frombuffer(is_kept, dtype=np.bool_)

    def _prefixes(self, is_found: Flags) -> Positions:
        """Blocks of each request's longest prefix that was found."""
        if not len(self.starts):
            return np.zeros(0, dtype=np.int64)
        missed = np.flatnonzero(~(is_found & self._is_prompt))
        ends = self.starts + self.prompt_blocks
        first: Positions = np.append(missed, self.count)[np.searchsorted(missed, self.starts)]
        depths: Positions = np.minimum(first, ends) - self.starts
        return depths


def infinite(trace: Trace, *, count_partial: bool = False, resume_alignment: int | None = None) -> Bound:
    """What a cache that keeps everything finds on a trace."""
    return References(trace, count_partial=count_partial, resume_alignment=resume_alignment).infinite()


def minimum(
    trace: Trace, capacity_blocks: int, *, count_partial: bool = False, resume_alignment: int | None = None
) -> Bound:
    """What the best cache of so many blocks finds on a trace. For many sizes make `References` once."""
    return References(trace, count_partial=count_partial, resume_alignment=resume_alignment).minimum(capacity_blocks)


def _whole(request: TraceRequest, block_tokens: int) -> tuple[int, ...]:
    return request.ids[: request.input_tokens // block_tokens]


def _next_and_seen(ids: Positions) -> tuple[Positions, Flags]:
    """For each use the position of the next use of its block (`len(ids)`: none), and whether there was one before."""
    order = np.argsort(ids, kind="stable")
    is_same = ids[order[:-1]] == ids[order[1:]]
    following = np.full(len(ids), len(ids), dtype=np.int64)
    following[order[:-1][is_same]] = order[1:][is_same]
    is_seen = np.zeros(len(ids), dtype=np.bool_)
    is_seen[order[1:][is_same]] = True
    return following, is_seen
