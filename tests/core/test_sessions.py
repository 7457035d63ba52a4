"""What an agent session's events start: its chain comes back before it is asked for, where that pays."""

from __future__ import annotations

import pytest
from planner_bench import MIB, NAME, Bench

from kvstore.core.actions import Copy
from kvstore.core.keys import Tier
from kvstore.core.match import SessionEvent
from kvstore.core.planner import PREFETCH_GAP_SECONDS

BLOCKS = 8


def slept() -> Bench:
    """A session that was here, and whose chain has left the host since: rows, and states after blocks 2 and 5."""
    bench = Bench(disk=64 * MIB)
    bench.put("a", BLOCKS, states=(2, 5))
    bench.lookup("a", BLOCKS, session="a7")
    for block in range(BLOCKS - 1, -1, -1):
        for group in (1, 0):
            entry = bench.planner.entry(bench.key("a", block, group))
            if entry is not None:
                for lease in bench.planner.leases.owned(b"w" * 16):
                    bench.planner.release(lease)
                bench.do(list(bench.planner._room.lose(entry, Tier.HOST)))
    bench.planner.check()
    return bench


def said(bench: Bench, event: SessionEvent, gap: float | None = None, session: str = "a7") -> list[tuple[int, int]]:
    """Blocks and groups that an event starts to promote; the copies end at once."""
    bench.now += 1.0
    actions = bench.planner.session(NAME, session, event, bench.now, gap)
    bench.do(actions)
    bench.planner.check()
    return [(copy.facts.block, copy.facts.key.group) for copy in actions if isinstance(copy, Copy)]


@pytest.mark.parametrize(("event", "gap"), [(SessionEvent.OPENED, None), (SessionEvent.TOOL_CALL, 2.0)])
def test_a_session_that_will_ask_soon_finds_its_chain_hot(event: SessionEvent, gap: float | None) -> None:
    bench = slept()
    assert bench.tiers("a", BLOCKS - 1) == {Tier.DISK}
    assert said(bench, event, gap) == [*((block, 0) for block in range(BLOCKS)), (5, 1)], "rows and the deepest state"
    assert bench.lookup("a", BLOCKS, session="a7").plan.tier is Tier.HOST
    assert said(bench, event, gap) == [], "what is hot is not read again"


@pytest.mark.parametrize("gap", [None, PREFETCH_GAP_SECONDS + 1])
def test_a_tool_call_that_takes_long_or_nobody_knows_how_long_moves_nothing(gap: float | None) -> None:
    bench = slept()
    assert said(bench, SessionEvent.TOOL_CALL, gap) == []
    entry = bench.planner.entry(bench.key("a", BLOCKS - 1))
    assert entry is not None and entry.last_used == bench.now, "but its chain was used"


def test_other_events_other_sessions_and_forgotten_chains_move_nothing() -> None:
    bench = slept()
    assert said(bench, SessionEvent.TURN_ENDED) == []
    assert said(bench, SessionEvent.OPENED, session="never seen") == []
    assert said(bench, SessionEvent.CLOSED) == []
    assert said(bench, SessionEvent.OPENED) == [], "a closed session is forgotten"
    bench = slept()
    bench.do(bench.planner.report(bench.key("a", 0)))
    assert said(bench, SessionEvent.OPENED) == [], "nothing readable is left of it"
