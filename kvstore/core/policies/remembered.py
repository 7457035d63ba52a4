"""Keys of what went: how a policy learns that it should have kept something. Bounded by the bytes they stood for."""

from __future__ import annotations

from collections import OrderedDict

from kvstore.core.keys import BlockKey


class Remembered:
    """Keys with their bytes and the second of their last use, oldest first; the oldest are forgotten."""

    def __init__(self, capacity_bytes: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.nbytes = 0
        self._gone: OrderedDict[BlockKey, tuple[int, float]] = OrderedDict()  # a dict's first is not found in O(1)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._gone

    def __len__(self) -> int:
        return len(self._gone)

    def add(self, key: BlockKey, nbytes: int, last_used: float = 0.0) -> None:
        self.take(key)
        self._gone[key] = (nbytes, last_used)
        self.nbytes += nbytes
        while self.nbytes > self.capacity_bytes:
            self.forget_oldest()

    def take(self, key: BlockKey) -> float | None:
        """Forget a key that came back; when it was last used, None where it is not remembered."""
        known = self._gone.pop(key, None)
        if known is None:
            return None
        self.nbytes -= known[0]
        return known[1]

    def forget_oldest(self) -> None:
        self.take(next(iter(self._gone)))
