"""Fixtures of the client's tests: the fake store on a Unix socket, the daemon as it is, clients that are closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_store import FakeStore, serve

import kvstore
from kvstore.config import load_config
from kvstore.core import presets
from kvstore.daemon.opening import open_daemon


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


@pytest.fixture
def start(tmp_path):
    """Starts a daemon in this process on the test's folder; stops it at the end. Call again for a restart."""
    tmp_path.chmod(0o700)
    running = []

    def start(host_bytes="64MiB"):
        while running:
            running.pop().stop(5.0)
        flags = {
            "listen": f"unix:{tmp_path}/kv.sock",
            "host.bytes": host_bytes,
            "disk.folder": str(tmp_path / "disk"),
            "disk.bytes": "256MiB",
        }
        running.append(open_daemon(load_config(None, flags)))
        return running[0]

    yield start
    while running:
        running.pop().stop(5.0)


SERVE = """
import sys, threading
from kvstore.config import load_config
from kvstore.daemon.opening import open_daemon
folder = sys.argv[1]
flags = {"listen": f"unix:{folder}/kv.sock", "host.bytes": "16MiB"}
flags |= {"disk.folder": f"{folder}/disk", "disk.bytes": "64MiB"}
daemon = open_daemon(load_config(None, flags))
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def python_process():
    """Starts a program in a process of its own that says "ready"; kills it at the end."""
    processes = []

    def start(program: str, *arguments: str) -> subprocess.Popen:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((*map(str, _PATHS), os.environ.get("PYTHONPATH", "")))
        }
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, env=environment)
        processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def daemon_process(tmp_path, python_process):
    """Starts a daemon as a process of its own on the test's folder."""
    tmp_path.chmod(0o700)
    return lambda: python_process(SERVE, str(tmp_path))


_PATHS = (Path(kvstore.__file__).parents[1], Path(__file__).parent)
