"""Eviction policies by name, one file each; `core/policy.py` says what one is."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from kvstore.core.errors import ConfigError
from kvstore.core.policies.arc import ARC
from kvstore.core.policies.gdsf import GDSF
from kvstore.core.policies.hazard import Hazard
from kvstore.core.policies.lfu import LFU
from kvstore.core.policies.lru import LRU
from kvstore.core.policies.s3fifo import S3FIFO
from kvstore.core.policies.slru import SLRU
from kvstore.core.policies.tlru import TLRU
from kvstore.core.policies.ttl import TTL
from kvstore.core.policy import Policy

POLICIES: dict[str, Callable[[], Policy]] = {
    LRU.name: LRU,
    LFU.name: LFU,
    ARC.name: ARC,
    S3FIFO.name: S3FIFO,
    SLRU.name: SLRU,
    GDSF.name: GDSF,
    Hazard.name: Hazard,
    TLRU.name: TLRU,
    TTL.name: TTL,
}


def policy_named(text: str) -> Policy:
    """Raises ConfigError, with the nearest name, where there is none."""
    made = POLICIES.get(text)
    if made is None:
        near = get_close_matches(text, POLICIES, n=1)
        hint = f"did you mean {near[0]}" if near else f"there are {', '.join(POLICIES)}"
        raise ConfigError(f"no policy is called {text!r}: {hint}")
    return made()
