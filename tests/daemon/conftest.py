"""A daemon in this process on a Unix socket, around a store in a dictionary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_peer import Peer, config_at
from memory_store import MemoryStore

from kvstore.daemon.opening import open_daemon
from kvstore.daemon.server import Daemon


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def daemon(tmp_path, store):
    tmp_path.chmod(0o700)
    daemon = Daemon(config_at(tmp_path))
    daemon.start(store)
    yield daemon
    daemon.stop(0.0)


@pytest.fixture
def peer(daemon):
    peer = Peer(daemon.address.target)
    peer.say_hello()
    yield peer
    peer.channel.close()


@pytest.fixture
def real(tmp_path):
    """A daemon around the real store, all its memory there."""
    tmp_path.chmod(0o700)
    daemon = open_daemon(config_at(tmp_path))
    assert daemon.store.quiesce(20)
    yield daemon
    daemon.stop(0.0)


@pytest.fixture
def real_peer(real):
    peer = Peer(real.address.target)
    peer.say_hello()
    yield peer
    peer.channel.close()


@pytest.fixture
def worker_process():
    """Starts `lane_worker.py` processes; what is left of them is killed."""
    children = []
    here = Path(__file__).resolve()
    paths = os.pathsep.join((str(here.parent), str(here.parents[2])))

    def starting(peer: Peer, worker: bytes, staging: int = 0, lookup: bytes = b"") -> subprocess.Popen[str]:
        hello = peer.hello
        command = [here.parent / "lane_worker.py", hello.attach_path, str(hello.boot_epoch), worker.hex(), str(staging)]
        child = subprocess.Popen(
            [sys.executable, *command, lookup.hex()],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        children.append(child)
        return child

    yield starting
    for child in children:
        child.kill()
        child.wait(30)
        child.stdout.close()
