"""Matches <-> protobuf: the answer to a Lookup, written by the daemon and checked by the client."""

from __future__ import annotations

import math

from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Tier
from kvstore.core.match import MAX_RESUME_POINTS, MAX_SNAPSHOTS, Match, Plan, PlanKind, ResumePoint, Snapshots
from kvstore.rpc.convert import lineage_from_wire
from kvstore.rpc.enums import MISS_REASON, PLAN_KIND, TIER
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_TOKENS


def match_to_wire(match: Match, boot_epoch: int) -> pb.LookupResponse:
    return pb.LookupResponse(
        boot_epoch=boot_epoch,
        rows_tokens=match.rows_tokens,
        resume_points=[_point_to_wire(point) for point in match.resume_points],
        replay=None if match.replay is None else _plan_to_wire(match.replay),
        plan=_plan_to_wire(match.plan),
        snapshots=pb.Snapshots(
            at=match.snapshots.at, every=match.snapshots.every, at_output_end=match.snapshots.at_output_end
        ),
        canonical=match.canonical,
        reason=MISS_REASON.to_wire(match.reason),
        lease=match.lease or 0,
        lineage=match.lineage,
        cold_seconds=match.cold_seconds,
    )


def match_from_wire(message: pb.LookupResponse) -> Match:
    """Raises InvalidInput for an answer that no daemon of this version would give."""
    if len(message.resume_points) > MAX_RESUME_POINTS or len(message.snapshots.at) > MAX_SNAPSHOTS:
        raise InvalidInput("the match names more boundaries than this version allows")
    plan = _plan_from_wire(message.plan)
    if not plan.tokens <= message.rows_tokens <= MAX_TOKENS:
        raise InvalidInput(f"the plan loads {plan.tokens} tokens of {message.rows_tokens} stored ones")
    return Match(
        rows_tokens=message.rows_tokens,
        resume_points=tuple(_point_from_wire(point) for point in message.resume_points),
        replay=_plan_from_wire(message.replay) if message.HasField("replay") else None,
        plan=plan,
        snapshots=Snapshots(tuple(message.snapshots.at), message.snapshots.every, message.snapshots.at_output_end),
        canonical=message.canonical,
        reason=MISS_REASON.to_core(message.reason),
        lease=message.lease or None,
        lineage=lineage_from_wire(message.lineage),
        cold_seconds=_price(message.cold_seconds) if message.HasField("cold_seconds") else None,
    )


def _point_to_wire(point: ResumePoint) -> pb.ResumePoint:
    return pb.ResumePoint(
        tokens=point.tokens,
        load_bytes=point.load_bytes,
        tier=TIER.to_wire(point.tier),
        load_seconds=point.load_seconds,
        recompute_seconds=point.recompute_seconds,
        comes_along=point.comes_along,
    )


def _point_from_wire(message: pb.ResumePoint) -> ResumePoint:
    prices = _prices(message)
    return ResumePoint(message.tokens, message.load_bytes, TIER.to_core(message.tier), *prices, message.comes_along)


def _plan_to_wire(plan: Plan) -> pb.Plan:
    return pb.Plan(
        kind=PLAN_KIND.to_wire(plan.kind),
        tokens=plan.tokens,
        compute_from=plan.compute_from,
        load_bytes=plan.load_bytes,
        tier=pb.TIER_UNSPECIFIED if plan.tier is None else TIER.to_wire(plan.tier),
        load_seconds=plan.load_seconds,
        recompute_seconds=plan.recompute_seconds,
    )


def _plan_from_wire(message: pb.Plan) -> Plan:
    kind = PLAN_KIND.to_core(message.kind)
    if message.compute_from > message.tokens or (kind is PlanKind.COLD) != (message.tokens == 0):
        raise InvalidInput(f"a {kind.value} plan cannot load {message.tokens} and compute from {message.compute_from}")
    return Plan(kind, message.tokens, message.compute_from, message.load_bytes, _tier(message.tier), *_prices(message))


def _tier(value: pb.Tier.ValueType) -> Tier | None:
    return None if value == pb.TIER_UNSPECIFIED else TIER.to_core(value)


def _prices(message: pb.Plan | pb.ResumePoint) -> tuple[float | None, float | None]:
    load = _price(message.load_seconds) if message.HasField("load_seconds") else None
    recompute = _price(message.recompute_seconds) if message.HasField("recompute_seconds") else None
    return load, recompute


def _price(seconds: float) -> float:
    if math.isnan(seconds):
        raise InvalidInput("a match carries a price that is no number")
    return seconds
