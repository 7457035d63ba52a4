"""The index: a tree of blocks per namespace, and what each block has on which tier.

Every block is a node under its parent; the namespace's root stands before block 0. A node has a rows entry and
may have states; an entry has at most one copy per tier. Two facts are kept closed under prefix, so that a match
bisects instead of walking:

    readable    rows here and of every block before can be read from some tier
    hot         the same, from host memory

Bookkeeping only: what may be dropped is `room.py`'s business, what should happen is `planner.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from kvstore.core.descriptor import pack_record
from kvstore.core.keys import PAGE_BYTES, BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.space import cut_points

SPAN_BLOCKS = 64  # a walk over 8,192 blocks makes 128 steps over spans and at most 63 within one


class CopyStatus(Enum):
    INCOMING = "incoming"  # room is reserved, bytes are not there yet
    READY = "ready"


class ObjectClass(Enum):
    """What an object is to its owner (DESIGN section 9); the values are stored in frames."""

    SESSION = 0
    SHARED = 1
    SCRATCH = 2
    PINNED = 3


class Held:
    """One copy on one tier."""

    __slots__ = ("busy", "flow", "nbytes", "packed", "slots", "stamp", "status")

    def __init__(self, status: CopyStatus, slots: tuple[int, ...], nbytes: int) -> None:
        self.status = status
        self.slots = slots  # page numbers; empty on disk until the frame's length is known
        self.nbytes = nbytes  # raw bytes on the host, frame bytes on disk
        self.busy = 0  # readers and copies that use these bytes now
        self.stamp = 0  # of a host copy: no other copy has or had it (`descriptor.py`)
        self.flow = 0  # of the promotion that fills it (`Copy.flow`)
        self.packed: bytes | None = None  # `record`, once it was asked for

    def record(self, content: bytes) -> bytes:
        """Descriptor of this host copy; made when first asked for, then kept: a session asks again every turn."""
        if self.packed is None:
            self.packed = pack_record(self.slots, self.stamp, content)
        return self.packed


class Facts(NamedTuple):
    """What an object is, wherever it lies: enough to write its frame and to rebuild its entry."""

    key: BlockKey
    namespace: bytes
    parent: bytes
    block: int
    generation: int
    lineage: bytes  # rows: their own; state: of the rows under it
    parent_lineage: bytes
    content: bytes
    raw_bytes: int
    written_at: float  # Unix seconds
    writer: bytes
    object_class: ObjectClass
    ttl_seconds: float | None


class Entry:
    """One object: its facts, its copies, and who holds on to it."""

    __slots__ = ("disk", "facts", "host", "is_fading", "last_used", "leases", "node", "pins", "turn", "uses")

    def __init__(self, node: Node, facts: Facts, now: float) -> None:
        self.node = node
        self.facts = facts
        self.host: Held | None = None
        self.disk: Held | None = None
        self.leases = 0
        self.pins = 0
        self.is_fading = False  # it goes before what is not, until it is used again (`fading.py`)
        self.last_used = now
        self.uses = 0  # requests that named it, or what stood on it while it was there
        self.turn = 0  # of the session that announced it

    def held(self, tier: Tier) -> Held | None:
        return self.host if tier is Tier.HOST else self.disk

    def set_held(self, tier: Tier, held: Held | None) -> None:
        if tier is Tier.HOST:
            self.host = held
        else:
            self.disk = held

    @property
    def is_rows(self) -> bool:
        return self.facts.key.group == 0

    def is_ready(self, tier: Tier) -> bool:
        held = self.held(tier)
        return held is not None and held.status is CopyStatus.READY

    @property
    def is_stored(self) -> bool:
        """Some tier has a finished copy."""
        return self.is_ready(Tier.HOST) or self.is_ready(Tier.DISK)

    def copies(self) -> Iterator[tuple[Tier, Held]]:
        if self.host is not None:
            yield Tier.HOST, self.host
        if self.disk is not None:
            yield Tier.DISK, self.disk


class Span:
    """Up to SPAN_BLOCKS consecutive blocks and their branches, so that a walk up passes in one step what has no states.

    Spans begin at multiples of SPAN_BLOCKS. A count for a whole span, and not a pointer in each node to the next state
    above, because the pointers of thousands of blocks would change with one state.
    """

    __slots__ = ("above", "stateful")

    def __init__(self, above: Node | None) -> None:
        self.above = above  # the block before the span's first one; None: the root's own
        self.stateful = 0  # blocks in it that have states


class Node:
    """One block of a chain."""

    __slots__ = ("_children", "below_disk", "below_host", "block", "hot", "namespace", "parent", "prefix", "readable",
                 "rows", "session", "span", "states")  # fmt: skip

    def __init__(self, namespace: Namespace, prefix: bytes, parent: Node | None, block: int) -> None:
        self.namespace = namespace
        self.prefix = prefix
        self.parent = parent
        self.block = block  # number of the block in its chain; -1 only for the root, which is before block 0
        self.span: Span = Span(parent) if parent is None or block % SPAN_BLOCKS == 0 else parent.span
        self.rows: Entry | None = None
        self.session = ""  # whose it is: the first that put or reached it
        self.states: tuple[Entry, ...] = ()  # changed by add_state and remove_state only
        self.readable = parent is None
        self.hot = parent is None
        self.below_host = 0  # copies of child rows and of own states on the host, incoming ones included
        self.below_disk = 0
        self._children: Node | dict[bytes, Node] | None = None  # nearly every node has one child: no dict for it

    @property
    def end_tokens(self) -> int:
        """Token count of the boundary at this block's end."""
        return (self.block + 1) * self.namespace.layout.block_tokens

    @property
    def lineage(self) -> bytes:
        """Lineage of the rows up to here; the root's below block 0."""
        return ROOT_LINEAGE if self.rows is None else self.rows.facts.lineage

    def below(self, tier: Tier) -> int:
        return self.below_host if tier is Tier.HOST else self.below_disk

    def add_below(self, tier: Tier, count: int) -> None:
        if tier is Tier.HOST:
            self.below_host += count
        else:
            self.below_disk += count

    def state(self, group: int) -> Entry | None:
        for entry in self.states:
            if entry.facts.key.group == group:
                return entry
        return None

    def entry(self, group: int) -> Entry | None:
        return self.rows if group == 0 else self.state(group)

    def add_state(self, entry: Entry) -> None:
        self.span.stateful += not self.states
        self.states = (*self.states, entry)

    def remove_state(self, entry: Entry) -> None:
        had = bool(self.states)
        self.states = tuple(state for state in self.states if state is not entry)
        self.span.stateful -= had and not self.states

    def children(self) -> tuple[Node, ...]:
        if self._children is None:
            return ()
        if isinstance(self._children, Node):
            return (self._children,)
        return tuple(self._children.values())

    def add_child(self, child: Node) -> None:
        if self._children is None:
            self._children = child
        elif isinstance(self._children, Node):
            self._children = {self._children.prefix: self._children, child.prefix: child}
        else:
            self._children[child.prefix] = child

    def remove_child(self, child: Node) -> None:
        if self._children is child:
            self._children = None
        else:
            assert isinstance(self._children, dict)
            del self._children[child.prefix]
            if len(self._children) == 1:
                (self._children,) = self._children.values()

    def subtree(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children())


