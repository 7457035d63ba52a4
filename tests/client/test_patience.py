"""When a load is given up: pure rules over what has come in, held to the budget by simulated loads."""

from __future__ import annotations

import random

import pytest

from kvstore.client.patience import Fallback, Forecast, Patience, Progress, should_stop
from kvstore.core import presets
from kvstore.core.cost import CostModel
from kvstore.core.keys import Tier
from kvstore.core.match import Match, MissReason, Plan, PlanKind, ResumePoint, Snapshots

DEMO = presets.v4_demo()
COST = CostModel.of(DEMO)
assert COST is not None
PROMPT = 100 * 128
FLOPS = COST.prefill_flops(0, PROMPT)  # a cold run takes a second


def point(tokens: int, along: bool = True) -> ResumePoint:
    return ResumePoint(tokens, 1, Tier.DISK, None, None, along)


def fallback(*points: ResumePoint, can_replay: bool = False) -> Fallback:
    assert COST is not None
    return Fallback(DEMO, COST, FLOPS, PROMPT, points, can_replay)


def test_what_is_here_is_a_point_whose_state_came_along_or_a_replay() -> None:
    states = fallback(point(40 * 128), point(20 * 128), point(30 * 128, along=False))
    assert [states.compute_from(blocks * 128) for blocks in (0, 19, 20, 35, 40, 99)] == [
        0, 0, 20 * 128, 20 * 128, 40 * 128, 40 * 128,
    ]  # fmt: skip
    replay = fallback(point(20 * 128), can_replay=True)
    assert replay.compute_from(21 * 128) == 20 * 128, "a replay of three blocks computes more"
    assert replay.compute_from(60 * 128) == 57 * 128
    assert replay.compute_from(2 * 128) == 0
    assert replay.seconds(0) == pytest.approx(1.0) and replay.seconds(60 * 128) < 0.6
    full = presets.full_tiny()
    model = CostModel.of(DEMO)
    assert model is not None
    assert Fallback(full, model, FLOPS, 1000, (), False).compute_from(999) == 992


FAST = Forecast(load_bytes=100_000_000, load_seconds=0.4, rest_seconds=0.02, cold_seconds=1.0)


def now(elapsed: float, share: float, here: float = 1.0, idle: float = 0.0) -> Progress:
    return Progress(elapsed, idle, int(share * FAST.load_bytes), here)


def test_a_load_on_its_way_is_waited_for() -> None:
    for step in range(1, 100):
        assert not should_stop(FAST, now(0.4 * step / 100, step / 100)), step
    assert not should_stop(FAST, now(5.0, 1.0)), "all of it is here: what is left is copying"


def test_a_load_that_is_slow_from_the_start_is_given_up_within_the_budget() -> None:
    seconds = next(t / 1000 for t in range(1, 3000) if should_stop(FAST, now(t / 1000, t / 1000 / 4.0)))
    assert seconds < FAST.budget


def test_a_stall_is_waited_for_as_long_as_what_came_in_makes_up_for_it() -> None:
    def waits(share: float, here: float) -> float:
        at = 0.4 * share
        return next(t / 1000 for t in range(1, 3000) if should_stop(FAST, now(at + t / 1000, share, here, t / 1000)))

    assert waits(0.5, 0.55) > waits(0.1, 0.9), "half of it is of use already"
    assert waits(0.9, 1.0) < 0.2, "nothing is: each moment is lost"
    assert should_stop(FAST, now(0.4, 0.9, here=0.03, idle=0.05)), "what is left is computed in no time"


def test_an_unmeasured_tier_is_given_the_budget_and_then_has_to_keep_up() -> None:
    unknown = FAST._replace(load_seconds=None)
    assert not should_stop(unknown, now(0.03, 0.1))
    assert should_stop(unknown, now(0.09, 0.0, idle=0.09))
    assert should_stop(unknown, now(0.09, 0.02)), "4.5 seconds at this pace"
    assert not should_stop(unknown, now(0.09, 0.3))


def test_without_a_declared_speed_there_is_no_deadline() -> None:
    plan = Plan(PlanKind.RESUME, 1280, 1280, 5000, Tier.DISK, 0.1, None)
    found = Match(1280, (point(1280),), None, plan, Snapshots(), True, MissReason.NONE, 1, bytes(16))
    assert Patience.of(DEMO, COST, None, PROMPT, found, plan, True) is None
    assert Patience.of(DEMO, None, FLOPS, PROMPT, found, plan, True) is None
    patience = Patience.of(DEMO, COST, FLOPS, PROMPT, found, plan, True)
    assert patience is not None and patience.forecast.cold_seconds == pytest.approx(1.0)
    assert patience.forecast.budget == pytest.approx(0.105)


def simulated(rng: random.Random) -> float:
    """Regret of one load with steps and catching up, as a share of its budget. All times are simulated."""
    cold = 0.05 * 40 ** rng.random()
    rest = cold * rng.choice([0.02, 0.1, 0.3])
    predicted = (cold - rest) * rng.uniform(0.1, 0.95)
    parts, steps, chunk = rng.choice([40, 80, 200]), rng.choice([3, 7]), cold / 32
    slow = rng.choice([3, 6]) if rng.random() < 0.02 else 1
    arrivals, t = [], 0.0
    for _ in range(parts):
        t += predicted / parts * slow * rng.lognormvariate(-0.08, 0.4)
        t += 0.05 * 10 ** rng.random() if rng.random() < 0.0005 else 0.0
        arrivals.append(t)
    forecast = Forecast(parts, predicted, rest, cold)

    def here(count: int) -> float:
        share = (count * (steps + 1) // parts) / (steps + 1)
        return rest if count == parts else cold - (cold - rest) * share

    t = last = 0.0
    while True:
        t += forecast.look_seconds
        count = sum(arrival <= t for arrival in arrivals)
        last = arrivals[count - 1] if count else 0.0
        if count == parts:
            return max(arrivals[-1] + rest - min(arrivals[-1] + rest, cold), 0.0) / forecast.budget
        if should_stop(forecast, Progress(t, t - last, count, here(count))):
            break
    t, left = t + 0.002, here(count)
    while left > 0:  # computing, with a look every chunk
        count = sum(arrival <= t for arrival in arrivals)
        left = min(left, here(count) + 0.002)
        t, left = t + min(chunk, left), left - chunk
    return (t - min(arrivals[-1] + rest, cold)) / forecast.budget


def test_simulated_loads_stay_within_the_budget() -> None:
    rng = random.Random(3)
    regrets = sorted(simulated(rng) for _ in range(600))
    assert regrets[int(0.99 * len(regrets))] <= 1.0
    assert regrets[len(regrets) // 2] <= 0.1
