"""Live miss-ratio curves of all namespaces, in bounded memory. Pure; one caller at a time.

SHARDS of fixed size (Waldspurger et al., FAST 2015): a block is tracked where its hash lies below a threshold, which
falls when too many are tracked; each stands for 1 / rate others. The hottest prefixes are outside the sample and
counted exactly (`core/hottest.py`). All namespaces share one order, as they share the host tier, and have a curve each.

A block is a hit only if all before it are. In a leaf-first LRU store that follows from the order: a block is used
whenever what stands on it is, so its ancestors are never further back. What a lookup uses therefore lies in few runs
of one earlier lookup each (`core/recency.py`): distances are all those at the lookup's begin, then all of it moves to
the front, root first. tests/core/test_curves.py holds this against a store that is simulated in full.

Cost: a lookup pays about a nanosecond a block to find the tracked ones, O(log n) for each run among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from kvstore.core.cost import CostModel
from kvstore.core.curve import Curve, Work
from kvstore.core.hottest import Hottest, Span
from kvstore.core.index import Namespace
from kvstore.core.keys import HASH_BYTES, PAGE_BYTES, Chain
from kvstore.core.recency import Moment, Recency

SAMPLE_BLOCKS = 5120  # 4,000 keep the mean error below a point (MEASURED.md section 7); 7/8 to all are in use
HOT_BLOCKS = 2048
REACH = 8  # a tier of so many times the bytes of today's is the largest worth an answer
HALF_LIFE_SECONDS = 6 * 3600.0  # of what was asked: a curve is of today's traffic, and a night does not empty it
KNOWN_LENGTHS = 8192  # chain lengths of which the prefill's work is remembered: it takes microseconds to tell
SAMPLED_BYTES = 4  # of a hash, its last, little-endian, are compared with the threshold
WHOLE = 1 << 8 * SAMPLED_BYTES


class Curves:
    """Reuse distances of live lookups. `reach_bytes`: what was not used for so many others is forgotten; None: never.

    With a reach the sampling rate starts where that much just fits the sample, and need not fall any further.
    """

    def __init__(
        self, reach_bytes: float | None = None, sample_blocks: int = SAMPLE_BLOCKS, hot_blocks: int = HOT_BLOCKS
    ) -> None:
        self.namespaces: dict[bytes, Curve] = {}
        self._reach_bytes = reach_bytes
        self._sample_blocks = sample_blocks
        self._tracked: dict[bytes, Moment] = {}  # block -> its last use
        self._hottest = Hottest(hot_blocks)
        self._recency = Recency(2 * (sample_blocks + hot_blocks) + 1)
        self._fades_at: float | None = None
        self._threshold = 0
        self._marks = b""  # for `bytes.translate`: 1 for last bytes of which some are tracked

    @property
    def rate(self) -> float:
        """Share of the blocks that is tracked, outside the hottest."""
        return self._threshold / WHOLE

    @property
    def tracked_blocks(self) -> int:
        return len(self._tracked)

    def open(self, name: bytes, block_tokens: int, work: Work | None = None) -> Curve:
        """The curve of a namespace."""
        if name not in self.namespaces:
            self.namespaces[name] = Curve(block_tokens, work)
        return self.namespaces[name]

    def looked_up(self, namespace: Namespace, chain: Chain, prompt_tokens: int, now: float) -> None:
        """A lookup as the planner sees it. States count as spread over the rows that they are stored with."""
        curve = self.namespaces[namespace.name]
        contents, state = namespace.contents, namespace.layout.state_group
        block_slots = float(namespace.slots_needed(0))
        if state is not None and contents.rows:
            block_slots += namespace.slots_needed(state) * round(contents.states / contents.rows, 3)
        block_bytes = block_slots * (namespace.slot_pages * PAGE_BYTES or 1)  # without slots, of bytes
        if self._fades_at is None or now >= self._fades_at:
            if self._fades_at is not None:
                for each in self.namespaces.values():
                    each.fade(0.5)
            self._fades_at = now + HALF_LIFE_SECONDS
        self.record(curve, chain.hashes, block_bytes, prompt_tokens, chain.first_block)

    def record(self, curve: Curve, hashes: bytes, block_bytes: float, tokens: int, first_block: int = 0) -> None:
        """A lookup of these blocks, root first: packed hashes, each block with all that is stored for it.

        A lookup that names a tail only counts as its tail.
        """
        blocks = len(hashes) // HASH_BYTES
        if not self._threshold:
            fitting = self._sample_blocks * block_bytes / (self._reach_bytes or block_bytes)
            self._track_below(int(WHOLE * min(1.0, fitting)))
        path = self._hottest.walk(hashes) if first_block == 0 else []
        hot = sum(span.blocks for span in path)
        curve.asked(first_block, first_block + hot, first_block + blocks, tokens)
        keys, places = self._sampled(hashes, hot)
        first = hashes[hot * HASH_BYTES : (hot + 1) * HASH_BYTES]
        is_due = first_block == 0 and first != b"" and self._hottest.is_due(first)
        if not (path or keys or is_due):
            return
        if self._recency.is_full:
            self._tidy()
        self._measure(curve, path, keys, [first_block + place for place in places])
        moment = self._recency.begin(block_bytes)
        for span in path:
            span.moment = moment
        for key in keys:
            self._tracked[key] = moment
        exact, sampled = hot, len(keys)
        if is_due:
            span = self._hottest.admit(path, hashes, moment)
            exact += span.blocks
            for key, place in zip(keys, places, strict=True):
                if place < exact:
                    del self._tracked[key]
                    sampled -= 1
        self._recency.add(moment, block_bytes * (exact + sampled / self.rate))
        if self._hottest.is_full:
            self._cool()
        if len(self._tracked) > self._sample_blocks:
            self._tidy()

    # -- private --------------------------------------------------------------------------------
    def _measure(self, curve: Curve, path: list[Span], keys: list[bytes], indices: list[int]) -> None:
        """Distances of what one lookup uses, as they are before it; then its old places are empty."""
        tracked, weight = self._tracked, 1.0 / self.rate
        left = dict[Moment, float]()  # and the bytes of this lookup that lie in it
        distance, last, index = 0.0, None, 0
        for span in path:
            moment, end = span.moment, index + span.blocks
            if not moment.is_forgotten:
                if moment is not last:
                    distance, last = self._recency.since(moment), moment
                curve.used_run(distance + moment.block_bytes, moment.block_bytes, index, end)
                nbytes = span.blocks * moment.block_bytes
                distance += nbytes
                left[moment] = left.get(moment, 0.0) + nbytes
            index = end
        for key, index in zip(keys, indices, strict=True):
            known = tracked.get(key)
            if known is None or known.is_forgotten:
                curve.used(None, index, weight)
                continue
            if known is not last:
                distance, last = self._recency.since(known), known
            curve.used(distance + known.block_bytes, index, weight)
            nbytes = known.block_bytes * weight
            distance += nbytes
            left[known] = left.get(known, 0.0) + nbytes
        for moment, nbytes in left.items():
            self._recency.add(moment, -nbytes)

    def _sampled(self, hashes: bytes, start: int) -> tuple[list[bytes], list[int]]:
        """Tracked blocks of a chain from block `start` on, and where they are."""
        marks = hashes[(start + 1) * HASH_BYTES - 1 :: HASH_BYTES].translate(self._marks)
        keys, places = list[bytes](), list[int]()
        at = marks.find(1)
        while at >= 0:
            place = start + at
            key = hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES]
            if self._is_tracked(key):
                keys.append(key)
                places.append(place)
            at = marks.find(1, at + 1)
        return keys, places

    def _track_below(self, threshold: int) -> None:
        self._threshold = max(threshold, 1)
        highest = (self._threshold - 1) >> 8 * (SAMPLED_BYTES - 1)
        self._marks = bytes(last <= highest for last in range(256))

    def _is_tracked(self, key: bytes) -> bool:
        return int.from_bytes(key[-SAMPLED_BYTES:], "little") < self._threshold

    def _cool(self) -> None:
        """Give the coldest of the hottest back to the sample."""
        for span in self._hottest.prune():
            if span.moment.is_forgotten:
                continue
            keys, _ = self._sampled(span.hashes, 0)
            self._tracked.update(dict.fromkeys(keys, span.moment))
            self._recency.add(span.moment, span.moment.block_bytes * (len(keys) / self.rate - span.blocks))

    def _tidy(self) -> None:
        """Forget what is out of reach; track fewer where that leaves too many; number the moments anew."""
        if self._reach_bytes is not None:
            self._recency.forget_beyond(self._reach_bytes)
            self._tracked = {key: moment for key, moment in self._tracked.items() if not moment.is_forgotten}
        if len(self._tracked) > self._sample_blocks:
            fitting = self._sample_blocks * 7 // 8
            while len(self._tracked) > fitting and self._threshold > 1:
                self._track_below(self._threshold * 7 // 8)
                self._tracked = {key: moment for key, moment in self._tracked.items() if self._is_tracked(key)}
            for key in list(self._tracked)[: max(0, len(self._tracked) - fitting)]:  # a client's hashes may be anything
                del self._tracked[key]
        self._recency.renumber(self._held())

    def _held(self) -> Iterator[tuple[Moment, float]]:
        weight = 1.0 / self.rate
        for moment, count in Counter(self._tracked.values()).items():
            yield moment, count * weight * moment.block_bytes
        for span in self._hottest.spans():
            yield span.moment, span.blocks * span.moment.block_bytes


def work_of(cost: CostModel | None, block_tokens: int) -> Work | None:
    """Weighted FLOP of computing blocks of a layout; None where it does not say."""
    if cost is None:
        return None
    model = cost

    @lru_cache(maxsize=KNOWN_LENGTHS)
    def until(end: int) -> float:
        return model.prefill_flops(0, end * block_tokens)

    return lambda first, end: until(end) - until(first)