class Contents:
    """What a namespace has, counted as it comes and goes: a status walks no index of millions under the lock."""

    __slots__ = ("copies", "host_bytes", "rows", "states")

    def __init__(self) -> None:
        self.rows = 0
        self.states = 0
        self.copies = {Tier.HOST: 0, Tier.DISK: 0}  # incoming ones included
        self.host_bytes = 0  # raw bytes of objects with a copy there

    def count_entry(self, entry: Entry, change: int) -> None:
        if entry.is_rows:
            self.rows += change
        else:
            self.states += change

    def count_copy(self, entry: Entry, tier: Tier, change: int) -> None:
        self.copies[tier] += change
        if tier is Tier.HOST:
            self.host_bytes += change * entry.facts.raw_bytes


class Namespace:
    """One tenant's blocks of one layout."""

    def __init__(self, name: bytes, root: bytes, layout: ModelLayout, slot_pages: int, as_slot_pages: int = 0) -> None:
        """`slot_pages` 0: there are no slots, an object takes its bytes (`ideal.py`), or as many as in slots of
        `as_slot_pages`."""
        self.name = name  # namespace id, 32 bytes
        self.layout = layout
        self.slot_pages = slot_pages  # host slots, in pages
        whole = max(slot_pages * PAGE_BYTES, 0) or max(group.nbytes for group in layout.groups)
        self.cuts = tuple(cut_points(group, whole) for group in layout.groups)
        self.lengths = tuple(group.nbytes for group in layout.groups)  # bytes: a sum over sections is not made twice
        as_slot = as_slot_pages * PAGE_BYTES
        bytes_taken = tuple(
            len(cut_points(group, as_slot)) * as_slot if as_slot else group.nbytes for group in layout.groups
        )
        self._needed = tuple(map(len, self.cuts)) if slot_pages else bytes_taken  # slots, or bytes; by group
        self.root = Node(self, root, None, -1)
        self.nodes: dict[bytes, Node] = {}
        self.contents = Contents()

    def node(self, prefix: bytes) -> Node | None:
        return self.root if prefix == self.root.prefix else self.nodes.get(prefix)

    def slots_needed(self, group: int) -> int:
        """Slots of one object on the host; bytes where there are no slots."""
        return self._needed[group]

    def add_node(self, prefix: bytes, parent: Node) -> Node:
        node = self.nodes[prefix] = Node(self, prefix, parent, parent.block + 1)
        parent.add_child(node)
        return node

    def remove_node(self, node: Node) -> None:
        assert node.parent is not None
        node.parent.remove_child(node)
        del self.nodes[node.prefix]


