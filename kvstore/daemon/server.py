"""The gRPC server around a store: binding, threads, health, reflection, draining.

Threads: `kvstore-rpc-*` run the calls, `kvstore-tick` moves the store's clock every half second, grpc's own threads do
the network; `kvstore-attach` watches the attach socket and each of its lanes has a `kvstore-lane-*`. Nothing else is
started here; the store's copy threads are its own, `signals.py` has one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvstore.config import Config, LimitsConfig
from kvstore.core.errors import SocketInUse
from kvstore.daemon.address import Address, SocketHold, parse_listen
from kvstore.daemon.admin import AdminService
from kvstore.daemon.attach import SPARE_LANES, AttachSocket, attach_path
from kvstore.daemon.calls import Calls, Gate, parsed
from kvstore.daemon.garbage import Garbage
from kvstore.daemon.lanes import LaneService
from kvstore.daemon.service import KVStoreService
from kvstore.daemon.staging import StagingRoom
from kvstore.daemon.workers import Workers
from kvstore.rpc.limits import MAX_MESSAGE_BYTES
from kvstore.rpc.methods import ADMIN_SERVICE, KVSTORE_SERVICE, METHODS, Method
from kvstore.store.store import Store

log = logging.getLogger("kvstore.daemon")

TICK_SECONDS = 0.5
CANCEL_SECONDS = 2.0  # for threads of cancelled calls to let go of the store before it closes
SPARE_THREADS = 8  # for health, reflection and for refusing what is too much
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
UnaryCall = Callable[[Message, float], Message]
DownloadCall = Callable[[Message, float], Iterator[bytes]]
UploadCall = Callable[[Iterator[bytes], float], Message]


class Daemon:
    """A server that holds its address from construction and serves from `start` to `stop`.

    The address is taken first, so that a second daemon hears of it before it touches the disk folder.
    """

    def __init__(self, config: Config) -> None:
        """Raises ConfigError, OperatorError or SocketInUse, and then holds nothing."""
        self._config = config
        self._calls = Calls(config.limits)
        self._health = health.HealthServicer()
        self._server = _grpc_server(config.limits)
        wanted = parse_listen(config.listen)
        self._hold = SocketHold(wanted.path) if wanted.path is not None else None
        self._attach: AttachSocket | None = None
        try:
            self.address = _bind(self._server, wanted)
            path = attach_path(wanted.path) if wanted.path is not None else None
            if path is not None:
                self._attach = AttachSocket(path, config.limits.lanes, self._calls)
            elif wanted.path is not None:
                log.warning("the socket path is too long for an attach socket beside it: workers share no memory")
        except BaseException:
            if self._hold is not None:
                self._hold.close()
            raise
        self._lanes = futures.ThreadPoolExecutor(config.limits.lanes + SPARE_LANES, thread_name_prefix="kvstore-lane")
        self._watcher: threading.Thread | None = None
        self._garbage = Garbage()
        self._ticking = threading.Event()
        self._ticker: threading.Thread | None = None
        self._store: Store | None = None
        self._is_hasty = False

    def start(self, store: Store) -> None:
        """Answer calls from now on. The store is the daemon's to tick and to close."""
        self._store = store
        version = server_version()
        attached = Workers(store, StagingRoom(self._config.limits.staging_bytes))
        workers = KVStoreService(store, self._config.match.lease_seconds, version, str(self.attach_path or ""))
        operators = AdminService(store, self._calls, version, attached)
        handlers: dict[str, dict[str, Handler]] = {KVSTORE_SERVICE: {}, ADMIN_SERVICE: {}}
        for method in METHODS:
            service = workers if method.service == KVSTORE_SERVICE else operators
            handlers[method.service][method.name] = self._handler(method, service)
        self._server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items())
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (KVSTORE_SERVICE, ADMIN_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        for name in ("", KVSTORE_SERVICE, ADMIN_SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._garbage.start(store.next_generation + store.moved)
        self._server.start()
        self._ticker = threading.Thread(target=self._tick, args=(store,), name="kvstore-tick", daemon=True)
        self._ticker.start()
        if self._attach is not None:
            self._attach.listen()
            lanes = LaneService(store, workers, self._calls, attached)
            self._watcher = threading.Thread(
                target=self._attach.run, args=(lanes, attached, self._lanes.submit), name="kvstore-attach", daemon=True
            )
            self._watcher.start()

    @property
    def attach_path(self) -> Path | None:
        """Where workers of this host attach; None where there is no such socket."""
        return self._attach.path if self._attach is not None else None

    @property
    def store(self) -> Store:
        assert self._store is not None, "the daemon was not started"
        return self._store

    def stop(self, drain_seconds: float) -> None:
        """Refuse new calls, let those in flight end within `drain_seconds`, then close the store. Once is enough."""
        store, self._store = self._store, None
        ends = time.monotonic() + drain_seconds
        self._health.enter_graceful_shutdown()
        self._calls.drain()
        self._server.stop(drain_seconds).wait(drain_seconds + 1.0)
        self._calls.wait_idle(max(0.0, ends - time.monotonic()))  # those of the attach socket
        cancelled = time.monotonic()
        if self._attach is not None and not self._attach.close(CANCEL_SECONDS):
            log.warning("lanes of the attach socket are still being served at the end")
        self._lanes.shutdown(wait=False)
        if self._watcher is not None:
            self._watcher.join(1.0)
        if not self._calls.wait_idle(max(0.0, cancelled + CANCEL_SECONDS - time.monotonic())):
            log.warning("calls are still running at the end; their bytes are not stored")
        self._ticking.set()
        if self._ticker is not None:
            self._ticker.join(1.0)
        self._garbage.stop()
        if store is not None:
            store.close(0.0 if self._is_hasty else max(0.0, ends - time.monotonic()))
        if self._hold is not None:
            self._hold.close()

    def hasten(self) -> None:
        """Cut a running `stop` short: calls in flight are cancelled now. Any thread."""
        self._is_hasty = True
        self._server.stop(0)
        self._calls.hasten()

    def _tick(self, store: Store) -> None:
        while not self._ticking.wait(TICK_SECONDS):
            try:
                self._calls.cancel_overdue()
                store.tick()
                # what is ranked anew is new to the collector, too
                self._garbage.tick(store.next_generation + store.moved)
            except Exception:  # top of a thread: without ticks leases would never end
                self._calls.count("tick_errors")
                log.exception("a tick failed")

    def _handler(self, method: Method, service: KVStoreService | AdminService) -> Handler:
        call = getattr(service, method.function)
        if method.streams_requests:
            return grpc.stream_unary_rpc_method_handler(self._upload(method, call))
        if method.streams_responses:
            return grpc.unary_stream_rpc_method_handler(self._download(method, call))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, call))

    # Requests arrive as bytes and are parsed behind the gate, so that garbage is refused like any bad input.

    def _unary(self, method: Method, call: UnaryCall) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(raw: bytes, context: grpc.ServicerContext) -> bytes:
            with self._calls.over_grpc(method.name, Gate.CALL, context) as deadline:
                return call(parsed(method.request, raw), deadline).SerializeToString()
            raise AssertionError("an aborted call returned")

        return handle

    def _download(self, method: Method, call: DownloadCall) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
        def handle(raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            with self._calls.over_grpc(method.name, Gate.FETCH, context) as deadline:
                yield from call(parsed(method.request, raw), deadline)

        return handle

    def _upload(self, method: Method, call: UploadCall) -> Callable[[Iterator[bytes], grpc.ServicerContext], bytes]:
        def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            with self._calls.over_grpc(method.name, Gate.PUT, context) as deadline:
                return call(messages, deadline).SerializeToString()
            raise AssertionError("an aborted call returned")

        return handle


def server_version() -> str:
    try:
        return metadata.version("kvstore")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def _grpc_server(limits: LimitsConfig) -> grpc.Server:
    at_once = limits.calls + limits.fetches + limits.puts + SPARE_THREADS
    return grpc.server(
        futures.ThreadPoolExecutor(at_once, thread_name_prefix="kvstore-rpc"),
        maximum_concurrent_rpcs=at_once,  # never queue: a queued call would only be late (RELIABILITY section 6)
        options=(
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),  # two daemons on one port would each get half of the calls
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Clients ping every second to notice a black hole within one (RELIABILITY section 6).
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
        ),
    )


def _bind(server: grpc.Server, wanted: Address) -> Address:
    # grpc makes the socket with the process's umask, 0755 as a rule; no thread of ours runs yet.
    before = os.umask(0o177)
    try:
        port = server.add_insecure_port(wanted.target)
    except RuntimeError as error:
        raise SocketInUse(f"{wanted.target} cannot be listened on: it is in use or not ours; choose another") from error
    finally:
        os.umask(before)
    return wanted if wanted.path is not None else wanted._replace(port=port)
