"""The machine grants less than was asked, or damages what it gave: a plain sentence or a miss, and life goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_tools import ENVIRONMENT, REPOSITORY
from fault_tools import after_a_kill, on_disk, opened, put_durably, read_back, tick_until, trouble
from store_helpers import MIB, Stream, config

from kvstore.core.errors import OperatorError
from kvstore.core.presets import v4_demo
from kvstore.store.store import Store

# -- memory

# A process that may map so many MiB more than it has opens a store of 4 GiB in regions of 64 MiB.
LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from store_helpers import *
from kvstore.core.errors import OperatorError
from kvstore.core.presets import v4_demo
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[1]) * MIB,) * 2)
try:
    store = Store.open(config(None, 4096 * MIB))
except OperatorError as error:
    print(json.dumps({"refused": str(error)}))
    sys.exit()
deadline = time.monotonic() + 30
while not store.status().tiers[0].trouble and time.monotonic() < deadline:
    time.sleep(0.01)
stream = Stream(store, v4_demo(), "a", 12)
stream.put(store, states=[11])
match = stream.lookup(store)
stream.verify(stream.fetch(store, match))
host = store.status().tiers[0]
print(json.dumps({"trouble": host.trouble, "ready": host.ready_bytes, "tokens": match.plan.tokens}))
store.close()
"""


def with_little_memory(mib: int) -> dict[str, object]:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "store")])
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(mib)],
        capture_output=True, text=True, timeout=90, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_memory_that_is_not_granted_is_said_and_the_rest_is_used() -> None:
    said = with_little_memory(600)
    assert "the machine grants no more than" in str(said["trouble"]) and "choose a smaller" in str(said["trouble"])
    assert said["tokens"] == 12 * 128
    assert 64 * MIB <= int(str(said["ready"])) < 600 * MIB


def test_a_first_region_that_is_not_granted_is_one_plain_sentence() -> None:
    said = str(with_little_memory(40)["refused"])
    assert "the machine grants no more than 0 of 64 host regions" in said and "\n" not in said


# -- full and read-only filesystems


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *arguments, folder], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: needs root")
def test_a_filesystem_that_is_full_is_said_and_taken_back_into_use_when_it_is_not(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    with mounted(mount, "-t", "tmpfs", "-o", "size=12m", "tmpfs"):
        (mount / "filler").write_bytes(bytes(8 * MIB))
        store = opened(mount / "d")
        streams = [Stream(store, v4_demo(), str(number), 4) for number in range(24)]
        durable = [put_durably(store, stream, 0, 4, (3,)) for stream in streams]
        assert 0 < sum(map(bool, durable)) < len(streams)
        assert "No space left on device" in trouble(store) or "cannot grow" in trouble(store)
        for _ in range(3):
            store.tick()
            assert store.quiesce(20)
        assert read_back(store, streams[-1]) == 4 * 128
        store.contents()
        (mount / "filler").unlink()
        new = iter(range(100, 400))

        def is_well() -> bool:
            stream = Stream(store, v4_demo(), f"new {next(new)}", 1)
            return put_durably(store, stream, 0, 1) == {stream.key(0)} and not trouble(store)

        tick_until(store, is_well, "there is room again")
        kept = on_disk(store)
        assert any(set(stream.key(block) for block in range(4)) <= kept for stream in streams[-8:])
        store.close()


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem: needs root")
def test_a_read_only_filesystem_is_one_plain_sentence_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    store = opened(folder)
    durable = put_durably(store, Stream(store, v4_demo(), "a", 3), 0, 3)
    store.close()
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        with pytest.raises(OperatorError, match="Read-only file system; make it writable") as refused:
            Store.open(config(folder, segment_bytes=MIB))
        assert "\n" not in str(refused.value)
    assert after_a_kill(folder, "a", 3) == durable


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/self/kvstore"])
def test_a_folder_that_cannot_be_written_is_one_plain_sentence(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    tmp_path.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-m", "kvstore.cli.main", "serve", "--listen", f"unix:{tmp_path}/kv.sock",
         "--host-bytes", "16MiB", "--disk", str(tmp_path / folder), "--disk-bytes", "64MiB"],
        capture_output=True, text=True, timeout=60, env=ENVIRONMENT, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "kv.sock").exists()


# -- damage


@pytest.mark.parametrize("seed", range(4))
def test_segments_damaged_under_a_running_store_are_misses_and_it_goes_on(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path / "d"
    store = opened(folder, host_bytes=2 * MIB)
    streams = [Stream(store, v4_demo(), str(number), 8) for number in range(10)]
    for stream in streams:
        assert put_durably(store, stream, 0, 8, (7,))
    paths = sorted(folder.glob("segment-*"))
    for path in rng.sample(paths, 3):
        damage(path, rng)
    for stream in streams:
        for _ in range(3):
            read_back(store, stream)
    store.contents()
    assert store.status().counters["corrupt_disk"] > 0
    for stream in streams:
        put_durably(store, stream, 0, 8, (7,))
        assert read_back(store, stream) == stream.tokens, "what was lost can be put again"
    assert not trouble(store)
    store.close()
    for path in rng.sample(paths, 3):
        damage(path, rng)
    store = opened(folder, host_bytes=2 * MIB)
    for stream in streams:
        read_back(store, Stream(store, v4_demo(), stream.name, 8))
    store.contents()
    store.close()


def damage(path: Path, rng: random.Random) -> None:
    """Cut off, bits flipped, or pages overwritten with others of the same file: the header stays or goes."""
    kind = rng.choice(["cut", "flip", "swap"])
    if kind == "cut":
        os.truncate(path, rng.randrange(path.stat().st_size))
        return
    with path.open("r+b") as file:
        data = bytearray(file.read())
        for _ in range(200):
            at = rng.randrange(len(data))
            if kind == "flip":
                data[at] ^= 1 << rng.randrange(8)
            else:
                source, target = rng.randrange(len(data) // 4096), rng.randrange(len(data) // 4096)
                data[target * 4096 : (target + 1) * 4096] = data[source * 4096 : (source + 1) * 4096]
        file.seek(0)
        file.write(data)


@pytest.mark.parametrize("kind", ["gone", "empty", "cut", "flipped", "other"])
def test_a_damaged_index_loses_nothing_durable(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    folder = tmp_path / "d"
    store = opened(folder)
    stream = Stream(store, v4_demo(), "a", 12)
    durable = put_durably(store, stream, 0, 12, (5, 11))
    store.close()
    path = folder / "manifest.mdb"
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        for _ in range(500):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(
        {"empty": b"", "cut": data[: len(data) // 2], "other": rng.randbytes(50_000)}.get(kind, bytes(data))
    )
    if kind == "gone":
        path.unlink()
    started = time.monotonic()
    assert after_a_kill(folder, "a", 12) == durable and len(durable) == 14
    assert time.monotonic() - started < 60, "a hang, not a speed"
