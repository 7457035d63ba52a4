"""The queue of promotions: fair between flows, first layers first, and honest about how far a flow is."""

from __future__ import annotations

import random
import threading
from itertools import pairwise

import pytest

from kvstore.core.actions import Copy
from kvstore.core.index import Facts, ObjectClass
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import Group, GroupKind, Section
from kvstore.core.presets import v4_flash, v4_pro
from kvstore.store.promoter import layer_groups
from kvstore.store.promotions import Promotions

LIMIT = 10_000


def copy_of(number: int, flow: int, nbytes: int = 4096) -> Copy:
    facts = Facts(
        key=BlockKey(number.to_bytes(32, "little"), 0), namespace=bytes(32), parent=bytes(32), block=number,
        generation=1, lineage=bytes(16), parent_lineage=bytes(16), content=bytes(16), raw_bytes=nbytes,
        written_at=0.0, writer=bytes(16), object_class=ObjectClass.SESSION, ttl_seconds=None,
    )  # fmt: skip
    return Copy(facts, Tier.DISK, Tier.HOST, (1,), nbytes, (number,), number, flow, True)


def taken(promotions: Promotions, count: int) -> list[tuple[int, int, int]]:
    """Flow, block and group of the next steps."""
    steps = [promotions.next(0) for _ in range(count)]
    return [(step.promotion.copy.flow, step.promotion.copy.facts.block, step.group) for step in steps if step]


def test_flows_take_turns_and_keep_their_own_order():
    promotions = Promotions(LIMIT)
    for number in range(1000):
        assert promotions.put(copy_of(number, flow=1))
    for number in range(3):
        assert promotions.put(copy_of(number, flow=2))
    first = taken(promotions, 7)
    assert [block for flow, block, _ in first if flow == 2] == [0, 1, 2], "three blocks wait for three of the others"
    assert [block for flow, block, _ in first if flow == 1] == [0, 1, 2, 3]
    assert [block for _, block, _ in taken(promotions, 2000)] == list(range(4, 1000))
    assert promotions.next(0) is None


def test_a_flow_that_comes_later_is_next_but_one():
    promotions = Promotions(LIMIT)
    for flow in (1, 2):
        for number in range(5):
            promotions.put(copy_of(number, flow))
    assert [flow for flow, _, _ in taken(promotions, 3)] == [1, 2, 1]
    promotions.put(copy_of(0, 3))
    assert [flow for flow, _, _ in taken(promotions, 3)] == [2, 1, 3]


def test_the_queue_is_bounded_until_copies_end():
    promotions = Promotions(2)
    assert promotions.put(copy_of(0, 1)) and promotions.put(copy_of(1, 1)) and not promotions.put(copy_of(2, 1))
    step = promotions.next(0)
    assert step is not None and not promotions.put(copy_of(2, 1)), "it was taken, and has not ended"
    assert promotions.is_last(step) and not promotions.ended(step.promotion, None)
    assert promotions.put(copy_of(2, 1))


def test_queued_bytes_are_those_that_have_not_ended():
    promotions = Promotions(LIMIT)
    for number in range(4):
        promotions.put(copy_of(number, 1, 1000))
    step = promotions.next(0)
    assert step is not None and promotions.queued_bytes == 4000
    promotions.ended(step.promotion, 3)
    assert promotions.queued_bytes == 3000


def test_first_groups_of_all_copies_come_before_second_ones():
    promotions = Promotions(LIMIT)
    for number in range(3):
        promotions.put(copy_of(number, 1))
    order = []
    while (step := promotions.next(0)) is not None:
        order.append((step.group, step.promotion.copy.facts.block))
        if step.group == 0:
            promotions.split(step.promotion, 3)
    assert order == sorted(order) and len(order) == 9


