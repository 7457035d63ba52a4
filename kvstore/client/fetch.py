"""Carries out a match's plan: streams, verifies, and where something is gone asks once more and settles for less.

Never raises for a fault of the store: the answer is always blocks that hold together, at worst none. Rows that are
already here are kept; that rows of two tries belong to one run is checked by their lineage, which is computed from
their bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np

from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.fetching import Gone, Load, Receiver, Wanted, batches, coldest, new_load
from kvstore.client.lineages import Lineages
from kvstore.client.link import Link, Session
from kvstore.client.lookups import Lookups, cut_plan, require_store
from kvstore.client.match import Asked, Blocks, ClientMatch, RowsView, StateView
from kvstore.client.packing import Packing, check_array
from kvstore.client.settings import Timeouts
from kvstore.client.watching import Abandoned, Watch
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import COLD_PLAN, Plan, PlanKind
from kvstore.rpc.convert import chain_to_wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_OBJECTS

FIRST_TRY_SHARE = 0.75  # of fetch_seconds; the rest is for the second try
# Between two looks whether an abandoned load has come in: a look costs 0.1 ms over a lane and 1 ms over gRPC, which
# these keep at a few hundredths of the computing that it may save.
CATCH_UP_SECONDS = 0.005
CATCH_UP_SHARE = 0.03


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
        self._link, self._lookups, self._lineages, self._layout = link, lookups, lineages, layout
        self._packings, self._pool, self._timeouts, self._can_replay = packings, pool, timeouts, can_replay
        self._optional = tuple(index for index, group in enumerate(layout.groups) if group.optional)

    def fetch(self, match: ClientMatch, into: Mapping[str, Bytes] | None) -> Blocks:
        """The match's bytes, or those of a shorter plan. `into` takes the rows, by component; raises InvalidInput."""
        blocks = match.plan.tokens // self._layout.block_tokens
        self._check_into(into, blocks)
        if match.hashed is None or not blocks:
            return self._cold(into)
        deadline = self._link.deadline(self._timeouts.fetch_seconds)
        try:
            load = new_load(match.hashed, blocks, self._layout.rows.nbytes, self._pool)
        except OSError:  # no memory to map: then these bytes have no place here
            self._link.counters.add("fetch_no_memory")
            return self._cold(into)
        first_deadline = deadline - (1 - FIRST_TRY_SHARE) * self._timeouts.fetch_seconds
        patience = self._lookups.patience(match)
        # what is hot is here in no time
        watch = None if patience is None or match.plan.tier is Tier.HOST else Watch(self._link, self._layout, patience)
        began = self._link.now()
        if self._carry_out(match, load, first_deadline, watch):
            if match.plan.tier is Tier.HOST and load.tier is Tier.HOST:
                self._lookups.host_speed.note(match.plan.load_bytes, self._link.now() - began)
            return self._blocks(match.plan, load, into, match.lineage)
        if watch is not None and watch.gave_up:
            self._link.counters.add("fetch_abandoned")
            match.abandoned = load
            return self._hot(match, load, into, deadline) or self._what_is_here(load, into)
        again = self._second_try(match, load, deadline)
        if again is not None:
            return self._blocks(again.plan, load, into, again.lineage)
        return self._what_is_here(load, into)

    def catch_up(self, match: ClientMatch, computed_tokens: int) -> Blocks | None:
        """What an abandoned load's promotions have brought in since; None where computing on is quicker."""
        load, now = match.abandoned, self._link.now()
        patience = self._lookups.patience(match)
        if load is None or patience is None or now < match.look_at:
            return None
        left = patience.fallback.seconds_from(computed_tokens)
        match.look_at = now + max(CATCH_UP_SECONDS, CATCH_UP_SHARE * left)
        deadline = self._link.deadline(self._timeouts.fetch_seconds)
        blocks = self._hot(match, load, None, deadline, quicker_than=left)
        if blocks is not None:
            self._link.counters.add("fetch_caught_up")
            match.look_at = self._link.now() + CATCH_UP_SECONDS
        return blocks

    def _hot(
        self,
        match: ClientMatch,
        load: Load,
        into: Mapping[str, Bytes] | None,
        deadline: float,
        quicker_than: float | None = None,
    ) -> Blocks | None:
        """The best plan of what is in the store's memory by now; None where there is none, or none so quick."""
        again: ClientMatch | None = None
        try:
            again = self._lookups.find(match.asked._replace(hot_only=True), deadline)
            plan = again.plan
            if plan.kind is PlanKind.COLD or require_store(again).root != load.hashed.root:
                return None
            if quicker_than is not None:
                takes = (plan.load_seconds or 0.0) + (plan.recompute_seconds or 0.0)
                if takes >= quicker_than:
                    return None
            blocks = plan.tokens // self._layout.block_tokens
            if blocks > len(load.rows):  # another worker brought in more than this load was for
                load = new_load(load.hashed, blocks, self._layout.rows.nbytes, self._pool)
            if self._carry_out(again, load, deadline):
                return self._blocks(plan, load, into, again.lineage)
        except (StoreUnavailable, OSError):
            pass
        finally:
            if again is not None:
                again.release()  # the bytes are copies
        return None

    def _carry_out(self, match: ClientMatch, load: Load, deadline: float, watch: Watch | None = None) -> bool:
        """Fetch what `load` lacks of the match's plan; False where something could not be had in time."""
        plan, lease = match.plan, match.lease
        end = plan.tokens // self._layout.block_tokens
        required = self._layout.state_group if plan.kind is PlanKind.RESUME else None
        states = self._optional if required is None else (required, *self._optional)
        states = states if plan.kind is PlanKind.RESUME else ()
        load.states.clear()
        first = min(load.rows_here, end)
        if lease is None or lease.id is None or (first == end and not states):
            return first == end and not states
        try:
            session = self._link.session
            limit = min(session.batch_blocks, MAX_OBJECTS)
            if watch is not None:
                for here in watch.arrivals(session, match, first, end, required):
                    for wanted in batches(load.rows_here, min(here, end), (), None, limit):
                        self._stream(session, lease.id, lease.boot_epoch, load, wanted, deadline)
            if load.rows_here < end or states:
                for wanted in batches(load.rows_here, end, states, required, limit):
                    self._stream(session, lease.id, lease.boot_epoch, load, wanted, deadline, watch)
        except Abandoned:
            pass
        except Gone as gone:
            load.saw_gone = True
            load.saw_foreign |= gone.is_foreign
            kind = "corrupt" if gone.corrupt else "lineage_mismatch" if gone.is_foreign else "missing"
            self._link.counters.add(f"fetch_{kind}")
            if gone.corrupt is not None:
                self._report(gone.corrupt)
        except HelloAgain:
            load.saw_gone = True  # the daemon has restarted: the lease is void, the objects may still be there
            self._link.counters.add("fetch_lease_void")
        except StoreUnavailable:
            self._link.counters.add("fetch_cut_off")
        except OSError:  # no memory to map for the states
            self._link.counters.add("fetch_no_memory")
        return load.rows_here >= end and (required is None or required in load.states)

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
        with contextlib.closing(self._link.fetch(request, deadline)) as frames:
            for frame in frames:
                self._link.counters.add("fetched_bytes", len(frame.data))
                try:
                    receiver.feed(frame)
                except InvalidInput as error:
                    raise self._link.failure(error) from error
                if watch is not None and load.rows_here < wanted.end:  # rows for which the host has no room
                    watch.streamed(load.rows_here)

    def _second_try(self, match: ClientMatch, load: Load, deadline: float) -> ClientMatch | None:
        """Ask again and fetch the rest; None where that does not give a whole plan either."""
        block_tokens = self._layout.block_tokens
        # Something is gone: the store may have another copy or a shallower point. Too slow: only what is here counts.
        blocks = len(load.rows) if load.saw_gone else load.rows_here
        if not blocks:
            return None
        prompt = match.tokens[: blocks * block_tokens + 1]
        self._link.counters.add("fetch_second_tries")
        again: ClientMatch | None = None
        try:
            again = self._lookups.find(Asked(prompt, match.asked.hints, match.asked.extras), deadline)
            same_root = require_store(again).root == load.hashed.root
            if again.plan.kind is not PlanKind.COLD and same_root and self._carry_out(again, load, deadline):
                return again
        except StoreUnavailable:
            pass
        finally:
            if again is not None:
                again.release()  # the bytes are copies
        return None

    def _what_is_here(self, load: Load, into: Mapping[str, Bytes] | None) -> Blocks:
        """The deepest point that the rows here allow by themselves."""
        # Where objects had gone, the rows here may be of two runs; only in a canonical namespace are these the same,
        # and not even there once two that differ were seen.
        if load.saw_foreign or (load.saw_gone and not self._layout.canonical):
            return self._cold(into)
        plan = cut_plan(self._layout, load.rows_here * self._layout.block_tokens, can_replay=self._can_replay)
        load.states.clear()
        return self._cold(into) if plan is None else self._blocks(plan, load, into, None)

    def _blocks(self, plan: Plan, load: Load, into: Mapping[str, Bytes] | None, lineage: bytes | None) -> Blocks:
        blocks = plan.tokens // self._layout.block_tokens
        own = load.lineage(blocks)
        if lineage is not None and lineage != own:
            self._link.counters.add("fetch_lineage_mismatch")
            return self._cold(into)
        self._lineages.note(load.hashed.position(blocks), own)
        self._link.counters.add("fetched_blocks", blocks)
        state_group = self._layout.state_group
        state = None if state_group is None else load.states.get(state_group)
        return Blocks(
            plan,
            self._rows(load.rows[:blocks], into),
            None if state is None or state_group is None else StateView(self._packings[state_group], state),
            {
                self._layout.groups[index].name: StateView(self._packings[index], load.states[index])
                for index in self._optional
                if index in load.states
            },
            # what lay on disk at the lookup has been promoted since: it came from there all the same
            coldest((plan.tier, load.tier)),
            own,
        )

    def _cold(self, into: Mapping[str, Bytes] | None) -> Blocks:
        nothing = np.empty((0, self._layout.rows.nbytes), np.uint8)
        return Blocks(COLD_PLAN, self._rows(nothing, into), None, {}, None, ROOT_LINEAGE)

    def _rows(self, objects: Bytes, into: Mapping[str, Bytes] | None) -> Mapping[str, Bytes]:
        packing = self._packings[0]
        if into is None:
            return RowsView(packing, objects)
        given = {name: into[name][: len(objects)] for name in packing.components}
        for name, array in given.items():
            packing.unpack_into(name, objects, array)
        return given

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

    def _check_into(self, into: Mapping[str, Bytes] | None, blocks: int) -> None:
        if into is None:
            return
        packing = self._packings[0]
        for name in packing.components:
            if name not in into:
                raise InvalidInput(f"into lacks component {name!r}")
            array = into[name]
            room = max(blocks, len(array)) if getattr(array, "ndim", 0) else blocks
            check_array(array, packing.shape(name, room), f"component {name!r} of into")
            if not array.flags.writeable:
                raise InvalidInput(f"component {name!r} of into is read-only: pass a writable array")
