"""Explanations -> protobuf: what `Admin.Explain` answers. Trusts its input; the operator's command reads it."""

from __future__ import annotations

from collections.abc import Iterable

from kvstore.core.explain import Explanation, Place, Standing, Victim
from kvstore.core.ghosts import Departure, Ghost, Owner
from kvstore.core.index import ObjectClass
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.rpc.enums import MISS_REASON, PLAN_KIND, TIER, EnumPairs
from kvstore.rpc.generated import admin_pb2 as pb

OBJECT_CLASS = EnumPairs(
    "object class", {kind: pb.ObjectClass.Value(f"OBJECT_CLASS_{kind.name}") for kind in ObjectClass}
)
DEPARTURE = EnumPairs("departure", {why: pb.Departure.Value(f"DEPARTURE_{why.name}") for why in Departure})


def explanation_to_wire(found: Explanation, layout: ModelLayout, now: float) -> pb.LookupExplanation:
    """`now` on the planner's clock; the wire has ages and no times."""
    lookup, missing, nearest = found.lookup, found.lookup.missing, found.nearest
    return pb.LookupExplanation(
        session=lookup.session,
        namespace_id=lookup.namespace,
        model=layout.model,
        seconds_ago=max(now - lookup.at, 0.0),
        prompt_tokens=lookup.prompt_tokens,
        kind=PLAN_KIND.to_wire(lookup.kind),
        plan_tokens=lookup.plan_tokens,
        rows_tokens=lookup.rows_tokens,
        block_tokens=layout.block_tokens,
        reason=MISS_REASON.to_wire(missing.reason),
        missing_block=max(missing.block, 0),
        missing_group=0 if missing.key is None else missing.key.group,
        ghost=None if missing.ghost is None else _ghost(missing.ghost, now),
        state_ghost=None if found.state is None else _ghost(found.state[1], now),
        state_ghost_block=0 if found.state is None else found.state[0],
        shared_blocks=nearest.shared_blocks,
        continuations=nearest.continuations,
        deepest_block=max(nearest.deepest_block, 0),
        is_deepest_partial=nearest.is_partial,
        differing_fields=nearest.differing,
        namesake_rows=nearest.namesake_rows,
        objects=[standing_to_wire(standing) for standing in found.objects],
        classes={kind.name.lower(): count for kind, count in found.classes.items()},
        classed_blocks=found.classed,
    )


def victims_to_wire(victims: Iterable[Victim], models: dict[bytes, str]) -> list[pb.NextVictim]:
    return [
        pb.NextVictim(
            owner=_owner(victim.owner),
            model=models.get(victim.namespace, ""),
            object=standing_to_wire(victim.standing),
            candidates=victim.candidates,
        )
        for victim in victims
    ]


def standing_to_wire(standing: Standing) -> pb.StoredObject:
    return pb.StoredObject(
        block=standing.block,
        group=standing.key.group,
        object_class=OBJECT_CLASS.to_wire(standing.object_class),
        tiers=[TIER.to_wire(tier) for tier in standing.tiers],
        places=[_place(place) for place in standing.places],
        uses=standing.uses,
        unused_seconds=standing.unused_seconds,
        leases=standing.leases,
        pins=standing.pins,
        is_in_use=standing.is_in_use,
        raw_bytes=standing.raw_bytes,
    )


def _place(place: Place) -> pb.EvictionPlace:
    return pb.EvictionPlace(tier=TIER.to_wire(place.tier), ahead=place.ahead, candidates=place.candidates)


def _ghost(ghost: Ghost, now: float) -> pb.Ghost:
    return pb.Ghost(
        departure=DEPARTURE.to_wire(ghost.why),
        seconds_ago=max(now - ghost.at, 0.0),
        age_seconds=max(ghost.age_seconds, 0.0),
        room_for=None if ghost.room_for is None else _owner(ghost.room_for),
    )


def _owner(owner: Owner) -> pb.RoomOwner:
    """A namespace's slots on the host, a size class on disk; neither where space has no slots."""
    tier, of = owner
    namespace_id = of if tier is Tier.HOST and isinstance(of, bytes) else b""
    return pb.RoomOwner(tier=TIER.to_wire(tier), namespace_id=namespace_id, slot_pages=of if isinstance(of, int) else 0)
