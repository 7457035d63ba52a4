"""Curves say what stores of any size would have answered: held against such stores, simulated in full."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import sha256

import pytest
from planner_bench import NAME, Bench

from kvstore.core.curve import STEPS, Curve, bucket, lower_edge
from kvstore.core.curves import HALF_LIFE_SECONDS, REACH, Curves
from kvstore.core.hottest import ADMIT_USES, Hottest
from kvstore.core.keys import HASH_BYTES, PAGE_BYTES
from kvstore.core.recency import Moment, Recency

BLOCK_TOKENS = 128


def hashed(*names: int) -> bytes:
    """Packed chained hashes: equal where all names up to there are equal."""
    packed, parent = b"", b""
    for name in names:
        parent = sha256(parent + name.to_bytes(4, "big")).digest()
        packed += parent
    return packed


def blocks_of(packed: bytes) -> list[bytes]:
    return [packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES)]


class LeafFirst:
    """A store of so many equal blocks, in full: the least recently used leaf leaves, never one of the chain at hand."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: dict[bytes, int] = {}
        self.parents: dict[bytes, bytes] = {}
        self.hits = 0
        self.now = 0

    def lookup(self, packed: bytes) -> None:
        self.now += 1
        chain = blocks_of(packed)
        depth = next((at for at, key in enumerate(chain) if key not in self.used), len(chain))
        self.hits += depth
        for key in chain[:depth]:
            self.used[key] = self.now
        for at in range(depth, len(chain)):
            if len(self.used) == self.capacity and not self.evict(set(chain)):
                return
            self.used[chain[at]] = self.now
            self.parents[chain[at]] = chain[at - 1] if at else b""

    def evict(self, chain: set[bytes]) -> bool:
        inner = {self.parents[key] for key in self.used}
        leaves = [key for key in self.used if key not in inner and key not in chain]
        if not leaves:
            return False
        del self.used[min(leaves, key=self.used.__getitem__)]
        return True


def conversations(random_: random.Random, lookups: int, prompts: int, sessions: int) -> list[bytes]:
    """Sessions that share system prompts, grow turn by turn, branch, and end."""
    alive: list[list[int]] = []
    asked = list[bytes]()
    for number in range(lookups):
        if len(alive) < sessions or random_.random() < 0.15:
            prompt = min(random_.randrange(prompts) for _ in range(2))
            alive.append([prompt * 1000 + at for at in range(1 + prompt % 4)])
        if len(alive) > sessions:
            alive.pop(random_.randrange(len(alive)))
        session = random_.choice(alive)
        if random_.random() < 0.1:
            del session[random_.randrange(1, len(session) + 1) :]
        session += [1_000_000 + 10 * number + at for at in range(random_.randrange(3))]
        asked.append(hashed(*session))
    return asked