def test_layers_of_a_flow_are_those_that_every_copy_has():
    promotions = Promotions(LIMIT)
    for number in range(2):
        promotions.put(copy_of(number, 7))
    one, two = promotions.next(0), promotions.next(0)
    assert one is not None and two is not None and promotions.layers_done(7) == 0
    for step in (one, two):
        promotions.split(step.promotion, 3)
    assert list(promotions.loaded(one.promotion, 0)) == [0] and not promotions.verified(one.promotion, 0, 10)
    assert promotions.layers_done(7) == 0, "the other has none yet"
    assert list(promotions.loaded(two.promotion, 1)) == [], "its first group could share a page with the second"
    assert list(promotions.loaded(two.promotion, 0)) == [0, 1]
    assert not promotions.verified(two.promotion, 1, 20) and promotions.layers_done(7) == 0
    assert promotions.verified(two.promotion, 0, 10) and promotions.layers_done(7) == 10
    assert two.promotion.layers == 20
    promotions.loaded(one.promotion, 1)
    assert promotions.verified(one.promotion, 1, 20) and promotions.layers_done(7) == 20
    assert not promotions.ended(one.promotion, None), "it failed after all"
    assert not promotions.ended(two.promotion, 43)
    assert promotions.layers_done(7) is None


def test_a_copy_that_failed_holds_its_flow_where_it_was():
    promotions = Promotions(LIMIT)
    for number in range(3):
        promotions.put(copy_of(number, 1))
    steps = [promotions.next(0) for _ in range(3)]
    promotions.ended(steps[0].promotion, None)
    assert not promotions.ended(steps[1].promotion, 43)
    assert promotions.layers_done(1) == 0


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_threads_ends_every_copy_once_and_never_reports_too_much(seed):
    rng = random.Random(seed)
    promotions = Promotions(LIMIT)
    groups, copies = 4, 40
    whole: dict[int, set[int]] = {number: set() for number in range(copies)}
    ended: list[int] = []
    lock = threading.Lock()
    for number in range(copies):
        promotions.put(copy_of(number, number % 3))

    def work() -> None:
        while (step := promotions.next(0.2)) is not None:
            promotion, block = step.promotion, step.promotion.copy.facts.block
            if step.group == 0:
                promotions.split(promotion, groups)
            for group in promotions.loaded(promotion, step.group):
                with lock:
                    whole[block].add(group)
                promotions.verified(promotion, group, 10 * (group + 1))
            flow = promotion.copy.flow
            layers = promotions.layers_done(flow)
            assert layers is not None
            with lock:  # what was reported was true before: groups are only added
                mine = [whole[number] for number in range(copies) if number % 3 == flow]
                assert all(set(range(layers // 10)) <= groups_of for groups_of in mine)
            if promotions.is_last(step):
                with lock:
                    ended.append(block)
                promotions.ended(promotion, 10 * groups)

    threads = [threading.Thread(target=work) for _ in range(rng.choice([2, 4, 6]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == list(range(copies)) and promotions.queued_bytes == 0


@pytest.mark.parametrize("layout", [v4_flash(), v4_pro()], ids=lambda layout: layout.model)
def test_groups_of_layers_cover_an_object_in_reads_that_are_worth_a_call(layout):
    rows, layers = layout.rows, len(layout.layers)
    groups = layer_groups(rows, layers, 128 << 10)
    edges = rows.offsets()
    assert (groups[0].first, groups[0].start_byte, groups[-1].end, groups[-1].layers) == (
        0, 0, len(rows.sections), layers,
    )  # fmt: skip
    assert groups[-1].end_byte >= rows.nbytes and len(groups) >= 3
    for one, other in pairwise(groups):
        assert (other.first, other.start_byte) == (one.end, one.end_byte) and one.start_byte % 4096 == 0
        assert one.layers == rows.sections[one.end].layer, "the first layer that is not whole with it"
        assert edges[one.end] <= one.end_byte < edges[one.end] + 4096
    assert all(edges[group.end] - edges[group.first] >= 128 << 10 for group in groups)


def test_an_object_of_one_layer_is_one_group():
    group = Group("rows", GroupKind.ROWS, (Section(0, "a", 1, 300_000), Section(0, "b", 1, 300_000)))
    ((first, end, start_byte, end_byte, layers),) = layer_groups(group, 1, 128 << 10)
    assert (first, end, start_byte, layers) == (0, 2, 0, 1) and end_byte >= 600_000
