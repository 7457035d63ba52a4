"""The server itself: who may connect, how much at once, how it ends."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from daemon_peer import Peer, body, config_at, until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from memory_store import MemoryStore

from kvstore.core.errors import ConfigError, OperatorError, SocketInUse
from kvstore.core.keys import BlockKey
from kvstore.daemon.address import parse_listen
from kvstore.daemon.server import Daemon
from kvstore.rpc import wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.status import retry_seconds_of
from kvstore.store.store import Store


def test_health_and_reflection_are_on(daemon):
    with grpc.insecure_channel(daemon.address.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "kvstore.v1.KVStore", "kvstore.v1.Admin"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(stub.ServerReflectionInfo(iter([asked]), timeout=5))
        names = {service.name for service in answer.list_services_response.service}
        assert {"kvstore.v1.KVStore", "kvstore.v1.Admin", "grpc.health.v1.Health"} <= names


def test_only_the_user_may_open_the_socket(daemon):
    assert stat.S_IMODE(daemon.address.path.stat().st_mode) == 0o600


def test_the_socket_is_gone_afterwards(tmp_path, store):
    daemon = Daemon(config_at(tmp_path))
    daemon.start(store)
    daemon.stop(0.0)
    assert not daemon.address.path.exists()
    assert store.closed_with is not None


def test_a_second_daemon_hears_that_the_socket_is_in_use(daemon, peer, tmp_path):
    with pytest.raises(SocketInUse, match="another daemon listens on unix:"):
        Daemon(config_at(tmp_path))
    assert peer.say_hello().namespace_id, "the first one must not be disturbed"


def test_a_socket_that_somebody_else_answers_is_left_alone(tmp_path):
    tmp_path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "kv.sock"))
        other.listen()
        with pytest.raises(SocketInUse):
            Daemon(config_at(tmp_path))
        assert (tmp_path / "kv.sock").exists()


def test_the_socket_of_a_dead_daemon_is_taken_over(tmp_path, store):
    tmp_path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "kv.sock"))
    daemon = Daemon(config_at(tmp_path))
    daemon.start(store)
    assert Peer(daemon.address.target).say_hello().namespace_id
    daemon.stop(0.0)


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "kv.sock").write_text("precious")
    with pytest.raises(OperatorError, match="is no socket"):
        Daemon(config_at(tmp_path))
    assert (tmp_path / "kv.sock").read_text() == "precious"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path, mode):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(OperatorError, match="can be written by others"):
        Daemon(config_at(folder))


@pytest.mark.parametrize("listen", ["0.0.0.0:7001", "[::]:7001", "192.168.1.4:7001", "example.com:7001"])
def test_an_address_open_to_the_network_is_refused(listen):
    with pytest.raises(ConfigError, match="open the store to the network"):
        parse_listen(listen)


@pytest.mark.parametrize(
    "listen", ["", "unix:", "7001", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "unix:" + "x" * 200]
)
def test_what_is_no_address_is_refused(listen):
    with pytest.raises(ConfigError):
        parse_listen(listen)


def test_tcp_on_the_loopback_gets_a_free_port_and_keeps_it(tmp_path, store):
    config = replace(config_at(tmp_path), listen="127.0.0.1:0")
    daemon = Daemon(config)
    daemon.start(store)
    assert daemon.address.port > 0
    assert Peer(daemon.address.target).say_hello().namespace_id
    with pytest.raises(SocketInUse):
        Daemon(replace(config, listen=daemon.address.target))
    daemon.stop(0.0)


def test_a_call_without_a_deadline_gets_one(tmp_path, store):
    daemon = Daemon(config_at(tmp_path, call_seconds=3.0, max_call_seconds=5.0))
    daemon.start(store)
    peer = Peer(daemon.address.target)
    peer.say_hello()
    for timeout, allowed in ((None, 3.0), (1000.0, 5.0), (2.0, 2.0)):
        reserved = peer.reserve(peer.chain(1), [body(0)])
        commit = pb.CommitRequest(namespace_id=peer.hello.namespace_id, boot_epoch=41, reservation=reserved.reservation)
        peer.call("Commit", commit, timeout=timeout)
        assert allowed - 1.5 < store.log[-1][2] <= allowed + 0.2  # grpc rounds timeouts up
    daemon.stop(0.0)


def test_an_upload_that_stalls_without_a_deadline_is_ended(tmp_path, store):
    daemon = Daemon(config_at(tmp_path, call_seconds=0.2))
    daemon.start(store)
    peer = Peer(daemon.address.target)
    peer.say_hello()
    reserved = peer.reserve(peer.chain(1), [body(0)])
    never = threading.Event()

    def stalling():
        yield wire.frame_put(peer.header(reserved.reservation, [0]), [b"abc"])
        never.wait(20)

    with pytest.raises(grpc.RpcError) as failed:
        peer.put_raw(stalling(), timeout=None)
    never.set()
    assert failed.value.code() == grpc.StatusCode.CANCELLED
    assert peer.status().counters["rpc_overdue"] == 1
    daemon.stop(0.0)


def test_too_many_fetches_are_shed_with_a_time_to_come_back_and_lookups_go_on(tmp_path, store):
    daemon = Daemon(config_at(tmp_path, fetches=1))
    daemon.start(store)
    peer = Peer(daemon.address.target)
    peer.say_hello()
    chain = peer.chain(1)
    peer.put(chain, [body(0)])
    entered, leave = threading.Event(), threading.Event()
    store.before_object = lambda: (entered.set(), leave.wait(20))
    first = peer.fetch_raw(peer.fetch_request(chain, 1))
    assert entered.wait(10)
    with pytest.raises(grpc.RpcError) as failed:
        peer.fetch(chain, 1)
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert retry_seconds_of(failed.value) > 0
    assert peer.lookup(chain).rows_tokens == 128
    assert peer.status().counters["rpc_shed_fetches"] == 1
    leave.set()
    assert len(list(first)) == 1
    until(lambda: len(peer.fetch(chain, 1)) == 1)
    daemon.stop(0.0)


def test_the_store_is_ticked_and_a_failing_tick_is_counted(daemon, store, peer, caplog):
    until(lambda: store.ticks > 0)
    store.tick = lambda: 1 / 0
    with caplog.at_level(logging.CRITICAL, "kvstore.daemon"):
        until(lambda: peer.status().counters.get("tick_errors", 0) > 0)
    del store.tick
    before = store.ticks
    until(lambda: store.ticks > before)  # the thread goes on
    assert peer.status().counters["tick_errors"] > 0


def test_draining_refuses_new_calls_and_finishes_those_in_flight(daemon, store, peer):
    chain = peer.chain(2)
    peer.put(chain, [body(0), body(1)])
    entered, leave = threading.Event(), threading.Event()
    store.before_object = lambda: (entered.set(), leave.wait(20))
    stream = peer.fetch_raw(peer.fetch_request(chain, 2))
    assert entered.wait(10)
    stopping = threading.Thread(target=daemon.stop, args=(20.0,))
    stopping.start()
    until(lambda: _refused(daemon.address.target))
    leave.set()
    data = b"".join(wire.parse_fetch(raw).data for raw in stream)
    assert data == body(0) + body(1)
    stopping.join(20)
    assert not stopping.is_alive()
    assert store.closed_with > 0


def _refused(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAVAILABLE
    return False


def test_a_call_that_outlives_the_drain_is_cancelled(daemon, store, peer):
    chain = peer.chain(1)
    store.objects[BlockKey(chain.hash_at(0), 0)] = bytearray(64 << 20)
    stream = peer.fetch_raw(peer.fetch_request(chain, 1), timeout=60)
    next(stream)  # and read no more: flow control holds the daemon's thread
    started = time.monotonic()
    daemon.stop(0.3)
    assert time.monotonic() - started < 10
    with pytest.raises(grpc.RpcError):
        list(stream)


PROCESS = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from daemon_peer import config_at
from memory_store import MemoryStore
from kvstore.core.keys import BlockKey
from kvstore.daemon.server import Daemon
from kvstore.daemon.signals import StopSignals

class Store(MemoryStore):
    def open_objects(self, lease, keys, deadline):
        self.objects = {{key: bytearray(32 << 20) for key in keys}}
        return super().open_objects(lease, keys, deadline)
    def close(self, drain_seconds):
        print("closed", drain_seconds > 0, flush=True)

with StopSignals() as signals:
    daemon = Daemon(config_at(Path(sys.argv[1])))
    daemon.start(Store())
    print("ready", flush=True)
    signals.serve(daemon, drain_seconds=30.0)
"""


