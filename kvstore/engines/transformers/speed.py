"""How fast a worker prefills, in the cost model's own FLOP a second: what makes its times and a store's comparable."""

from __future__ import annotations

from kvstore.core.cost import CostModel

WEIGHT = 0.1  # of a new chunk: ten of them are a long enough memory for a machine that others use too
WARM_UP = 2  # chunks that are not counted: the first ones pay for allocations and caches


class PrefillSpeed:
    """A moving average over chunks of about equal work. One thread."""

    def __init__(self, cost: CostModel | None) -> None:
        self.flops_per_second: float | None = None  # None until it is known, and for a layout without compute
        self._cost = cost
        self._seconds_per_flop: float | None = None
        self._chunks = 0

    def note(self, start: int, end: int, seconds: float) -> None:
        """Tokens [start, end) were computed in so long, on a cache of [0, start)."""
        self._chunks += 1
        if self._cost is None or seconds <= 0 or self._chunks <= WARM_UP:
            return
        # the mean of times and not of speeds: a slow chunk costs what it costs
        pace, known = seconds / self._cost.prefill_flops(start, end), self._seconds_per_flop
        self._seconds_per_flop = pace if known is None else known + WEIGHT * (pace - known)
        self.flops_per_second = 1.0 / self._seconds_per_flop
