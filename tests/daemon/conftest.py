"""A daemon in this process on a Unix socket, around a store in a dictionary."""

from __future__ import annotations

import pytest
from daemon_peer import Peer, config_at
from memory_store import MemoryStore

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
