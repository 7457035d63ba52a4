"""What an eviction policy is: a rank. Space, leases, pins and quotas are the planner's alone.

The planner offers a policy only objects that may go: leaves of their tier, neither leased nor pinned nor in use.
When the last child of an object goes, the object is ranked as if it had been used when the child was: a parent
cannot be colder than what it was needed for.
"""

from __future__ import annotations

from typing import Protocol

from kvstore.core.keys import BlockKey


class Policy(Protocol):
    """Orders victims; lower ranks go first. Pure: no clock, no state outside itself."""

    name: str

    def rank(self, key: BlockKey, nbytes: int, last_used: float) -> float:
        """Rank of an object that became evictable, or was used again, in seconds or any other unit."""
        ...