def attach_copy(entry: Entry, tier: Tier, held: Held) -> None:
    """Give an entry a copy that is on its way (or, in recovery, already there)."""
    assert entry.held(tier) is None
    entry.set_held(tier, held)
    entry.node.namespace.contents.count_copy(entry, tier, 1)
    _parent_of(entry).add_below(tier, 1)
    if held.status is CopyStatus.READY:
        mark_ready(entry, tier)


def mark_ready(entry: Entry, tier: Tier) -> None:
    """A copy arrived: it, and what waited for it below, may become readable and hot."""
    held = entry.held(tier)
    assert held is not None
    held.status = CopyStatus.READY
    if not entry.is_rows:
        return
    stack = [entry.node]
    while stack:
        node = stack.pop()
        rows, parent = node.rows, node.parent
        if rows is None or parent is None:
            continue
        is_on_host = rows.host is not None and rows.host.status is CopyStatus.READY
        readable = parent.readable and (is_on_host or rows.is_ready(Tier.DISK))
        hot = parent.hot and is_on_host
        if readable is not node.readable or hot is not node.hot:
            node.readable, node.hot = readable, hot
            stack.extend(node.children())


def detach_copy(entry: Entry, tier: Tier) -> Held:
    """Take a copy away. The caller drops what depended on it."""
    held = entry.held(tier)
    assert held is not None
    entry.set_held(tier, None)
    entry.node.namespace.contents.count_copy(entry, tier, -1)
    _parent_of(entry).add_below(tier, -1)
    if entry.is_rows and tier is Tier.HOST:
        cool(entry.node)
    return held


def cool(node: Node) -> None:
    """Rows left the host: nothing at or below this node is hot any more."""
    stack = [node]
    while stack:
        node = stack.pop()
        if node.hot:
            node.hot = False
            stack.extend(node.children())


def _parent_of(entry: Entry) -> Node:
    """The node that must outlive this entry: its parent block for rows, its own block for a state."""
    if not entry.is_rows:
        return entry.node
    assert entry.node.parent is not None
    return entry.node.parent
