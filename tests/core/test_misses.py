"""Each reason for a miss, brought about in a planner; and the directory of what left."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256

import pytest
from planner_bench import MIB, NAME, ROOT, TINY, Bench

from kvstore.core import presets
from kvstore.core.explain import explained, next_victims
from kvstore.core.ghosts import LEAST_GHOSTS, MOST_GHOSTS, WAYS, Departure, Ghosts
from kvstore.core.index import ObjectClass
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.match import Hints, MissReason, Speeds
from kvstore.core.matching import Request, find
from kvstore.core.misses import MAX_LAST_LOOKUPS, LastLookup, first_missing
from kvstore.core.reserve import ObjectSpec, ReserveStatus

BLOCKS = 6


def last(bench: Bench, session: str = "") -> LastLookup:
    return bench.planner.misses.last[NAME, session]


def explain(bench: Bench, session: str = ""):
    planner = bench.planner
    return explained(last(bench, session), planner.namespaces, planner.room, planner.misses.ghosts, 100, bench.now)


def free(bench: Bench) -> None:
    bench.planner.release_owner(b"w" * 16)


def crowd(bench: Bench, tag: str = "x") -> None:
    """Other chains until all that was there before has left."""
    pages = bench.planner.spaces[Tier.HOST].total_pages
    for index in range(pages // BLOCKS + 1):
        bench.put(f"{tag}{index}", BLOCKS)


# -- reasons ------------------------------------------------------------------------------------


def test_what_was_never_put_was_never_seen() -> None:
    bench = Bench()
    bench.put("a", 2, states=(1,))
    match = bench.lookup("a", 4)
    missing = last(bench).missing
    assert match.reason is MissReason.NEVER_SEEN
    assert (missing.block, missing.key, missing.ghost) == (2, bench.key("a", 2), None)


def test_a_full_hit_lacks_nothing() -> None:
    bench = Bench()
    bench.put("a", 3, states=(2,))
    assert bench.lookup("a", 3).reason is MissReason.NONE
    assert last(bench).missing.ghost is None and last(bench).plan_tokens == 384
    assert not bench.planner.misses.tokens


def test_evicted_rows_say_when_at_what_age_and_for_whom() -> None:
    bench = Bench(pages=64)
    bench.put("a", BLOCKS, states=(BLOCKS - 1,))
    used = bench.now
    crowd(bench)
    left = bench.planner.misses.ghosts.find(bench.key("a", 0))
    assert left is not None and bench.tiers("a", 0) == set()
    bench.now += 100.0
    assert bench.lookup("a", BLOCKS).reason is MissReason.EVICTED
    missing = last(bench).missing
    assert (missing.block, missing.ghost) == (0, left)
    assert left.why is Departure.EVICTED and left.room_for == (Tier.HOST, NAME)
    assert used < left.at < bench.now - 100.0
    assert left.age_seconds == pytest.approx(left.at - used)


def test_with_a_disk_it_is_the_disk_that_evicts() -> None:
    bench = Bench(pages=64, disk=2 * MIB)
    bench.put("a", BLOCKS)
    crowd(bench)
    assert bench.tiers("a", 0) == {Tier.DISK}, "it left the host, and is not gone"
    assert bench.planner.misses.ghosts.find(bench.key("a", 0)) is None
    index = 0
    while bench.tiers("a", 0):
        bench.put(f"y{index}", BLOCKS)
        index += 1
    assert bench.lookup("a", BLOCKS).reason is MissReason.EVICTED
    ghost = last(bench).missing.ghost
    assert ghost is not None and ghost.room_for is not None and ghost.room_for[0] is Tier.DISK


def test_what_came_back_is_no_miss_and_what_left_again_left_now() -> None:
    bench = Bench(pages=64)
    bench.put("a", 2)
    crowd(bench)
    first = bench.planner.misses.ghosts.find(bench.key("a", 0))
    bench.put("a", 2, states=(1,))
    assert bench.lookup("a", 2).reason is MissReason.NONE
    free(bench)
    crowd(bench, "z")
    second = bench.planner.misses.ghosts.find(bench.key("a", 0))
    assert first is not None and second is not None and second.at > first.at


def test_what_was_unused_for_its_ttl_expired() -> None:
    bench = Bench()
    bench.put("a", 2, ttl_seconds=10.0)
    bench.now += 60.0
    while bench.tiers("a", 0):
        bench.do(bench.planner.tick(bench.now))
        bench.now += 1.5
    assert bench.lookup("a", 2).reason is MissReason.EXPIRED
    ghost = last(bench).missing.ghost
    assert ghost is not None and ghost.why is Departure.EXPIRED and ghost.room_for is None
    assert ghost.age_seconds > 10.0


def test_corrupt_rows_and_what_stood_on_them() -> None:
    bench = Bench()
    bench.put("a", BLOCKS, states=(1, 2))
    entry = bench.planner.entry(bench.key("a", 2))
    assert entry is not None
    bench.do(bench.planner.corrupt(bench.key("a", 2), entry.facts.generation, Tier.HOST))
    assert bench.lookup("a", BLOCKS).reason is MissReason.CORRUPT
    assert last(bench).missing.block == 2
    free(bench)
    assert bench.put("a", 3, first=2, states=(2,)) == [ReserveStatus.WANTED] * 2
    assert bench.lookup("a", BLOCKS).reason is MissReason.ROWS_MISSING
    missing = last(bench).missing
    assert missing.block == 3 and missing.ghost is not None and missing.ghost.why is Departure.WITH_PARENT


def test_a_reported_object_is_corrupt_and_says_who_found_it() -> None:
    bench = Bench()
    bench.put("a", 3)
    bench.do(bench.planner.report(bench.key("a", 0)))
    assert bench.lookup("a", 3).reason is MissReason.CORRUPT
    ghost = last(bench).missing.ghost
    assert ghost is not None and ghost.why is Departure.REPORTED


def test_rows_that_found_no_room_met_their_quota() -> None:
    bench = Bench(presets.full_tiny(), pages=256)
    name, size = 0, 0
    while not size:
        name += 1
        bench.put(f"a{name}", 4)
        size = len(bench.dropped)
    for index in range(1, name):
        bench.lookup(f"a{index}", 4)
    held = bench.put("c", 256)
    assert ReserveStatus.NO_ROOM in held
    refused = held.index(ReserveStatus.NO_ROOM)
    assert bench.lookup("c", 256).reason is MissReason.QUOTA
    missing = last(bench).missing
    assert missing.block == refused and missing.ghost is not None and missing.ghost.why is Departure.REFUSED


def test_rows_that_are_being_written_are_uploading_and_never_seen_when_that_fails() -> None:
    bench = Bench()
    chain = bench.chain("a", 1)
    spec = ObjectSpec(0, 0, bench.layout.groups[0].nbytes, b"c" * 16)
    statuses, facts, _ = bench.planner.reserve(
        NAME, chain, [spec], bytes(16), b"w" * 16, Hints(), 1.0, 0.0
    )  # fmt: skip
    assert statuses == [ReserveStatus.WANTED] and facts[0] is not None
    bench.now = 1.0
    assert bench.lookup("a", 1).reason is MissReason.UPLOADING
    bench.do(bench.planner.failed(facts[0].key, facts[0].generation, Tier.HOST, bench.now))
    assert bench.lookup("a", 1).reason is MissReason.NEVER_SEEN
    ghost = last(bench).missing.ghost
    assert ghost is not None and ghost.why is Departure.UNFINISHED


def test_a_missing_state_is_named_with_its_boundary_and_what_became_of_it() -> None:
    bench = Bench()
    bench.put("a", BLOCKS, states=(1, 4))
    state = bench.planner.entry(bench.key("a", 4, 1))
    assert state is not None
    match = bench.lookup("a", BLOCKS)
    assert match.reason is MissReason.STATE_MISSING and last(bench).missing.block == BLOCKS - 1
    assert last(bench).missing.ghost is None, "at the deepest boundary there never was one"
    free(bench)
    bench.do(bench.planner.report(bench.key("a", 4, 1)))
    match = bench.lookup("a", BLOCKS)
    assert (match.reason, match.plan.tokens) == (MissReason.STATE_MISSING, 256)
    found = explain(bench).state
    assert found is not None and found[0] == 4 and found[1].why is Departure.REPORTED


def test_a_tail_behind_a_parent_that_left_says_what_became_of_the_parent() -> None:
    bench = Bench(pages=64)
    bench.put("a", BLOCKS)
    crowd(bench)
    request = Request(bench.chain("a", BLOCKS, first=4), 6 * 128 + 1, Hints(), False, Speeds({}))
    match, _ = bench.planner.lookup(NAME, request, b"w" * 16, bench.now)
    assert match.reason is MissReason.PARENT_UNKNOWN, "what the worker has to do about it stays the same"
    missing = last(bench).missing
    assert missing.block == 3 and missing.ghost is not None and missing.ghost.why is Departure.EVICTED


def test_short_prompts_and_loads_that_do_not_pay_keep_their_reasons() -> None:
    bench = Bench()
    bench.put("a", 4, states=(3,))
    assert bench.lookup("a", 1, prompt=128).reason is MissReason.SHORT_PROMPT
    bench = Bench(presets.v4_flash(), pages=1 << 16)
    bench.put("a", 4, states=(3,))
    slow = Speeds({Tier.HOST: 1.0, Tier.DISK: 1.0}, worker_flops=1e18)
    assert bench.lookup("a", 4, speeds=slow).reason is MissReason.SLOWER_THAN_RECOMPUTE
    assert bench.planner.misses.tokens == {MissReason.SLOWER_THAN_RECOMPUTE: 512}


def test_only_what_is_hot_was_asked_for() -> None:
    bench = Bench(disk=64 * MIB)
    bench.put("a", 4, states=(3,))
    for block in (3, 2):
        for group in (1, 0):
            entry = bench.planner.entry(bench.key("a", block, group))
            if entry is not None:
                bench.do(list(bench.planner.room.lose(entry, Tier.HOST)))
    request = Request(bench.chain("a", 4), 513, Hints(), False, Speeds({}), hot_only=True)
    match, _ = bench.planner.lookup(NAME, request, b"w" * 16, bench.now)
    assert (match.rows_tokens, match.reason) == (256, MissReason.STATE_MISSING)
    bench.put("a", 2, states=(1,))
    match, _ = bench.planner.lookup(NAME, request, b"w" * 16, bench.now)
    assert (match.plan.tokens, match.reason) == (256, MissReason.COLDER)
    assert not bench.planner.misses.last, "what a worker asks in mid-prefill does not hide its lookup"


def test_a_tail_behind_what_is_not_hot_is_colder() -> None:
    bench = Bench(disk=64 * MIB)
    bench.put("a", 4)
    for block in (3, 2, 1):
        entry = bench.planner.entry(bench.key("a", block))
        assert entry is not None
        bench.do(list(bench.planner.room.lose(entry, Tier.HOST)))
    request = Request(bench.chain("a", 6, first=3), 6 * 128 + 1, Hints(), False, Speeds({}), hot_only=True)
    planner = bench.planner
    found = find(planner.namespaces[NAME], request, planner.settings.placement, None)
    assert found.last is not None and found.last.block == 0
    rows = found._replace(match=replace(found.match, reason=MissReason.NEVER_SEEN))
    missing = first_missing(request, rows, planner.namespaces[NAME], planner.misses.ghosts, ())
    assert (missing.reason, missing.block) == (MissReason.COLDER, 1)


def test_a_refused_state_does_not_hide_the_refused_rows_behind_it() -> None:
    ghosts, bench = Ghosts(0), Bench()
    wanted, full = ReserveStatus.WANTED, ReserveStatus.NO_ROOM
    specs = [ObjectSpec(0, 0, 1, b""), ObjectSpec(0, 1, 1, b""), ObjectSpec(1, 0, 1, b""), ObjectSpec(2, 0, 1, b"")]
    ghosts.refused(bench.chain("a", 3), specs, [wanted, full, full, full])
    known = [ghosts.find(bench.key("a", spec.block, spec.group)) is not None for spec in specs]
    assert known == [False, True, True, False], "what stands on refused rows is worth no record"


def test_an_empty_namespace_beside_one_of_the_same_model_differs() -> None:
    bench = Bench()
    other = presets.v4_tiny("other revision")
    bench.planner.add_namespace(b"o" * 32, b"q" * 32, other)
    chain = Chain(0, b"q" * 32, bench.chain("a", 3).hashes)
    request = Request(chain, 385, Hints(session="s"), False, Speeds({}))
    match, _ = bench.planner.lookup(b"o" * 32, request, b"w" * 16, 1.0)
    assert match.reason is MissReason.NEVER_SEEN, "nobody has anything yet"
    bench.put("a", 3)
    match, _ = bench.planner.lookup(b"o" * 32, request, b"w" * 16, bench.now)
    assert match.reason is MissReason.NAMESPACE_DIFFERS
    planner = bench.planner
    lookup = planner.misses.last[b"o" * 32, "s"]
    found = explained(lookup, planner.namespaces, planner.room, planner.misses.ghosts, 10, bench.now)
    assert found.nearest.differing == ("revision",) and found.nearest.namesake_rows == 3


# -- counts and what is kept --------------------------------------------------------------------


def test_lookups_and_lost_tokens_are_counted_by_reason() -> None:
    bench = Bench(pages=64)
    bench.put("a", 2, states=(1,))
    bench.lookup("a", 4)
    bench.lookup("a", 2)
    free(bench)
    crowd(bench)
    bench.lookup("a", 2)
    misses = bench.planner.misses
    assert misses.lookups == {MissReason.NEVER_SEEN: 1, MissReason.NONE: 1, MissReason.EVICTED: 1}
    assert misses.tokens == {MissReason.NEVER_SEEN: 256, MissReason.EVICTED: 256}
    assert sum(misses.lookups.values()) == bench.planner.counts.lookups


def test_tokens_are_lost_to_the_state_up_to_the_rows_end_and_to_the_rows_from_there() -> None:
    bench = Bench(pages=64)
    bench.put("a", 6, states=(1,))
    bench.do(bench.planner.report(bench.key("a", 4)))
    bench.lookup("a", 8)
    misses = bench.planner.misses
    assert misses.lookups == {MissReason.STATE_MISSING: 1}
    assert misses.tokens == {MissReason.STATE_MISSING: 256, MissReason.CORRUPT: 512}
    assert misses.tokens.total() == 1024 - 256


def test_each_session_keeps_its_last_lookup_and_the_oldest_are_forgotten() -> None:
    bench = Bench()
    bench.put("a", 1)
    bench.lookup("a", 1, session="first")
    for index in range(MAX_LAST_LOOKUPS - 1):
        request = Request(bench.chain("a", 1), 129, Hints(session=str(index)), False, Speeds({}))
        bench.planner.lookup(NAME, request, b"w" * 16, bench.now)
    bench.lookup("a", 3, session="first")
    assert len(bench.planner.misses.last) == MAX_LAST_LOOKUPS
    bench.lookup("b", 1, session="one more")
    assert len(bench.planner.misses.last) == MAX_LAST_LOOKUPS
    assert last(bench, "first").prompt_tokens == 3 * 128 + 1
    assert (NAME, "0") not in bench.planner.misses.last, "the oldest, and not the one that came back"


def test_asking_changes_nothing() -> None:
    bench = Bench()
    bench.put("a", 4, states=(1,))
    bench.lookup("a", 4)
    free(bench)
    planner = bench.planner
    before = (planner.snapshot(), dict(planner.misses.lookups), planner.counts.lookups, planner.leases.lease_count)
    used = {entry.facts.key: (entry.last_used, entry.uses) for entry in planner.entries()}
    bench.now += 50.0
    request = Request(bench.chain("a", 6), 6 * 128 + 1, Hints(), False, Speeds({}))
    asked = planner.asked(NAME, request, bench.now)
    explained(asked, planner.namespaces, planner.room, planner.misses.ghosts, 10, bench.now)
    next_victims(planner.room, bench.now, 10)
    assert (asked.rows_tokens, asked.plan_tokens) == (512, 256)
    after = (planner.snapshot(), dict(planner.misses.lookups), planner.counts.lookups, planner.leases.lease_count)
    assert before == after
    assert used == {entry.facts.key: (entry.last_used, entry.uses) for entry in planner.entries()}


# -- what is beside it, what goes next ----------------------------------------------------------


def test_the_nearest_stored_chain_is_told_with_its_branches() -> None:
    bench = Bench()
    bench.put("doc", 4, states=(3,))
    bench.put("doc/a", 7, first=4)
    bench.put("doc/b", 9, first=4)
    bench.lookup("doc/c", 6)
    nearest = explain(bench).nearest
    assert (nearest.shared_blocks, nearest.continuations, nearest.deepest_block) == (4, 2, 8)
    assert not nearest.is_partial and nearest.differing == ()
    bench.lookup("doc/b", 12)
    nearest = explain(bench).nearest
    assert (nearest.shared_blocks, nearest.continuations, nearest.deepest_block) == (9, 0, 8)


def test_objects_say_their_class_their_place_and_what_holds_them() -> None:
    bench = Bench()
    bench.put("a", 4, states=(1, 3), breakpoints=(256,))
    bench.put("b", 2)
    bench.lookup("a", 4)
    found = explain(bench)
    assert [(each.block, each.key.group) for each in found.objects] == [(3, 1), (3, 0), (2, 0), (1, 1), (1, 0), (0, 0)]
    assert found.classes == {ObjectClass.SHARED: 3, ObjectClass.SESSION: 3} and found.classed == 4
    state, rows = found.objects[:2]
    assert state.leases == rows.leases == 1 and state.places == rows.places == (), "what is leased is no candidate"
    free(bench)
    state, rows, *_, first = explain(bench).objects
    assert state.places[0].ahead < rows.places[0].ahead, "of equal age the state goes first"
    assert first.places == () and first.object_class is ObjectClass.SHARED
    assert [place.candidates for place in state.places] == [len_of_host(bench)]


def len_of_host(bench: Bench) -> int:
    return sum(len(order) for (tier, _), order in bench.planner.room.orders() if tier is Tier.HOST)


def test_places_are_the_order_in_which_things_go() -> None:
    """What the places say beforehand is what then happens, victim by victim."""
    bench = Bench(pages=64)
    rng = random.Random(4)
    names = [f"n{index}" for index in range(9)]
    for name in names:
        bench.put(name, 6)
    rng.shuffle(names)
    for name in names:
        bench.lookup(name, 6)
    free(bench)
    planner = bench.planner
    (victim,) = next_victims(planner.room, bench.now, 10)
    assert victim.owner == (Tier.HOST, NAME) and victim.namespace == NAME
    ahead = {}
    for (_, _), order in planner.room.orders():
        for entry in planner.entries():
            if entry.facts.key in order:
                ahead[order.ahead_of(entry.facts.key)] = entry.facts.key
    assert sorted(ahead) == list(range(victim.candidates)), "each place once"
    assert ahead[0] == victim.standing.key
    dropped_before = len(bench.dropped)
    bench.put("new", 24)
    assert bench.dropped[dropped_before].key == victim.standing.key


def test_a_pinned_object_is_classed_so() -> None:
    bench = Bench()
    bench.put("a", 3)
    assert bench.planner.pin(NAME, bench.chain("a", 3), 60.0, bench.now) is not None
    bench.lookup("a", 3)
    deepest = explain(bench).objects[0]
    assert deepest.object_class is ObjectClass.PINNED and deepest.pins == 1


def test_a_lookup_whose_blocks_left_since_is_explained_from_the_root() -> None:
    bench = Bench(pages=64)
    bench.put("a", 4)
    bench.lookup("a", 4)
    free(bench)
    crowd(bench)
    found = explain(bench)
    assert found.lookup.rows_tokens == 512 and found.objects == () and found.nearest.shared_blocks == 0


# -- the directory ------------------------------------------------------------------------------


def key_of(number: int, group: int = 0) -> BlockKey:
    return BlockKey(sha256(str(number).encode()).digest(), group)


def test_the_directory_keeps_its_size_and_the_latest() -> None:
    ghosts = Ghosts(0)
    assert ghosts.size == LEAST_GHOSTS
    for number in range(10 * LEAST_GHOSTS):
        ghosts.now = float(number)
        ghosts.note(key_of(number), Departure.EVICTED, 1.0)
    assert len(ghosts._records) == 22 * LEAST_GHOSTS
    recent = [ghosts.find(key_of(number)) for number in range(10 * LEAST_GHOSTS - LEAST_GHOSTS // 4, 10 * LEAST_GHOSTS)]
    known = [ghost for ghost in recent if ghost is not None]
    assert len(known) > 0.99 * len(recent), "the last quarter of its size is nearly all there"
    assert all(ghost.at >= 9 * LEAST_GHOSTS - LEAST_GHOSTS // 4 for ghost in known)
    assert ghosts.find(key_of(0)) is None


def test_one_way_forgets_first_what_came_first() -> None:
    ghosts = Ghosts(0)
    keys = [BlockKey(bytes(24) + (number * (LEAST_GHOSTS // WAYS)).to_bytes(8, "big"), 0) for number in range(1, 12)]
    for at, key in enumerate(keys):
        ghosts.now = float(at)
        ghosts.note(key, Departure.EVICTED)
    assert [ghosts.find(key) is not None for key in keys] == [False] * 3 + [True] * 8


def test_objects_of_one_block_and_later_records_are_told_apart() -> None:
    ghosts = Ghosts(1 << 60)
    assert ghosts.size == MOST_GHOSTS
    ghosts.note(key_of(1, 0), Departure.EVICTED, 3.0, (Tier.HOST, b"n" * 32))
    ghosts.note(key_of(1, 1), Departure.EXPIRED, 4.0)
    ghosts.now = 9.0
    ghosts.note(key_of(1, 0), Departure.CORRUPT, 5.0)
    found = ghosts.find(key_of(1, 0))
    assert found is not None and (found.why, found.at, found.age_seconds, found.room_for) == (
        Departure.CORRUPT, 9.0, 5.0, None,
    )  # fmt: skip
    other = ghosts.find(key_of(1, 1))
    assert other is not None and other.why is Departure.EXPIRED
    assert ghosts.find(key_of(2)) is None


def test_a_name_of_zeros_is_found_when_it_was_noted_and_not_before() -> None:
    ghosts, nought = Ghosts(0), BlockKey(bytes(32), 0)
    assert ghosts.find(nought) is None
    ghosts.note(nought, Departure.EXPIRED)
    assert ghosts.find(nought) is not None


def test_owners_beyond_the_table_leave_the_rest_of_the_record() -> None:
    ghosts = Ghosts(0)
    for number in range(300):
        ghosts.note(key_of(number), Departure.EVICTED, 2.0, (Tier.DISK, number))
    first, late = ghosts.find(key_of(0)), ghosts.find(key_of(299))
    assert first is not None and first.room_for == (Tier.DISK, 0)
    assert late is not None and late.room_for is None and late.age_seconds == 2.0


def test_everything_that_leaves_is_in_the_directory(monkeypatch) -> None:
    """Random events: each object that was stored and is not any more has a record."""
    bench = Bench(pages=64, disk=2 * MIB)
    rng = random.Random(11)
    seen: set[BlockKey] = set()
    assert bench.layout is TINY and ROOT
    for step in range(300):
        name = f"n{rng.randrange(12)}"
        what = rng.random()
        if what < 0.6:
            bench.put(name, rng.randrange(1, 9), states=(rng.randrange(8),))
        elif what < 0.8:
            bench.lookup(name, 8)
        elif what < 0.9:
            free(bench)
        else:
            stored = sorted(bench.planner.snapshot())
            if stored:
                bench.do(bench.planner.report(stored[rng.randrange(len(stored))]))
        stored = set(bench.planner.snapshot())
        seen |= stored
        gone = [key for key in seen - stored if bench.planner.misses.ghosts.find(key) is None]
        assert not gone, f"seed 11, step {step}"
