"""Fixtures of the client's tests: the fake store on a Unix socket, clients that are closed."""

from __future__ import annotations

import pytest
from fake_store import FakeStore, serve

import kvstore
from kvstore.core import presets


@pytest.fixture
def address(tmp_path):
    return f"unix:{tmp_path}/kv.sock"


@pytest.fixture
def fake(address):
    store = FakeStore()
    server = serve(store, address)
    yield store
    server.stop(None).wait()


@pytest.fixture
def connect(address):
    """Connects to the fixture's address; every client is closed at the end."""
    clients = []

    def connect(layout=None, **options):
        client = kvstore.connect(address, layout=layout or presets.v4_tiny(), **options)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()
