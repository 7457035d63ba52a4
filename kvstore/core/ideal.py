"""Space without slots: an object takes its bytes, anywhere. What a textbook cache assumes; no daemon runs on it.

All owners share it, so the coldest object of any of them goes. Beside the real `Space` it shows what slots cost.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable

from kvstore.core.keys import PAGE_BYTES, BlockKey
from kvstore.core.space import Region, Space


class IdealSpace(Space):
    """One region of all bytes. A slot is a handle; a "page" is a byte."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self._sizes: dict[int, int] = {}
        self._next = 0
        if nbytes:
            self.regions.append(Region(0))

    def add_regions(self, count: int) -> None:
        """All of it is there from the start."""

    @property
    def total_pages(self) -> int:
        return self.region_pages // PAGE_BYTES

    @property
    def capacity_bytes(self) -> int:
        return self.region_pages

    @property
    def owners(self) -> int:
        return 1

    def owns(self, owner: Hashable) -> bool:
        return True

    def pool(self, owner: Hashable) -> Hashable:
        return None

    def cut(self, nbytes: int) -> tuple[Hashable, int, int]:
        return None, 1, nbytes

    def room_in(self, slots: Collection[int]) -> int:
        return sum(self._sizes[slot] for slot in slots)

    def slots_in_region(self, slot_pages: int) -> int:
        return self.region_pages

    def room(self, owner: Hashable, slot_pages: int) -> int:
        return self.region_pages - self.used_pages

    def allocate(
        self, owner: Hashable, slot_pages: int, count: int, holder: BlockKey, now: float, depth: int = 0
    ) -> tuple[int, ...]:
        assert self.room(owner, slot_pages) >= count, "allocate without room"
        self._next += 1
        self._sizes[self._next] = count
        self.used_pages += count
        return (self._next,)

    def free(self, slots: tuple[int, ...]) -> None:
        for slot in slots:
            self.used_pages -= self._sizes.pop(slot)

    def touch(self, slots: tuple[int, ...], now: float) -> None:
        """No region has a temperature of its own."""

    def pages_in(self, slots: Collection[int]) -> int:
        return self.room_in(slots)

    def check_holder(self, slots: Collection[int], holder: BlockKey, owner: Hashable) -> None:
        assert all(slot in self._sizes for slot in slots), holder

    def check(self) -> None:
        assert self.used_pages == sum(self._sizes.values()) <= self.region_pages, (self.used_pages, self.region_pages)
