"""Candidates in several heaps: what is ranked alike lies on one shelf, and a policy compares the shelves' firsts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from kvstore.core.keys import BlockKey
from kvstore.core.order import Heap

Name = TypeVar("Name", bound=Hashable)


class Shelves(Generic[Name]):
    """Each key lies on one shelf, oldest use first. Emptied shelves are kept: there are few."""

    def __init__(self) -> None:
        self._heaps: dict[Name, Heap] = {}
        self._shelf_of: dict[BlockKey, Name] = {}

    def put(self, key: BlockKey, shelf: Name, rank: float) -> None:
        """Lay it there, wherever it lay."""
        if key in self._shelf_of and self._shelf_of[key] != shelf:
            self._heaps[self._shelf_of[key]].discard(key)
        heap = self._heaps.get(shelf)
        if heap is None:
            heap = self._heaps[shelf] = Heap()
        self._shelf_of[key] = shelf
        heap.add(key, rank)

    def take(self, key: BlockKey) -> bool:
        """Off its shelf; whether it was on one."""
        if key not in self._shelf_of:
            return False
        self._heaps[self._shelf_of.pop(key)].discard(key)
        return True

    def firsts(self) -> Iterator[tuple[Name, float, BlockKey]]:
        """Shelf, rank and key of each shelf's first."""
        for shelf, heap in self._heaps.items():
            found = heap.first()
            if found is not None:
                yield shelf, *found

    def names(self) -> Iterator[Name]:
        return iter(self._heaps)

    @property
    def shelves(self) -> int:
        """Emptied ones included."""
        return len(self._heaps)

    def first(self, shelf: Name) -> tuple[float, BlockKey] | None:
        heap = self._heaps.get(shelf)
        return None if heap is None else heap.first()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._shelf_of

    def __len__(self) -> int:
        return len(self._shelf_of)
