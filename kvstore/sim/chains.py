"""Makes ids name blocks with all before them, whatever a trace's author hashed. Knows ids only."""

from __future__ import annotations

from collections.abc import Sequence


class Chains:
    """Ids as they come become chained ids: one id, one predecessor, so that an equal id is an equal prefix.

    An id keeps its number behind the predecessor it was first seen with. Behind any other it gets a new one, negative
    until `renamed` knows which numbers are free: that is what an author who hashed blocks one by one meant.

    >>> chains = Chains()
    >>> chains.chained([7, 8, 9]), chains.chained([7, 8, 5]), chains.chained([3, 8, 9])
    ((7, 8, 9), (7, 8, 5), (3, -1, -2))
    >>> chains.chained([3, 8, 9, 4]), chains.rechained
    ((3, -1, -2, 4), 4)
    """

    def __init__(self) -> None:
        self.rechained = 0  # references that got another id than the trace's
        self._before: dict[int, int | None] = {}  # chained id -> its predecessor, None at the start
        self._own: dict[int, int] = {}  # one int object an id, however often it is read
        self._others: dict[tuple[int | None, int], int] = {}  # (predecessor, the trace's id) -> new id

    def chained(self, ids: Sequence[int], parent: int | None = None) -> tuple[int, ...]:
        """Chained ids of blocks that follow `parent`, itself a chained id; None: they start a prompt."""
        priors: list[int | None] = [parent, *ids[:-1]] if ids else []
        if list(map(self._before.get, ids, priors)) != priors or len(set(ids)) != len(ids):
            return tuple(self._slowly(ids, parent))
        self._before.update(zip(ids, priors, strict=True))
        return tuple(map(self._own.setdefault, ids, ids))

    def renamed(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The same ids, new ones counted up from the largest of the trace. Ask when everything is read."""
        if not ids or min(ids) >= 0:
            return ids
        last = max(self._before)
        return tuple(name if name >= 0 else last - name for name in ids)

    def _slowly(self, ids: Sequence[int], before: int | None) -> list[int]:
        found = []
        for name in ids:
            if self._before.setdefault(name, before) == before:
                chained = self._own.setdefault(name, name)
            else:
                chained = self._others.setdefault((before, name), -1 - len(self._others))
                self._before[chained] = before
                self.rechained += 1
            found.append(chained)
            before = chained
        return found
