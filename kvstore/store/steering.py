"""Who is in charge of a running store: ghosts of other policies and admission follow its traffic (`core/shadows.py`).

Where the operator chose "adaptive", the best of them takes over by itself; else they only show what would be. The
following is the tick thread's work, outside the lock; a change is made under it.
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from kvstore.core.shadows import VARIANTS, Shadows, Variant, variants_for
from kvstore.store.kept import Kept

log = logging.getLogger("kvstore.store")


class Score(NamedTuple):
    """How one variant fares on the traffic that was followed lately."""

    variant: Variant
    resumed_share: float  # of the asked tokens
    is_in_charge: bool


class Steering:
    """One store's shadows, and which of them may take over. All but `follow` is called under the store's lock."""

    def __init__(self, kept: Kept, policy: str, keep_seconds: float | None) -> None:
        self._kept = kept
        self._turn = threading.Lock()
        self._allowed = variants_for(policy, keep_seconds)
        self.last_change = ""  # what took over by itself, and why
        self.shadows = Shadows(kept.planner.settings, VARIANTS, self._allowed[0])
        kept.planner.watch(self.shadows)

    @property
    def in_charge(self) -> Variant:
        """What the store's planner runs; the ghosts hear of a change when they follow next."""
        planner = self._kept.planner
        return Variant(planner.policy, planner.settings.keep_seconds)

    @property
    def is_adaptive(self) -> bool:
        return len(self._allowed) > 1

    def allow(self, variants: tuple[Variant, ...]) -> None:
        """An operator decided: choose among these from now on, or stay with the one; the planner has one of them."""
        self._allowed = variants
        self.shadows.chosen(self.in_charge)

    def scores(self) -> list[Score]:
        """The best first; empty until something was followed."""
        if not self.shadows.requests:
            return []
        charge = self.in_charge
        found = [Score(variant, share, variant == charge) for variant, share in self.shadows.scores().items()]
        return sorted(found, key=lambda score: -score.resumed_share)

    def follow(self) -> None:
        """Let the ghosts catch up, and the best take over. Called without the lock, by whoever ticks; one at a time."""
        if not self._turn.acquire(blocking=False):
            return  # somebody is at it
        try:
            self._follow()
        finally:
            self._turn.release()

    def _follow(self) -> None:
        self.shadows.work()
        if not self.is_adaptive:
            return
        with self._kept.lock:
            if self.shadows.charge != self.in_charge:
                return  # an operator chose since: what was followed compares with something else
            verdict = self.shadows.steer(self._kept.planner, self._allowed)
            if verdict is not None:
                self._kept.counters["policy_changes"] += 1
                self.last_change = verdict.why
        if verdict is not None:
            log.info("%s is in charge: %s", verdict.variant, verdict.why)
