"""An LRU order by moments: how many bytes were used since a moment, in O(log n). Pure; one caller at a time.

A moment is one lookup: all that it used lies in it, root last used. What is used again leaves its old moment for the
new one, so what lies in later moments is exactly what an LRU order has in front. Bytes are kept in a Fenwick tree
over the moments' numbers; numbers run out, and `renumber` closes the gaps.
"""

from __future__ import annotations

from collections.abc import Iterable


class Moment:
    """One lookup, as long as anything that it used was not used again."""

    __slots__ = ("block_bytes", "nbytes", "number")

    def __init__(self, number: int, block_bytes: float) -> None:
        self.number = number  # grows with time; -1 once it is forgotten
        self.block_bytes = block_bytes  # of each block in it: a lookup is of one namespace
        self.nbytes = 0.0  # that lie in it

    @property
    def is_forgotten(self) -> bool:
        return self.number < 0


class Recency:
    """Moments in order, oldest first."""

    def __init__(self, slots: int) -> None:
        self.nbytes = 0.0
        self._slots = slots
        self._moments: list[Moment] = []
        self._tree = [0.0] * (slots + 1)  # tree[i]: bytes of the moments (i - lowest bit of i) .. i - 1

    @property
    def is_full(self) -> bool:
        """No number is left: `renumber` before the next `begin`."""
        return len(self._moments) == self._slots

    def begin(self, block_bytes: float) -> Moment:
        """The newest moment, with nothing in it yet."""
        assert not self.is_full
        moment = Moment(len(self._moments), block_bytes)
        self._moments.append(moment)
        return moment

    def add(self, moment: Moment, nbytes: float) -> None:
        """So many bytes were used then and not since; negative where they were used again."""
        moment.nbytes += nbytes
        self.nbytes += nbytes
        tree, index, slots = self._tree, moment.number + 1, self._slots
        while index <= slots:
            tree[index] += nbytes
            index += index & -index

    def since(self, moment: Moment) -> float:
        """Bytes used after a moment."""
        tree, index, upto = self._tree, moment.number + 1, 0.0
        while index:
            upto += tree[index]
            index &= index - 1
        return max(self.nbytes - upto, 0.0)

    def forget_beyond(self, nbytes: float) -> None:
        """Forget moments since which more than `nbytes` were used. Others keep their numbers."""
        used = 0.0
        for moment in reversed(self._moments):
            if used > nbytes:
                moment.number = -1
            used += moment.nbytes

    def renumber(self, held: Iterable[tuple[Moment, float]]) -> None:
        """Lay out anew what lies where: (moment, bytes) of all that is held, in any order.

        Moments in which nothing lies are forgotten. O(slots).
        """
        for moment in self._moments:
            moment.nbytes = 0.0
        for moment, nbytes in held:
            moment.nbytes += nbytes
        kept = list[Moment]()
        for moment in self._moments:
            if moment.nbytes > 0.0 and not moment.is_forgotten:
                moment.number = len(kept)
                kept.append(moment)
            else:
                moment.number = -1
        self._moments = kept
        self.nbytes = sum(moment.nbytes for moment in kept)
        tree = [0.0, *(moment.nbytes for moment in kept), *[0.0] * (self._slots - len(kept))]
        for index in range(1, self._slots + 1):
            above = index + (index & -index)
            if above <= self._slots:
                tree[above] += tree[index]
        self._tree = tree
