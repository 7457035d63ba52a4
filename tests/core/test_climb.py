"""Walks over spans against plain walks over every block, on random trees whose states come and go."""

from __future__ import annotations

import random

import pytest

from kvstore.core import presets
from kvstore.core.climb import ancestor, hot_above, with_states
from kvstore.core.index import SPAN_BLOCKS, Entry, Facts, Namespace, Node, ObjectClass
from kvstore.core.keys import BlockKey


def facts(prefix: bytes, group: int) -> Facts:
    return Facts(
        BlockKey(prefix, group), b"n" * 32, b"", 0, 1, b"", b"", b"", 0, 0.0, b"", ObjectClass.SESSION, None
    )  # fmt: skip


def grown(rng: random.Random) -> list[Node]:
    """Chains that leave each other anywhere, most of them at the deepest block, a few blocks with states."""
    space = Namespace(b"n" * 32, b"r" * 32, presets.v4_tiny(), 1)
    nodes = [space.root]
    for _ in range(rng.randrange(1, 12)):
        node = rng.choice([nodes[-1], rng.choice(nodes)])
        for _ in range(rng.randrange(1, 3 * SPAN_BLOCKS)):
            node = space.add_node(rng.randbytes(32), node)
            nodes.append(node)
    for node in nodes[1:]:
        if rng.random() < 0.03:
            for group in range(1, rng.choice([2, 3])):
                node.add_state(Entry(node, facts(node.prefix, group), 0.0))
    for node in rng.sample(nodes, len(nodes) // 3):
        for state in node.states[: rng.choice([1, 2])]:
            node.remove_state(state)
            node.remove_state(state)  # a second time changes nothing
    for node in nodes[1:]:
        assert node.parent is not None
        node.hot = node.parent.hot and rng.random() < 0.97
    return nodes


def up(node: Node) -> list[Node]:
    path = [node]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    return path


@pytest.mark.parametrize("seed", range(30))
def test_walks_over_spans_find_what_walks_over_blocks_find(seed: int) -> None:
    rng = random.Random(seed)
    nodes = grown(rng)
    for node in rng.sample(nodes, min(len(nodes), 60)):
        path = up(node)
        assert list(with_states(node)) == [above for above in path if above.states]
        assert hot_above(node) is next(above for above in path if above.hot)
        for _ in range(10):
            block = rng.randrange(-1, node.block + 1) if node.block >= 0 else -1
            assert ancestor(node, block) is next(above for above in path if above.block == block)


def test_a_walk_touches_few_blocks_where_few_have_states() -> None:
    space = Namespace(b"n" * 32, b"r" * 32, presets.v4_tiny(), 1)
    node, touched = space.root, 0
    for index in range(8192):
        node = space.add_node(index.to_bytes(32, "little"), node)
        if index in (0, 4000):
            node.add_state(Entry(node, facts(node.prefix, 1), 0.0))

    class Counting(Node):
        """A block that counts how often its span is asked for."""

        __slots__ = ()

        def __getattribute__(self, name: str) -> object:
            nonlocal touched
            touched += name == "span"
            return object.__getattribute__(self, name)

    for each in space.nodes.values():
        each.__class__ = Counting
    assert [found.block for found in with_states(node)] == [4000, 0]
    assert touched < 3 * (8192 // SPAN_BLOCKS) + 4 * SPAN_BLOCKS