def filled(asked: list[bytes], curves: Curves, block_bytes: float = 1.0) -> Curve:
    curve = curves.open(b"namespace", BLOCK_TOKENS)
    for packed in asked:
        curves.record(curve, packed, block_bytes, len(packed) // HASH_BYTES * BLOCK_TOKENS)
    return curve


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("hot_blocks", [8, 64])
def test_unsampled_curves_are_those_of_stores_of_every_size_simulated_in_full(seed: int, hot_blocks: int) -> None:
    asked = conversations(random.Random(seed), 300, prompts=6, sessions=5)
    curve = filled(asked, Curves(hot_blocks=hot_blocks))
    for capacity in range(1, 33):
        store = LeafFirst(capacity)
        for packed in asked:
            store.lookup(packed)
        # distances of up to 32 blocks of one byte have a bucket each
        assert curve.miss_ratio(capacity) == pytest.approx(1 - store.hits / curve.blocks), f"{seed=} {capacity=}"


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_is_close_to_all(seed: int) -> None:
    asked = conversations(random.Random(seed), 6000, prompts=40, sessions=300)
    exact = filled(asked, Curves(sample_blocks=1 << 20))
    sampled = filled(asked, curves := Curves(sample_blocks=1024, hot_blocks=512))
    assert curves.rate < 0.3
    sizes = [50, 100, 200, 400, 800, 1600, 3200, 6400]
    errors = [abs(exact.miss_ratio(size) - sampled.miss_ratio(size)) for size in sizes]
    assert sum(errors) / len(sizes) < 0.02, f"{seed=} {errors}"
    assert exact.miss_ratio(50) - exact.miss_ratio(6400) > 0.3, "the sizes must matter, or any estimate is close"


@pytest.mark.parametrize("salt", range(8))
def test_a_prompt_that_every_lookup_shares_is_counted_exactly(salt: int) -> None:
    """A sample of one in fifty either has its three blocks fifty times over, or not at all."""
    prompt = [salt, 1, 2]
    asked = [hashed(*prompt, 1000 + number) for number in range(4000)]
    curve = filled(asked, curves := Curves(sample_blocks=64, hot_blocks=64))
    assert curves.rate < 0.05
    assert curve.miss_ratio(1000) == pytest.approx(0.25, abs=0.01)


def test_memory_is_bounded_whatever_is_asked() -> None:
    curves = Curves(sample_blocks=256, hot_blocks=128)
    filled(conversations(random.Random(5), 5000, prompts=300, sessions=100), curves)
    curves_used = curves.tracked_blocks
    assert 128 < curves_used <= 256
    assert len(curves.namespaces[b"namespace"].sampled.near) < 1000


def test_hashes_that_are_no_hashes_cost_no_more() -> None:
    """A client may send anything: here all blocks end in the same bytes, so no threshold parts them."""
    curves = Curves(sample_blocks=256, hot_blocks=16)
    filled([number.to_bytes(28, "big") + bytes(4) for number in range(3000)], curves)
    assert curves.tracked_blocks <= 256


def test_what_is_out_of_reach_is_forgotten_and_the_sample_stays_as_dense() -> None:
    curves = Curves(reach_bytes=1000.0, sample_blocks=256, hot_blocks=16)
    curve = filled([hashed(number) for number in range(1000)], curves)
    first = curves.rate
    assert first == pytest.approx(0.256, abs=1e-6)
    filled([hashed(number) for number in range(1000, 20_000)], curves)
    assert curves.rate > first / 2, "new blocks push old ones out of reach, not out of the sample"
    assert curve.miss_ratio(1e9) == 1.0


def test_namespaces_share_one_order_and_have_a_curve_each() -> None:
    """Between two uses of the one lie twenty blocks of ten bytes of the other."""
    curves = Curves()
    small, large = curves.open(b"small", BLOCK_TOKENS), curves.open(b"large", BLOCK_TOKENS)
    for number in range(5):
        curves.record(small, hashed(1), 1.0, BLOCK_TOKENS)
        curves.record(large, hashed(2, *range(number * 100, number * 100 + 19)), 10.0, 20 * BLOCK_TOKENS)
    assert small.miss_ratio(190) == 1.0
    assert small.miss_ratio(210) == pytest.approx(1 / 5)
    assert large.miss_ratio(1e6) == pytest.approx(1 - 4 / 100)


def test_tokens_and_work_are_shares_of_what_was_asked() -> None:
    """Two blocks again and again, and half a block that is never stored; the second is three times the work."""
    work: Callable[[int, int], float] = lambda first, end: sum(1.0 + 2.0 * at for at in range(first, end))  # noqa: E731
    curves = Curves()
    curve = curves.open(b"", BLOCK_TOKENS, work)
    for _ in range(4):
        curves.record(curve, hashed(1, 2), 100.0, 2 * BLOCK_TOKENS + BLOCK_TOKENS // 2)
    assert curve.miss_ratio(1e4) == pytest.approx(1 / 4)
    assert curve.token_hits(1e4) == pytest.approx(3 / 4 * 2 / 2.5)
    assert curve.work_hits(1e4) == pytest.approx(3 / 4)
    assert curve.work_hits(lower_edge(bucket(100.0) + 1)) == pytest.approx(3 / 4 * 1 / 4), "the first block fits alone"
    assert curve.gain(150.0, 1000.0) == pytest.approx(curve.token_hits(1150.0) - curve.token_hits(150.0))


def test_the_past_fades_and_its_shares_stay() -> None:
    curve = filled([hashed(1, 2)] * 10, Curves())
    before, asked = curve.miss_ratio(10), curve.blocks
    curve.fade(0.5)
    assert curve.miss_ratio(10) == pytest.approx(before)
    assert curve.blocks == asked / 2


def test_a_tail_counts_as_its_tail() -> None:
    curves = Curves()
    curve = curves.open(b"", BLOCK_TOKENS)
    whole = hashed(1, 2, 3, 4)
    curves.record(curve, whole, 1.0, 4 * BLOCK_TOKENS)
    curves.record(curve, whole[2 * HASH_BYTES :], 1.0, 4 * BLOCK_TOKENS, first_block=2)
    assert curve.blocks == 6
    assert curve.miss_ratio(10) == pytest.approx(4 / 6)


def test_a_run_fills_the_buckets_that_its_blocks_would_fill_one_by_one() -> None:
    random_ = random.Random(3)
    for _ in range(200):
        distance, block_bytes = random_.uniform(1, 1e5), random_.uniform(1, 1e3)
        count = random_.randrange(1, 200)
        run, single = Curve(BLOCK_TOKENS), Curve(BLOCK_TOKENS)
        run.used_run(distance, block_bytes, 0, count)
        for at in range(count):
            single.used(distance + at * block_bytes, at, 1.0)
        run.asked(0, count, count, 0)
        single.asked(0, 0, count, 0)
        for size in (distance * 1.5, distance * 3, distance + count * block_bytes / 2):
            # it starts at the upper edge of its bucket: at most one step further out
            further = single.miss_ratio(size / (1 + 1 / STEPS))
            assert single.miss_ratio(size) - 1.01 / count <= run.miss_ratio(size) <= further + 1.01 / count


def test_the_order_agrees_with_a_list() -> None:
    random_ = random.Random(11)
    recency, moments = Recency(64), list[Moment]()
    for _ in range(2000):
        if recency.is_full:
            recency.renumber([(moment, moment.nbytes) for moment in moments])
            moments = [moment for moment in moments if not moment.is_forgotten]
        moments.append(recency.begin(1.0))
        recency.add(moments[-1], random_.randrange(1, 9))
        for moment in random_.sample(moments, min(3, len(moments))):
            recency.add(moment, -moment.nbytes if random_.random() < 0.9 else 1.0)
        at = random_.randrange(len(moments))
        assert recency.since(moments[at]) == pytest.approx(sum(moment.nbytes for moment in moments[at + 1 :]))


@pytest.mark.parametrize("seed", range(6))
def test_the_hottest_stay_a_tree_of_whole_prefixes(seed: int) -> None:
    random_ = random.Random(seed)
    hottest, moment = Hottest(40), Moment(0, 1.0)
    for packed in conversations(random_, 1500, prompts=8, sessions=6):
        path = hottest.walk(packed)
        assert packed.startswith(b"".join(span.hashes for span in path))
        depth = sum(len(span.hashes) for span in path)
        first = packed[depth : depth + HASH_BYTES]
        if first and hottest.is_due(first):
            hottest.admit(path, packed, moment)
            assert b"".join(span.hashes for span in hottest.walk(packed)) == packed, "it is in from now on"
        if hottest.is_full:
            hottest.prune()
        assert hottest.blocks == sum(span.blocks for span in hottest.spans()) <= 40
    assert hottest.blocks > 0


def test_what_was_asked_often_enough_is_among_the_hottest() -> None:
    hottest = Hottest(40)
    first = hashed(1)
    assert [hottest.is_due(first) for _ in range(ADMIT_USES)] == [False] * (ADMIT_USES - 1) + [True]


def test_a_planner_keeps_curves_only_where_it_was_asked_to() -> None:
    assert Bench().planner.curves is None
    bench = Bench(curves=True)
    assert bench.planner.curves is not None and list(bench.planner.curves.namespaces) == [NAME]


def test_a_planner_curve_is_of_all_that_was_asked_whether_it_was_stored_or_not() -> None:
    """Eight blocks and three states, a page each: each block counts with its share of them."""
    bench = Bench(pages=512, curves=True)  # so few that all blocks are tracked
    assert bench.planner.curves is not None
    curve = bench.planner.curves.namespaces[NAME]
    bench.put("a", 8, states=(1, 4, 7))
    for _ in range(4):
        bench.lookup("a", 8)
    whole = (8 + 3) * PAGE_BYTES
    assert curve.miss_ratio(whole) == pytest.approx(1 / 4)
    assert curve.miss_ratio(whole / 4) > 3 / 4
    for _ in range(4):
        bench.lookup("never stored", 8)
    assert curve.miss_ratio(2 * whole) == pytest.approx(2 / 8)


def test_what_was_asked_long_ago_counts_half() -> None:
    bench = Bench(curves=True)
    assert bench.planner.curves is not None
    curve = bench.planner.curves.namespaces[NAME]
    bench.lookup("a", 8)
    asked = curve.blocks
    bench.now += HALF_LIFE_SECONDS + 1
    bench.lookup("a", 8)
    assert asked == 8 and curve.blocks == 4 + 8


def test_a_planner_follows_what_tiers_of_several_times_its_size_would_have() -> None:
    bench = Bench(pages=64, curves=True)
    assert bench.planner.curves is not None
    curve = bench.planner.curves.namespaces[NAME]
    for _ in range(3):
        for number in range(40):
            bench.lookup(f"chain {number}", 8)
    assert curve.miss_ratio(64 * PAGE_BYTES) == 1.0
    assert curve.gain(64 * PAGE_BYTES, (REACH - 1) * 64 * PAGE_BYTES) == pytest.approx(2 / 3, abs=0.05)
