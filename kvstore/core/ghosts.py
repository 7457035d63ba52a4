"""What left the store, and why: a directory of fixed size, so that a miss can say what it was that is missing.

22 bytes an object and no Python object each: eight bytes of its name, when it left, how long it had not been used
then, why, and for whom room was made. Ways of eight, first in, first out within each: an operation looks at eight
records and never at the whole. Names are keyed hashes, so eight bytes of one are as good as random: one in 2^61
questions finds another object's record.

It is memory only. After a restart it knows nothing, and what left before is "never seen" again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from struct import Struct
from typing import NamedTuple

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.reserve import ObjectSpec, ReserveStatus

WAYS = 8
LEAST_GHOSTS = 4096  # 90 KB
MOST_GHOSTS = 1 << 20  # 23 MB
# One ghost for so many bytes of the tiers, some 0.02 % of them in memory. V4-Flash's rows of a block take 450 KB and a
# state takes 1.8 MB: objects are remembered for at least as long again as they stay, until 256 GB of tiers.
BYTES_PER_GHOST = 256 << 10
MAX_OWNERS = 255  # told apart by name; what left for others left for "another"

_RECORD = Struct("<QdfBB")  # name, when, age, why, number of an owner
_WRITE = _RECORD.pack_into
RECORD_BYTES = _RECORD.size
_NAMES = Struct("<" + "Q14x" * WAYS).unpack_from  # of one way
_NAME = Struct(">Q").unpack_from  # the last eight bytes of a prefix

Owner = tuple[Tier, Hashable]  # on the host a namespace, on disk a size class in pages


class Departure(Enum):
    """Why an object left; the values are written in the directory."""

    EVICTED = 0
    EXPIRED = 1  # unused for its TTL
    CORRUPT = 2  # a checksum failed, or the device did
    REPORTED = 3  # a worker found it wrong
    UNFINISHED = 4  # its upload broke off, or did not verify
    WITH_PARENT = 5  # the rows that it stood on were lost
    REFUSED = 6  # it was announced, and there was no room for it

    __hash__ = object.__hash__  # members are one of a kind; Enum's own is a Python call


_DEPARTURES = tuple(Departure)  # by value
_NUMBERS = {why: why.value for why in Departure}


class Ghost(NamedTuple):
    """What is known of an object that left."""

    why: Departure
    at: float  # seconds, the planner's clock
    age_seconds: float  # since its last use, when it left
    room_for: Owner | None  # of an evicted one: the tier that was full and who was given the room


class Ghosts:
    """The directory. `left` is told of every entry that is forgotten; `because` says why meanwhile."""

    def __init__(self, capacity_bytes: int) -> None:
        """For tiers of so many bytes together."""
        wanted = min(max(capacity_bytes // BYTES_PER_GHOST, LEAST_GHOSTS), MOST_GHOSTS)
        self.size = 1 << (wanted - 1).bit_length()
        self.now = 0.0  # of the last event that carried a time
        self._mask = self.size // WAYS - 1
        self._records = bytearray(RECORD_BYTES * self.size)
        self._next = bytearray(self.size // WAYS)  # which of its eight a way writes next
        self._owners: list[Owner | None] = [None]  # by number; 0: nobody, or one too many
        self._numbers: dict[Owner | None, int] = {}
        self._owner: Owner | None = None  # the last one, and its number
        self._number = 0
        self._why = Departure.EVICTED
        self._first: BlockKey | None = None

    @contextmanager
    def because(self, why: Departure, first: BlockKey | None = None) -> Iterator[None]:
        """What leaves in here leaves for this reason; where `first` is named, all else because that one did."""
        self._why, self._first = why, first
        try:
            yield
        finally:
            self._why, self._first = Departure.EVICTED, None

    def left(self, entry: Entry, room_for: Owner | None) -> None:
        """An entry was forgotten; `room_for` is whom room was made for last."""
        key, why = entry.facts.key, self._why
        if why is not Departure.EVICTED:
            room_for = None
            if self._first is not None and key != self._first:
                why = Departure.WITH_PARENT
        self.note(key, why, self.now - entry.last_used, room_for)

    def note(self, key: BlockKey, why: Departure, age_seconds: float = 0.0, room_for: Owner | None = None) -> None:
        """Remember one object that is not stored; what was known of it is forgotten in time."""
        if room_for is not self._owner:  # nearly always the same one again
            self._owner, self._number = room_for, self._numbers.get(room_for) or self._numbered(room_for)
        prefix, group = key
        name = _NAME(prefix, 24)[0] ^ group << 56 or 1  # 0 marks a free record
        way = name & self._mask
        turn = self._next[way]
        self._next[way] = (turn + 1) & (WAYS - 1)
        place = (way * WAYS + turn) * RECORD_BYTES
        _WRITE(self._records, place, name, self.now, age_seconds, _NUMBERS[why], self._number)

    def refused(self, chain: Chain, objects: Sequence[ObjectSpec], statuses: Sequence[ReserveStatus]) -> None:
        """A writer was told that there is no room, for these of its objects; below rows nothing is worth a record."""
        for spec, status in zip(objects, statuses, strict=True):
            if status is ReserveStatus.NO_ROOM:
                self.note(BlockKey(chain.hash_at(spec.block), spec.group), Departure.REFUSED)
                if spec.group == 0:
                    return

    def find(self, key: BlockKey) -> Ghost | None:
        """The latest record of an object."""
        name = _NAME(key.prefix, 24)[0] ^ key.group << 56 or 1  # 0 marks a free record
        way = name & self._mask
        names = _NAMES(self._records, way * WAYS * RECORD_BYTES)
        if name not in names:  # nearly always so for what is new
            return None
        turn = self._next[way]
        newest_first = range(turn - 1, turn - 1 - WAYS, -1)  # a negative place counts from the way's end
        place = next(each for each in newest_first if names[each] == name) % WAYS
        _, at, age_seconds, why, number = _RECORD.unpack_from(self._records, (way * WAYS + place) * RECORD_BYTES)
        return Ghost(_DEPARTURES[why], at, age_seconds, self._owners[number])

    def _numbered(self, owner: Owner | None) -> int:
        if owner is None or len(self._owners) > MAX_OWNERS:
            return 0
        self._owners.append(owner)
        self._numbers[owner] = len(self._owners) - 1
        return len(self._owners) - 1
