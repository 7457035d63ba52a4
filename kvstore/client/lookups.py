"""One question to the store: hash, ask (the tail of a known sequence, or in parts), check the answer. Any thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvstore.client.arena import Arena
from kvstore.client.hashing import HashedTokens, Hasher
from kvstore.client.lanes import NoLane
from kvstore.client.lineages import Lineages
from kvstore.client.link import Link, Session
from kvstore.client.located import Located, located
from kvstore.client.match import Asked, ClientMatch, Lease
from kvstore.client.patience import Patience
from kvstore.core.cost import CostModel
from kvstore.core.errors import InvalidInput, StoreUnavailable
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Match, Plan, PlanKind
from kvstore.rpc.convert import chain_to_wire, hints_to_wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.matches import match_from_wire

# A chain of fewer blocks is sent whole: 2 KiB of hashes cost nothing, a refused tail costs a second call.
TAIL_MIN_BLOCKS = 64


HOST_SPEED_WEIGHT = 0.2  # of a new measurement
HOST_SPEED_LEAST_BYTES = 256 << 10  # smaller fetches measure the call


class HostSpeed:
    """How fast this worker takes hot bytes out of the store, calls included: what a hot load costs it.

    Written by fetches of any thread: a lost update costs one measurement.
    """

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None

    def note(self, nbytes: int, seconds: float) -> None:
        if nbytes < HOST_SPEED_LEAST_BYTES or seconds <= 0:
            return
        known, rate = self.bytes_per_second, nbytes / seconds
        self.bytes_per_second = rate if known is None else known + HOST_SPEED_WEIGHT * (rate - known)


class Lookups:
    """Finds matches for one layout over one link."""

    def __init__(
        self,
        link: Link,
        hasher: Hasher,
        lineages: Lineages,
        layout: ModelLayout,
        *,
        can_replay: bool,
        worker_flops: float | None,
        release: Callable[[int, int], None],
    ) -> None:
        self._link, self._hasher, self._lineages, self._layout = link, hasher, lineages, layout
        self._can_replay, self._release = can_replay, release
        self._cost = CostModel.of(layout)
        self.worker_flops = worker_flops  # may be set at any time; a lookup uses what it finds
        self.host_speed = HostSpeed()
        self._arena: Arena | None = None  # of the attachment that was last seen

    def patience(self, match: ClientMatch) -> Patience | None:
        """How long to wait for this match's load; None where nothing says what computing would take."""
        tokens = len(match.asked.tokens)
        return Patience.of(
            self._layout, self._cost, self.worker_flops, tokens, match.found, match.plan, self._can_replay
        )

    def find(self, asked: Asked, deadline: float) -> ClientMatch:
        """The store's match for these tokens. Raises StoreUnavailable."""
        return self._link.with_session(lambda session: self._find(session, asked, deadline), deadline)

    def _find(self, session: Session, asked: Asked, deadline: float) -> ClientMatch:
        hashed = self._hasher.hashed(session.root, asked.tokens, asked.extras)
        first = hashed.resumable_blocks - 1 if hashed.resumable_blocks > TAIL_MIN_BLOCKS else 0
        best = self._ask_in_parts(session, hashed, first, asked, deadline)
        if first and best.plan.kind is PlanKind.COLD:
            # what was resumable is gone, or only something shallower is left: the tail cannot tell
            self._link.counters.add("lookup_tails_refused")
            best.release()
            best = self._ask_in_parts(session, hashed, 0, asked, deadline)
        if not asked.hot_only:
            hashed.resumable_blocks = best.plan.tokens // self._layout.block_tokens
        if best.plan.tokens and self._layout.canonical:  # else the worker's own rows may be another run's
            position = hashed.position(best.plan.tokens // self._layout.block_tokens)
            self._lineages.note_if_new(position, best.found.lineage)
        return best

    def _ask_in_parts(
        self, session: Session, hashed: HashedTokens, first: int, asked: Asked, deadline: float
    ) -> ClientMatch:
        """A chain longer than the daemon's batch limit is asked for part by part, while all of a part is there."""
        end = min(first + session.batch_blocks, hashed.blocks)
        best = latest = self._ask(session, hashed, first, end, asked, deadline)
        while end < hashed.blocks and latest.rows_tokens >= end * self._layout.block_tokens:
            self._link.counters.add("lookup_parts")
            first, end = end, min(end + session.batch_blocks, hashed.blocks)
            try:
                latest = self._ask(session, hashed, first, end, asked, deadline)
            except StoreUnavailable:  # counted; what the parts before it gave still holds
                break
            # a part may have whole rows and no state, and a later one a state again
            worse, best = sorted((best, latest), key=lambda match: (match.plan.tokens, match.rows_tokens))
            worse.release()
        return best

    def _ask(
        self, session: Session, hashed: HashedTokens, first: int, end: int, asked: Asked, deadline: float
    ) -> ClientMatch:
        request = pb.LookupRequest(
            namespace_id=session.namespace,
            worker_id=self._link.worker_id,
            chain=chain_to_wire(hashed.chain(first, end)),
            prompt_tokens=len(asked.tokens),
            hints=hints_to_wire(asked.hints),
            can_replay=self._can_replay,
            worker_flops=self.worker_flops,
            host_bytes_per_second=self.host_speed.bytes_per_second,
            hot_only=asked.hot_only,
            order=pb.LOAD_ORDER_LAYERS if asked.by_layers else pb.LOAD_ORDER_BLOCKS,
        )
        arena = self._current_arena(session, deadline)
        if arena is not None:
            request.want_descriptors = True
        sent = time.monotonic()
        answer = self._link.call(self._link.calls.lookup, request, deadline)
        self._link.same_epoch(session, answer.boot_epoch)
        place: Located | None = None
        try:
            found = match_from_wire(answer)
            self._check(found, hashed, len(asked.tokens))
            if arena is not None and found.lease is not None:
                place = located(arena, answer, 0, sent + session.lease_seconds, deadline)
        except InvalidInput as error:
            raise self._link.failure(error) from error
        except NoLane:
            self._link.counters.add("lane_fallbacks")  # a region could not be had: these bytes will be streamed
        if first:
            self._link.counters.add("lookup_tails")
        return ClientMatch(asked, found, hashed, Lease(found.lease, answer.boot_epoch, self._release), place)

    def _current_arena(self, session: Session, deadline: float) -> Arena | None:
        """The daemon's memory as this worker has mapped it; None where it is not attached."""
        lanes = self._link.attaching.usable(self._link.left(deadline))
        if lanes is None or lanes.boot_epoch != session.boot_epoch:
            return None
        arena = self._arena
        if arena is None or arena.lanes is not lanes:
            arena = self._arena = Arena(self._link, lanes, session.namespace, self._layout)
        return arena

    def _check(self, found: Match, hashed: HashedTokens, prompt_tokens: int) -> None:
        """Raise InvalidInput for a match that this prompt and layout cannot have: no checksum guards an answer."""
        plans = [found.plan] if found.replay is None else [found.plan, found.replay]
        boundaries = [point.tokens for point in found.resume_points] + [plan.tokens for plan in plans]
        for tokens in boundaries:
            if tokens % self._layout.resume_alignment or tokens > min(found.rows_tokens, prompt_tokens - 1):
                raise InvalidInput(f"the match resumes at {tokens} of {prompt_tokens} tokens, which cannot be")
        for plan in plans:
            if plan.compute_from != self._compute_from(plan):
                raise InvalidInput(f"the match computes from {plan.compute_from} for {plan.tokens}, which is not exact")
        if found.rows_tokens > hashed.blocks * self._layout.block_tokens:
            raise InvalidInput(f"the match has rows of {found.rows_tokens} tokens, more than were asked for")
        if found.canonical != self._layout.canonical:
            raise InvalidInput(f"the match says canonical={found.canonical}, which the layout does not")

    def _compute_from(self, plan: Plan) -> int | None:
        """Where computing starts in an exact run of this plan; None where there is no such plan."""
        if plan.kind is not PlanKind.REPLAY:
            return plan.tokens
        replay = self._layout.replay_tokens
        return None if replay is None or replay > plan.tokens else plan.tokens - replay


def cut_plan(layout: ModelLayout, tokens: int, *, can_replay: bool) -> Plan | None:
    """What rows of `tokens` tokens alone allow, without asking the store: a resume, a replay, or None for nothing."""
    tokens -= tokens % layout.resume_alignment
    if tokens <= 0:
        return None
    if layout.state_group is None:
        return Plan(PlanKind.RESUME, tokens, tokens, 0, None, None, None)
    replay = layout.replay_tokens
    if not can_replay or replay is None or tokens <= replay:
        return None
    return Plan(PlanKind.REPLAY, tokens, tokens - replay, 0, None, None, None)


def require_store(match: ClientMatch) -> HashedTokens:
    """The hashes of a match that came from a store; a match without one raises StoreUnavailable."""
    if match.hashed is None:
        raise StoreUnavailable("this match did not come from a store")
    return match.hashed
