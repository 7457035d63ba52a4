"""What every order owes the planner, whatever it ranks by: random events against a plain set."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_world import FlatCache, make_entry, namespace, scan_trace, shifting_trace, zipf_trace

from kvstore.core.errors import ConfigError
from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.policies import POLICIES, policy_named

EVENTS = ("admit", "use", "offer", "withdraw", "remove", "evict", "spare", "first")
CHAIN = 4  # objects of a chain; every chain has a state at its last block


def tree() -> list[Entry]:
    """Three chains of rows and a state at each one's end; sizes differ."""
    space, found = namespace(), list[Entry]()
    for name in range(3):
        parent = space.root
        for depth in range(CHAIN):
            ttl_seconds = 5.0 if name == 2 else None
            entry = make_entry(space, (name, depth), parent=parent, nbytes=1000 + 700 * depth, ttl_seconds=ttl_seconds)
            found.append(entry)
            parent = entry.node
        found.append(make_entry(space, (name, "state"), parent=parent, nbytes=9000, group=1))
    return found


@pytest.mark.parametrize("name", POLICIES)
@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 14), st.integers(0, 5)), max_size=120))
@settings(max_examples=60, deadline=None)
def test_it_gives_what_is_offered_and_loses_nothing(name: str, events: list[tuple[str, int, int]]) -> None:
    order = policy_named(name).order(20_000)
    entries, now = tree(), 1000.0
    by_key = {entry.facts.key: entry for entry in entries}
    stored: set[BlockKey] = set()
    offered: set[BlockKey] = set()
    for event, number, seconds in events:
        now += seconds
        entry = entries[number]
        key = entry.facts.key
        if event == "admit" and key not in stored:
            entry.last_used = now
            order.admitted(entry)
            stored.add(key)
        elif event == "use" and key in stored:
            entry.last_used = now
            entry.uses += 1
            order.used(entry)
        elif event == "offer" and key in stored:
            order.offer(entry, entry.last_used)
            offered.add(key)
        elif event == "withdraw":
            order.withdraw(key)
            offered.discard(key)
        elif event == "remove" and key in stored:
            order.withdraw(key)
            order.removed(entry, entry.facts.raw_bytes)
            stored.discard(key)
            offered.discard(key)
        elif event in ("evict", "spare"):
            first = order.first()
            victim = order.pop()
            assert victim == first
            assert (victim is None) == (not offered)
            if victim is not None:
                assert victim in offered
                offered.discard(victim)
                if event == "evict":
                    order.removed(by_key[victim], by_key[victim].facts.raw_bytes)
                    stored.discard(victim)
                else:
                    order.offer(by_key[victim], by_key[victim].last_used)
                    offered.add(victim)
        elif event == "first":
            assert (order.first() is None) == (not offered)
        assert len(order) == len(offered)
        assert {known for known in by_key if known in order} == offered
    given_back = set()
    while (victim := order.pop()) is not None:
        given_back.add(victim)
    assert given_back == offered


@pytest.mark.parametrize("name", POLICIES)
def test_what_several_pops_chose_may_all_stay_after_all(name: str) -> None:
    """The planner gives back what it chose where there was not enough of it."""
    order = policy_named(name).order(100_000)
    space = namespace()
    entries = [make_entry(space, number, now=float(number)) for number in range(10)]
    for entry in entries:
        order.admitted(entry)
        order.offer(entry, entry.last_used)
    chosen = [order.pop() for _ in entries]
    assert set(chosen) == {entry.facts.key for entry in entries}
    assert len(order) == 0
    assert order.pop() is None
    for entry in entries:
        order.offer(entry, entry.last_used)
    assert {order.pop() for _ in entries} == set(chosen)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("trace", [zipf_trace(6000, 800), scan_trace(6000, 800), shifting_trace(6000, 800)])
def test_it_keeps_what_is_popular(name: str, trace: list[int]) -> None:
    """A cache of a tenth of the objects hits more often than its share of them."""
    assert FlatCache(policy_named(name), 80).play(trace) > 0.15


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_events_give_the_same_victims(name: str) -> None:
    trace = zipf_trace(3000, 500)
    assert FlatCache(policy_named(name), 60).play(trace) == FlatCache(policy_named(name), 60).play(trace)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean s3fifo"):
        policy_named("s3-fifo")
    with pytest.raises(ConfigError, match="there are lru"):
        policy_named("zzz")


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_called_what_it_calls_itself(name: str) -> None:
    assert policy_named(name).name == name
