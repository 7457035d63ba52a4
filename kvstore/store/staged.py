"""PUT on one host: objects that a worker laid into its staging region go to the arena.

The worker may write there at any time, so nothing of it is believed: the checksum that is published is that of the
arena's copy, made after the copy. Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvstore.core.checksum import content_checksum
from kvstore.core.keys import Chain
from kvstore.core.match import Hints
from kvstore.core.reserve import ObjectSpec, PutStatus, ReserveStatus
from kvstore.store.uploads import Uploads


class StagedObject(NamedTuple):
    """`block` is an index into the chain; `data` lies in the staging region."""

    block: int
    group: int
    data: memoryview


class StagedOutcome(NamedTuple):
    reservation: int  # for a commit that waits for the disk
    statuses: tuple[ReserveStatus, ...]
    outcomes: tuple[PutStatus | None, ...]  # None: not wanted
    contents: tuple[bytes, ...]  # checksums of the objects as they were staged


class StagedPuts:
    """Copies staged objects by way of ordinary reservations."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def put(
        self,
        namespace_id: bytes,
        chain: Chain,
        objects: Sequence[StagedObject],
        lineage: bytes,
        owner: bytes,
        hints: Hints,
    ) -> StagedOutcome:
        contents = tuple(content_checksum((staged.data,)) for staged in objects)
        specs = [
            ObjectSpec(staged.block, staged.group, staged.data.nbytes, content)
            for staged, content in zip(objects, contents, strict=True)
        ]
        outcomes: list[PutStatus | None] = [None] * len(objects)
        while True:  # room runs out half-way at most once an object
            reservation = self._uploads.reserve(namespace_id, chain, specs, lineage, owner, hints)
            wanted = [index for index, status in enumerate(reservation.statuses) if status is ReserveStatus.WANTED]
            # without a disk, states that made room for the rest are wanted again: that would go round for ever
            is_further = any(outcomes[index] is None for index in wanted)
            for index in wanted:
                outcomes[index] = self._copy(reservation.id, index, objects[index].data)
            if not is_further or ReserveStatus.NO_ROOM not in reservation.statuses:
                break
            # what has just been stored must be there before it can leave the host for the rest
            self._uploads.commit(reservation.id, durable=False, deadline=0.0)
        statuses = [
            status if outcome is None else ReserveStatus.WANTED  # it exists since we stored it a round ago
            for status, outcome in zip(reservation.statuses, outcomes, strict=True)
        ]
        return StagedOutcome(reservation.id, tuple(statuses), tuple(outcomes), contents)

    def _copy(self, reservation: int, index: int, source: memoryview) -> PutStatus:
        pieces = self._uploads.begin_object(reservation, index)
        if pieces is None:
            return PutStatus.DROPPED
        start = 0
        for piece in pieces:  # numpy lets go of the interpreter while it copies; lookups go on meanwhile
            np.copyto(np.frombuffer(piece, np.uint8), np.frombuffer(source[start : start + piece.nbytes], np.uint8))
            start += piece.nbytes
        return self._uploads.finish_object(reservation, index)
