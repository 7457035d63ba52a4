"""Objects with bytes made from their names, so that any reader can verify them without the writer."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from kvstore.core.checksum import content_checksum
from kvstore.core.keys import BlockKey, Chain
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE, chain_lineages
from kvstore.core.match import Hints, Match, PlanKind
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.store.settings import StoreConfig
from kvstore.store.store import Store

MIB = 1 << 20
SECRET = b"s" * 32
WORKER = b"w" * 16


def config(folder: Path | None, host_bytes: int = 8 * MIB, disk_bytes: int = 64 * MIB, **more: object) -> StoreConfig:
    return StoreConfig(host_bytes=host_bytes, secret=SECRET, disk=folder, disk_bytes=disk_bytes, **more)  # type: ignore[arg-type]


def payload(key: BlockKey, nbytes: int, run: int = 0) -> bytes:
    return random.Random(sha256(key.prefix + bytes([key.group, run])).digest()).randbytes(nbytes)


class Stream:
    """A token sequence of one namespace, by its hashes."""

    def __init__(self, store: Store, layout: ModelLayout, name: str, blocks: int, shared: int = 0) -> None:
        self.layout, self.name = layout, name
        opened = store.hello("test", layout)
        self.namespace, self.root = opened.id, opened.root
        hashes, parent = [], self.root
        for index in range(blocks):
            label = f"shared/{index}" if index < shared else f"{name}/{index}"
            parent = sha256(parent + label.encode()).digest()
            hashes.append(parent)
        self.hashes = hashes

    @property
    def tokens(self) -> int:
        return len(self.hashes) * self.layout.block_tokens

    def chain(self, first: int = 0, end: int | None = None) -> Chain:
        return Chain(first, self.hashes[first - 1] if first else self.root, b"".join(self.hashes[first:end]))

    def key(self, block: int, group: int = 0) -> BlockKey:
        return BlockKey(self.hashes[block], group)

    def payload(self, block: int, group: int = 0, run: int = 0) -> bytes:
        return payload(self.key(block, group), self.layout.groups[group].nbytes, run)

    def lineage(self, blocks: int, run: int = 0) -> bytes:
        contents = b"".join(content_checksum([self.payload(block, 0, run)]) for block in range(blocks))
        return chain_lineages(ROOT_LINEAGE, contents)[-16:] if blocks else ROOT_LINEAGE

    def put(
        self,
        store: Store,
        first: int = 0,
        end: int | None = None,
        states: Sequence[int] = (),
        run: int = 0,
        durable: bool = False,
        hints: Hints | None = None,
    ) -> tuple[list[ReserveStatus], list[PutStatus], list[Durability]]:
        """Rows of blocks [first, end) and states at the ends of `states`, as a worker would put them.

        What found no room half-way is announced again, as a worker does.
        """
        end = len(self.hashes) if end is None else end
        specs, bytes_of = [], []
        for block in range(first, end):
            for group in [0, *([1] if block in states else [])]:
                data = self.payload(block, group, run)
                specs.append(ObjectSpec(block - first, group, len(data), content_checksum([data])))
                bytes_of.append(data)
        statuses: list[ReserveStatus] = []
        done: list[PutStatus] = []
        durabilities: list[Durability] = []
        for _ in range(len(specs)):
            reservation = store.reserve(
                self.namespace, self.chain(first, end), specs, self.lineage(first, run), WORKER, hints or Hints()
            )
            for index, status in enumerate(reservation.statuses):
                if status is ReserveStatus.WANTED:
                    pieces = store.begin_object(reservation.id, index)
                    if pieces is None:  # another thread reported it, or what it stands on
                        done.append(PutStatus.DROPPED)
                        continue
                    fill(pieces, bytes_of[index])
                    done.append(store.finish_object(reservation.id, index))
            durabilities = store.commit(reservation.id, durable, time.monotonic() + 30)
            fresh = list(reservation.statuses)
            had = statuses or fresh
            statuses = [old if old is ReserveStatus.WANTED else new for old, new in zip(had, fresh, strict=True)]
            if ReserveStatus.NO_ROOM not in fresh or ReserveStatus.WANTED not in fresh:
                break
        return statuses, done, durabilities

    def lookup(self, store: Store, prompt_tokens: int | None = None, can_replay: bool = False) -> Match:
        tokens = self.tokens + 1 if prompt_tokens is None else prompt_tokens
        return store.lookup(self.namespace, self.chain(), tokens, Hints(), WORKER, can_replay, None)

    def fetch(self, store: Store, match: Match) -> dict[BlockKey, bytes | None]:
        """Bytes of everything that the match's plan needs; None where missing."""
        blocks = match.plan.tokens // self.layout.block_tokens
        keys = [self.key(block) for block in range(blocks)]
        if match.plan.kind is PlanKind.RESUME and self.layout.state_group is not None:
            keys.append(self.key(blocks - 1, 1))
        found: dict[BlockKey, bytes | None] = {}
        for opened in store.open_objects(match.lease or 0, keys, time.monotonic() + 30):
            with opened:
                found[opened.key] = None if opened.is_missing else b"".join(opened.pieces)
        return found

    def verify(self, found: dict[BlockKey, bytes | None], run: int = 0) -> None:
        """Every byte is what was put under that name."""
        for key, data in found.items():
            assert data is None or data == payload(key, self.layout.groups[key.group].nbytes, run), "wrong bytes served"


def fill(pieces: list[memoryview] | None, data: bytes) -> None:
    assert pieces is not None
    for piece in pieces:
        piece[:] = data[: len(piece)]
        data = data[len(piece) :]
    assert not data


def released(store: Store, match: Match) -> None:
    if match.lease is not None:
        store.release([match.lease])
