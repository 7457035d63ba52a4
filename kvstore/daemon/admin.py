"""The Admin service: what operators ask. Runs in the RPC threads."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvstore.core.errors import InvalidInput
from kvstore.core.keys import HASH_BYTES
from kvstore.daemon.calls import Calls
from kvstore.daemon.workers import Workers
from kvstore.rpc.convert import hash_from_wire, text_from_wire
from kvstore.rpc.enums import TIER
from kvstore.rpc.explanations import explanation_to_wire, victims_to_wire
from kvstore.rpc.generated import admin_pb2 as pb
from kvstore.rpc.limits import MAX_BATCH_BLOCKS, MAX_EXPLAINED_LOOKUPS, MAX_EXPLAINED_OBJECTS, MAX_TOKENS
from kvstore.store.changing import Choices, Wishes
from kvstore.store.explaining import Question
from kvstore.store.objects import NamespaceState, TierState
from kvstore.store.store import Store

MOST_CHANGE_SECONDS = 2.0  # an operator sees the end of a changeover of some 100,000 objects at once


class AdminService:
    """One method per RPC, `(request, deadline) -> response`."""

    def __init__(
        self,
        store: Store,
        calls: Calls,
        version: str,
        attached: Workers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._calls = calls
        self._attached = attached
        self._version = version
        self._clock = clock
        self._started = clock()

    def status(self, request: pb.StatusRequest, deadline: float) -> pb.StatusResponse:
        state = self._store.status()
        return pb.StatusResponse(
            version=self._version,
            boot_epoch=self._store.boot_epoch,
            uptime_seconds=self._clock() - self._started,
            is_draining=self._calls.is_draining,
            tiers=[_tier(tier) for tier in state.tiers],
            namespaces=[_namespace(namespace) for namespace in state.namespaces],
            leases=state.leases,
            pins=state.pins,
            queued_copies=state.queued_copies,
            counters={**state.counters, **self._calls.counters},
            attached_workers=self._attached.count,
            staging_bytes=self._attached.staging_bytes,
            handoffs=state.handoffs,
            handoff_bytes=state.handoff_bytes,
            lock_held_seconds=state.lock.held,
            lock_waited_seconds=state.lock.waited,
            lock_longest_seconds=state.lock.longest,
        )

    def explain(self, request: pb.ExplainRequest, deadline: float) -> pb.ExplainResponse:
        if len(request.hashes) % HASH_BYTES or len(request.hashes) > MAX_BATCH_BLOCKS * HASH_BYTES:
            raise InvalidInput(
                f"hashes have {len(request.hashes)} bytes: send {HASH_BYTES} a block, of at most {MAX_BATCH_BLOCKS}"
            )
        if request.namespace_id:
            hash_from_wire(request.namespace_id, "namespace_id")
        if request.prompt_tokens > MAX_TOKENS:
            raise InvalidInput(f"prompt_tokens={request.prompt_tokens} is out of range: send at most {MAX_TOKENS}")
        question = Question(
            text_from_wire(request.session, "session"),
            request.hashes,
            request.namespace_id,
            request.prompt_tokens,
            min(request.max_objects, MAX_EXPLAINED_OBJECTS),
            min(request.max_lookups or 1, MAX_EXPLAINED_LOOKUPS),
        )
        found = self._store.explain(question)
        return pb.ExplainResponse(
            lookups=[
                explanation_to_wire(each, found.layouts[each.lookup.namespace], found.now)
                for each in found.explanations
            ],
            victims=victims_to_wire(found.victims, {name: layout.model for name, layout in found.layouts.items()}),
            policy=found.policy,
            uptime_seconds=self._clock() - self._started,
            ghosts=found.ghosts,
        )

    def get_policy(self, request: pb.GetPolicyRequest, deadline: float) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(now=_in_charge(self._store.choices()))

    def set_policy(self, request: pb.SetPolicyRequest, deadline: float) -> pb.SetPolicyResponse:
        wishes = Wishes(
            text_from_wire(request.policy, "policy") if request.HasField("policy") else None,
            request.keep_seconds if request.HasField("keep_seconds") else None,
            text_from_wire(request.placement, "placement") if request.HasField("placement") else None,
            request.replay if request.HasField("replay") else None,
        )
        seconds = (deadline - time.monotonic()) / 2  # what is left then is left to the ticks
        before, now = self._store.change(wishes, min(seconds, MOST_CHANGE_SECONDS))
        return pb.SetPolicyResponse(before=_in_charge(before), now=_in_charge(now))


def _in_charge(found: Choices) -> pb.PolicyInCharge:
    return pb.PolicyInCharge(
        policy=found.policy,
        keep_seconds=found.keep_seconds,
        placement=found.placement,
        replay=found.replay,
        objects=found.objects,
        left_to_move=found.left_to_move,
        is_adaptive=found.is_adaptive,
        scores=[
            pb.VariantScore(
                policy=score.variant.policy,
                keep_seconds=score.variant.keep_seconds,
                resumed_share=score.resumed_share,
                is_in_charge=score.is_in_charge,
            )
            for score in found.scores
        ],
        followed=found.followed,
        sample_rate=found.sample_rate,
        last_change=found.last_change,
    )


def _tier(state: TierState) -> pb.TierStatus:
    return pb.TierStatus(
        tier=TIER.to_wire(state.tier),
        capacity_bytes=state.capacity_bytes,
        ready_bytes=state.ready_bytes,
        used_bytes=state.used_bytes,
        objects=state.objects,
        is_writable=state.is_writable,
        trouble=state.trouble,
        read_bytes_per_second=state.read_bytes_per_second or 0.0,
        write_bytes_per_second=state.write_bytes_per_second or 0.0,
        huge_bytes=state.huge_bytes,
    )


def _namespace(state: NamespaceState) -> pb.NamespaceStatus:
    return pb.NamespaceStatus(
        namespace_id=state.id,
        model=state.layout.model,
        revision=state.layout.revision,
        numerics=state.layout.numerics,
        rows=state.rows,
        states=state.states,
        host_bytes=state.host_bytes,
        curve=[
            pb.CurvePoint(host_bytes=point.nbytes, token_hits=point.token_hits, work_hits=point.work_hits)
            for point in state.curve
        ],
    )
