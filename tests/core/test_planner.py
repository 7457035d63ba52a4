"""What the planner promises, one sentence a test."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from kvstore.core import presets
from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.cost import CostModel
from kvstore.core.index import Node, ObjectClass
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE, chain_lineages
from kvstore.core.match import Hints, Match, MissReason, PlanKind, SessionEvent, Snapshots, Speeds
from kvstore.core.matching import Request
from kvstore.core.placement import Placement
from kvstore.core.planner import Planner
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.settings import Settings

MIB = 1 << 20
NAME, ROOT, WORKER = b"n" * 32, b"r" * 32, b"w" * 16
TINY = presets.v4_tiny()  # one page a rows object, one a state: counting slots is counting pages


class Bench:
    """A planner whose copies end at once, and chains made from names."""

    def __init__(self, layout: ModelLayout = TINY, pages: int = 4096, disk: int = 0, **settings: object) -> None:
        self.layout = layout
        self.planner = Planner(Settings(host_bytes=pages * 4096, disk_bytes=disk, **settings))  # type: ignore[arg-type]
        self.planner.grow(Tier.HOST, pages // self.planner.spaces[Tier.HOST].region_pages)
        self.planner.grow(Tier.DISK, disk // 4096 // self.planner.spaces[Tier.DISK].region_pages)
        self.planner.add_namespace(NAME, ROOT, layout)
        self.now = 0.0
        self.dropped: list[Drop] = []

    def chain(self, name: str, blocks: int, first: int = 0) -> Chain:
        hashes, parent = [ROOT], ROOT
        for index in range(blocks):
            parent = sha256(
                parent + f"{name if '/' not in name or index >= 4 else name.split('/')[0]}{index}".encode()
            ).digest()
            hashes.append(parent)
        return Chain(first, hashes[first], b"".join(hashes[first + 1 :]))

    def key(self, name: str, block: int, group: int = 0) -> BlockKey:
        return BlockKey(self.chain(name, block + 1).hash_at(block), group)

    def put(
        self, name: str, blocks: int, states: tuple[int, ...] = (), first: int = 0, **hints: object
    ) -> list[ReserveStatus]:
        """Rows of blocks [first, blocks) and states at the ends of `states`; uploads end at once."""
        chain = self.chain(name, blocks, first)
        specs = [
            ObjectSpec(block - first, group, self.layout.groups[group].nbytes, self._content(name, block, group))
            for block in range(first, blocks)
            for group in range(len(self.layout.groups))
            if group == 0 or block in states
        ]
        below = b"".join(self._content(name, block, 0) for block in range(first))
        lineage = chain_lineages(ROOT_LINEAGE, below)[-16:] if first else ROOT_LINEAGE
        self.now += 1.0
        statuses, facts, actions = self.planner.reserve(
            NAME,
            chain,
            specs,
            lineage,
            WORKER,
            Hints(**hints),
            self.now,
            0.0,  # type: ignore[arg-type]
        )
        self.do(actions)
        for made in facts:
            if made is not None:
                self.do(self.planner.arrived(made.key, made.generation, Tier.HOST, self.now))
        self.planner.check()
        return statuses

    def lookup(
        self,
        name: str,
        blocks: int,
        prompt: int | None = None,
        can_replay: bool = False,
        speeds: Speeds | None = None,
        **hints: object,
    ) -> Match:
        self.now += 1.0
        tokens = blocks * self.layout.block_tokens + 1 if prompt is None else prompt
        request = Request(self.chain(name, blocks), tokens, Hints(**hints), can_replay, speeds or Speeds({}))  # type: ignore[arg-type]
        match, actions = self.planner.lookup(NAME, request, WORKER, self.now)
        self.do(actions)
        self.planner.check()
        return match

    def do(self, actions: list[Action]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Drop):
                self.dropped.append(action)
                continue
            assert isinstance(action, Copy)
            key, generation = action.facts.key, action.facts.generation
            if action.target is Tier.DISK:
                slots, more = self.planner.encoded(key, generation, action.facts.raw_bytes + 1000, self.now)
                waiting += more
                if not slots:
                    waiting += self.planner.failed(key, generation, Tier.DISK, self.now)
                    continue
            waiting += self.planner.arrived(key, generation, action.target, self.now)

    def tiers(self, name: str, block: int, group: int = 0) -> set[Tier]:
        entry = self.planner.entry(self.key(name, block, group))
        return set() if entry is None else {tier for tier, _ in entry.copies()}

    def _content(self, name: str, block: int, group: int) -> bytes:
        return sha256(repr(self.key(name, block, group)).encode()).digest()[:16]


# -- match -------------------------------------------------------------------------------------
def test_a_resume_point_leaves_at_least_one_token_to_compute() -> None:
    bench = Bench()
    bench.put("a", 4, states=(1, 3))
    assert bench.lookup("a", 4, prompt=512).plan.tokens == 256
    assert bench.lookup("a", 4, prompt=513).plan.tokens == 512
    assert bench.lookup("a", 4, prompt=128).reason is MissReason.SHORT_PROMPT


def test_rows_without_a_state_say_so_and_offer_what_is_below() -> None:
    bench = Bench()
    bench.put("a", 6, states=(2,))
    match = bench.lookup("a", 6)
    assert (match.rows_tokens, match.plan.tokens, match.reason) == (768, 384, MissReason.STATE_MISSING)


def test_an_engine_that_pages_at_256_is_offered_multiples_of_256_only() -> None:
    bench = Bench(presets.v4_tiny(resume_alignment=256))
    bench.put("a", 6, states=(1, 2, 4))
    match = bench.lookup("a", 6)
    assert [point.tokens for point in match.resume_points] == [256]
    assert all(tokens % 256 == 0 for tokens in match.snapshots.at)


def test_ordinary_attention_resumes_at_every_boundary() -> None:
    bench = Bench(presets.full_tiny())
    bench.put("a", 5)
    match = bench.lookup("a", 5)
    assert [point.tokens for point in match.resume_points] == [80, 64, 48, 32, 16]
    assert match.snapshots == Snapshots() and match.replay is None


def test_replay_is_offered_where_it_computes_less_than_the_best_resume_point() -> None:
    bench = Bench()  # three layers with a window of 128: replay computes 384 tokens
    bench.put("a", 12, states=(1,))
    match = bench.lookup("a", 12, can_replay=True)
    assert match.plan.kind is PlanKind.REPLAY
    assert (match.plan.tokens, match.plan.compute_from) == (12 * 128, 9 * 128)
    assert match.plan.load_bytes == 12 * TINY.rows.nbytes
    assert bench.lookup("a", 12, can_replay=False).plan.tokens == 256
    bench.put("a", 12, states=(8,))
    match = bench.lookup("a", 12, can_replay=True)
    assert match.plan.kind is PlanKind.RESUME and match.replay is None  # 9 * 128 either way: no need to replay


def test_replay_is_never_offered_where_the_operator_switched_it_off() -> None:
    bench = Bench(placement=Placement.parse("ends", replay=False))
    bench.put("a", 12)
    match = bench.lookup("a", 12, can_replay=True)
    assert match.replay is None and match.plan.kind is PlanKind.COLD


def test_a_tail_is_matched_on_its_parent_and_an_unknown_parent_is_said() -> None:
    bench = Bench()
    bench.put("a", 6, states=(5,))
    request = Request(bench.chain("a", 6, first=4), 6 * 128 + 1, Hints(), False, Speeds({}))
    match, _ = bench.planner.lookup(NAME, request, WORKER, bench.now)
    assert match.plan.tokens == 768 and match.rows_tokens == 768
    request = request._replace(chain=bench.chain("b", 6, first=4))
    match, _ = bench.planner.lookup(NAME, request, WORKER, bench.now)
    assert match.reason is MissReason.PARENT_UNKNOWN and match.lease is None


def test_a_hit_predicted_slower_than_recomputing_is_cut_back_to_what_pays() -> None:
    layout = presets.v4_demo()
    bench = Bench(layout, pages=1 << 14)
    bench.put("a", 40, states=(3, 39))
    cost = CostModel.of(layout)
    assert cost is not None
    tokens = 40 * 128 + 1
    bytes_deep = 40 * layout.rows.nbytes + layout.state.nbytes  # type: ignore[union-attr]
    cold_seconds = 1.0
    flops = cost.prefill_flops(0, tokens) / cold_seconds
    for load_seconds, expected in ((0.001, 5120), (50.0, 0)):
        speeds = Speeds({Tier.HOST: bytes_deep / load_seconds}, flops)
        match = bench.lookup("a", 40, speeds=speeds)
        assert match.plan.tokens == expected
        assert (match.reason is MissReason.SLOWER_THAN_RECOMPUTE) == (expected == 0)
        predicted = [(point.load_seconds or 0) + (point.recompute_seconds or 0) for point in match.resume_points]
        assert (match.plan.load_seconds or 0) + (match.plan.recompute_seconds or 0) <= min([*predicted, cold_seconds])


def test_an_unknown_speed_is_no_verdict() -> None:
    bench = Bench(presets.v4_demo(), pages=1 << 14)
    bench.put("a", 8, states=(7,))
    match = bench.lookup("a", 8, speeds=Speeds({}, 1e12))
    assert match.plan.tokens == 1024 and match.plan.load_seconds is None


# -- snapshots ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("every", Snapshots(every=128, at_output_end=True)),
        ("interval:300", Snapshots(every=384)),
        ("ends", Snapshots(at=(512, 896), at_output_end=True)),
        ("none", Snapshots()),
    ],
)
def test_placements_name_their_boundaries_before_the_worker_computes(placement: str, expected: Snapshots) -> None:
    bench = Bench(placement=Placement.parse(placement))
    assert bench.lookup("a", 7, prompt=1000, breakpoints=(600, 512, 5000)).snapshots == expected


def test_snapshots_below_the_resume_point_are_not_asked_for() -> None:
    bench = Bench()
    bench.put("a", 4, states=(3,))
    assert bench.lookup("a", 7, prompt=1000, breakpoints=(512,)).snapshots.at == (896,)


# -- lineage -----------------------------------------------------------------------------------
def test_objects_of_another_run_are_never_joined_to_stored_ones() -> None:
    bench = Bench()
    bench.put("a", 3, states=(2,))
    chain = bench.chain("a", 4, first=3)
    spec = ObjectSpec(0, 0, TINY.rows.nbytes, bytes(16))
    statuses, _, _ = bench.planner.reserve(NAME, chain, [spec], b"x" * 16, WORKER, Hints(), 9.0, 0.0)
    assert statuses == [ReserveStatus.OTHER_LINEAGE]
    other = [ObjectSpec(block, 0, TINY.rows.nbytes, bytes([block]) * 16) for block in range(3)]
    statuses, _, _ = bench.planner.reserve(NAME, bench.chain("a", 3), other, ROOT_LINEAGE, WORKER, Hints(), 9.0, 0.0)
    assert statuses == [ReserveStatus.OTHER_LINEAGE] * 3
    assert bench.planner.counts.other_lineage == 4


def test_rows_whose_parent_was_not_shown_are_another_run_s() -> None:
    bench = Bench()
    bench.put("a", 3)
    chain = bench.chain("a", 6)
    skips = [ObjectSpec(block, 0, TINY.rows.nbytes, bytes(16)) for block in (3, 4)]  # blocks 0 to 2 are not announced
    statuses, _, _ = bench.planner.reserve(NAME, chain, skips, ROOT_LINEAGE, WORKER, Hints(), 9.0, 0.0)
    assert statuses == [ReserveStatus.OTHER_LINEAGE] * 2
    assert bench.lookup("a", 6).rows_tokens == 3 * 128


def test_rows_without_their_parent_are_refused() -> None:
    bench = Bench()
    assert bench.put("a", 6, first=3) == [ReserveStatus.NO_PARENT] * 3
    assert bench.planner.snapshot() == {}


def test_classes_follow_breakpoints() -> None:
    bench = Bench()
    bench.put("a", 4, breakpoints=(256,))
    classes = [bench.planner.entry(bench.key("a", block)).facts.object_class for block in range(4)]  # type: ignore[union-attr]
    assert classes == [ObjectClass.SHARED] * 2 + [ObjectClass.SESSION] * 2


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
    bench.planner.leases.lease(WORKER, tuple(bench.planner.entry(bench.key("b", b)) for b in range(20)), 1e9)  # type: ignore[arg-type]
    bench.planner._room.review_all([bench.planner.entry(bench.key("b", b)) for b in range(20)])  # type: ignore[misc]
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
