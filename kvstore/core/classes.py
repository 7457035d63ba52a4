"""The class of an object (DESIGN section 9): what a request says of it, and what is seen of it later.

Announced: up to a breakpoint it is SHARED. What the next turn strips, and the tail of a quick instruction's branch, is
SCRATCH: both lie behind the prompt, so the worker says with its puts where the prompt ended (`Hints.prompt_tokens`).
All else is SESSION. Without that hint nothing is scratch: a guess would cost a hit.

Seen: what a second session reaches is SHARED from there up; scratch that a later turn reaches was none.

SHARED is closed under prefix, and above a block of one session all is shared or that session's own. So a walk up stops
at what it knows, and each block is passed once in its life as it changes, not once a lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvstore.core.climb import ancestor
from kvstore.core.index import Entry, Node, ObjectClass
from kvstore.core.match import Hints, InferenceMode

QUICK = "quick"  # `Hints.kind` of one quick instruction (`<|action|>`, `<|title|>`, ...): a branch nobody continues
# Clients of chat services wait for an answer for ten minutes by default: who asks once more, because the answer broke
# off, does it by then, and an instruction behind an answer of 25,000 tokens at 50 a second comes by then.
SCRATCH_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Lives:
    """Seconds unused after which an object of a class is forgotten; None: when there is no room for it.

    A TTL that the request gave goes before these.
    """

    scratch: float | None = SCRATCH_SECONDS
    session: float | None = None
    shared: float | None = None

    def of(self, object_class: ObjectClass) -> float | None:
        if object_class is ObjectClass.SCRATCH:
            return self.scratch
        return self.shared if object_class is ObjectClass.SHARED else self.session


def output_is_stripped(hints: Hints) -> bool:
    """Nobody will ask for what this request computes behind its prompt (V4-CACHE section 6).

    Thinking without tools: the next prompt parts from this one behind `<|Assistant|>`, the prompt's last token but one.
    A quick instruction is the last token of its prompt, and its branch ends with its answer. Without thinking, and
    with tools, the history only grows. A mode that was not said strips nothing.
    """
    thinks = hints.mode in (InferenceMode.THINK_HIGH, InferenceMode.THINK_MAX)
    return hints.kind == QUICK or (thinks and not hints.has_tools)


def output_is_awaited(hints: Hints) -> bool:
    """`<|title|>` comes behind the first answer of a session, and is the one use of an output that is stripped.

    So it counts as any other until then. Turn 0: the worker does not say which it is.
    """
    return hints.kind != QUICK and hints.turn <= 1


def announced_class(end_tokens: int, hints: Hints) -> ObjectClass:
    """Of rows or a state whose block ends at so many tokens."""
    if hints.breakpoints and end_tokens <= max(hints.breakpoints):
        return ObjectClass.SHARED
    # a block that has the prompt's last token parts from every other prompt there: `<think>`, or the instruction
    if hints.prompt_tokens is not None and end_tokens >= hints.prompt_tokens and output_is_stripped(hints):
        return ObjectClass.SCRATCH
    return ObjectClass.SESSION


def owner_of(hints: Hints) -> str:
    """Whose blocks a request puts; none's for a quick instruction, so that its branch never counts as a use."""
    return "" if hints.kind == QUICK else hints.session


def is_shared(node: Node) -> bool:
    return node.rows is not None and node.rows.facts.object_class is ObjectClass.SHARED


def is_kept(node: Node) -> bool:
    """Neither it nor what stands above it is scratch."""
    return node.rows is not None and node.rows.facts.object_class is not ObjectClass.SCRATCH


class Classes:
    """Changes classes by what is seen. `changed` hears of each entry afterwards, with the class that it had."""

    def __init__(self, lives: Lives, changed: Callable[[Entry, ObjectClass], None]) -> None:
        self.lives = lives
        self.changes = {ObjectClass.SHARED: 0, ObjectClass.SESSION: 0}  # objects that became that
        self._changed = changed

    def ttl_seconds(self, object_class: ObjectClass, hints: Hints) -> float | None:
        return self.lives.of(object_class) if hints.ttl_seconds is None else hints.ttl_seconds

    def reached(self, node: Node, hints: Hints) -> None:
        """A request's chain goes through this block and all above it. No sign of life from a quick instruction."""
        if hints.breakpoints:
            declared = min(max(hints.breakpoints), node.end_tokens)
            self.share(ancestor(node, declared // node.namespace.layout.block_tokens - 1))
        if hints.kind == QUICK:
            return
        session = hints.session
        while node.rows is not None and node.rows.facts.object_class is not ObjectClass.SHARED:
            if session and node.session and node.session != session:
                self.share(node)
                return
            if node.rows.facts.object_class is ObjectClass.SCRATCH:
                self._become(node, ObjectClass.SESSION)
            elif node.session == session or not session:
                return
            node.session = node.session or session
            assert node.parent is not None
            node = node.parent

    def share(self, node: Node) -> None:
        """This block and all above it are shared from now on."""
        while node.rows is not None and node.rows.facts.object_class is not ObjectClass.SHARED:
            self._become(node, ObjectClass.SHARED)
            assert node.parent is not None
            node = node.parent

    def _become(self, node: Node, new: ObjectClass) -> None:
        """Rows and states of a block; a life that their old class gave them becomes the new one's."""
        for entry in (node.rows, *node.states):
            if entry is None or entry.facts.object_class is new:
                continue
            old, ttl_seconds = entry.facts.object_class, entry.facts.ttl_seconds
            if ttl_seconds == self.lives.of(old):
                ttl_seconds = self.lives.of(new)
            entry.facts = entry.facts._replace(object_class=new, ttl_seconds=ttl_seconds)
            self.changes[new] += 1
            self._changed(entry, old)
