"""A small store behind a real gRPC server: enough of the contract to test the client over the real wire.

Keeps objects in a dict, matches by walking the chain, and can be told to misbehave (`faults`). Not fast, not bounded.
Run as a program it serves until killed: `python fake_store.py unix:PATH [hang after frames, chunk bytes]`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import grpc

from kvstore.core.checksum import content_checksum, seal
from kvstore.core.errors import OtherBootEpoch, UnknownNamespace
from kvstore.core.fingerprint import fingerprint
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.lineage import ROOT_LINEAGE, child_lineage
from kvstore.core.match import COLD_PLAN, Match, MissReason, Plan, PlanKind, ResumePoint, Snapshots
from kvstore.core.prefix import namespace_id, namespace_root
from kvstore.core.reserve import Durability, PutStatus, ReserveStatus
from kvstore.rpc import wire
from kvstore.rpc.enums import DURABILITY, PUT_STATUS, RESERVE_STATUS, TIER
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.layouts import layout_from_wire
from kvstore.rpc.matches import match_to_wire
from kvstore.rpc.status import Reason, status, status_of


class FakeStore:
    def __init__(self, *, epoch: int = 1, secret: bytes = b"s" * 32, batch_blocks: int = 1 << 16) -> None:
        self.epoch, self.secret, self.batch_blocks = epoch, secret, batch_blocks
        self.objects: dict[BlockKey, bytes] = {}
        self.lineages: dict[bytes, bytes] = {}
        self.layouts: dict = {}
        self.reservations: dict[int, tuple] = {}
        self.known: set[bytes] = set()
        self.leases: set[int] = set()
        self.seen: Counter = Counter()  # calls by name
        self.lookup_chains: list[Chain] = []
        self.fetches: list[tuple[range, list[int]]] = []  # rows and blocks of states, by block number
        self.reports: list[BlockKey] = []
        self.attach_path = ""  # what Hello names
        # faults: each is read where it bites
        self.corrupt: set[BlockKey] = set()  # wrong bytes on the wire until reported
        self.foreign_states: dict[bytes, bytes] = {}  # prefix -> lineage of the other run that its state is of
        self.vanish: set[BlockKey] = set()  # gone when fetched, also for later lookups
        self.hang_fetch_after: int | None = None  # frames, then silence for `hang_seconds`
        self.hang_seconds = 5.0
        self.chunk_bytes = 64 << 10
        self.shed: set[str] = set()  # method names
        self.draining = False
        self.durability = Durability.DISK
        self._lock = Lock()
        self._next = 0

    # each handler: (request, context) -> answer

    def Hello(self, request, context):
        layout = layout_from_wire(request.layout)
        mark = fingerprint(layout)
        assert mark == request.fingerprint
        name = namespace_id("t", mark)
        self.layouts[name] = layout
        self.known.add(name)
        return pb.HelloResponse(
            namespace_id=name,
            root=namespace_root(self.secret, "t", mark),
            boot_epoch=self.epoch,
            created=True,
            max_chunk_bytes=1 << 20,
            max_batch_blocks=self.batch_blocks,
            lease_seconds=30.0,
            server_version="fake",
            attach_path=self.attach_path,
        )

    def Lookup(self, request, context):
        layout = self._layout(request, context)
        chain = Chain(request.chain.first_block, request.chain.parent, request.chain.hashes)
        self.lookup_chains.append(chain)
        if chain.blocks > self.batch_blocks:
            context.abort_with_status(status(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_INPUT, "too many"))
        bt, state = layout.block_tokens, layout.state_group
        rows = 0
        if chain.first_block == 0 or BlockKey(chain.parent, 0) in self.objects:
            rows = chain.first_block
            while rows - chain.first_block < chain.blocks and self._has(chain.hash_at(rows - chain.first_block), 0):
                rows += 1
            reason = MissReason.NEVER_SEEN
        else:
            reason = MissReason.PARENT_UNKNOWN
        points = []
        for end in range(rows, chain.first_block, -1):
            tokens = end * bt
            prefix = chain.hash_at(end - 1 - chain.first_block)
            fits = tokens < request.prompt_tokens and tokens % layout.resume_alignment == 0
            if fits and (state is None or self._has(prefix, state)):
                points.append(ResumePoint(tokens, 1, Tier.HOST, None, None))
        plan, lineage = COLD_PLAN, ROOT_LINEAGE
        if points:
            tokens = points[0].tokens
            plan = Plan(PlanKind.RESUME, tokens, tokens, 1, Tier.HOST, None, None)
            lineage = self.lineages[chain.hash_at(tokens // bt - 1 - chain.first_block)]
            reason = MissReason.NONE
        with self._lock:
            self._next += 1
            lease = self._next
            self.leases.add(lease)
        match = Match(
            rows * bt, tuple(points[:32]), None, plan, Snapshots((bt,)), layout.canonical, reason, lease, lineage
        )
        return match_to_wire(match, self.epoch)

    def Fetch(self, request, context):
        request = pb.FetchRequest.FromString(request)
        layout = self._layout(request, context)
        self._epoch(request, context)
        chain = Chain(request.chain.first_block, request.chain.parent, request.chain.hashes)
        names = [(index, 0) for index in range(request.first_row, request.end_row)]
        names += [(name.block, name.group) for name in request.states]
        base = chain.first_block
        rows = range(base + request.first_row, base + request.end_row)
        self.fetches.append((rows, [base + name.block for name in request.states]))
        frames = 0
        starts, data = [], b""  # one chunk spans objects and one object spans chunks, as in the daemon
        for block, group in names:
            key = BlockKey(chain.hash_at(block), group)
            name = pb.ObjectName(block=block, group=group)
            if key in self.vanish:
                self.objects.pop(key, None)
            body = self.objects.get(key)
            if body is None:
                starts.append(pb.ObjectStart(name=name, status=pb.FETCH_STATUS_MISSING))
                continue
            lineage = (self.foreign_states.get(key.prefix) or self.lineages[key.prefix]) if group else b""
            starts.append(
                pb.ObjectStart(
                    name=name,
                    status=pb.FETCH_STATUS_OK,
                    length=len(body),
                    generation=7,
                    seal=seal(key, 7, len(body), content_checksum([body]), lineage),
                    tier=TIER.to_wire(Tier.HOST),
                    lineage=lineage,
                )
            )
            assert len(body) == layout.groups[group].nbytes
            data += body[:-1] + bytes([body[-1] ^ 1]) if key in self.corrupt else body
            while len(data) >= self.chunk_bytes:
                yield wire.frame_fetch(starts, [data[: self.chunk_bytes]])
                starts, data, frames = [], data[self.chunk_bytes :], frames + 1
                if self.hang_fetch_after is not None and frames >= self.hang_fetch_after:
                    deadline = time.monotonic() + self.hang_seconds
                    while context.is_active() and time.monotonic() < deadline:
                        time.sleep(0.01)
        if starts or data:
            yield wire.frame_fetch(starts, [data])

    def Reserve(self, request, context):
        self._layout(request, context)
        chain = Chain(request.chain.first_block, request.chain.parent, request.chain.hashes)
        parent, lineage, statuses = chain.parent, bytes(request.lineage), []
        if chain.first_block and self.lineages.get(parent) != lineage:
            answer = ReserveStatus.NO_PARENT if parent not in self.lineages else ReserveStatus.OTHER_LINEAGE
            statuses = [answer] * len(request.objects)
        else:
            stopped = False
            for spec in request.objects:
                key = BlockKey(chain.hash_at(spec.block), spec.group)
                if spec.group == 0:
                    lineage = child_lineage(lineage, spec.content)
                    stopped = stopped or self.lineages.get(key.prefix, lineage) != lineage
                if stopped:
                    statuses.append(ReserveStatus.OTHER_LINEAGE)
                elif key in self.objects:
                    statuses.append(ReserveStatus.EXISTS)
                else:
                    statuses.append(ReserveStatus.WANTED)
        with self._lock:
            self._next += 1
            reservation = self._next
        self.reservations[reservation] = (chain, list(request.objects), statuses, bytes(request.lineage))
        return pb.ReserveResponse(
            boot_epoch=self.epoch, reservation=reservation, statuses=[RESERVE_STATUS.to_wire(s) for s in statuses]
        )

    def Put(self, messages, context):
        frames = (wire.parse_put(message) for message in messages)
        first = next(frames)
        header, body = first.header, bytes(first.data)
        assert len(first.data) <= 1 << 20
        self._epoch(header, context)
        body += b"".join(frame.data for frame in frames)
        chain, specs, _, lineage = self.reservations[header.reservation]
        lineages = {}
        for spec in specs:
            if spec.group == 0:
                lineage = lineages[spec.block] = child_lineage(lineage, spec.content)
        statuses, offset = [], 0
        for index in header.objects:
            spec = specs[index]
            piece = body[offset : offset + spec.length]
            offset += spec.length
            if content_checksum([piece]) != spec.content:
                statuses.append(PutStatus.CORRUPT)
                continue
            prefix = chain.hash_at(spec.block)
            self.objects[BlockKey(prefix, spec.group)] = piece
            if spec.group == 0:
                self.lineages[prefix] = lineages[spec.block]
            statuses.append(PutStatus.STORED)
        assert offset == len(body)
        return pb.PutResponse(statuses=[PUT_STATUS.to_wire(s) for s in statuses])

    def Commit(self, request, context):
        self._epoch(request, context)
        chain, specs, _, _ = self.reservations.pop(request.reservation)
        levels = [
            self.durability if BlockKey(chain.hash_at(spec.block), spec.group) in self.objects else Durability.NONE
            for spec in specs
        ]
        return pb.CommitResponse(durabilities=[DURABILITY.to_wire(level) for level in levels])

    def Release(self, request, context):
        self.leases -= set(request.leases)
        return pb.ReleaseResponse(released=len(request.leases))

    def Report(self, request, context):
        key = BlockKey(request.prefix, request.group)
        self.reports.append(key)
        self.corrupt.discard(key)
        return pb.ReportResponse(dropped=self.objects.pop(key, None) is not None)

    def Session(self, request, context):
        return pb.SessionResponse()

    def Prefetch(self, request, context):
        return pb.PrefetchResponse(objects=1, bytes=5)

    def Pin(self, request, context):
        return pb.PinResponse(pin=9, pinned_tokens=128, pinned_bytes=1)

    def Unpin(self, request, context):
        return pb.UnpinResponse(unpinned=request.pin == 9)

    def _has(self, prefix: bytes, group: int) -> bool:
        return BlockKey(prefix, group) in self.objects

    def _layout(self, request, context):
        if request.namespace_id not in self.known:
            context.abort_with_status(status_of(UnknownNamespace("say Hello")))
        return self.layouts[request.namespace_id]

    def _epoch(self, request, context):
        if request.boot_epoch != self.epoch:
            context.abort_with_status(status_of(OtherBootEpoch("restarted")))

    def restart(self, *, keep_objects: bool = True, secret: bytes | None = None) -> None:
        """What a daemon's restart looks like from outside, without the time it takes."""
        self.epoch += 1
        self.known.clear()
        self.reservations.clear()
        self.leases.clear()
        if secret is not None:
            self.secret = secret
        if not keep_objects:
            self.objects.clear()
            self.lineages.clear()


