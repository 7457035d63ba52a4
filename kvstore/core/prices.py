"""What the plans of one request cost, and which costs least.

Pure; made anew for each request. Bytes, seconds; a price is None where a speed is unknown.
"""

from __future__ import annotations

from kvstore.core.cost import CostModel, load_seconds
from kvstore.core.index import Entry, Node
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Plan, PlanKind, ResumePoint, Speeds


def choose(points: tuple[ResumePoint, ...], replays: list[Plan], leads: bool, cold: Plan) -> tuple[Plan, bool]:
    """The plan with the least predicted time, or the one that computes least where a price is unknown.

    True with it: a deeper plan was passed over because recomputing is predicted to be quicker.
    """
    plans = replays[:1] if leads else []
    plans += [
        Plan(PlanKind.RESUME, point.tokens, point.tokens, point.load_bytes, point.tier, *point[3:5]) for point in points
    ]
    plans += [*replays[leads:], cold]  # first the one that computes least
    priced = [
        (plan.load_seconds + plan.recompute_seconds, order)
        for order, plan in enumerate(plans)
        if plan.load_seconds is not None and plan.recompute_seconds is not None
    ]
    if len(priced) < len(plans):
        return plans[0] if leads or points else cold, False
    _, order = min(priced)
    return plans[order], plans[order].tokens < plans[0].tokens


class Prices:
    """Bytes and seconds of the plans of one request."""

    def __init__(
        self,
        layout: ModelLayout,
        cost: CostModel | None,
        speeds: Speeds,
        prompt_tokens: int,
        hot_tokens: int,
        coming_tokens: int,
    ) -> None:
        self._layout, self._cost, self._speeds, self._prompt_tokens = layout, cost, speeds, prompt_tokens
        self._block_bytes = layout.rows.nbytes  # a sum over a hundred sections: not for each of 32 points
        self._hot_tokens = hot_tokens
        self._coming_tokens = coming_tokens  # rows up to here are hot, or being promoted

    def resume(self, node: Node, state: Entry | None) -> ResumePoint:
        tokens = node.end_tokens
        by_tier, coming = self._rows_bytes(tokens)
        if state is not None:
            tier = Tier.HOST if state.is_ready(Tier.HOST) else Tier.DISK
            by_tier[tier] = by_tier.get(tier, 0) + state.facts.raw_bytes
            if tier is Tier.DISK and state.host is not None:
                coming += state.facts.raw_bytes
        return ResumePoint(
            tokens,
            sum(by_tier.values()),
            _coldest(by_tier),
            load_seconds(by_tier, self._speeds, {Tier.DISK: coming}),
            self._recompute(tokens),
            state is None or state.host is not None,
        )

    def replays(self, limit: int, window: int) -> list[Plan]:
        """The deepest replay, and those of less: up to the hot rows, up to those that are coming.

        Computing a token costs more the deeper it is, and loading costs the same a byte between these boundaries: so
        the total has no minimum between them.
        """
        step = self._layout.resume_alignment
        ends = {min(limit, end - end % step) for end in (limit, self._coming_tokens, self._hot_tokens)}
        return [self._replay(end, window) for end in sorted(ends, reverse=True) if end > window]

    def _replay(self, tokens: int, window: int) -> Plan:
        by_tier, coming = self._rows_bytes(tokens)
        seconds = load_seconds(by_tier, self._speeds, {Tier.DISK: coming})
        start, nbytes = tokens - window, sum(by_tier.values())
        return Plan(PlanKind.REPLAY, tokens, start, nbytes, _coldest(by_tier), seconds, self._recompute(start))

    def cold(self) -> Plan:
        return Plan(PlanKind.COLD, 0, 0, 0, None, 0.0, self._recompute(0))

    def _rows_bytes(self, tokens: int) -> tuple[dict[Tier, int], int]:
        """By tier, and how many of the cold ones are being promoted already.

        Rows beyond the hot prefix count as cold; where some are hot after a gap this errs on the slow side.
        """
        block = self._block_bytes
        hot = min(tokens, self._hot_tokens) // self._layout.block_tokens * block
        coming = min(tokens, self._coming_tokens) // self._layout.block_tokens * block
        total = tokens // self._layout.block_tokens * block
        return {tier: nbytes for tier, nbytes in ((Tier.HOST, hot), (Tier.DISK, total - hot)) if nbytes}, coming - hot

    def _recompute(self, start: int) -> float | None:
        if self._cost is None:
            return None
        return self._cost.recompute_seconds(start, self._prompt_tokens, self._speeds.worker_flops)


def _coldest(by_tier: dict[Tier, int]) -> Tier:
    return Tier.DISK if Tier.DISK in by_tier else Tier.HOST
