"""Why a lookup was answered with less than its prompt: the first thing it lacked, counted and kept for questions.

`judge` runs on every lookup, under the store's lock: of a full hit it keeps one tuple, of anything else it asks the
directory of what left (`ghosts.py`) once. Whatever walks further belongs into `explain.py`, which runs when asked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from kvstore.core.ghosts import Departure, Ghost, Ghosts
from kvstore.core.index import Namespace
from kvstore.core.keys import BlockKey
from kvstore.core.match import MissReason, PlanKind
from kvstore.core.matching import Found, Request

MAX_LAST_LOOKUPS = 4096  # sessions whose last lookup is kept, under 1 KB each

_REASONS = {
    Departure.EVICTED: MissReason.EVICTED,
    Departure.EXPIRED: MissReason.EXPIRED,
    Departure.CORRUPT: MissReason.CORRUPT,
    Departure.REPORTED: MissReason.CORRUPT,
    Departure.UNFINISHED: MissReason.NEVER_SEEN,  # nobody could ever read it
    Departure.WITH_PARENT: MissReason.ROWS_MISSING,
    Departure.REFUSED: MissReason.QUOTA,
}


class Missing(NamedTuple):
    """The first thing that a match lacks, from the root."""

    reason: MissReason
    block: int  # number of the block that it is about; where nothing is missing, the one after the plan
    key: BlockKey | None = None  # the object; None where the request did not name it, or nothing is missing
    ghost: Ghost | None = None  # what is known of it


class LastLookup(NamedTuple):
    """One lookup, as far as it is kept. Tokens; seconds of the planner's clock."""

    namespace: bytes
    session: str
    at: float
    prompt_tokens: int
    kind: PlanKind
    plan_tokens: int
    rows_tokens: int
    last: bytes  # prefix of the deepest block that was readable; the root's where none was
    missing: Missing


class Misses:
    """Counts and the last lookup of each session."""

    def __init__(self, ghosts: Ghosts) -> None:
        self.ghosts = ghosts
        self.lookups: Counter[MissReason] = Counter()  # by what they lacked first, NONE included
        self.tokens: Counter[MissReason] = Counter()  # that could have been resumed
        self.last: OrderedDict[tuple[bytes, str], LastLookup] = OrderedDict()  # oldest first

    def judge(self, request: Request, found: Found, namespace: Namespace, others: Iterable[Namespace]) -> MissReason:
        """Find out what a lookup lacked, count it and keep it. `others` are all namespaces.

        Lookups with `hot_only` are counted and not kept: a worker asks so between two chunks of a prefill that it
        looked up before.
        """
        missing = first_missing(request, found, namespace, self.ghosts, others)
        reason = missing.reason
        self.lookups[reason] += 1
        if reason is not MissReason.NONE:
            self._count_tokens(reason, request, found, namespace, others)
        if request.hot_only:
            return reason
        name = (namespace.name, request.hints.session)
        self.last[name] = last_lookup(request, found, namespace, missing, self.ghosts.now)
        self.last.move_to_end(name)
        if len(self.last) > MAX_LAST_LOOKUPS:
            self.last.popitem(last=False)
        return reason

    def _count_tokens(
        self, reason: MissReason, request: Request, found: Found, namespace: Namespace, others: Iterable[Namespace]
    ) -> None:
        """What was lost, in tokens: to a missing state up to the rows' end, to missing rows from there."""
        best, plan_end = _aligned(request.prompt_tokens - 1, namespace), found.match.plan.tokens
        if reason is MissReason.STATE_MISSING:
            limit = _aligned(min(found.match.rows_tokens, request.prompt_tokens - 1), namespace)
            self.tokens[reason] += limit - plan_end
            if limit == best:
                return
            plan_end, reason = limit, _missing_rows(request, found, namespace, self.ghosts, others).reason
        if best > plan_end:
            self.tokens[reason] += best - plan_end


def last_lookup(request: Request, found: Found, namespace: Namespace, missing: Missing, now: float) -> LastLookup:
    match, last = found.match, namespace.root if found.last is None else found.last
    return LastLookup(
        namespace.name, request.hints.session, now, request.prompt_tokens, match.plan.kind, match.plan.tokens,
        match.rows_tokens, last.prefix, missing,
    )  # fmt: skip


def first_missing(
    request: Request, found: Found, namespace: Namespace, ghosts: Ghosts, others: Iterable[Namespace]
) -> Missing:
    """What a match lacks first: a state, where rows reach further than the plan does; else the next rows."""
    reason, layout, chain = found.match.reason, namespace.layout, request.chain
    plan_end = found.match.plan.tokens // layout.block_tokens
    if reason is MissReason.PARENT_UNKNOWN:
        key = BlockKey(chain.parent, 0)
        return Missing(reason, chain.first_block - 1, key, ghosts.find(key))
    if reason is MissReason.STATE_MISSING:
        limit = _aligned(min(found.match.rows_tokens, request.prompt_tokens - 1), namespace)
        block = limit // layout.block_tokens - 1
        index = block - chain.first_block
        prefix = chain.hash_at(index) if index >= 0 else chain.parent if index == -1 else None
        key_of_state = None if prefix is None else BlockKey(prefix, layout.state_group or 0)
        return Missing(reason, block, key_of_state, None if key_of_state is None else ghosts.find(key_of_state))
    if reason is not MissReason.NEVER_SEEN:
        return Missing(reason, plan_end)
    return _missing_rows(request, found, namespace, ghosts, others)


def _missing_rows(
    request: Request, found: Found, namespace: Namespace, ghosts: Ghosts, others: Iterable[Namespace]
) -> Missing:
    """What became of the rows behind the last readable block."""
    chain, reason = request.chain, MissReason.NEVER_SEEN
    assert found.last is not None
    block = found.last.block + 1
    index = block - chain.first_block
    if not 0 <= index < chain.blocks:  # before the chain only what is not hot can be missing: its parent is readable
        return Missing(MissReason.COLDER if index < 0 else reason, block)
    key = BlockKey(chain.hash_at(index), 0)
    node = namespace.nodes.get(key.prefix)
    if node is not None:
        return Missing(MissReason.COLDER if node.readable else MissReason.UPLOADING, block, key)
    ghost = ghosts.find(key)
    if ghost is not None:
        return Missing(_REASONS[ghost.why], block, key, ghost)
    if block == 0 and not namespace.contents.rows and namesakes(namespace, others):
        reason = MissReason.NAMESPACE_DIFFERS
    return Missing(reason, block, key)


def namesakes(namespace: Namespace, others: Iterable[Namespace]) -> list[Namespace]:
    """Other namespaces of the same model that hold something."""
    model = namespace.layout.model
    return [other for other in others if other is not namespace and other.contents.rows and other.layout.model == model]


def _aligned(tokens: int, namespace: Namespace) -> int:
    return tokens - tokens % namespace.layout.resume_alignment
