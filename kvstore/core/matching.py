"""From a chain to a match: bisect for the rows, walk up for the states, price the plans, choose.

Pure functions over the index; nothing is changed here. Units: tokens, bytes, seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvstore.core.classes import output_is_awaited, output_is_stripped
from kvstore.core.climb import ancestor, hot_above, with_states
from kvstore.core.cost import CostModel
from kvstore.core.index import Entry, Namespace, Node
from kvstore.core.keys import Chain, Tier
from kvstore.core.match import (
    MAX_RESUME_POINTS,
    Hints,
    Match,
    MissReason,
    Plan,
    PlanKind,
    Snapshots,
    Speeds,
)
from kvstore.core.placement import Placement
from kvstore.core.prices import Prices, choose

STEPS_SHARE = 1 / 8  # of a cold plan's rows: its steps make the load no more than that longer
MAX_STEPS = 7  # abandoning between two of eight parts loses an eighth of the load at most; more gain little


class Request(NamedTuple):
    chain: Chain
    prompt_tokens: int
    hints: Hints
    can_replay: bool
    speeds: Speeds
    layers: bool = False  # cold rows are wanted layer by layer
    hot_only: bool = False  # only what is on the host counts: nothing slow is started


class Found(NamedTuple):
    """A match and the objects that its plan needs held: the deepest rows, the deepest hot rows, the state."""

    match: Match
    last: Node | None  # the deepest readable block, with or without a way to resume there
    rows: Entry | None
    hot: Entry | None
    states: tuple[Entry, ...]  # the required state of the plan, and optional groups at the same boundary
    steps: tuple[Entry, ...] = ()  # cold states of shallower resume points, to come along with the plan's rows


def deepest(namespace: Namespace, parent: Node, chain: Chain, fact: Callable[[Node], bool]) -> Node:
    """The last block of the chain of which, and of all before it, a fact holds that is closed under prefix.

    `parent` if it holds of none. Bisects: O(log n) probes.
    """
    low, high, found = 0, chain.blocks, parent
    while low < high:
        middle = (low + high) // 2
        node = namespace.nodes.get(chain.hash_at(middle))
        if node is not None and node.block == chain.first_block + middle and fact(node):
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
    hot = deepest(namespace, parent, chain, is_hot) if parent.hot else hot_above(parent)
    rows = hot if request.hot_only else deepest(namespace, parent, chain, is_readable)
    limit = min(rows.end_tokens, request.prompt_tokens - 1)
    limit -= limit % layout.resume_alignment
    coming = _coming_tokens(namespace, parent, chain, hot, rows)
    prices = Prices(layout, cost, request.speeds, request.prompt_tokens, hot.end_tokens, coming)
    candidates = _resume_points(namespace, rows, limit, request.hot_only)
    points = tuple(prices.resume(node, state) for node, state in candidates)
    window = layout.replay_tokens if placement.replay and request.can_replay else None
    replays = [] if window is None else prices.replays(limit, window)
    # the deepest replay leads where it would compute less than the best resume point does
    leads = bool(replays) and replays[0].compute_from > (points[0].tokens if points else 0)
    cold = prices.cold()
    plan, is_cut = choose(points, replays, leads, cold)
    node = ancestor(rows, plan.tokens // layout.block_tokens - 1)
    states: tuple[Entry, ...] = ()
    if plan.kind is PlanKind.RESUME:
        states = tuple(state for state in node.states if _is_offered(state, request.hot_only))
    steps: tuple[Entry, ...] = ()
    if cold.recompute_seconds is not None and plan.tokens > hot.end_tokens:  # only a priced load can be abandoned
        steps = _steps(candidates, plan.tokens, hot.end_tokens)
        along = {step.node.end_tokens for step in steps}
        points = tuple(point._replace(comes_along=point.comes_along or point.tokens in along) for point in points)
    match = Match(
        rows_tokens=rows.end_tokens,
        resume_points=points,
        replay=replays[0] if leads else None,
        plan=plan,
        snapshots=_snapshots(
            placement,
            request.hints,
            above_tokens=plan.tokens,
            rows_tokens=min(rows.end_tokens, request.prompt_tokens),
            prompt_tokens=request.prompt_tokens,
            alignment=layout.resume_alignment,
        )
        if layout.state_group is not None
        else Snapshots(),
        canonical=layout.canonical,
        reason=_reason(layout.resume_alignment, request.prompt_tokens, limit, plan, is_cut),
        lease=None,
        lineage=node.lineage,
        cold_seconds=cold.recompute_seconds,
    )
    held_hot = node if node.hot else hot
    return Found(match, rows, node.rows, held_hot.rows, states, steps)


def is_readable(node: Node) -> bool:
    return node.readable


def is_hot(node: Node) -> bool:
    return node.hot


def _snapshots(
    placement: Placement, hints: Hints, *, above_tokens: int, rows_tokens: int, prompt_tokens: int, alignment: int
) -> Snapshots:
    """What the placement wants; no state at the end of an output that nobody goes on from."""
    wanted = placement.snapshots(
        above_tokens=above_tokens,
        rows_tokens=rows_tokens,
        prompt_tokens=prompt_tokens,
        breakpoints=hints.breakpoints,
        alignment=alignment,
    )
    is_of_use = output_is_awaited(hints) or not output_is_stripped(hints)
    return wanted._replace(at_output_end=wanted.at_output_end and is_of_use)


def _coming_tokens(namespace: Namespace, parent: Node, chain: Chain, hot: Node, rows: Node) -> int:
    """Rows up to here are on the host, or on their way: promotions go root first and leave from the leaf."""
    if not parent.hot or hot is rows:
        return hot.end_tokens
    node = deepest(namespace, parent, chain, lambda node: node.rows is not None and node.rows.host is not None)
    return max(node.end_tokens, hot.end_tokens)


def _resume_points(namespace: Namespace, rows: Node, limit: int, hot_only: bool) -> list[tuple[Node, Entry | None]]:
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
        if state is not None and _is_offered(state, hot_only):
            points.append((found, state))
            if len(points) == MAX_RESUME_POINTS:
                break
    return points


def _is_offered(state: Entry, hot_only: bool) -> bool:
    """A state is offered only on the rows that it was computed on."""
    is_stored = state.is_ready(Tier.HOST) if hot_only else state.is_stored
    return is_stored and state.facts.lineage == state.node.lineage


def _steps(candidates: list[tuple[Node, Entry | None]], plan_tokens: int, hot_tokens: int) -> tuple[Entry, ...]:
    """States of shallower resume points that come along with a cold plan, so that abandoning it loses little.

    Evenly spread between what is of use already and the plan's end; a small share of what is loaded anyway.
    """
    below = [(node, state) for node, state in candidates if node.end_tokens < plan_tokens and state is not None]
    if not below:
        return ()
    here = [node.end_tokens for node, state in below if state.host is not None and node.end_tokens <= hot_tokens]
    begin = here[0] if here else 0
    namespace, state_bytes = below[0][0].namespace, below[0][1].facts.raw_bytes
    rows_bytes = (plan_tokens - hot_tokens) // namespace.layout.block_tokens * namespace.layout.rows.nbytes
    count = min(MAX_STEPS, int(STEPS_SHARE * rows_bytes / state_bytes))
    chosen: dict[Entry, None] = {}
    for index in range(1, count + 1):
        wanted = begin + (plan_tokens - begin) * index // (count + 1)
        node, state = min(below, key=lambda each: abs(each[0].end_tokens - wanted))
        if state.host is None and node.end_tokens > begin:
            chosen[state] = None
    return tuple(chosen)


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
