"""A Commit of objects in a worker's staging region: checked as a whole, then stored one put after another.

A put whose message names no lineage stands on what an earlier put of the same Commit left at its chain's parent: the
worker does not know checksums, the daemon makes them from what it copies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from kvstore.core.errors import InvalidInput, StoreUnavailable
from kvstore.core.keys import Chain
from kvstore.core.lineage import ROOT_LINEAGE, child_lineage
from kvstore.core.match import Hints
from kvstore.core.reserve import Durability
from kvstore.rpc import convert
from kvstore.rpc.enums import DURABILITY, PUT_STATUS, RESERVE_STATUS
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_OBJECTS
from kvstore.rpc.located import contents_to_wire, staged_from_wire
from kvstore.store.objects import OpenedNamespace
from kvstore.store.staged import StagedObject, StagedOutcome
from kvstore.store.store import Store


class _Put(NamedTuple):
    chain: Chain
    objects: list[StagedObject]
    lineage: bytes | None  # None: an earlier put's
    hints: Hints


def commit_staged(
    store: Store,
    namespace: OpenedNamespace,
    request: pb.CommitRequest,
    staging: memoryview,
    owner: bytes,
    deadline: float,
) -> pb.CommitResponse:
    """Store what lies in `staging`. InvalidInput before anything is stored; later only StoreUnavailable, when late."""
    if request.reservation:
        raise InvalidInput("a Commit of staged objects names a reservation: commit that in a call of its own")
    puts = _checked(request.staged, namespace, staging)
    lineages = {namespace.root: ROOT_LINEAGE}
    answer = pb.CommitResponse(boot_epoch=store.boot_epoch)
    reservations = []
    for put in puts:
        if time.monotonic() > deadline:
            raise StoreUnavailable("the call took longer than its deadline allows")
        lineage = lineages[put.chain.parent] if put.lineage is None else put.lineage
        outcome = store.put_staged(namespace.id, put.chain, put.objects, lineage, owner, put.hints)
        _remember(lineages, put, lineage, outcome.contents)
        answer.staged.append(_to_wire(outcome))
        reservations.append(outcome.reservation)
    if request.durable:
        durabilities: list[Durability] = []
        for reservation in reservations:
            durabilities += store.commit(reservation, True, deadline)
        answer.durabilities.extend(DURABILITY.to_wire(level) for level in durabilities)
    return answer


def _checked(messages: Sequence[pb.StagedPut], namespace: OpenedNamespace, staging: memoryview) -> list[_Put]:
    objects = sum(len(message.blocks) for message in messages)
    if objects > MAX_OBJECTS:
        raise InvalidInput(f"{objects} staged objects: send at most {MAX_OBJECTS} in one call")
    puts = []
    known = {namespace.root}  # where the lineage will be known
    for message in messages:
        chain = convert.chain_from_wire(message.chain, namespace.layout.block_tokens)
        places = staged_from_wire(message, chain, namespace.layout, staging.nbytes)
        lineage = convert.lineage_from_wire(message.lineage) if message.lineage else None
        if lineage is None and chain.parent not in known:
            raise InvalidInput("a staged put without lineage follows none that ends at its parent: send its lineage")
        staged = [
            StagedObject(block, group, staging[offset : offset + length]) for block, group, offset, length in places
        ]
        puts.append(_Put(chain, staged, lineage, convert.hints_from_wire(message.hints)))
        known.update(chain.hash_at(block) for block in _unbroken(staged))
    return puts


def _unbroken(objects: Sequence[StagedObject]) -> dict[int, int]:
    """Block to index of those rows that follow each other from the chain's first block on: their lineage is known."""
    rows: dict[int, int] = {}
    for index, staged in enumerate(objects):
        if staged.group == 0 and staged.block == len(rows):
            rows[staged.block] = index
    return rows


def _remember(lineages: dict[bytes, bytes], put: _Put, lineage: bytes, contents: Sequence[bytes]) -> None:
    for block, index in _unbroken(put.objects).items():
        lineage = child_lineage(lineage, contents[index])
        lineages[put.chain.hash_at(block)] = lineage


def _to_wire(outcome: StagedOutcome) -> pb.StagedResult:
    return pb.StagedResult(
        reservation=outcome.reservation,
        statuses=[RESERVE_STATUS.to_wire(status) for status in outcome.statuses],
        outcomes=[
            pb.PUT_STATUS_UNSPECIFIED if status is None else PUT_STATUS.to_wire(status) for status in outcome.outcomes
        ],
        contents=contents_to_wire(outcome.contents),
    )
