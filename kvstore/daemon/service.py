"""The KVStore service: what workers ask, checked by `rpc`, answered by the store. Runs in the RPC threads."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kvstore.core.errors import InvalidInput, LayoutMismatch, OtherBootEpoch, UnknownNamespace
from kvstore.core.fingerprint import fingerprint
from kvstore.core.keys import BlockKey
from kvstore.core.prefix import namespace_id
from kvstore.daemon import handoffs, streams
from kvstore.rpc import convert
from kvstore.rpc.enums import DURABILITY, RESERVE_STATUS, SESSION_EVENT
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.layouts import layout_from_wire
from kvstore.rpc.limits import (
    MAX_BATCH_BLOCKS,
    MAX_CHUNK_BYTES,
    MAX_LOCATE_SECONDS,
    MAX_NEW_NAMESPACES,
    MAX_PIN_SECONDS,
    MAX_REASON,
    MAX_RELEASES,
)
from kvstore.rpc.located import descriptors_to_wire
from kvstore.rpc.matches import match_to_wire
from kvstore.store.objects import OpenedNamespace
from kvstore.store.store import Store

TENANT = "default"  # who may open the socket is one tenant


class KVStoreService:
    """One method per RPC, `(request, deadline) -> response`; `deadline` in monotonic seconds. Raises KVStoreError."""

    def __init__(self, store: Store, lease_seconds: float, version: str, attach_path: str = "") -> None:
        """`attach_path` is empty where there is no attach socket."""
        self._store = store
        self._attach_path = attach_path
        self._lease_seconds = lease_seconds
        self._version = version
        self._lengths = streams.ReservedLengths()
        self._created = 0  # namespaces; two threads may both pass the last free place, which does no harm

    def hello(self, request: pb.HelloRequest, deadline: float) -> pb.HelloResponse:
        layout = layout_from_wire(request.layout)
        convert.worker_from_wire(request.worker_id)
        theirs = convert.hash_from_wire(request.fingerprint, "fingerprint")
        if theirs != fingerprint(layout):
            raise LayoutMismatch(
                f"the worker's fingerprint of layout {layout.model} is not the daemon's: "
                "run the same version of kvstore on both sides"
            )
        if self._created >= MAX_NEW_NAMESPACES and self._store.namespace(namespace_id(TENANT, theirs)) is None:
            raise InvalidInput(
                f"this daemon opened {MAX_NEW_NAMESPACES} new namespaces, its limit: use a known layout, or restart it"
            )
        namespace = self._store.hello(TENANT, layout, request.existing_only)
        self._created += namespace.created
        return pb.HelloResponse(
            namespace_id=namespace.id,
            root=namespace.root,
            boot_epoch=self._store.boot_epoch,
            differing_fields=namespace.differing,
            created=namespace.created,
            max_chunk_bytes=MAX_CHUNK_BYTES,
            max_batch_blocks=MAX_BATCH_BLOCKS,
            lease_seconds=self._lease_seconds,
            server_version=self._version,
            attach_path=self._attach_path,
        )

    def lookup(self, request: pb.LookupRequest, deadline: float) -> pb.LookupResponse:
        namespace = self.known(request.namespace_id)
        block_tokens = namespace.layout.block_tokens
        chain = convert.chain_from_wire(request.chain, block_tokens)
        match = self._store.lookup(
            namespace.id,
            chain,
            convert.prompt_from_wire(request.prompt_tokens, chain, block_tokens),
            convert.hints_from_wire(request.hints),
            convert.worker_from_wire(request.worker_id),
            request.can_replay,
            convert.flops_from_wire(request.worker_flops) if request.HasField("worker_flops") else None,
            layers=request.order == pb.LOAD_ORDER_LAYERS,
            host_bytes_per_second=convert.speed_from_wire(request.host_bytes_per_second, "host_bytes_per_second")
            if request.HasField("host_bytes_per_second")
            else None,
            hot_only=request.hot_only,
        )
        answer = match_to_wire(match, self._store.boot_epoch)
        if request.want_descriptors and match.lease is not None:
            located = self._store.hot_objects(match.lease)
            if located.rows is not None:
                answer.rows.CopyFrom(descriptors_to_wire(*located.rows))
            answer.states.extend(descriptors_to_wire(*state) for state in located.states)
        return answer

    def locate(self, request: pb.LocateRequest, deadline: float) -> pb.LocateResponse:
        self.known(request.namespace_id)
        self.check_epoch(request.boot_epoch)
        wait = min(convert.seconds_from_wire(request.wait_seconds, "wait_seconds"), MAX_LOCATE_SECONDS)
        seen = request.seen_layers if request.HasField("seen_layers") else None
        until = min(deadline, time.monotonic() + wait)
        located = self._store.locate(request.lease, request.first_block, request.min_blocks, seen, until)
        return pb.LocateResponse(
            boot_epoch=self._store.boot_epoch,
            rows=None if located.rows is None else descriptors_to_wire(*located.rows),
            states=[descriptors_to_wire(*state) for state in located.states],
            is_loading=located.is_loading,
            layers=located.layers,
        )

    def fetch(self, request: pb.FetchRequest, deadline: float) -> Iterator[bytes]:
        layout = self.known(request.namespace_id).layout
        self.check_epoch(request.boot_epoch)
        chain = convert.chain_from_wire(request.chain, layout.block_tokens)
        return streams.fetch(self._store, request, chain, layout, deadline)

    def reserve(self, request: pb.ReserveRequest, deadline: float) -> pb.ReserveResponse:
        namespace = self.known(request.namespace_id)
        chain = convert.chain_from_wire(request.chain, namespace.layout.block_tokens)
        specs = convert.specs_from_wire(request.objects, chain, namespace.layout)
        reservation = self._store.reserve(
            namespace.id,
            chain,
            specs,
            convert.lineage_from_wire(request.lineage),
            convert.worker_from_wire(request.worker_id),
            convert.hints_from_wire(request.hints),
        )
        self._lengths.remember(reservation.id, specs)
        return pb.ReserveResponse(
            boot_epoch=self._store.boot_epoch,
            reservation=reservation.id,
            statuses=[RESERVE_STATUS.to_wire(status) for status in reservation.statuses],
        )

    def put(self, messages: Iterator[bytes], deadline: float) -> pb.PutResponse:
        return streams.put(self._store, messages, self._lengths, self.known, deadline)

    def put_handoff(self, messages: Iterator[bytes], deadline: float) -> pb.PutHandoffResponse:
        return handoffs.put(self._store, messages, self.known, deadline)

    def take_handoff(self, request: pb.TakeHandoffRequest, deadline: float) -> Iterator[bytes]:
        self.known(request.namespace_id)
        self.check_epoch(request.boot_epoch)
        return handoffs.take(self._store, request, deadline)

    def commit(self, request: pb.CommitRequest, deadline: float) -> pb.CommitResponse:
        """Of a reservation. Staged objects come over the attach socket (`staged_commit.py`): whose else are they?"""
        self.known(request.namespace_id)
        self.check_epoch(request.boot_epoch)
        if request.staged:
            raise InvalidInput("staged objects are committed over the attach socket: upload these with Put instead")
        self._lengths.forget(request.reservation)
        durabilities = self._store.commit(request.reservation, request.durable, deadline)
        return pb.CommitResponse(
            durabilities=[DURABILITY.to_wire(level) for level in durabilities], boot_epoch=self._store.boot_epoch
        )

    def release(self, request: pb.ReleaseRequest, deadline: float) -> pb.ReleaseResponse:
        if len(request.leases) > MAX_RELEASES:
            raise InvalidInput(f"{len(request.leases)} leases: release at most {MAX_RELEASES} in one call")
        self.check_epoch(request.boot_epoch)
        return pb.ReleaseResponse(released=self._store.release(list(request.leases)))

    def report(self, request: pb.ReportRequest, deadline: float) -> pb.ReportResponse:
        namespace = self.known(request.namespace_id)
        if request.group >= len(namespace.layout.groups):
            raise InvalidInput(f"group {request.group} does not exist: this layout has {len(namespace.layout.groups)}")
        key = BlockKey(convert.hash_from_wire(request.prefix, "prefix"), request.group)
        reason = convert.text_from_wire(request.reason, "reason", MAX_REASON)
        return pb.ReportResponse(dropped=self._store.report(namespace.id, key, reason))

    def session(self, request: pb.SessionRequest, deadline: float) -> pb.SessionResponse:
        namespace = self.known(request.namespace_id)
        gap = request.expected_gap_seconds if request.HasField("expected_gap_seconds") else None
        self._store.session(
            namespace.id,
            convert.text_from_wire(request.session, "session"),
            SESSION_EVENT.to_core(request.event),
            None if gap is None else convert.seconds_from_wire(gap, "expected_gap_seconds"),
        )
        return pb.SessionResponse()

    def prefetch(self, request: pb.PrefetchRequest, deadline: float) -> pb.PrefetchResponse:
        namespace = self.known(request.namespace_id)
        block_tokens = namespace.layout.block_tokens
        chain = convert.chain_from_wire(request.chain, block_tokens)
        prompt_tokens = convert.prompt_from_wire(request.prompt_tokens, chain, block_tokens)
        objects, nbytes = self._store.prefetch(namespace.id, chain, prompt_tokens)
        return pb.PrefetchResponse(objects=objects, bytes=nbytes)

    def pin(self, request: pb.PinRequest, deadline: float) -> pb.PinResponse:
        namespace = self.known(request.namespace_id)
        chain = convert.chain_from_wire(request.chain, namespace.layout.block_tokens)
        ttl_seconds = convert.seconds_from_wire(request.ttl_seconds, "ttl_seconds")
        if not 0 < ttl_seconds <= MAX_PIN_SECONDS:
            raise InvalidInput(f"ttl_seconds={ttl_seconds:g} is out of range: pin for up to {MAX_PIN_SECONDS:g} s")
        pin = self._store.pin(namespace.id, chain, ttl_seconds)
        if pin is None:
            return pb.PinResponse()
        return pb.PinResponse(pin=pin.number, pinned_tokens=pin.tokens, pinned_bytes=pin.nbytes)

    def unpin(self, request: pb.UnpinRequest, deadline: float) -> pb.UnpinResponse:
        return pb.UnpinResponse(unpinned=self._store.unpin(request.pin))

    def known(self, namespace_id: bytes) -> OpenedNamespace:
        """The namespace of a request. UnknownNamespace where nobody has opened it."""
        namespace = self._store.namespace(convert.hash_from_wire(namespace_id, "namespace_id"))
        if namespace is None:
            raise UnknownNamespace("this namespace is not open in the daemon: say Hello with its layout first")
        return namespace

    def check_epoch(self, boot_epoch: int) -> None:
        """Raises OtherBootEpoch for a lease or reservation of another run of the daemon."""
        if boot_epoch != self._store.boot_epoch:
            raise OtherBootEpoch("the lease or reservation is from before the daemon's restart: say Hello again")
