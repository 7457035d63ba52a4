"""The bytes of handoffs: taken in, kept for seconds in host memory, given to one reader.

They lie in pieces of one size, so that memory goes round: a fresh buffer costs 15 to 25 times the copy into it
(MEASURED section 1). What `core/handoff.py` counts is whole pieces, so its bound is a bound of memory.
Each piece is a mapping, of which Linux gives a process 65,530: a bound above 16 GiB is cut into larger ones.

Any thread. The store's lock is held for dictionary work, never across a copy or a checksum.
"""

from __future__ import annotations

from types import TracebackType

from kvstore.core.checksum import content_checksum
from kvstore.core.handoff import Handoff, Name
from kvstore.store.kept import Kept
from kvstore.tiers.buffers import IDLE_BYTES, Buffers

PIECE_BYTES = 1 << 20  # a demo request has 0.4 to 0.8 MB, V4-Flash's tails and windows alone 15 MB
MAX_PIECES = 16_384


class HandoffBytes:
    """One handoff's memory: `nbytes` in whole pieces but for the end of the last."""

    def __init__(self, handoff: Handoff, nbytes: int, content: bytes, pieces: list[memoryview]) -> None:
        self.handoff, self.nbytes, self.content = handoff, nbytes, content
        self.pieces = pieces


class TakenHandoff:
    """What one reader got: readable until the `with` block ends, and gone then."""

    def __init__(self, keeper: HandoffKeeper, held: HandoffBytes) -> None:
        self._keeper, self._held = keeper, held
        self.nbytes, self.content = held.nbytes, held.content
        self.pieces = [piece.toreadonly() for piece in held.pieces]

    def __enter__(self) -> TakenHandoff:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pieces = []
        self._keeper.give_up(self._held)


class HandoffKeeper:
    """The store's handoffs. Its decisions are `Kept.handoffs`'."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._piece_bytes = PIECE_BYTES * max(1, -(-kept.handoffs.capacity_bytes // (PIECE_BYTES * MAX_PIECES)))
        self._buffers = Buffers(idle_buffers=IDLE_BYTES // PIECE_BYTES)
        self._held: dict[Handoff, HandoffBytes] = {}  # those that could be taken

    def begin(
        self, namespace: bytes, key: bytes, nbytes: int, content: bytes, ttl_seconds: float
    ) -> HandoffBytes | None:
        """Writable room; None where there is none. Ends with `finish` or `give_up`."""
        pieces = -(-nbytes // self._piece_bytes)
        with self._kept.lock:
            now = self._kept.clock()
            expired = self.expire(now)
            handoff = self._kept.handoffs.admit(Name(namespace, key), pieces * self._piece_bytes, ttl_seconds, now)
            if handoff is None:
                self._kept.counters["handoffs_no_room"] += 1
                return None
        del expired  # their memory goes back to the machine here, which takes a lock's holder too long
        try:
            memory = [self._buffers.take(self._piece_bytes) for _ in range(pieces)]
        except OSError:  # the machine grants no more
            memory = []
        if not memory:
            with self._kept.lock:
                self._kept.handoffs.end(handoff)
                self._kept.counters["handoffs_no_room"] += 1
            return None
        memory[-1] = memory[-1][: nbytes - (pieces - 1) * self._piece_bytes]
        return HandoffBytes(handoff, nbytes, content, memory)

    def finish(self, held: HandoffBytes) -> bool:
        """All bytes are there: check our copy against what was announced, and let it be taken."""
        is_whole = content_checksum(held.pieces) == held.content
        with self._kept.lock:
            if not is_whole:
                self._kept.counters["handoffs_corrupt"] += 1
                self._kept.handoffs.end(held.handoff)
                return False
            replaced = self._kept.handoffs.filled(held.handoff, self._kept.clock())
            before = None if replaced is None else self._held.pop(replaced)
            self._held[held.handoff] = held
            self._kept.counters["handoffs_kept"] += 1
        del before  # as in `begin`
        return True

    def give_up(self, held: HandoffBytes) -> None:
        """Its bytes are of no use any more; they stay readable for whoever still has a view of them."""
        with self._kept.lock:
            self._kept.handoffs.end(held.handoff)

    def take(self, namespace: bytes, key: bytes) -> TakenHandoff | None:
        """The handoff of this name, for this reader alone; a context manager."""
        with self._kept.lock:
            handoff = self._kept.handoffs.take(Name(namespace, key), self._kept.clock())
            if handoff is None:
                self._kept.counters["handoffs_missed"] += 1
                return None
            self._kept.counters["handoffs_taken"] += 1
            return TakenHandoff(self, self._held.pop(handoff))

    def expire(self, now: float) -> list[HandoffBytes]:
        """End what nobody came for. Called under the lock; the caller drops what it gets when it has let go of it."""
        expired = [self._held.pop(handoff) for handoff in self._kept.handoffs.expire(now)]
        self._kept.counters["handoffs_expired"] += len(expired)
        return expired
