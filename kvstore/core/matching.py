"""From a chain to a match: bisect for the rows, walk up for the states, price the plans, choose.

Pure functions over the index; nothing is changed here. Units: tokens, bytes, seconds.
"""

from __future__ import annotations

from typing import NamedTuple

from kvstore.core.climb import ancestor, hot_above, with_states
from kvstore.core.cost import CostModel, load_seconds
from kvstore.core.index import Entry, Namespace, Node
from kvstore.core.keys import Chain, Tier
from kvstore.core.match import (
    MAX_RESUME_POINTS,
    Hints,
    Match,
    MissReason,
    Plan,
    PlanKind,
    ResumePoint,
    Snapshots,
    Speeds,
)
from kvstore.core.placement import Placement


class Request(NamedTuple):
    chain: Chain
    prompt_tokens: int
    hints: Hints
    can_replay: bool
    speeds: Speeds
    layers: bool = False  # cold rows are wanted layer by layer


class Found(NamedTuple):
    """A match and the objects that its plan needs held: the deepest rows, the deepest hot rows, the state."""

    match: Match
    last: Node | None  # the deepest readable block, with or without a way to resume there
    rows: Entry | None
    hot: Entry | None
    states: tuple[Entry, ...]  # the required state of the plan, and optional groups at the same boundary


def deepest(namespace: Namespace, parent: Node, chain: Chain, is_hot: bool) -> Node:
    """The last block of the chain whose rows, and all before, are readable (or hot); `parent` if none is.

    Both facts are closed under prefix, so this bisects: O(log n) probes.
    """
    low, high, found = 0, chain.blocks, parent
    while low < high:
        middle = (low + high) // 2
        node = namespace.nodes.get(chain.hash_at(middle))
        if node is not None and node.block == chain.first_block + middle and (node.hot if is_hot else node.readable):
            low, found = middle + 1, node
        else:
            high = middle
    return found


