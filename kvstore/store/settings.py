"""What a store is made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvstore.codec.lossless import Codec
from kvstore.core.classes import Lives
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.errors import ConfigError
from kvstore.core.placement import DEFAULT_PLACEMENT, Placement

LEAST_HOST_BYTES = 1 << 20
PROMOTE_THREADS = 6  # four reads at a time get a disk's speed (MEASURED section 1), while two threads verify


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Bytes and seconds. `secret` keys the prefix hashes' roots; whoever has it can name blocks."""

    host_bytes: int
    secret: bytes
    disk: Path | None = None
    disk_bytes: int = 0
    segment_bytes: int | None = None
    placement: Placement = DEFAULT_PLACEMENT
    policy: str = "lru"  # of eviction, by its name in core/policies; "adaptive": the store chooses (`core/shadows.py`)
    keep_seconds: float | None = 0.0  # `core/settings.py`; None: the store chooses
    lives: Lives = field(default_factory=Lives)  # of classes of objects
    codec: Codec = Codec.RAW  # of frames on disk
    disk_admission: DiskAdmission = DiskAdmission.ALL
    disk_write_bytes_per_day: int = 0  # 0: no budget
    lease_seconds: float = 30.0
    handoff_bytes: int = 64 << 20  # beside `host_bytes`, taken from the machine when used
    reservation_seconds: float = 60.0  # an upload that does not end by then is given up
    promote_threads: int = PROMOTE_THREADS
    persist_seconds: float = 30.0  # how often recency goes to the manifest

    def __post_init__(self) -> None:
        if self.host_bytes < LEAST_HOST_BYTES:
            raise ConfigError(f"{self.host_bytes} bytes of host memory are too few: give at least {LEAST_HOST_BYTES}")
        if len(self.secret) < 16:
            raise ConfigError(f"a secret of {len(self.secret)} bytes is too short: give at least 16")
        if self.disk is not None and self.disk_bytes <= 0:
            raise ConfigError(f"disk folder {self.disk} with {self.disk_bytes} bytes: give the disk tier a size")
