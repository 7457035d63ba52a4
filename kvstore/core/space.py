"""Space of one tier: regions cut into slots. Which slot is free is decided here and nowhere else.

A region (a memfd on the host, a segment on disk) has one owner and one slot size at a time; an emptied one may
change both. Owners are namespaces on the host and size classes on disk. A slot is named by the number of its first
page in the tier, so that region and offset follow from it. Pure bookkeeping; units are pages of 4 KiB.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator

from kvstore.core.keys import PAGE_BYTES, BlockKey
from kvstore.core.layout import Group, Section

CLASS_STEPS = 8  # disk size classes per doubling: steps of at most 12.5 %
SMALLEST_REGION_PAGES = 256  # 1 MiB
LARGEST_REGION_PAGES = 1 << 18  # 1 GiB
REGIONS = 64  # a region is at most 1/64 of its tier


def region_pages(capacity_bytes: int) -> int:
    """Pages of a region in a tier of this size: 1/64 of it, in whole 2 MiB where that is possible."""
    pages = capacity_bytes // PAGE_BYTES // REGIONS
    if pages >= 512:
        pages -= pages % 512
    return max(min(pages, LARGEST_REGION_PAGES), 1)


def slot_pages(nbytes: int, limit_pages: int) -> int:
    """Pages of a host slot for rows objects of `nbytes`: rounded up to a page, never larger than a region."""
    return max(1, min(-(-nbytes // PAGE_BYTES), limit_pages))


def class_pages(nbytes: int) -> int:
    """Size class of a frame on disk: the least of eight steps per doubling that holds it, in pages."""
    pages = max(1, -(-nbytes // PAGE_BYTES))
    if pages <= CLASS_STEPS:
        return pages
    step = 1 << ((pages - 1).bit_length() - 4)  # 1/8 of the power of two below `pages`
    return -(-pages // step) * step


def cut_points(group: Group, slot_bytes: int) -> tuple[int, ...]:
    """Ends of the object's parts, one part a slot, in bytes: no section straddles two slots.

    A section larger than a slot, as in models of few layers, is split at a row boundary.
    """
    ends: list[int] = []
    start = position = 0
    for section in group.sections:
        if position + section.nbytes - start > slot_bytes and position > start:
            ends.append(position)
            start = position
        if section.nbytes > slot_bytes:
            for cut in _row_cuts(section, slot_bytes):
                ends.append(position + cut)
                start = position + cut
        position += section.nbytes
    ends.append(position)
    return tuple(ends)


def _row_cuts(section: Section, slot_bytes: int) -> Iterator[int]:
    data_end = section.entries * section.data_bytes
    cut = 0
    while section.nbytes - cut > slot_bytes:
        limit = cut + slot_bytes
        if limit <= data_end:
            row = limit - limit % section.data_bytes
        else:
            row = limit - (limit - data_end) % section.scale_bytes
        cut = row if row > cut else limit  # a single row larger than a slot is cut where the slot ends
        yield cut


class Region:
    """One region: who owns it, how it is cut, and which object holds each slot."""

    __slots__ = ("depth", "free", "holders", "is_retired", "last_used", "number", "owner", "slot_pages")

    def __init__(self, number: int) -> None:
        self.number = number
        self.owner: Hashable | None = None
        self.slot_pages = 0
        self.free: list[int] = []
        self.holders: dict[int, BlockKey] = {}
        self.depth = 0  # deepest block that got a slot since the region was claimed
        self.is_retired = False
        self.last_used = 0.0  # the latest touch of an object in it; a hint for choosing the coldest


class Space:
    """All slots of one tier."""

    def __init__(self, region_pages: int, header_pages: int = 0) -> None:
        self.region_pages = region_pages
        self.header_pages = header_pages  # kept free at a region's start (a segment's own header)
        self.regions: list[Region] = []
        self._pool: list[int] = []  # regions without an owner
        self._partial: dict[Hashable, dict[int, None]] = {}  # owner -> its regions with a free slot
        self._free_slots: dict[Hashable, int] = {}
        self.used_pages = 0

    def add_regions(self, count: int) -> None:
        """Let `count` more regions be used."""
        for _ in range(count):
            self._pool.append(len(self.regions))
            self.regions.append(Region(len(self.regions)))

    def retire(self, number: int) -> None:
        """Never give out slots of this region again. What is still held there is freed as its users end."""
        region = self.regions[number]
        if region.is_retired:
            return
        region.is_retired = True
        if region.owner is None:
            self._pool.remove(number)
        else:
            self._partial[region.owner].pop(number, None)
            self._free_slots[region.owner] -= len(region.free)
            region.free = []

    def revive(self, number: int) -> bool:
        """Take a retired region back into use. False while something is still held there."""
        region = self.regions[number]
        if not region.is_retired or region.owner is not None:
            return False
        region.is_retired = False
        self._pool.append(number)
        return True

    @property
    def total_pages(self) -> int:
        return sum(not region.is_retired for region in self.regions) * self.region_pages

    @property
    def capacity_bytes(self) -> int:
        return self.total_pages * PAGE_BYTES

    def pool(self, owner: Hashable) -> Hashable:
        """Whose objects are evicted for this owner's."""
        return owner

    def cut(self, nbytes: int) -> tuple[Hashable, int, int]:
        """Owner, pages of a slot and slots of a frame of this length on disk."""
        owner = class_pages(nbytes)
        return owner, owner, 1

    def room_in(self, slots: Collection[int]) -> int:
        """What `allocate` counts of these slots once they are free."""
        return len(slots)

    @property
    def owners(self) -> int:
        return len(self._free_slots)

    def owns(self, owner: Hashable) -> bool:
        return owner in self._free_slots

    def is_free(self, slot: int) -> bool:
        """Nothing holds the page at which this slot began, however its region is cut now."""
        region = self.regions[slot // self.region_pages]
        first = slot - (slot - region.number * self.region_pages - self.header_pages) % max(region.slot_pages, 1)
        return first not in region.holders

    def slots_in_region(self, slot_pages: int) -> int:
        return (self.region_pages - self.header_pages) // slot_pages

    def room(self, owner: Hashable, slot_pages: int) -> int:
        """Slots that `owner` could get without anything being dropped."""
        return self._free_slots.get(owner, 0) + len(self._pool) * self.slots_in_region(slot_pages)

    def allocate(
        self, owner: Hashable, slot_pages: int, count: int, holder: BlockKey, now: float, depth: int = 0
    ) -> tuple[int, ...]:
        """`count` slots for `holder`; the caller made sure that there is room."""
        assert self.room(owner, slot_pages) >= count, "allocate without room"
        slots: list[int] = []
        while len(slots) < count:
            partial = self._partial.get(owner)
            if not partial:
                self._claim(owner, slot_pages, self._pick(slot_pages))
                continue
            region = self.regions[next(reversed(partial))]
            slot = region.free.pop()
            if not region.free:
                del partial[region.number]
            region.holders[slot] = holder
            region.last_used = max(region.last_used, now)
            region.depth = max(region.depth, depth)
            self._free_slots[owner] -= 1
            slots.append(slot)
        self.used_pages += count * slot_pages
        return tuple(slots)

    def take(self, owner: Hashable, slot_pages: int, slot: int, holder: BlockKey, now: float, depth: int = 0) -> bool:
        """Claim one given slot, as found by recovery. False where it cannot be: out of range, taken, other size."""
        number, page = divmod(slot, self.region_pages)
        if number >= len(self.regions) or page < self.header_pages or (page - self.header_pages) % slot_pages:
            return False
        if page + slot_pages > self.region_pages:
            return False
        region = self.regions[number]
        if region.owner is None:
            self._pool.remove(number)
            self._claim(owner, slot_pages, number)
        if region.owner != owner or region.slot_pages != slot_pages or slot in region.holders:
            return False
        region.free.remove(slot)
        region.holders[slot] = holder
        region.last_used = max(region.last_used, now)
        region.depth = max(region.depth, depth)
        self._free_slots[owner] -= 1
        if not region.free:
            self._partial[owner].pop(number, None)
        self.used_pages += slot_pages
        return True

    def remember_cut(self, number: int, slot_pages: int) -> None:
        """A region without owner was cut like this before: it is preferred for such slots."""
        if number < len(self.regions) and self.regions[number].owner is None:
            self.regions[number].slot_pages = slot_pages

    def free(self, slots: tuple[int, ...]) -> None:
        """Give slots back; a region that is emptied loses its owner."""
        for slot in slots:
            region = self.regions[slot // self.region_pages]
            del region.holders[slot]
            self.used_pages -= region.slot_pages
            if not region.is_retired:
                region.free.append(slot)
                self._free_slots[region.owner] += 1
                if region.holders:
                    self._partial[region.owner][region.number] = None
            if not region.holders:
                self._disown(region)

    def touch(self, slots: tuple[int, ...], now: float) -> None:
        for slot in slots[:1]:
            self.regions[slot // self.region_pages].last_used = now

    def foreign_regions(self, owner: Hashable) -> list[Region]:
        """Regions that other owners use."""
        return [r for r in self.regions if r.owner is not None and r.owner != owner and not r.is_retired]

    def pages_in(self, slots: Collection[int]) -> int:
        return sum(self.regions[slot // self.region_pages].slot_pages for slot in slots)

    def check_holder(self, slots: Collection[int], holder: BlockKey, owner: Hashable) -> None:
        """These slots are this object's."""
        for slot in slots:
            region = self.regions[slot // self.region_pages]
            assert region.holders.get(slot) == holder and region.owner == owner, holder

    def check(self) -> None:
        """Slots are conserved: each is free or held, exactly once."""
        used = 0
        for region in self.regions:
            if region.owner is None:
                assert not region.holders and (region.number in self._pool) != region.is_retired, region.number
                continue
            if region.is_retired:
                assert not region.free and region.holders, region.number
                used += len(region.holders) * region.slot_pages
                continue
            count = self.slots_in_region(region.slot_pages)
            assert len(region.free) + len(region.holders) == count, region.number
            assert not set(region.free) & set(region.holders), region.number
            assert bool(region.free) == (region.number in self._partial[region.owner]), region.number
            used += len(region.holders) * region.slot_pages
        assert used == self.used_pages <= len(self.regions) * self.region_pages, (used, self.used_pages)
        assert len(set(self._pool)) == len(self._pool)
        for owner, free in self._free_slots.items():
            assert free == sum(len(r.free) for r in self.regions if r.owner == owner), owner

    def _pick(self, slot_pages: int) -> int:
        """A region of the pool, if possible one that was cut alike before: a segment keeps its header then."""
        for position, number in enumerate(self._pool):
            if self.regions[number].slot_pages == slot_pages:
                return self._pool.pop(position)
        return self._pool.pop(0)

    def _claim(self, owner: Hashable, slot_pages: int, number: int) -> None:
        region = self.regions[number]
        region.owner, region.slot_pages, region.last_used, region.depth = owner, slot_pages, 0.0, 0
        first = number * self.region_pages + self.header_pages
        count = self.slots_in_region(slot_pages)
        region.free = [first + index * slot_pages for index in reversed(range(count))]
        self._partial.setdefault(owner, {})[number] = None
        self._free_slots[owner] = self._free_slots.get(owner, 0) + count

    def _disown(self, region: Region) -> None:
        owner = region.owner
        self._free_slots[owner] -= len(region.free)
        self._partial[owner].pop(region.number, None)
        if not self._partial[owner] and not any(other.owner == owner for other in self.regions if other is not region):
            del self._partial[owner], self._free_slots[owner]
        region.owner, region.free = None, []
        if not region.is_retired:
            self._pool.append(region.number)
