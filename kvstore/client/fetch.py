"""Carries out a match's plan: streams, verifies, and where something is gone asks once more and settles for less.

Never raises for a fault of the store: the answer is always blocks that hold together, at worst none. Rows that are
already here are kept; that rows of two tries belong to one run is checked by their lineage, which is computed from
their bytes.
"""

from __future__ import annotations

import contextlib
import math

from kvstore.client.arena import Slots
from kvstore.client.buffers import BufferPool
from kvstore.client.fetching import Gone, Load, Receiver, Wanted, batches
from kvstore.client.lineages import Lineages
from kvstore.client.link import Link, Session
from kvstore.client.lookups import Lookups, cut_plan, require_store
from kvstore.client.match import Asked, Blocks, ClientMatch
from kvstore.client.outcomes import Outcomes
from kvstore.client.packing import Packing
from kvstore.client.settings import Timeouts
from kvstore.client.shared import SharedReader
from kvstore.client.target import target_of
from kvstore.client.watching import Abandoned, Watch
from kvstore.client.wish import WHOLE, Wish
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import PlanKind
from kvstore.rpc.convert import chain_to_wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_OBJECTS

FIRST_TRY_SHARE = 0.75  # of fetch_seconds; the rest is for the second try
CATCH_UP_SECONDS = 0.005  # at least, between two looks whether an abandoned load has come in
CATCH_UP_LOADS = 2.0  # it has to pay for twice its price: a deeper point may be there in a moment


