"""What an operator changes of a running store: the policy in charge, what is admitted, where states are taken.

None of it outlives the daemon: the config says what the next one begins with.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from kvstore.core.errors import InvalidInput
from kvstore.core.placement import Placement
from kvstore.core.policies import policy_named
from kvstore.core.shadows import Variant, variants_for
from kvstore.store.kept import Kept
from kvstore.store.steering import Score, Steering

log = logging.getLogger("kvstore.store")

MOVES_A_HOLD = 64  # objects that change their order while the lock is held: some 0.6 ms
MOST_KEEP_SECONDS = 86_400.0  # as the config has it


@dataclass(frozen=True, slots=True)
class Choices:
    """What is in charge of a store."""

    policy: str
    keep_seconds: float
    placement: str
    replay: bool
    objects: int
    left_to_move: int  # objects that are still ranked by the policy before
    is_adaptive: bool  # the store chooses by itself
    scores: tuple[Score, ...]  # of its ghosts, the best first
    followed: int  # lookups that the ghosts followed
    sample_rate: float  # share of the sessions that they follow
    last_change: str  # that the store made by itself, and why


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an operator wants changed; None leaves it as it is."""

    policy: str | None = None
    keep_seconds: float | None = None
    placement: str | None = None
    replay: bool | None = None


def choices(kept: Kept, steering: Steering) -> Choices:
    """Called under the lock."""
    planner = kept.planner
    settings = planner.settings
    return Choices(
        planner.policy,
        settings.keep_seconds,
        settings.placement.text,
        settings.placement.replay,
        len(planner),
        planner.left_to_move,
        steering.is_adaptive,
        tuple(steering.scores()),
        steering.shadows.requests,
        steering.shadows.rate,
        steering.last_change,
    )


def change(kept: Kept, steering: Steering, wishes: Wishes) -> tuple[Choices, Choices]:
    """What was in charge before and what is now. Raises InvalidInput, and then nothing was changed."""
    allowed = None if wishes.policy is None else variants_for(wishes.policy, wishes.keep_seconds or 0.0)
    keep = wishes.keep_seconds
    if keep is not None and not 0.0 <= keep <= MOST_KEEP_SECONDS:
        raise InvalidInput(f"keep_seconds is {keep:g}: give it a number from 0 to {MOST_KEEP_SECONDS:g}")
    with kept.lock:
        before = choices(kept, steering)
        replay = before.replay if wishes.replay is None else wishes.replay
        placement = Placement.parse(before.placement if wishes.placement is None else wishes.placement, replay)
        if allowed is None and keep is not None:
            allowed = (Variant(before.policy, keep),)
        if allowed is not None and (len(allowed) == 1 or steering.in_charge not in allowed):
            first = allowed[0] if keep is not None else allowed[0]._replace(keep_seconds=before.keep_seconds)
            kept.planner.set_policy(policy_named(first.policy))
            kept.planner.set_keep_seconds(first.keep_seconds)
        if allowed is not None:
            steering.allow(allowed)
        kept.planner.set_placement(placement)
        after = choices(kept, steering)
        kept.counters["policy_changes"] += after.policy != before.policy
    if after.policy != before.policy:
        log.info("policy %s is in charge, it was %s: ranking %d objects", after.policy, before.policy, after.objects)
    if after.is_adaptive != before.is_adaptive:
        log.info("the store %s", "chooses by its ghosts" if after.is_adaptive else "stays with what was chosen")
    if after.keep_seconds != before.keep_seconds:
        log.info("keep_seconds is %g, it was %g", after.keep_seconds, before.keep_seconds)
    if (after.placement, after.replay) != (before.placement, before.replay):
        log.info("placement is %s, it was %s", in_words(after), in_words(before))
    return before, after


def in_words(found: Choices) -> str:
    return f"{found.placement} {'with' if found.replay else 'without'} replay"


def go_on(kept: Kept, steering: Steering, seconds: float) -> Choices:
    """Move objects to the order of the policy in charge, for so long at most.

    Between two holds the lock is free for as long as it was held: Python's locks know no queue, and who waits for one
    would not get it from a thread that takes it again at once.
    """
    ends = time.monotonic() + seconds
    while True:
        with kept.lock:
            began = time.monotonic()
            was_changing = kept.planner.left_to_move > 0
            kept.planner.change_some(MOVES_A_HOLD)
            now = choices(kept, steering)
        took = time.monotonic() - began
        if was_changing and not now.left_to_move:
            log.info("policy %s ranks all %d objects", now.policy, now.objects)
        if not now.left_to_move or time.monotonic() + took >= ends:
            return now
        time.sleep(took)