def find(namespace: Namespace, request: Request, placement: Placement, cost: CostModel | None) -> Found:
    """The match of one request, without a lease."""
    layout, chain = namespace.layout, request.chain
    parent = namespace.node(chain.parent)
    if parent is None or parent.block != chain.first_block - 1 or not parent.readable:
        return Found(_empty(layout.canonical, MissReason.PARENT_UNKNOWN, Snapshots()), None, None, None, ())
    rows = deepest(namespace, parent, chain, is_hot=False)
    hot = deepest(namespace, parent, chain, is_hot=True) if parent.hot else hot_above(parent)
    limit = min(rows.end_tokens, request.prompt_tokens - 1)
    limit -= limit % layout.resume_alignment
    prices = _Prices(namespace, hot.end_tokens, request, cost)
    candidates = _resume_points(namespace, rows, limit)
    points = tuple(prices.resume(node, state) for node, state in candidates)
    best_tokens = points[0].tokens if points else 0
    replay = None
    window = layout.replay_tokens if placement.replay and request.can_replay else None
    if window is not None and limit - window > best_tokens:  # it would compute less than the best resume point does
        replay = prices.replay(limit, window)
    plan, is_cut = _choose(points, replay, prices.cold())
    node = ancestor(rows, plan.tokens // layout.block_tokens - 1)
    states: tuple[Entry, ...] = ()
    if plan.kind is PlanKind.RESUME:
        states = tuple(state for state in node.states if _is_offered(state))
    match = Match(
        rows_tokens=rows.end_tokens,
        resume_points=points,
        replay=replay,
        plan=plan,
        snapshots=placement.snapshots(
            above_tokens=plan.tokens,
            prompt_tokens=request.prompt_tokens,
            breakpoints=request.hints.breakpoints,
            alignment=layout.resume_alignment,
        )
        if layout.state_group is not None
        else Snapshots(),
        canonical=layout.canonical,
        reason=_reason(layout.resume_alignment, request.prompt_tokens, limit, plan, is_cut),
        lease=None,
        lineage=node.lineage,
    )
    held_hot = node if node.hot else hot
    return Found(match, rows, node.rows, held_hot.rows, states)


class _Prices:
    """Bytes and seconds of the plans of one request."""

    def __init__(self, namespace: Namespace, hot_tokens: int, request: Request, cost: CostModel | None) -> None:
        self._layout = namespace.layout
        self._hot_tokens = hot_tokens
        self._request = request
        self._cost = cost

    def resume(self, node: Node, state: Entry | None) -> ResumePoint:
        tokens = node.end_tokens
        by_tier = self._rows_bytes(tokens)
        if state is not None:
            tier = Tier.HOST if state.is_ready(Tier.HOST) else Tier.DISK
            by_tier[tier] = by_tier.get(tier, 0) + state.facts.raw_bytes
        return ResumePoint(
            tokens,
            sum(by_tier.values()),
            _coldest(by_tier),
            load_seconds(by_tier, self._request.speeds),
            self._recompute(tokens),
        )

    def replay(self, tokens: int, replay_tokens: int) -> Plan:
        by_tier = self._rows_bytes(tokens)
        seconds = load_seconds(by_tier, self._request.speeds)
        start = tokens - replay_tokens
        nbytes = sum(by_tier.values())
        return Plan(PlanKind.REPLAY, tokens, start, nbytes, _coldest(by_tier), seconds, self._recompute(start))

    def cold(self) -> Plan:
        return Plan(PlanKind.COLD, 0, 0, 0, None, 0.0, self._recompute(0))

    def _rows_bytes(self, tokens: int) -> dict[Tier, int]:
        """Rows beyond the hot prefix count as cold; where some are hot after a gap this errs on the slow side."""
        block = self._layout.rows.nbytes
        hot = min(tokens, self._hot_tokens) // self._layout.block_tokens * block
        total = tokens // self._layout.block_tokens * block
        return {tier: nbytes for tier, nbytes in ((Tier.HOST, hot), (Tier.DISK, total - hot)) if nbytes}

    def _recompute(self, start: int) -> float | None:
        if self._cost is None:
            return None
        return self._cost.recompute_seconds(start, self._request.prompt_tokens, self._request.speeds.worker_flops)


def _resume_points(namespace: Namespace, rows: Node, limit: int) -> list[tuple[Node, Entry | None]]:
    """Boundaries at or below `limit` tokens from which a worker can go on, deepest first."""
    layout, points = namespace.layout, list[tuple[Node, Entry | None]]()
    group = layout.state_group
    step = layout.resume_alignment // layout.block_tokens
    node = ancestor(rows, limit // layout.block_tokens - 1)
    if group is None:
        while node.parent is not None and len(points) < MAX_RESUME_POINTS:
            points.append((node, None))
            node = ancestor(node, max(node.block - step, -1))
        return points
    for found in with_states(node):
        state = found.state(group) if (found.block + 1) % step == 0 else None
        if state is not None and _is_offered(state):
            points.append((found, state))
            if len(points) == MAX_RESUME_POINTS:
                break
    return points


def _is_offered(state: Entry) -> bool:
    """A state is offered only on the rows that it was computed on."""
    return state.is_stored and state.facts.lineage == state.node.lineage


def _choose(points: tuple[ResumePoint, ...], replay: Plan | None, cold: Plan) -> tuple[Plan, bool]:
    """The plan with the least predicted time, or the one that computes least where a price is unknown.

    True with it: a deeper plan was passed over because recomputing is predicted to be quicker.
    """
    plans = [] if replay is None else [replay]
    plans += [
        Plan(PlanKind.RESUME, point.tokens, point.tokens, point.load_bytes, point.tier, *point[3:]) for point in points
    ]
    plans.append(cold)  # from least to most computing
    priced = [
        (plan.load_seconds + plan.recompute_seconds, order)
        for order, plan in enumerate(plans)
        if plan.load_seconds is not None and plan.recompute_seconds is not None
    ]
    if len(priced) < len(plans):
        return plans[0], False
    _, order = min(priced)
    return plans[order], order > 0


def _reason(alignment: int, prompt_tokens: int, limit: int, plan: Plan, is_cut: bool) -> MissReason:
    best = prompt_tokens - 1 - (prompt_tokens - 1) % alignment
    if best <= 0:
        return MissReason.SHORT_PROMPT
    if is_cut:
        return MissReason.SLOWER_THAN_RECOMPUTE
    if plan.tokens < limit:
        return MissReason.STATE_MISSING
    return MissReason.NONE if plan.tokens == best else MissReason.NEVER_SEEN


def _empty(canonical: bool, reason: MissReason, snapshots: Snapshots) -> Match:
    plan = Plan(PlanKind.COLD, 0, 0, 0, None, 0.0, None)
    return Match(0, (), None, plan, snapshots, canonical, reason, None, bytes(16))


def _coldest(by_tier: dict[Tier, int]) -> Tier:
    return Tier.DISK if Tier.DISK in by_tier else Tier.HOST
