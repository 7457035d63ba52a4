"""The bench beside other stores says which of them are missing, and leaves nothing running. No figure decides here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))  # benches are scripts beside each other, not a package

from peers import OURS, Store, WorkerStopped, running_worker, stores  # noqa: E402

LONGEST_SECONDS = 120  # about 5 on an idle machine; a hang must not hold up the tests for ever
NO_PEERS = ["--redis-server", "no-such-redis-server", "--lmcache-python", "no-such-python"]
ENVIRONMENT = {"PYTHONPATH": str(BENCH.parent), "PATH": "/usr/bin:/bin"}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; short, because a Unix socket's path has about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked up once, then kept here
        monkeypatch.setenv("PYTHONPATH", str(BENCH.parent))
        yield Path(folder)


@pytest.fixture
def ours() -> Store:
    nothing = Namespace(redis_server="no-such-redis-server", mooncake_python=None, lmcache_python=None)
    return next(store for store in stores(nothing) if store.name == OURS)


def test_a_peer_that_is_not_here_is_reported_with_the_reason():
    run = subprocess.run(
        [sys.executable, BENCH / "peers.py", "--quick", "--json", *NO_PEERS],
        capture_output=True, text=True, timeout=LONGEST_SECONDS, cwd=BENCH.parent, env=ENVIRONMENT,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = {row["name"]: row for row in json.loads(run.stdout)["rows"]}
    absent = [name for name, row in rows.items() if row["runs"] == 0]
    assert absent == [
        "Redis not measured: no redis-server on PATH",
        "Redis one by one not measured: no redis-server on PATH",
        "Mooncake not measured: no interpreter that has it: give --mooncake-python",
        "Mooncake in-process not measured: no interpreter that has it: give --mooncake-python",
        "LMCache not measured: no-such-python is no program",
        "LMCache whole blocks not measured: no-such-python is no program",
    ]
    assert all(rows[name]["ok"] is None and name in run.stderr for name in absent)
    for blocks in (16, 64):
        for what in ("whole request", "put", "put, published"):
            row = rows[f"{what}, {blocks} blocks: kvstore"]
            assert row["value"] > 0 and row["ratio"] == row["value"] / row["ceiling"] and row["unit"] == "GB/s"
    assert len(rows) == 6 + len(absent), "nothing is compared with what was not measured"


def test_a_worker_takes_its_daemon_and_its_folders_with_it(folder: Path, ours: Store):
    with running_worker(ours) as worker:
        assert set(worker.measure(16, 0)) == {"put ", "published ", "request ", "memcpy"}
        group = worker.process.pid
        assert len(running(group)) >= 2 and list(folder.iterdir())
    assert not running(group) and not list(folder.iterdir())


def test_a_worker_that_is_killed_is_noticed_and_its_daemon_ended(folder: Path, ours: Store):
    with running_worker(ours) as worker:
        worker.process.send_signal(signal.SIGKILL)
        with pytest.raises(WorkerStopped, match="it ended"):
            worker.measure(16, 0)
        assert running(worker.process.pid), "the daemon ended by itself"
    ends = time.monotonic() + LONGEST_SECONDS
    while running(worker.process.pid):  # a signal is not there at once
        assert time.monotonic() < ends, "the daemon outlived its worker"
        time.sleep(0.01)


def running(group: int) -> list[psutil.Process]:
    """Processes of the group that have not ended; who ended without a parent may lie about as a zombie."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
