"""Figures about the store, for operators."""

from __future__ import annotations

from collections import Counter

from kvstore.core.keys import PAGE_BYTES, Tier
from kvstore.core.match import MissReason
from kvstore.store.kept import Kept
from kvstore.store.objects import CurvePoint, NamespaceState, StoreStatus, TierState

# A curve is told at these multiples of the host tier: what a smaller one would lose, up to all that the curve reaches.
CURVE_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0)


def figures(kept: Kept) -> StoreStatus:
    """Counts that are kept anyway: cheap, however much is stored."""
    with kept.lock:
        contents = {name: space.contents for name, space in kept.planner.namespaces.items()}
        objects: Counter[Tier] = Counter()
        for content in contents.values():
            objects.update(content.copies)
        counts, misses = kept.planner.counts, kept.planner.misses
        counters = dict(kept.counters)
        counters |= {f"evicted_{tier.value}": count for tier, count in counts.evicted.items()}
        counters |= {f"hit_tokens_{kind.name.lower()}": tokens for kind, tokens in counts.class_hit_tokens.items()}
        counters |= {f"became_{kind.name.lower()}": count for kind, count in kept.planner.classes.changes.items()}
        counters |= {"expired": counts.expired, "lost": counts.lost, "other_lineage": counts.other_lineage}
        gate = kept.planner.gate
        counters |= {"disk_bytes_written": gate.bytes_written, "disk_held_back": gate.held_back}
        counters["disk_over_budget"] = gate.over_budget
        counters |= {
            f"missed_{_word(why)}": count for why, count in misses.lookups.items() if why is not MissReason.NONE
        }
        counters |= {f"missed_{_word(why)}_tokens": count for why, count in misses.tokens.items()}
        return StoreStatus(
            tiers=tuple(_tier_state(kept, tier, objects[tier]) for tier in _tiers(kept)),
            namespaces=tuple(
                NamespaceState(name, known.layout, content.rows, content.states, content.host_bytes, _curve(kept, name))
                for name, known in kept.namespaces.items()
                for content in (contents[name],)
            ),
            leases=kept.planner.leases.lease_count,
            pins=kept.planner.leases.pin_count,
            queued_copies=kept.mover.pending,
            counters=counters,
            handoffs=kept.handoffs.count,
            handoff_bytes=kept.handoffs.used_bytes,
            lock=kept.lock.figures(),
        )


def _curve(kept: Kept, name: bytes) -> tuple[CurvePoint, ...]:
    curves = kept.planner.curves
    curve = curves.namespaces.get(name) if curves is not None else None
    if curve is None or not curve.blocks:
        return ()
    sizes = [int(share * kept.planner.settings.host_bytes) for share in CURVE_SHARES]
    return tuple(CurvePoint(size, curve.token_hits(size), curve.work_hits(size)) for size in sizes)


def _word(reason: MissReason) -> str:
    return reason.name.lower()


def _tiers(kept: Kept) -> list[Tier]:
    """Those that were asked for; a disk that could not be opened has no capacity and a trouble."""
    return [Tier.HOST] if kept.config.disk is None else [Tier.HOST, Tier.DISK]


def _tier_state(kept: Kept, tier: Tier, objects: int) -> TierState:
    space = kept.planner.spaces[tier]
    ready = space.total_pages * PAGE_BYTES
    capacity = kept.host.region_count * kept.host.region_pages * PAGE_BYTES if tier is Tier.HOST else ready
    trouble = kept.troubles.get(tier, "")
    return TierState(
        tier,
        capacity,
        ready,
        space.used_pages * PAGE_BYTES,
        objects,
        tier is Tier.HOST or not trouble,
        trouble,
        kept.rates.read.get(tier),
        kept.rates.written.get(tier),
        kept.host.huge_bytes if tier is Tier.HOST else 0,
    )
