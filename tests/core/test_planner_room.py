"""What the planner promises about room, tiers and lifetimes, one sentence a test."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest
from planner_bench import MIB, NAME, TINY, WORKER, Bench

from kvstore.core import presets
from kvstore.core.actions import Drop
from kvstore.core.index import Node
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.lineage import ROOT_LINEAGE, chain_lineages
from kvstore.core.match import Hints, SessionEvent, Speeds
from kvstore.core.matching import Request
from kvstore.core.reserve import ObjectSpec, ReserveStatus


# -- room --------------------------------------------------------------------------------------
def test_the_least_recently_used_chain_goes_first_and_from_its_leaf() -> None:
    bench = Bench(pages=64)
    for name in "abcd":
        bench.put(name, 16)
    bench.planner.release(bench.lookup("a", 16).lease or 0)
    bench.put("e", 16)
    assert [len([b for b in range(16) if bench.tiers(name, b)]) for name in "abcde"] == [16, 0, 16, 16, 16]
    assert [drop.key for drop in bench.dropped] == [bench.key("b", block) for block in reversed(range(16))]


def test_a_shared_prefix_outlives_the_chains_that_hang_on_it() -> None:
    bench = Bench(pages=64)
    for index in range(12):
        bench.put(f"s/{index}", 12)
    assert all(bench.tiers("s/11", block) for block in range(12))
    assert all(bench.tiers("s/0", block) for block in range(4))  # blocks 0 to 3 are shared by all


def test_a_leased_block_is_never_evicted() -> None:
    bench = Bench(pages=64)
    bench.put("a", 40, states=(39,))
    match = bench.lookup("a", 40)
    assert bench.put("b", 40)[-1] is ReserveStatus.NO_ROOM
    assert all(bench.tiers("a", block) for block in range(40)) and bench.tiers("a", 39, 1)
    assert bench.planner.release(match.lease or 0)
    assert bench.put("b", 40)[-1] is ReserveStatus.WANTED


def test_a_lease_that_is_not_released_expires() -> None:
    bench = Bench(pages=64, lease_seconds=10.0)
    bench.put("a", 60, states=(59,))
    assert bench.lookup("a", 60).lease is not None
    bench.now += 9.0
    bench.planner.tick(bench.now)
    assert bench.planner.leases.lease_count == 1
    bench.now += 2.0
    bench.planner.tick(bench.now)
    assert bench.planner.leases.lease_count == 0
    assert bench.put("b", 60)[-1] is ReserveStatus.WANTED


def test_a_refused_put_changes_nothing() -> None:
    bench = Bench(pages=64)
    bench.put("a", 30, states=(29,))
    bench.lookup("a", 30)
    bench.put("b", 20)
    before = bench.planner.snapshot()
    big = presets.v4_demo()  # 6 pages a block, in a namespace of its own; one page a region: no slot fits
    bench.planner.add_namespace(b"m" * 32, b"q" * 32, big)
    spec = ObjectSpec(0, 1, big.state.nbytes, bytes(16))  # type: ignore[union-attr]
    rows = ObjectSpec(0, 0, big.rows.nbytes, bytes(16))
    chain = Chain(0, b"q" * 32, b"h" * 32)
    held = [bench.planner.entry(bench.key("b", b)) for b in range(20)]
    bench.planner.leases.lease(WORKER, held[0], None, tuple(held[1:]), 1e9)  # type: ignore[arg-type]
    bench.planner._room.review_all(held)  # type: ignore[arg-type]
    statuses, _, actions = bench.planner.reserve(
        b"m" * 32, chain, [rows, spec], ROOT_LINEAGE, WORKER, Hints(), bench.now, 0.0
    )
    assert statuses[1] in (ReserveStatus.NO_ROOM, ReserveStatus.NO_PARENT)
    gone = [action for action in actions if isinstance(action, Drop)]
    assert not gone and {key: before[key] for key in before} == {
        key: copies for key, copies in bench.planner.snapshot().items() if key in before
    }
    bench.planner.check()


def test_a_namespace_gains_regions_from_one_that_is_colder() -> None:
    bench = Bench(pages=256)  # regions of 4 pages
    bench.put("old", 250)
    other = replace(TINY, revision="other")
    bench.planner.add_namespace(b"m" * 32, b"q" * 32, other)
    hashes = [sha256(bytes([index])).digest() for index in range(100)]
    for index, digest in enumerate(hashes):
        bench.now += 1.0
        chain = Chain(index, hashes[index - 1] if index else b"q" * 32, digest)
        below = chain_lineages(ROOT_LINEAGE, bytes(16) * index)[-16:] if index else ROOT_LINEAGE
        spec = ObjectSpec(0, 0, other.rows.nbytes, bytes(16))
        statuses, facts, actions = bench.planner.reserve(
            b"m" * 32, chain, [spec], below, WORKER, Hints(), bench.now, 0.0
        )
        assert statuses == [ReserveStatus.WANTED], index
        bench.do(actions)
        assert facts[0] is not None
        bench.do(bench.planner.arrived(facts[0].key, facts[0].generation, Tier.HOST, bench.now))
        bench.planner.check()
    assert all(bench.planner.entry(BlockKey(digest, 0)) for digest in hashes)
    kept = [block for block in range(250) if bench.tiers("old", block)]
    assert kept == list(range(len(kept))) and 100 <= len(kept) <= 156


def test_the_search_for_a_cold_region_looks_at_each_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(pages=1024)  # 64 regions of 16 blocks, all of one chain: below the first lie all the others
    bench.put("old", 1024)
    bench.planner._lifetimes.touch(bench.planner.entry(bench.key("old", 1023)), 5.0)  # so none is as cold as it seems
    other = replace(TINY, revision="other")
    bench.planner.add_namespace(b"m" * 32, b"q" * 32, other)
    looks, children = [0], Node.children

    def counted(node: Node) -> tuple[Node, ...]:
        looks[0] += 1
        return children(node)

    monkeypatch.setattr(Node, "children", counted)
    spec = ObjectSpec(0, 0, other.rows.nbytes, bytes(16))
    chain = Chain(0, b"q" * 32, bytes(32))
    statuses, _, _ = bench.planner.reserve(b"m" * 32, chain, [spec], ROOT_LINEAGE, WORKER, Hints(), 9e9, 0.0)
    assert statuses == [ReserveStatus.WANTED]
    assert looks[0] < 8 * 1024  # it was half a million: seconds under the lock for a million tokens


# -- tiers -------------------------------------------------------------------------------------
def test_what_leaves_the_host_is_found_on_disk_and_promoted_on_a_hit() -> None:
    bench = Bench(pages=64, disk=16 * MIB)
    bench.put("a", 30, states=(29,))
    bench.put("b", 60)
    assert bench.tiers("a", 29) == {Tier.DISK}
    match = bench.lookup("a", 30)
    assert match.plan.tier is Tier.DISK and match.plan.tokens == 30 * 128
    assert all(Tier.HOST in bench.tiers("a", block) for block in range(30)) and Tier.HOST in bench.tiers("a", 29, 1)
    assert bench.lookup("a", 30).plan.tier is Tier.HOST


def test_a_prefetch_promotes_without_a_lease() -> None:
    bench = Bench(pages=64, disk=16 * MIB)
    bench.put("a", 30, states=(29,))
    bench.put("b", 64)
    request = Request(bench.chain("a", 30), 30 * 128 + 1, Hints(), False, Speeds({}))
    objects, nbytes, actions = bench.planner.prefetch(NAME, request, bench.now)
    assert objects == 31 and nbytes == 30 * TINY.rows.nbytes + TINY.state.nbytes  # type: ignore[union-attr]
    bench.do(actions)
    assert bench.planner.leases.lease_count == 0
    assert bench.lookup("a", 30).plan.tier is Tier.HOST


def test_a_promotion_may_lose_its_object_to_the_room_that_it_needs() -> None:
    """Rows that lost their copy on disk, as with a segment whose sync failed, are all that may leave the host."""
    bench = Bench(pages=64, disk=64 * MIB)
    bench.put("a", 1, states=(0,))
    bench.put("b", 62, states=(61,))
    assert bench.tiers("a", 0, 1) == {Tier.DISK} and bench.lookup("b", 62).lease
    rows = bench.planner.entry(bench.key("a", 0))
    assert rows is not None
    bench.do(bench.planner.corrupt(rows.facts.key, rows.facts.generation, Tier.DISK))
    request = Request(bench.chain("a", 1), 129, Hints(), False, Speeds({}))
    objects, nbytes, actions = bench.planner.prefetch(NAME, request, bench.now)
    bench.do(actions)
    assert (objects, nbytes) == (0, 0) and rows.facts.key in [drop.key for drop in bench.dropped]
    bench.planner.check()


def test_a_corrupt_last_copy_takes_what_stands_on_it_and_nothing_else() -> None:
    bench = Bench()
    bench.put("a", 8, states=(2, 7))
    bad = bench.planner.entry(bench.key("a", 4))
    assert bad is not None
    bench.do(bench.planner.corrupt(bad.facts.key, bad.facts.generation, Tier.HOST))
    bench.planner.check()
    match = bench.lookup("a", 8)
    assert (match.rows_tokens, match.plan.tokens) == (512, 384)
    assert bench.put("a", 8, states=(7,))[-1] is ReserveStatus.WANTED  # it can be put anew


def test_what_is_put_on_rows_that_left_the_disk_reaches_the_disk() -> None:
    bench = Bench(pages=4096, disk=4 * MIB)
    bench.put("a", 12)
    for index in range(12):
        bench.put(f"x{index}", 100)  # more than the disk holds: the host keeps it all
    left = [block for block in range(12) if bench.tiers("a", block) == {Tier.HOST}]
    assert left and bench.tiers("x11", 99) == {Tier.HOST, Tier.DISK}
    bench.put("a", 14, states=(13,))
    for _ in range(3):
        bench.do(bench.planner.tick(bench.now))
        bench.planner.check()
    assert bench.planner.survives(bench.key("a", 13, 1), set())


def test_what_waits_for_the_disk_is_forgotten_with_its_object() -> None:
    bench = Bench(pages=64, disk=16 * MIB)
    chain = bench.chain("a", 1)
    for _ in range(5):
        spec = ObjectSpec(0, 0, TINY.rows.nbytes, bytes(16))
        _, facts, _ = bench.planner.reserve(NAME, chain, [spec], ROOT_LINEAGE, WORKER, Hints(), 0.0, 0.0)
        assert facts[0] is not None
        key, generation = facts[0].key, facts[0].generation
        bench.planner.arrived(key, generation, Tier.HOST, 0.0)
        bench.planner.failed(key, generation, Tier.DISK, 0.0)
        assert list(bench.planner._room.unwritten) == [key]
        bench.planner.report(key)
        assert not bench.planner._room.unwritten
    bench.planner.check()


# -- lifetimes ---------------------------------------------------------------------------------
def test_an_object_unused_for_its_ttl_is_forgotten_and_a_use_keeps_it() -> None:
    bench = Bench()
    bench.put("a", 3, states=(2,), ttl_seconds=10.0)
    bench.put("b", 3, states=(2,))
    bench.now += 8.0
    bench.planner.release(bench.lookup("a", 3).lease or 0)
    bench.now += 5.0
    bench.do(bench.planner.tick(bench.now))
    assert bench.lookup("a", 3).plan.tokens == 384
    bench.planner.release(1), bench.planner.release(2)
    for _ in range(60):
        bench.now += 1.0
        bench.do(bench.planner.tick(bench.now))
        bench.planner.check()
    assert not any(bench.tiers("a", block) for block in range(3))
    assert all(bench.tiers("b", block) for block in range(3))
    assert bench.planner.counts.expired == 4


def test_a_pin_holds_a_chain_until_it_ends_and_has_a_byte_bound() -> None:
    bench = Bench(pages=256, pinned_share=0.05)
    bench.put("a", 20, states=(9,))
    pin = bench.planner.pin(NAME, bench.chain("a", 20), 100.0, bench.now)
    assert pin is not None and pin.tokens == 20 * 128
    for index in range(20):
        bench.put(f"x{index}", 30)
    assert all(bench.tiers("a", block) for block in range(20)) and bench.tiers("a", 9, 1)
    assert bench.planner.pin(NAME, bench.chain("x19", 30), 100.0, bench.now) is not None
    assert bench.planner.pin(NAME, bench.chain("x18", 30), 100.0, bench.now) is not None
    assert bench.planner.pin(NAME, bench.chain("x17", 30), 100.0, bench.now) is None  # over 5 % of the tier
    assert bench.planner.unpin(pin.number) and not bench.planner.unpin(pin.number)
    bench.now += 200.0
    bench.planner.tick(bench.now)
    assert bench.planner.leases.pin_count == 0


def test_an_event_of_an_open_session_keeps_its_chain_warm() -> None:
    bench = Bench(pages=64)
    bench.put("a", 20, states=(19,), session="agent")
    bench.planner.release(bench.lookup("a", 20, session="agent").lease or 0)
    bench.put("b", 20)
    bench.now += 1.0
    bench.planner.session(NAME, "agent", SessionEvent.TOOL_CALL, bench.now)
    bench.put("c", 40)
    assert all(bench.tiers("a", block) for block in range(20)) and not bench.tiers("b", 19)


def test_a_session_finds_its_chain_again_after_it_was_lost_and_put_anew() -> None:
    bench = Bench(pages=64)
    bench.put("a", 20, states=(19,))
    bench.planner.release(bench.lookup("a", 20, session="agent").lease or 0)
    bench.do(bench.planner.report(bench.key("a", 0)))
    bench.put("a", 20, states=(19,))
    bench.put("b", 20)
    bench.now += 1.0
    bench.planner.session(NAME, "agent", SessionEvent.TOOL_CALL, bench.now)
    bench.put("c", 40)
    assert all(bench.tiers("a", block) for block in range(20)) and not bench.tiers("b", 19)
