"""What an operator decides about a planner, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstore.core.classes import Lives
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.index import ObjectClass
from kvstore.core.keys import PAGE_BYTES, Tier
from kvstore.core.placement import DEFAULT_PLACEMENT, Placement
from kvstore.core.space import region_pages


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator decides. Bytes and seconds."""

    host_bytes: int
    disk_bytes: int = 0
    placement: Placement = DEFAULT_PLACEMENT
    lease_seconds: float = 30.0
    pinned_share: float = 0.5  # pins hold at most this share of the host tier's bytes
    # what was used within so many seconds, and is nowhere else, is not evicted for what is new: that is not admitted.
    # Where memory turns over before anything can come back, a part that stays finds more than a whole that does not.
    keep_seconds: float = 0.0
    disk_admission: DiskAdmission = DiskAdmission.ALL
    disk_write_bytes_per_day: int = 0  # budget of frames' bytes; 0: none
    lives: Lives = field(default_factory=Lives)  # of classes of objects
    ideal_space: bool = False  # objects take their bytes and no slots (ideal.py): to compare with textbook caches
    as_region_pages: int = 0  # with ideal space: they take as many bytes as in slots of a store with such regions
    curves: bool = False  # keep live miss-ratio curves (curves.py)
    segment_bytes: int | None = None  # disk segment; None: 1/64 of the tier, at least 16 MiB where that fits four times


@dataclass(slots=True)
class Counts:
    """Events since the planner was made."""

    lookups: int = 0
    hit_tokens: int = 0
    class_hit_tokens: dict[ObjectClass, int] = field(default_factory=dict)  # hit_tokens by the rows' class then
    asked_tokens: int = 0
    other_lineage: int = 0
    evicted: dict[Tier, int] = field(default_factory=lambda: {Tier.HOST: 0, Tier.DISK: 0})
    expired: int = 0
    lost: int = 0


def segment_pages(settings: Settings) -> int:
    """Pages of a disk segment; large enough for the frames of the largest states where the tier allows it."""
    if settings.segment_bytes is not None:
        return settings.segment_bytes // PAGE_BYTES
    least = min(16 << 20, settings.disk_bytes // 4) // PAGE_BYTES
    return max(region_pages(settings.disk_bytes), least, 2)
