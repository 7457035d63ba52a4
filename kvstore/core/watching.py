"""Who follows a planner's traffic without having a say in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvstore.core.keys import Chain
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints
from kvstore.core.matching import Request
from kvstore.core.reserve import ObjectSpec


class Watcher(Protocol):
    """Told under the store's lock: remember, and work later."""

    def open(self, name: bytes, root: bytes, layout: ModelLayout) -> None:
        """A namespace was opened."""

    def looked_up(self, name: bytes, request: Request, now: float) -> None:
        """A lookup was answered."""

    def written(self, name: bytes, chain: Chain, objects: Sequence[ObjectSpec], hints: Hints, now: float) -> None:
        """Objects were announced."""
