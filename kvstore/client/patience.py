"""How long a load is waited for: pure rules, the clock is the caller's. Seconds, bytes, tokens.

A load competes with computing the prompt. What it may cost beyond the better of the two, known only afterwards, is a
budget: a tenth of the cold run and 5 ms (the promise of DESIGN section 1). Stopping loses nothing that came in: the
worker goes on from the deepest point that is here, and takes what comes in later when it is there
(`Client.catch_up`), so stopping too early costs computing, not time. Waiting too long costs time. Hence the rule:

    stop when    going on is not predicted to be quicker than what is here: slow from the start, or slower than before
    or           half the budget is spent (what is here has lost that much against a cold run) and the load is late
    or           nothing came for a while, and what is here has lost something against a cold run

The last two are ski rental with what has come in as credit: the more is of use already, the longer a stall may last.
Chosen on 3,000 simulated loads of 50 ms to 2 s cold time with log-normal jitter, stalls of 50 to 500 ms in 4 to 40 %
of them and 5 to 10 % of the loads 3 to 6 times slower than predicted; bench/load_or_recompute.py measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvstore.core.cost import CostModel
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Match, Plan, PlanKind, ResumePoint

BUDGET_SHARE = 0.1  # of the cold run ...
BUDGET_SECONDS = 0.005  # ... and this: issue 3's bound on TTFT - min(hit, cold)
PRIOR_SHARE = 0.15  # the prediction counts as much as this share of the load would, seen
LATE = 1.3  # a load is late when it took so much longer than predicted for what is here ...
LATE_BUDGET_SHARE = 0.3  # ... and this share of the budget on top, which forgives a late start
QUIET_SHARE = 0.05  # nothing for this share of the predicted load is no jitter any more ...
QUIET_SECONDS = 0.01  # ... but not before this: a busy machine's threads wait so long for their turn
LOOKS = 8  # in one budget: how often a waiting client looks
SHORTEST_LOOK = 0.002  # seconds; a look costs 0.1 ms over a lane and 1 ms over gRPC
LONGEST_LOOK = 0.05


class Forecast(NamedTuple):
    """What is known about a load before it begins."""

    load_bytes: int
    load_seconds: float | None  # predicted; None where the tier has not been measured
    rest_seconds: float  # computing what is left when all of it is here
    cold_seconds: float  # computing everything

    @property
    def budget(self) -> float:
        return BUDGET_SHARE * self.cold_seconds + BUDGET_SECONDS

    @property
    def look_seconds(self) -> float:
        """How long to wait for news before judging again."""
        return min(max(self.budget / LOOKS, SHORTEST_LOOK), LONGEST_LOOK)


class Progress(NamedTuple):
    """What is known about it now."""

    elapsed: float  # since it was asked for
    idle: float  # since more of it came in
    here_bytes: int
    here_seconds: float  # computing what is left from the deepest point of use that is here


def should_stop(forecast: Forecast, now: Progress) -> bool:
    """Whether what is here is the better choice than waiting for the rest."""
    here = min(now.here_bytes / forecast.load_bytes, 1.0) if forecast.load_bytes else 1.0
    predicted = forecast.load_seconds
    spent = now.elapsed + now.here_seconds - forecast.cold_seconds  # against a cold run, by stopping now
    if predicted is None:
        left = now.elapsed / here * (1 - here) if here else 0.0
        is_late = not here or left + forecast.rest_seconds > now.here_seconds
        is_quiet = now.idle > forecast.budget / 2
    else:
        left = (1 - here) * (now.elapsed + PRIOR_SHARE * predicted) / (here + PRIOR_SHARE)
        is_late = now.elapsed > LATE * here * predicted + LATE_BUDGET_SHARE * forecast.budget
        is_quiet = now.idle > min(max(QUIET_SHARE * predicted, QUIET_SECONDS), forecast.budget / 2)
    if here >= 1 or now.here_seconds <= forecast.rest_seconds:
        return False  # all that matters is here: what is left is copying
    if now.elapsed <= forecast.budget / 2:
        return False  # too early to tell, and nothing is lost by waiting
    if here and left + forecast.rest_seconds >= now.here_seconds:
        return True
    return (spent > forecast.budget / 2 and is_late) or (spent > 0 and is_quiet)


class Fallback:
    """Computing times of what a load that is given up leaves: a resume point, a replay, or the cold run."""

    def __init__(
        self,
        layout: ModelLayout,
        cost: CostModel,
        worker_flops: float,
        prompt_tokens: int,
        points: Sequence[ResumePoint],
        can_replay: bool,
    ) -> None:
        self._layout, self._cost = layout, cost
        self._flops, self._prompt_tokens = worker_flops, prompt_tokens
        self._points = sorted(point.tokens for point in points if point.comes_along)
        self._replay = layout.replay_tokens if can_replay else None

    def compute_from(self, tokens: int) -> int:
        """The deepest token that computing can start at when rows up to `tokens` are here."""
        tokens = min(tokens, self._prompt_tokens - 1)
        tokens -= tokens % self._layout.resume_alignment
        if self._layout.state_group is None:
            return tokens
        deepest = max((point for point in self._points if point <= tokens), default=0)
        return max(deepest, tokens - self._replay) if self._replay is not None else deepest

    def seconds(self, tokens: int) -> float:
        """Computing the rest of the prompt when rows up to `tokens` are here."""
        return self.seconds_from(self.compute_from(tokens))

    def seconds_from(self, start: int) -> float:
        return self._cost.prefill_flops(start, self._prompt_tokens) / self._flops


class Patience(NamedTuple):
    """One load's forecast and what giving it up would leave."""

    forecast: Forecast
    fallback: Fallback

    @classmethod
    def of(
        cls,
        layout: ModelLayout,
        cost: CostModel | None,
        worker_flops: float | None,
        prompt_tokens: int,
        found: Match,
        plan: Plan,
        can_replay: bool,
    ) -> Patience | None:
        """None where nothing says what computing takes: then a load is waited for until its deadline."""
        if cost is None or worker_flops is None or plan.kind is PlanKind.COLD:
            return None
        fallback = Fallback(layout, cost, worker_flops, prompt_tokens, found.resume_points, can_replay)
        rest, cold = fallback.seconds_from(plan.compute_from), fallback.seconds_from(0)
        return cls(Forecast(plan.load_bytes, plan.load_seconds, rest, cold), fallback)
