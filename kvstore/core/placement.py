"""At which boundaries states are snapshotted. Pure; all figures are tokens.

every        each boundary that can be resumed
interval:N   multiples of N
ends         the last boundary below the prompt's end, so that the same prompt sent again can resume; the last one
             at or before the end of output; each breakpoint of the request
ends+junctions   the same, and where a request leaves a chain that others share: the deepest stored rows, where they
             reach beyond the best resume point. At first sight: the next request that leaves there resumes there
adaptive     the same; where memory is free, more in between that go first (`speculation.py`); and those that later ones
             made superfluous fade
none         nowhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from kvstore.core.errors import ConfigError
from kvstore.core.match import MAX_SNAPSHOTS, Snapshots


class PlacementKind(Enum):
    EVERY = "every"
    INTERVAL = "interval"
    ENDS = "ends"
    JUNCTIONS = "ends+junctions"
    ADAPTIVE = "adaptive"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where states are taken, and whether a missing one may be rebuilt by replay."""

    kind: PlacementKind = PlacementKind.ADAPTIVE
    interval_tokens: int = 0
    replay: bool = True

    @classmethod
    def parse(cls, text: str, replay: bool = True) -> Placement:
        """From `adaptive`, `every`, `interval:N`, `ends`, `ends+junctions` or `none`.

        >>> Placement.parse("interval:1024").interval_tokens
        1024
        """
        name, _, argument = text.partition(":")
        if name == "interval":
            if not argument.isdecimal() or int(argument) < 1:
                raise ConfigError(f"placement {text!r} names no interval: write interval:N with N tokens")
            return cls(PlacementKind.INTERVAL, int(argument), replay)
        if argument or name not in {kind.value for kind in PlacementKind}:
            raise ConfigError(
                f"placement {text!r} is unknown: choose adaptive, every, interval:N, ends, ends+junctions or none"
            )
        return cls(PlacementKind(name), 0, replay)

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        is_interval = self.kind is PlacementKind.INTERVAL
        return f"{self.kind.value}:{self.interval_tokens}" if is_interval else self.kind.value

    @property
    def is_adaptive(self) -> bool:
        return self.kind is PlacementKind.ADAPTIVE

    def snapshots(
        self, *, above_tokens: int, rows_tokens: int, prompt_tokens: int, breakpoints: Sequence[int], alignment: int
    ) -> Snapshots:
        """What the worker should take while it computes from `above_tokens` on; boundaries are aligned down.

        `rows_tokens` of the prompt are stored as rows.
        """
        if self.kind is PlacementKind.NONE:
            return Snapshots()
        if self.kind is PlacementKind.EVERY:
            return Snapshots(every=alignment, at_output_end=True)
        if self.kind is PlacementKind.INTERVAL:
            return Snapshots(every=-(-self.interval_tokens // alignment) * alignment)
        wanted = {_aligned(prompt_tokens - 1, alignment)}
        wanted |= {_aligned(point, alignment) for point in breakpoints if point <= prompt_tokens}
        if self.kind in (PlacementKind.JUNCTIONS, PlacementKind.ADAPTIVE):
            wanted.add(_aligned(rows_tokens, alignment))
        at = sorted(tokens for tokens in wanted if tokens > above_tokens)
        return Snapshots(at=tuple(at[-MAX_SNAPSHOTS:]), at_output_end=True)


DEFAULT_PLACEMENT = Placement()


def _aligned(tokens: int, alignment: int) -> int:
    return tokens - tokens % alignment
