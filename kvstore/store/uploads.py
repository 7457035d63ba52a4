"""PUT's bytes: reservations, uploads into the arena, and how durable they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvstore.core.checksum import content_checksum
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.store.kept import Kept
from kvstore.store.objects import Reservation

ROOM_SECONDS = 2.0  # how long a reservation waits for copies to disk to make room on the host


class Uploads:
    """Any thread; the pieces of one object are written by one."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._reservations: dict[int, Reservation] = {}
        self._last_reservation = 0

    def reserve(
        self,
        namespace_id: bytes,
        chain: Chain,
        objects: Sequence[ObjectSpec],
        lineage: bytes,
        owner: bytes,
        hints: Hints,
    ) -> Reservation:
        """Room for what is wanted. Waits a moment where there is none and some is to come.

        It comes from copies to disk, and after a start from host regions that are still being populated.

        Where room runs out half-way, the rest is NO_ROOM: upload what is wanted, then announce the rest again. (The
        first part must be on disk before it can leave the host to make room for the second.)
        """
        with self._kept.changed:
            namespace = self._kept.check_namespace(namespace_id)
            _check_objects(namespace.layout, chain, objects)
            patience = time.monotonic() + ROOM_SECONDS
            while True:
                now, wall = self._kept.clock(), self._kept.wall()
                answer = self._kept.planner.reserve(namespace_id, chain, objects, lineage, owner, hints, now, wall)
                statuses, facts, actions = answer
                self._kept.run(actions)
                is_stuck = ReserveStatus.NO_ROOM in statuses and ReserveStatus.WANTED not in statuses
                is_hopeful = self._kept.mover.pending or self._kept.mover.is_populating
                if not (is_stuck and is_hopeful and self._kept.changed.wait(patience - time.monotonic())):
                    break
            self._last_reservation += 1
            keys = tuple(BlockKey(chain.hash_at(spec.block), spec.group) for spec in objects)
            expires = self._kept.clock() + self._kept.config.reservation_seconds
            reservation = Reservation(self._last_reservation, tuple(statuses), keys, facts, expires)
            self._reservations[reservation.id] = reservation
            self._kept.counters.update(f"reserve_{status.value.replace(' ', '_')}" for status in statuses)
        return reservation

    def begin_object(self, reservation: int, index: int) -> list[memoryview] | None:
        """Writable pieces for one wanted object, in byte order. None: not wanted, being written, or gone meanwhile."""
        with self._kept.lock:
            found = self._reservations.get(reservation)
            facts = found.facts[index] if found is not None and 0 <= index < len(found.facts) else None
            if found is None or facts is None or not self._kept.planner.is_live(facts.key, facts.generation):
                return None
            if index in found.writing:  # a second writer would go on writing after the first has published
                return None
            entry = self._kept.planner.entry(facts.key)
            assert entry is not None and entry.host is not None
            found.writing.add(index)
            slots = entry.host.slots
        return self._kept.host_pieces(facts, slots)

    def finish_object(self, reservation: int, index: int) -> PutStatus:
        """The pieces are filled: check the arena's copy against what was announced, and publish it."""
        with self._kept.lock:
            found = self._reservations.get(reservation)
            facts = found.facts[index] if found is not None else None
            is_live = facts is not None and self._kept.planner.is_live(facts.key, facts.generation)
            if found is None or facts is None:
                return PutStatus.DROPPED
            entry = self._kept.planner.entry(facts.key) if is_live else None
            slots = entry.host.slots if entry is not None and entry.host is not None else ()
        is_whole = is_live and content_checksum(self._kept.host_pieces(facts, slots)) == facts.content
        with self._kept.changed:
            found.writing.discard(index)
            found.facts[index] = None
            if is_whole:
                is_live = self._kept.planner.is_live(facts.key, facts.generation)
                self._kept.arrived_on_host(facts)
            else:
                now = self._kept.clock()
                self._kept.run(self._kept.planner.failed(facts.key, facts.generation, Tier.HOST, now))
            self._kept.changed.notify_all()
            status = (PutStatus.STORED if is_whole else PutStatus.CORRUPT) if is_live else PutStatus.DROPPED
            self._kept.counters[f"put_{status.value}"] += 1
            self._kept.counters["put_bytes"] += facts.raw_bytes if status is PutStatus.STORED else 0
        return status

    def abandon_object(self, reservation: int, index: int) -> None:
        """The upload of a begun object ended before its last byte."""
        with self._kept.changed:
            found = self._reservations.get(reservation)
            if found is not None and index in found.writing:
                found.writing.discard(index)
                self._give_up(found, index)

    def commit(self, reservation: int, durable: bool, deadline: float) -> list[Durability]:
        """End a reservation. With `durable`, wait until what it stored is synced, or cannot be, or the deadline."""
        with self._kept.changed:
            found = self._reservations.get(reservation)
            if found is None:
                return []
            if found.writing:
                found.expires = self._kept.clock()  # an upload is still at it: `tick` ends the reservation after it
            else:
                del self._reservations[reservation]
            for index in range(len(found.facts)):
                self._give_up(found, index)
            stored = [
                key if status in (ReserveStatus.WANTED, ReserveStatus.EXISTS) else None
                for key, status in zip(found.keys, found.statuses, strict=True)
            ]
            while durable and any(key is not None and self._is_being_written(key) for key in stored):
                left = deadline - time.monotonic()
                if left <= 0 or not self._kept.changed.wait(left):
                    break
            known: set[bytes] = set()
            return [Durability.NONE if key is None else self._durability(key, known) for key in stored]

    def expire(self, now: float) -> None:
        """Give up reservations that are over. Called under the lock."""
        for reservation in list(self._reservations.values()):
            if reservation.expires <= now and not reservation.writing:
                del self._reservations[reservation.id]
                for index in range(len(reservation.facts)):
                    self._give_up(reservation, index)

    def _give_up(self, reservation: Reservation, index: int) -> None:
        """An announced object will not come. One that is being written now is ended by its writer."""
        facts = reservation.facts[index]
        if facts is None or index in reservation.writing:
            return
        reservation.facts[index] = None
        self._kept.run(self._kept.planner.failed(facts.key, facts.generation, Tier.HOST, self._kept.clock()))
        self._kept.changed.notify_all()

    def _is_being_written(self, key: BlockKey) -> bool:
        entry = self._kept.planner.entry(key)
        return entry is not None and entry.disk is not None and not entry.is_ready(Tier.DISK)

    def _durability(self, key: BlockKey, known: set[bytes]) -> Durability:
        entry = self._kept.planner.entry(key)
        if entry is None or not entry.is_stored or not entry.node.readable:
            return Durability.NONE
        survives = entry.facts.namespace not in self._kept.unnamed and self._kept.planner.survives(key, known)
        return Durability.DISK if survives else Durability.MEMORY


def _check_objects(layout: ModelLayout, chain: Chain, objects: Sequence[ObjectSpec]) -> None:
    for spec in objects:
        if not 0 <= spec.block < chain.blocks:
            raise InvalidInput(f"object names block {spec.block} of a chain of {chain.blocks}")
        if not 0 <= spec.group < len(layout.groups):
            raise InvalidInput(f"object names group {spec.group}, the layout has {len(layout.groups)}")
        wanted = layout.groups[spec.group].nbytes
        if spec.length != wanted:
            name = layout.groups[spec.group].name
            raise InvalidInput(f"an object of group {name} has {wanted} bytes in this layout, not {spec.length}")