class Fetcher:
    """Fetches for one layout over one link. Any thread."""

    def __init__(
        self,
        link: Link,
        lookups: Lookups,
        lineages: Lineages,
        layout: ModelLayout,
        packings: tuple[Packing, ...],
        pool: BufferPool,
        timeouts: Timeouts,
        *,
        can_replay: bool,
    ) -> None:
        self._link, self._lookups, self._layout = link, lookups, layout
        self._packings, self._pool, self._timeouts, self._can_replay = packings, pool, timeouts, can_replay
        self.shared = SharedReader(link, packings, pool)
        self._outcomes = Outcomes(link.counters, lineages, layout, packings, pool)
        self._optional = tuple(index for index, group in enumerate(layout.groups) if group.optional)

    def fetch(self, match: ClientMatch, wish: Wish) -> Blocks:
        """The match's bytes, or those of a shorter plan. Raises InvalidInput for a wish that cannot be."""
        deadline = self._link.deadline(self._timeouts.fetch_seconds)
        blocks = match.plan.tokens // self._layout.block_tokens
        first, end = wish.part(blocks)
        if wish.views and match.hashed is not None and blocks:
            viewed = self._views(match, first, end, deadline)
            if viewed is not None:
                return viewed
        try:
            load = self._new_load(match, wish)
        except OSError:  # no memory to map: then these bytes have no place here
            self._link.counters.add("fetch_no_memory")
            return self._outcomes.nothing()
        if load is None:
            return self._outcomes.nothing(wish)
        first_deadline = deadline - (1 - FIRST_TRY_SHARE) * self._timeouts.fetch_seconds
        patience = None if load.is_share else self._lookups.patience(match)  # ranks would give up at different points
        # what is hot is here in no time
        watch = None if patience is None or match.plan.tier is Tier.HOST else Watch(self._link, self._layout, patience)
        began = self._link.now()
        if load.is_share and load.expected is None:
            load.saw_gone = True  # nobody can say of which run these rows are: the store has to be asked for this plan
        elif self._carry_out(match, load, wish, first_deadline, watch):
            if match.plan.tier is Tier.HOST and load.tier is Tier.HOST and not (load.is_share or wish.verify):
                self._lookups.host_speed.note(match.plan.load_bytes, self._link.now() - began)
            return self._outcomes.of_load(match.plan, load, wish)
        if watch is not None and watch.gave_up:
            self._link.counters.add("fetch_abandoned")
            match.abandoned = load
            hot = None if watch.is_useless else self._hot(match, load, wish, deadline)
            return hot or self._what_is_here(load, wish)
        again = self._second_try(match, load, wish, deadline)
        return self._what_is_here(load, wish) if again is None else again

    def catch_up(self, match: ClientMatch, computed_tokens: int) -> Blocks | None:
        """What an abandoned load's promotions have brought in since; None where computing on is quicker."""
        load, now = match.abandoned, self._link.now()
        patience = self._lookups.patience(match)
        if load is None or load.saw_foreign or patience is None or now < match.look_at:
            return None
        left = patience.fallback.seconds_from(computed_tokens)
        deadline = self._link.deadline(self._timeouts.fetch_seconds)
        blocks = self._hot(match, load, Wish(), deadline, quicker_than=left)
        done, pause = self._link.now(), CATCH_UP_SECONDS
        if blocks is None:
            # looking every x seconds costs left / x looks, and notices what came in x / 2 late: the least of both
            pause = max(pause, math.sqrt(2 * left * (done - now)))
        else:
            self._link.counters.add("fetch_caught_up")
        match.look_at = done + pause
        return blocks

    def _hot(
        self, match: ClientMatch, load: Load, wish: Wish, deadline: float, quicker_than: float | None = None
    ) -> Blocks | None:
        """The best plan of what is in the store's memory by now; None where there is none, or none so quick."""
        again: ClientMatch | None = None
        had, began_with = load.here, load
        try:
            again = self._lookups.find(match.asked._replace(hot_only=True), deadline)
            plan = again.plan
            if plan.kind is PlanKind.COLD or require_store(again).root != load.hashed.root:
                return None
            if quicker_than is not None:
                takes = CATCH_UP_LOADS * (plan.load_seconds or 0.0) + (plan.recompute_seconds or 0.0)
                if takes + CATCH_UP_SECONDS >= quicker_than:
                    return None
            if (
                plan.tokens // self._layout.block_tokens > load.room
            ):  # another worker brought in more than was asked for
                fresh = None if wish.into is not None else self._new_load(again, wish)
                if fresh is None:
                    return None
                load = fresh
            began, before = self._link.now(), load.here
            if self._carry_out(again, load, wish, deadline):
                nbytes = max(load.here - before, 0) * self._layout.rows.nbytes
                nbytes += sum(state.nbytes for state in load.states.values())
                self._lookups.host_speed.note(nbytes, self._link.now() - began)
                blocks = self._outcomes.of_load(plan, load, wish)
                if blocks.plan.kind is not PlanKind.COLD:
                    return blocks
                load.saw_foreign = True
        except (StoreUnavailable, OSError):
            pass
        finally:
            if again is not None:
                again.release()  # the bytes are copies
        began_with.cut(had)  # what came in by this lookup may be another run's: only its whole plan would have told
        return None

    def _new_load(self, match: ClientMatch, wish: Wish) -> Load | None:
        """None where there is nothing to load; OSError where memory is out."""
        blocks = match.plan.tokens // self._layout.block_tokens
        first, end = wish.part(blocks)
        target = target_of(wish.into, self._packings[0], end - first, self._pool)
        if match.hashed is None or not blocks:
            return None
        return Load(match.hashed, target, end - first, blocks, first, first, match.lineage, wish.share != WHOLE)

    def _carry_out(
        self, match: ClientMatch, load: Load, wish: Wish, deadline: float, watch: Watch | None = None
    ) -> bool:
        """Fetch what `load` lacks of the match's plan; False where something could not be had in time."""
        plan, lease = match.plan, match.lease
        load.blocks, load.expected = plan.tokens // self._layout.block_tokens, match.lineage
        _, end = wish.part(load.blocks)
        has_states = plan.kind is PlanKind.RESUME and end == load.blocks  # they go to the share with the last block
        required = self._layout.state_group if has_states else None
        states = self._optional if required is None else (required, *self._optional)
        states = states if has_states else ()
        load.states.clear()
        if lease is None or lease.id is None or (load.here >= end and not states):
            return load.here >= end and not states
        try:
            session = self._link.session
            if watch is not None:
                for here in watch.arrivals(session, match, load.here, end, required, deadline):
                    self._bring(session, match, load, wish, min(here, end), (), None, deadline)
            self._bring(session, match, load, wish, end, states, required, deadline, watch)
        except Abandoned:
            pass
        except Gone as gone:
            load.saw_gone = True
            load.saw_foreign |= gone.is_foreign
            self._link.counters.add(f"fetch_{gone.kind}")
            if gone.corrupt is not None:
                self._report(gone.corrupt)
        except HelloAgain:
            load.saw_gone = True  # the daemon has restarted: the lease is void, the objects may still be there
            self._link.counters.add("fetch_lease_void")
        except StoreUnavailable:
            if watch is None or not watch.is_over(load.here):
                self._link.counters.add("fetch_cut_off")
        except OSError:  # no memory to map for the states
            self._link.counters.add("fetch_no_memory")
        return load.here >= end and (required is None or required in load.states)

    def _bring(
        self,
        session: Session,
        match: ClientMatch,
        load: Load,
        wish: Wish,
        end: int,
        states: tuple[int, ...],
        required: int | None,
        deadline: float,
        watch: Watch | None = None,
    ) -> None:
        """Rows [load.here, end) and these states: out of shared memory where they are, the rest as a stream."""
        self.shared.take(match, load, end, states, deadline, verify=wish.verify)
        rest = tuple(group for group in states if group not in load.states)
        if match.located is not None and match.plan.tier is Tier.HOST and required not in rest:
            rest = ()  # optional states that are not on the host: nobody put any, as a rule
        lease = match.lease
        if lease is None or lease.id is None or not (load.here < end or rest):
            return
        limit = min(session.batch_blocks, MAX_OBJECTS)
        for wanted in batches(min(load.here, end), end, rest, required, limit):
            self._stream(session, lease.id, lease.boot_epoch, load, wanted, deadline, watch)

    def _stream(
        self,
        session: Session,
        lease: int,
        boot_epoch: int,
        load: Load,
        wanted: Wanted,
        deadline: float,
        watch: Watch | None = None,
    ) -> None:
        base = min(wanted.first, wanted.end - 1)  # the chain holds the block of the states even without its rows
        request = pb.FetchRequest(
            namespace_id=session.namespace,
            boot_epoch=boot_epoch,
            lease=lease,
            chain=chain_to_wire(load.hashed.chain(base, wanted.end)),
            first_row=wanted.first - base,
            end_row=wanted.end - base,
            states=[pb.ObjectName(block=wanted.end - 1 - base, group=group) for group in wanted.states],
        )
        receiver = Receiver(load, wanted, base, self._layout, self._pool)
        moment = None if watch is None else watch.last_moment(load.here)
        if moment is not None:
            deadline = min(deadline, moment)
        with contextlib.closing(self._link.fetch(request, deadline, is_impatient=moment is not None)) as frames:
            for frame in frames:
                self._link.counters.add("fetched_bytes", len(frame.data))
                try:
                    receiver.feed(frame)
                except InvalidInput as error:
                    raise self._link.failure(error) from error
                if watch is not None and load.here < wanted.end:  # rows for which the host has no room
                    watch.streamed(load.here)

    def _second_try(self, match: ClientMatch, load: Load, wish: Wish, deadline: float) -> Blocks | None:
        """Ask again and fetch the rest; None where that does not give a whole plan either."""
        block_tokens = self._layout.block_tokens
        # Something is gone: the store may have another copy or a shallower point. Too slow: only what is here counts.
        blocks = load.blocks if load.saw_gone else 0 if load.is_share else load.here
        if not blocks:
            return None
        prompt = match.tokens[: blocks * block_tokens + 1]
        self._link.counters.add("fetch_second_tries")
        again: ClientMatch | None = None
        try:
            again = self._lookups.find(Asked(prompt, match.asked.hints, match.asked.extras), deadline)
            if again.plan.kind is PlanKind.COLD or require_store(again).root != load.hashed.root:
                return None
            # a share of another plan is another part, and rows of two runs could not be told apart in one
            fresh: Load | None = load
            if load.is_share:
                first, end = wish.part(again.plan.tokens // block_tokens)
                if end - first > load.room and wish.into is not None:  # of fewer blocks this rank's part may be more
                    return None
                fresh = self._new_load(again, wish)
            if fresh is not None and self._carry_out(again, fresh, wish, deadline):
                return self._outcomes.of_load(again.plan, fresh, wish)
        except (StoreUnavailable, OSError):
            pass
        finally:
            if again is not None:
                again.release()  # the bytes are copies
        return None

    def _what_is_here(self, load: Load, wish: Wish) -> Blocks:
        """The deepest point that the rows here allow by themselves."""
        # The lineage of a part of the plan is nobody's word: rows that went and came back while it was loaded may be of
        # two runs. Only in a canonical namespace are these the same, and not even there once two that differ were seen.
        if load.is_share or load.saw_foreign or not self._layout.canonical:
            return self._outcomes.nothing(wish, load)
        plan = cut_plan(self._layout, load.here * self._layout.block_tokens, can_replay=self._can_replay)
        load.states.clear()
        if plan is None:
            return self._outcomes.nothing(wish, load)
        load.expected = None
        return self._outcomes.of_load(plan, load, wish)

    def _views(self, match: ClientMatch, first: int, end: int, deadline: float) -> Blocks | None:
        """The match's rows where they lie; None where they have to be copied."""
        has_states = match.plan.kind is PlanKind.RESUME and end == match.plan.tokens // self._layout.block_tokens
        try:
            views = self.shared.views(match, first, end, deadline)
            states = {} if views is None or not has_states else self.shared.viewed_states(views)
        except (StoreUnavailable, HelloAgain, OSError):
            return None
        return self._outcomes.of_views(match, views, states, first)

    def states_only(self, match: ClientMatch, slots: Slots, deadline: float) -> Blocks | None:
        """The plan's states, and rows that are still to be filled in; None where they are of another run, or gone."""
        plan, hashed, blocks = match.plan, require_store(match), match.plan.tokens // self._layout.block_tokens
        nothing = target_of(None, self._packings[0], 0, self._pool)
        load = Load(hashed, nothing, 0, blocks, 0, blocks, match.lineage)
        load.know(0, slots.contents, blocks)
        return self._outcomes.of_load(plan, load, Wish()) if self._carry_out(match, load, Wish(), deadline) else None

    def _report(self, key: BlockKey) -> None:
        """Tell the store of wrong bytes, so that the second try does not meet them again."""
        with contextlib.suppress(StoreUnavailable, HelloAgain):
            request = pb.ReportRequest(
                namespace_id=self._link.session.namespace,
                prefix=key.prefix,
                group=key.group,
                reason="fetched bytes do not match their seal",
            )
            deadline = self._link.deadline(self._timeouts.control_seconds)
            self._link.call(self._link.calls.report, request, deadline)
