"""Walks from a block towards the root that do not touch each of thousands of blocks: they run under the store's lock.

A walk over `n` blocks makes `n / SPAN_BLOCKS` steps from span to span and up to SPAN_BLOCKS steps in each span that it
has to look into. Parents never change while a block exists, so nothing here can be out of date.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.core.index import Node


def ancestor(node: Node, block: int) -> Node:
    """The node of block number `block` on the way from `node` to the root; the root for -1."""
    above = node.span.above
    while above is not None and above.block >= block:
        node, above = above, above.span.above
    while node.block > block:
        assert node.parent is not None
        node = node.parent
    return node


def with_states(node: Node) -> Iterator[Node]:
    """Blocks that have states, from `node` up."""
    above: Node | None = node
    while above is not None:
        span = above.span
        if not span.stateful:
            above = span.above
            continue
        while above is not None and above.span is span:
            if above.states:
                yield above
            above = above.parent


def hot_above(node: Node) -> Node:
    """The deepest hot block at or above `node`; hot blocks are closed under prefix, and the root is one."""
    above = node.span.above
    while above is not None and not above.hot:
        node, above = above, above.span.above
    while not node.hot:
        assert node.parent is not None
        node = node.parent
    return node
