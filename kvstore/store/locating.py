"""Where leased objects lie in host memory: descriptors for workers that have mapped it.

The lock is held to find a lease and to wait, not while thousands of descriptors are gathered: what a lease holds does
not move, and where a fault takes it away all the same, its stamp is gone and the worker's copy counts as a miss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from kvstore.core.index import CopyStatus, Entry, Node
from kvstore.core.keys import Tier
from kvstore.core.lease import Lease
from kvstore.store.kept import Kept


class Located(NamedTuple):
    """Objects of one group, block after block."""

    group: int
    first_block: int
    length: int  # raw bytes of each
    records: bytes  # `core/descriptor.py`
    objects: int


class LocatedObjects(NamedTuple):
    rows: Located | None  # unbroken from the first block asked for; None: not even that one
    states: tuple[Located, ...]
    is_loading: bool  # more is on its way
    layers: int  # leading layers of which all rows are whole


FEW_BLOCKS = 4  # that are still awaited: then every one counts
REST_SECONDS = 0.002  # 4 MB of a quick disk

NOTHING = LocatedObjects(None, (), False, 0)


class Locating:
    """Any thread."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def hot(self, lease: int) -> LocatedObjects:
        """What of a lease's plan is on the host now, from block 0."""
        with self._kept.lock:
            found = self._kept.planner.leases.find(lease)
        if found is None:
            return NOTHING
        # the lease's deepest hot rows, or below it nothing is hot: found without the lock, checked node by node
        # (short names and no call for what is packed already: a prompt has thousands of blocks, and the interpreter
        # runs nobody else meanwhile)
        records: list[bytes] = []
        ready = CopyStatus.READY
        node: Node | None = found.rows.node
        while node is not None and not node.hot:
            node = node.parent
        while node is not None and node.parent is not None:
            rows = node.rows
            held = rows.host if rows is not None else None
            if rows is None or held is None or held.status is not ready:
                records.clear()  # lost just now: what is below it cannot be used
            else:
                records.append(held.packed or held.record(rows.facts.content))
            node = node.parent
        records.reverse()
        states = [state for state in found.states if state.is_ready(Tier.HOST)]
        return LocatedObjects(_rows(found, 0, records), _states(states), False, 0)

    def wait(
        self, lease: int, first_block: int, min_blocks: int, seen_layers: int | None, deadline: float
    ) -> LocatedObjects:
        """Rows from `first_block` on that are on the host, when there are `min_blocks` of them, or all that is coming.

        With `seen_layers` also those that are being filled, when more leading layers than that are whole.
        """
        with self._kept.changed:
            found = self._kept.planner.leases.find(lease)
            if found is None:
                return NOTHING
            nodes = _path(found.rows.node, first_block)
            here = 0
            while True:
                while here and not nodes[here - 1].hot:  # went while we waited: hot blocks are closed under prefix
                    here -= 1
                while here < len(nodes) and nodes[here].hot:
                    here += 1
                is_loading = _is_coming(nodes[here].rows) if here < len(nodes) else False
                is_loading = is_loading or any(_is_coming(state) for state in found.states)
                is_whole = here == len(nodes) and not is_loading
                layers = self._layers(found, nodes[here:]) if seen_layers is not None else 0
                is_enough = here >= min_blocks if seen_layers is None else layers > seen_layers
                left = deadline - time.monotonic()
                if is_whole or is_enough or not is_loading or left <= 0:
                    break
                self._kept.changed.wait(left)
                if seen_layers is None and min_blocks - here > FEW_BLOCKS:  # each promotion wakes us, and takes turns
                    self._kept.changed.release()
                    time.sleep(min(left, REST_SECONDS))
                    self._kept.changed.acquire()
            if here:
                rows = nodes[here - 1].rows
                assert rows is not None
                self._kept.planner.extend(found, rows)
            end = here
            while seen_layers is not None and end < len(nodes) and _is_coming(nodes[end].rows):
                end += 1
            records = []
            for node in nodes[:end]:
                assert node.rows is not None and node.rows.host is not None
                records.append(node.rows.host.record(node.rows.facts.content))
            states = [state for state in found.states if state.is_ready(Tier.HOST)]
            return LocatedObjects(_rows(found, first_block, records), _states(states), is_loading, layers)

    def _layers(self, lease: Lease, coming: Sequence[Node]) -> int:
        """Leading layers of which every row of the plan is whole."""
        flows = {node.rows.host.flow for node in coming if node.rows is not None and node.rows.host is not None}
        layers = len(lease.rows.node.namespace.layout.layers)
        return min([layers, *(self._kept.layers.get(flow, 0) for flow in flows)])


def _path(node: Node, first_block: int) -> list[Node]:
    """The blocks from `first_block` to the node's, root first."""
    path: list[Node] = []
    above: Node | None = node
    while above is not None and above.block >= max(first_block, 0):
        path.append(above)
        above = above.parent
    path.reverse()
    return path


def _is_coming(entry: Entry | None) -> bool:
    return entry is not None and entry.host is not None and entry.host.status is CopyStatus.INCOMING


def _rows(lease: Lease, first_block: int, records: Sequence[bytes]) -> Located | None:
    if not records:
        return None
    return Located(0, first_block, lease.rows.facts.raw_bytes, b"".join(records), len(records))


def _states(states: Sequence[Entry]) -> tuple[Located, ...]:
    located = []
    for state in states:
        held = state.host
        if held is not None:
            record = held.record(state.facts.content)
            located.append(Located(state.facts.key.group, state.node.block, state.facts.raw_bytes, record, 1))
    return tuple(located)