_RAW = {"Fetch", "Put"}
_METHODS = [
    method.name for method in pb.DESCRIPTOR.services_by_name["KVStore"].methods if hasattr(FakeStore, method.name)
]


def serve(store: FakeStore, address: str) -> grpc.Server:
    """A running server; `server.stop(None)` ends it."""

    def guarded(name, handler):
        def unary(request, context):
            store.seen[name] += 1
            if name in store.shed:
                context.abort_with_status(status(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.SHED, "busy", 0.1))
            if store.draining:
                context.abort_with_status(status(grpc.StatusCode.UNAVAILABLE, Reason.DRAINING, "going down"))
            return handler(request, context)

        def stream(request, context):
            store.seen[name] += 1
            yield from handler(request, context)

        return stream if name == "Fetch" else unary

    handlers = {}
    for name in _METHODS:
        handler = guarded(name, getattr(store, name))
        if name == "Fetch":
            handlers[name] = grpc.unary_stream_rpc_method_handler(handler)
        elif name == "Put":
            handlers[name] = grpc.stream_unary_rpc_method_handler(
                handler, response_serializer=pb.PutResponse.SerializeToString
            )
        else:
            request, response = getattr(pb, f"{name}Request"), getattr(pb, f"{name}Response")
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                handler, request_deserializer=request.FromString, response_serializer=response.SerializeToString
            )
    server = grpc.server(
        ThreadPoolExecutor(8),
        options=[
            ("grpc.max_receive_message_length", 8 << 20),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
        ],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kvstore.v1.KVStore", handlers),))
    assert server.add_insecure_port(address)
    server.start()
    return server


if __name__ == "__main__":
    faults = FakeStore(epoch=os.getpid())
    if len(sys.argv) > 2:
        faults.hang_fetch_after = int(sys.argv[2])
        faults.hang_seconds = 60.0
        faults.chunk_bytes = int(sys.argv[3])
    running = serve(faults, sys.argv[1])
    print("ready", flush=True)
    running.wait_for_termination()