@pytest.fixture
def process(tmp_path):
    tmp_path.chmod(0o700)
    here = Path(__file__).resolve()
    script = PROCESS.format(paths=[str(here.parent), str(here.parents[2])])
    child = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait(10)
    child.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_with_a_stream_in_flight(process, tmp_path, number):
    peer = Peer(f"unix:{tmp_path}/kv.sock")
    peer.say_hello()
    stream = peer.fetch_raw(peer.fetch_request(peer.chain(1), 1), timeout=60)
    received = wire.parse_fetch(next(stream)).data.nbytes
    os.kill(process.pid, number)
    received += sum(wire.parse_fetch(raw).data.nbytes for raw in stream)
    assert received == 32 << 20
    assert process.wait(20) == 0
    assert process.stdout.read() == "closed True\n"
    assert not (tmp_path / "kv.sock").exists()


def test_a_second_signal_ends_at_once(process, tmp_path):
    target = f"unix:{tmp_path}/kv.sock"
    peer = Peer(target)
    peer.say_hello()
    stream = peer.fetch_raw(peer.fetch_request(peer.chain(1), 1), timeout=60)
    next(stream)
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: _refused(target))  # the first has arrived: two sent at once may arrive as one
    assert process.poll() is None, "the stream is not read, so the drain must still be waiting"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stdout.read() == "closed False\n"


def test_a_signal_that_another_thread_takes_is_not_lost(tmp_path):
    """The kernel may hand it to any thread, and the main one may be about to wait: it must hear of it all the same."""
    tmp_path.chmod(0o700)
    here = Path(__file__).resolve()
    script = PROCESS.format(paths=[str(here.parent), str(here.parents[2])]).replace(
        '    print("ready", flush=True)\n',
        "    import signal, threading\n"
        "    stray = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "    threading.Timer(0.3, stray).start()\n",
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "closed True\n")


@pytest.mark.parametrize(
    "name", [name for name in vars(MemoryStore) if not name.startswith("_") and callable(getattr(MemoryStore, name))]
)
def test_the_stand_in_has_the_stores_methods(name):
    ours, theirs = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (MemoryStore, Store))
    assert ours == theirs
