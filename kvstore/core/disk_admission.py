"""Whether an object that is on the host is copied to disk too: what it must have shown, and what may be written.

    all           everything, as it comes
    second-hit    what was used again after it came. Most blocks never are; those that are pay for their write
    adaptive      all while the write budget is comfortable, else what was used again or is shared by declaration

A budget in bytes a day bounds what a device must endure; it may stand beside any of the three, and `adaptive` needs
one. It is a bucket that fills at the day's rate and holds BURST_SECONDS of it: no window of 24 hours writes more
than 25/24 of the budget, one copy's length and what a start adds (a bucket starts full), yet a quiet hour is not lost.
What is charged when a copy starts are raw bytes; the frame's length corrects it, and a copy that ends unwritten gives
them back. Where nothing is left nothing is written: what is held back or refused stays on the host, may be asked
for again, and is lost when the host evicts it.

`adaptive` changes its mind at half of the bucket and at a quarter, and not at one mark: chains of thousands of blocks
come one object at a time, and half of one is of little use. It needs no knowledge of the traffic: where all of it is
more than the rate the level falls until it asks for a second use, where little comes it rises until it takes all.

Scratch (what nobody can use again, by its class) is never admitted for its own sake. Rows on disk need those that
they stand on there too, to survive a restart; `copies.py` sees to that. Pure; units: bytes, seconds of `now`.
"""

from __future__ import annotations

from enum import Enum

from kvstore.core.errors import ConfigError
from kvstore.core.index import Entry, ObjectClass
from kvstore.core.keys import BlockKey

DAY_SECONDS = 86_400.0
BURST_SECONDS = 3_600.0  # busy minutes borrow from the quiet ones of their hour, and a day is overdrawn by 1/24 at most
COMFORTABLE, SHORT = 0.5, 0.25  # shares of a full bucket


class DiskAdmission(Enum):
    """Written as in a config file."""

    ALL = "all"
    SECOND_HIT = "second-hit"
    ADAPTIVE = "adaptive"

    @classmethod
    def parse(cls, text: str, bytes_per_day: int) -> DiskAdmission:
        """Raises ConfigError; a budget of 0 is none."""
        try:
            found = cls(text)
        except ValueError:
            names = ", ".join(mode.value for mode in cls)
            raise ConfigError(f"{text!r} is no admission to disk: choose one of {names}") from None
        if found is cls.ADAPTIVE and not bytes_per_day:
            raise ConfigError("adaptive admission to disk has no budget to keep: set write_bytes_per_day, such as 5TB")
        return found


class DiskGate:
    """Judges objects and keeps the budget's book."""

    def __init__(self, mode: DiskAdmission, bytes_per_day: int) -> None:
        self.mode = mode
        self.held_back = 0  # objects that were not copied when they came, for want of a second use
        self.over_budget = 0  # copies that were wanted and refused: one object may be refused at several uses
        self.bytes_written = 0  # frames, whole ones
        self._rate = bytes_per_day / DAY_SECONDS
        self._full = self._rate * BURST_SECONDS
        self._level = self._full
        self._is_short = False
        self._now: float | None = None
        self._started: dict[tuple[BlockKey, int], int] = {}  # copies under way -> bytes charged

    @property
    def is_open(self) -> bool:
        """Everything but scratch is written as it comes: there is nothing that a later use could start."""
        return self.mode is DiskAdmission.ALL and not self._rate

    @property
    def has_budget(self) -> bool:
        return not self._rate or self._level > 0

    def pass_time(self, now: float) -> None:
        """What the seconds since the last call add to the bucket."""
        if not self._rate:
            return
        if self._now is not None and now > self._now:
            self._level = min(self._full, self._level + (now - self._now) * self._rate)
        self._now = now
        self._is_short = self._level < (COMFORTABLE if self._is_short else SHORT) * self._full

    def wants(self, entry: Entry) -> bool:
        """Whether this object should be on disk, whatever the budget still has."""
        if entry.facts.object_class is ObjectClass.SCRATCH:
            return False
        if self.mode is DiskAdmission.ALL or (self.mode is DiskAdmission.ADAPTIVE and not self._is_short):
            return True
        is_shared = entry.facts.object_class is ObjectClass.SHARED
        return entry.uses > 0 or (is_shared and self.mode is DiskAdmission.ADAPTIVE)

    def may_start(self) -> bool:
        """Whether the budget has anything left; counted if it has not."""
        self.over_budget += not self.has_budget
        return self.has_budget

    def start(self, entry: Entry) -> bool:
        """Pay for a copy. False where the budget has nothing left."""
        if not self.may_start():
            return False
        if self._rate:
            self._started[entry.facts.key, entry.facts.generation] = entry.facts.raw_bytes
            self._level -= entry.facts.raw_bytes
            self._is_short = self._is_short or self._level < SHORT * self._full
        return True

    def encoded(self, key: BlockKey, generation: int, frame_bytes: int) -> None:
        """The copy gets its slot and is written now, with this length."""
        self.bytes_written += frame_bytes
        charged = self._started.pop((key, generation), None)
        if charged is not None:
            self._level -= frame_bytes - charged

    def ended(self, key: BlockKey, generation: int) -> None:
        """The copy ended, well or not. One that was never written gives its bytes back."""
        charged = self._started.pop((key, generation), None)
        if charged is not None:
            self._level = min(self._full, self._level + charged)
