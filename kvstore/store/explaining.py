"""Why lookups got less than their prompt, put together for operators.

Any thread. The lock is held for bounded walks over the index.
"""

from __future__ import annotations

from typing import NamedTuple

from kvstore.core.errors import InvalidInput
from kvstore.core.explain import Explanation, Victim, explained, next_victims
from kvstore.core.keys import HASH_BYTES, Chain
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, Speeds
from kvstore.core.matching import Request
from kvstore.core.misses import LastLookup
from kvstore.store.kept import Kept

MAX_VICTIMS = 64  # owners of room that are told of


class Question(NamedTuple):
    """A chain's hashes, else a session's last lookup, else the last lookups of all sessions."""

    session: str
    hashes: bytes
    namespace: bytes  # of the chain; empty: the one that knows its first block
    prompt_tokens: int  # of the chain; 0: its whole blocks and one token
    max_objects: int
    max_lookups: int


class Explained(NamedTuple):
    explanations: tuple[Explanation, ...]  # the latest first
    victims: tuple[Victim, ...]
    layouts: dict[bytes, ModelLayout]  # by namespace
    policy: str
    now: float
    ghosts: int


def explain(kept: Kept, question: Question) -> Explained:
    """InvalidInput where the question names what is not there."""
    with kept.lock:
        planner = kept.planner
        now = kept.clock()
        if question.hashes:
            lookups = [planner.asked(*_request(kept, question), now)]
        else:
            lookups = _last(kept, question)
        found = [explained(each, planner.namespaces, planner.room, planner.misses.ghosts, question.max_objects, now)
                 for each in lookups]  # fmt: skip
        return Explained(
            tuple(found),
            tuple(next_victims(planner.room, now, MAX_VICTIMS)),
            {name: space.layout for name, space in planner.namespaces.items()},
            planner.room.policy.name,
            now,
            planner.misses.ghosts.size,
        )


def _last(kept: Kept, question: Question) -> list[LastLookup]:
    """The last lookup of the named session in each namespace, or of all sessions; the latest first."""
    misses, names = kept.planner.misses, kept.planner.namespaces
    if not question.session:
        return [lookup for lookup, _ in zip(reversed(misses.last.values()), range(question.max_lookups), strict=False)]
    found = [misses.last[name, question.session] for name in names if (name, question.session) in misses.last]
    if not found:
        raise InvalidInput(
            f"no lookup of session {question.session!r} is remembered: the last of {len(misses.last)} sessions are, "
            "since the daemon's start"
        )
    return sorted(found, key=lambda lookup: -lookup.at)[: question.max_lookups]


def _request(kept: Kept, question: Question) -> tuple[bytes, Request]:
    """A lookup of the chain, by nobody and with no speed: the deepest plan."""
    first = question.hashes[:HASH_BYTES]
    spaces = kept.planner.namespaces
    name = question.namespace
    if not name:
        knowing = [space.name for space in spaces.values() if first in space.nodes]
        if not knowing and len(spaces) != 1:
            raise InvalidInput(
                f"none of {len(spaces)} namespaces knows block {first[:4].hex()}, the chain's first: "
                "name the namespace, or check that the hashes begin at block 0"
            )
        name = knowing[0] if knowing else next(iter(spaces))
    kept.check_namespace(name)
    chain = Chain(0, spaces[name].root.prefix, question.hashes)
    end = chain.blocks * spaces[name].layout.block_tokens
    tokens = question.prompt_tokens or end + 1
    if tokens < end:
        raise InvalidInput(f"the chain ends at token {end}, behind the prompt's {tokens}: send its whole blocks only")
    return name, Request(chain, tokens, Hints(), False, Speeds({}))
