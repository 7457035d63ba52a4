"""An explanation as plain values, JSON-ready: what `kvstore explain --json` prints. Tokens, bytes, seconds."""

from __future__ import annotations

from kvstore.rpc.enums import MISS_REASON, PLAN_KIND, TIER
from kvstore.rpc.explanations import DEPARTURE, OBJECT_CLASS
from kvstore.rpc.generated import admin_pb2 as pb

Facts = dict[str, object]


def explain_facts(answer: pb.ExplainResponse) -> Facts:
    """Everything the daemon said; null where there is nothing to say."""
    return {
        "policy": answer.policy,
        "uptime_seconds": answer.uptime_seconds,
        "ghosts": answer.ghosts,
        "lookups": [_lookup(lookup) for lookup in answer.lookups],
        "next_victims": [
            {
                "room_for": _owner(victim.owner),
                "model": victim.model,
                "candidates": victim.candidates,
                "object": _object(victim.object),
            }
            for victim in answer.victims
        ],
    }


def _lookup(lookup: pb.LookupExplanation) -> Facts:
    return {
        "session": lookup.session,
        "namespace": lookup.namespace_id.hex(),
        "model": lookup.model,
        "seconds_ago": lookup.seconds_ago,
        "prompt_tokens": lookup.prompt_tokens,
        "plan": PLAN_KIND.to_core(lookup.kind).value,
        "plan_tokens": lookup.plan_tokens,
        "rows_tokens": lookup.rows_tokens,
        "block_tokens": lookup.block_tokens,
        "reason": MISS_REASON.to_core(lookup.reason).value,
        "missing_block": lookup.missing_block,
        "missing_group": lookup.missing_group,
        "ghost": _ghost(lookup.ghost) if lookup.HasField("ghost") else None,
        "state_ghost": {"block": lookup.state_ghost_block, **_ghost(lookup.state_ghost)}
        if lookup.HasField("state_ghost")
        else None,
        "nearest": {
            "shared_blocks": lookup.shared_blocks,
            "continuations": lookup.continuations,
            "deepest_block": lookup.deepest_block,
            "is_deepest_partial": lookup.is_deepest_partial,
            "differing_fields": list(lookup.differing_fields),
            "namesake_rows": lookup.namesake_rows,
        },
        "classes": dict(sorted(lookup.classes.items())),
        "classed_blocks": lookup.classed_blocks,
        "objects": [_object(found) for found in lookup.objects],
    }


def _ghost(ghost: pb.Ghost) -> Facts:
    return {
        "departure": DEPARTURE.to_core(ghost.departure).name.lower(),
        "seconds_ago": ghost.seconds_ago,
        "age_seconds": ghost.age_seconds,
        "room_for": _owner(ghost.room_for) if ghost.HasField("room_for") else None,
    }


def _owner(owner: pb.RoomOwner) -> Facts:
    return {
        "tier": TIER.to_core(owner.tier).value,
        "namespace": owner.namespace_id.hex() or None,
        "slot_pages": owner.slot_pages or None,
    }


def _object(found: pb.StoredObject) -> Facts:
    return {
        "block": found.block,
        "group": found.group,
        "class": OBJECT_CLASS.to_core(found.object_class).name.lower(),
        "tiers": [TIER.to_core(tier).value for tier in found.tiers],
        "places": [
            {
                "tier": TIER.to_core(place.tier).value,
                "ahead": place.ahead if place.HasField("ahead") else None,
                "candidates": place.candidates,
            }
            for place in found.places
        ],
        "uses": found.uses,
        "unused_seconds": found.unused_seconds,
        "leases": found.leases,
        "pins": found.pins,
        "is_in_use": found.is_in_use,
        "raw_bytes": found.raw_bytes,
    }
