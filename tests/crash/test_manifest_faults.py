"""The manifest's own device refuses: LMDB writes by itself, so the faults come from below or from the kernel."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from crash_tools import Document, client_of, daemon
from fault_tools import after_a_kill, on_disk, opened, put_durably, read_back, tick_until, trouble
from store_helpers import Stream

from kvstore.core.errors import TierFault
from kvstore.core.presets import v4_demo
from kvstore.store import disk_writer
from kvstore.tiers.manifest import Manifest


def test_a_manifest_that_could_not_be_written_is_written_anew(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(disk_writer, "RENEW_SECONDS", 0.0)
    folder = tmp_path / "d"
    store = opened(folder)
    stream = Stream(store, v4_demo(), "a", 12)
    durable = put_durably(store, stream, 0, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "manifest.mdb").stat().st_size // 2, limits[1]))
    try:
        assert put_durably(store, stream, 3, 6, (5,)) == set()
        for _ in range(3):
            store.tick()
            assert store.quiesce(20)
        assert trouble(store) and len(trouble(store).splitlines()) == 1
        assert read_back(store, stream) == 6 * 128
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert after_a_kill(folder, "a", 12) >= durable
    everything = {stream.key(block) for block in range(6)} | {stream.key(5, 1)}
    tick_until(store, lambda: on_disk(store) == everything and not trouble(store), "the manifest takes entries again")
    assert after_a_kill(folder, "a", 12) == everything
    assert put_durably(store, stream, 6, 12) == {stream.key(block) for block in range(6, 12)}
    store.close()
    assert not list(folder.glob("manifest.bad-*"))


def test_a_start_that_cannot_forget_what_does_not_fit_starts_all_the_same(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "d"
    store = opened(folder)
    put_durably(store, Stream(store, v4_demo(), "a", 3), 0, 3)
    store.close()
    for name in (folder / "namespaces").iterdir():
        name.unlink()
    real = Manifest.commit

    def commit(self: Manifest, put, drop) -> None:
        if drop:
            raise TierFault("cannot write the manifest: Input/output error")
        real(self, put, drop)

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "commit", commit)
        store = opened(folder)
    assert "cannot write the manifest" in trouble(store) and store.contents() == {}
    stream = Stream(store, v4_demo(), "a", 3)
    durable = put_durably(store, stream, 0, 3)
    assert len(durable) == 3 and not trouble(store)
    assert after_a_kill(folder, "a", 3) == durable
    store.close()


@pytest.fixture
def shim(tmp_path: Path, monkeypatch) -> Path:
    """The file whose existence makes a daemon's manifest fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the fault shim with")
    library = tmp_path / "fault.so"
    source = Path(__file__).with_name("fault_preload.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_daemon_outlives_a_manifest_that_fails(tmp_path: Path, shim: Path, code: int) -> None:
    switch = tmp_path / "switch"
    faults = {"LD_PRELOAD": str(shim), "FAULT_MATCH": "manifest.mdb", "FAULT_SWITCH": str(switch)}
    with daemon(tmp_path, "16MiB", "64MiB", {**faults, "FAULT_ERRNO": str(code)}) as process:
        process.start()
        before, during, after = (Document(1, number) for number in (0, 4, 8))
        with client_of(process, before.model) as client:
            assert before.put(client) and client.flush(20, durable=True)
            switch.touch()
            assert during.put(client) and not client.flush(20, durable=True)
            assert os.strerror(code) in process.trouble() or "manifest" in process.trouble()
            assert during.read(client) == during.end_tokens and before.read(client) == before.end_tokens
            assert process.is_running
        process.kill()
        switch.unlink()
        process.start()
        with client_of(process, before.model) as client:
            assert before.read(client) == before.end_tokens
            during.read(client)
            assert after.put(client) and client.flush(20, durable=True)
            assert process.trouble() == ""
