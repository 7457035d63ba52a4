"""Every invariant of the planner's bookkeeping, in one place. An AssertionError names the object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kvstore.core.index import SPAN_BLOCKS, CopyStatus, Entry, Namespace, Node, ObjectClass, Span
from kvstore.core.keys import Tier
from kvstore.core.lease import Leases
from kvstore.core.room import Room


def check(room: Room, leases: Leases, namespaces: Iterable[Namespace]) -> None:
    """Slots are conserved, leases counted, parents outlive children, what is said to be readable is."""
    for space in room.spaces.values():
        space.check()
    _check_entries(room, leases)
    for namespace in namespaces:
        for node in namespace.nodes.values():
            _check_node(node)
        _check_spans(namespace)
        _check_contents(namespace)


def _check_entries(room: Room, leases: Leases) -> None:
    counted: dict[int, list[int]] = {}
    for entry, is_pin in leases.all_anchors():
        counted.setdefault(id(entry), [0, 0])[is_pin] += 1
    pages = dict.fromkeys(room.spaces, 0)
    candidates = 0
    for entry in room.entries():
        key, node = entry.facts.key, entry.node
        assert node.namespace.nodes.get(key.prefix) is node and node.entry(key.group) is entry, key
        assert entry.host is not None or entry.disk is not None, key
        assert [entry.leases, entry.pins] == counted.get(id(entry), [0, 0]), key
        assert entry.is_rows or node.rows is not None, key
        above = node.parent if entry.is_rows else node
        if entry.facts.object_class is ObjectClass.SHARED and above is not None and above.rows is not None:
            assert above.rows.facts.object_class is ObjectClass.SHARED, (key, "shared, and its parent is not")
        for tier, held in entry.copies():
            space = room.spaces[tier]
            if held.slots:
                space.check_holder(held.slots, key, room.owner(entry, tier))
            pages[tier] += space.pages_in(held.slots)
            assert held.busy >= 0, key
            if held.slots:
                assert room.is_offered(entry, tier) == room.may_go(entry, tier), (key, tier)
                candidates += room.is_offered(entry, tier)
    assert candidates == sum(len(order) for _, order in room.orders()), "an order offers what is not there, or twice"
    for (key, _, tier), held in room.doomed.items():
        assert held.busy or held.status is CopyStatus.INCOMING, key
        pages[tier] += room.spaces[tier].pages_in(held.slots)
    for tier, space in room.spaces.items():
        assert pages[tier] == space.used_pages, (tier, pages[tier], space.used_pages)


def _check_node(node: Node) -> None:
    parent, rows = node.parent, node.rows
    assert parent is not None and rows is not None, "a block without rows is kept"
    assert parent.parent is None or parent.rows is not None, "rows outlived their parent"
    assert node.block == parent.block + 1 and node in parent.children()
    assert node.readable == (parent.readable and rows.is_stored), node.block
    assert node.hot == (parent.hot and rows.is_ready(Tier.HOST)), node.block
    for tier in (Tier.HOST, Tier.DISK):
        rows_below = [child.rows for child in node.children() if child.rows is not None]
        below = [entry for entry in (*rows_below, *node.states) if entry.held(tier) is not None]
        assert node.below(tier) == len(below), (node.block, tier)


def _check_spans(namespace: Namespace) -> None:
    counted: Counter[Span] = Counter()
    for node in (namespace.root, *namespace.nodes.values()):
        if node.parent is None or node.block % SPAN_BLOCKS == 0:
            assert node.span.above is node.parent, node.block
        else:
            assert node.span is node.parent.span, node.block
        counted[node.span] += bool(node.states)
    for span, stateful in counted.items():
        assert span.stateful == stateful, (span.above and span.above.block, span.stateful, stateful)


def _check_contents(namespace: Namespace) -> None:
    contents, entries = namespace.contents, list[Entry]()
    for node in namespace.nodes.values():
        entries += [entry for entry in (node.rows, *node.states) if entry is not None]
    assert contents.rows == sum(entry.is_rows for entry in entries)
    assert contents.states == len(entries) - contents.rows
    for tier, copies in contents.copies.items():
        assert copies == sum(entry.held(tier) is not None for entry in entries), tier
    assert contents.host_bytes == sum(entry.facts.raw_bytes for entry in entries if entry.host is not None)
