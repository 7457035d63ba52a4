"""Fifty SIGKILLs of daemon and workers under load leave nothing behind: no lease, no worker, no staging, no descriptor,
no file, no shared memory (RELIABILITY C13 to C15, for the whole).

Workers look up, hold leases, fetch copies and views, put by way of staging, and are killed in the middle of it; so is
the daemon, which starts again on the same folder. Two workers are left alone: each time they find the new daemon by
themselves and go on through shared memory. Heavier: `pytest -m slow tests/crash/test_kills_of_both_sides.py`.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crash_tools import DaemonProcess, daemon
from lease_tools import WorkerProcess, state_of, until, workers

SETTINGS = "[match]\nlease_seconds = 3600\n"  # leases end with their workers, not by themselves
SURVIVORS = 2
WORKERS = 3
HOST_BYTES = 16 << 20
SHMEM_TOLERANCE = 16 << 20  # others on the machine; a daemon that leaked would leave 20 MiB each time
SOCKETS = {"kv.sock", "kv.sock.lock", "kv.sock.attach", "kv.sock.attach.lock"}
FOLDER = {*SOCKETS, "segments", "segments.secret", "daemon.log", "kvstore.toml", "facts"}
DISK = re.compile(r"secret\.id|lock|manifest\.mdb|namespaces|segment-\d{6}")


class Crowd:
    """Workers forked by one process; `facts` is what survivors count."""

    def __init__(self, nursery: WorkerProcess, facts: np.memmap) -> None:
        self.workers: list[int] = []
        self.survivors: list[int] = []
        self._nursery, self._facts, self._seed = nursery, facts, 0
        assert nursery.says() == "ready"

    def grow(self) -> None:
        while len(self.workers) < WORKERS:
            self.workers.append(self._fork("load"))

    def add_survivors(self) -> None:
        self.survivors = [self._fork("survivor", index) for index in range(SURVIVORS)]

    def kill_one(self, rng: random.Random) -> None:
        kill(self.workers.pop(rng.randrange(len(self.workers))))

    def kill_all(self) -> None:
        while self.workers or self.survivors:
            kill((self.workers or self.survivors).pop())

    def all_read_on(self) -> None:
        """Wait until each survivor has taken more out of shared memory than now."""
        before = self._facts[:SURVIVORS].copy()
        until(lambda: bool((self._facts[:SURVIVORS, :2] > before[:, :2]).all()), "survivors go on in shared memory")

    def check(self) -> None:
        assert not self._facts[:, 2].any(), "a worker failed, or got other bytes"

    def _fork(self, role: str, *index: int) -> int:
        self._seed += 1
        self._nursery.tell(" ".join(map(str, (role, self._seed, *index))))
        pid = self._nursery.says()
        assert isinstance(pid, int)
        return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: state_of(pid) in "XZ", f"{pid} is gone")


@pytest.mark.parametrize("kills", [50, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
def test_kills_of_daemon_and_workers_leave_nothing_behind(tmp_path: Path, kills: int) -> None:
    rng = random.Random(3)
    shm, shmem, foreign = set(os.listdir("/dev/shm")), shmem_bytes(), foreign_memory()
    facts_file = tmp_path / "facts"
    facts_file.write_bytes(bytes(8 * 3 * (SURVIVORS + 1)))
    facts = np.memmap(facts_file, np.int64, "r").reshape(-1, 3)
    kills_of_daemon = set(rng.sample(range(1, kills), kills // 5))
    with daemon(tmp_path, str(HOST_BYTES), "64MiB", settings=SETTINGS) as process:
        process.start()
        until(lambda: is_populated(process), "all memory is touched")
        fresh = descriptors(process)
        with workers(("nursery", process.address, facts_file)) as [nursery]:
            crowd = Crowd(nursery, facts)
            crowd.add_survivors()
            crowd.grow()
            crowd.all_read_on()
            for number in range(kills):
                time.sleep(rng.uniform(0.0, 0.15))
                if number in kills_of_daemon:
                    process.kill()
                    process.start()
                    crowd.all_read_on()
                else:
                    crowd.kill_one(rng)
                    crowd.grow()
                crowd.check()
            until(lambda: process.status().attached_workers == SURVIVORS + WORKERS, "all have attached again")
            crowd.all_read_on()
            until(lambda: maps_only_what_is_used(crowd, process), "survivors let go of dead daemons' memory")
            assert process.status().counters["rpc_lookup"] > 0
            crowd.kill_all()
            until(lambda: has_nobody(process), "nothing of the dead is left")
            crowd.check()
        until(lambda: is_populated(process), "all memory is touched")
        until(lambda: not descriptors(process) - fresh, "no more descriptors than of a daemon to whom nobody came")
        assert {entry.name for entry in tmp_path.iterdir()} == FOLDER
        assert all(DISK.fullmatch(entry.name) for entry in process.disk.iterdir()), os.listdir(process.disk)
        assert not orphans(shm), "something is left in /dev/shm"
        others_came = foreign_memory() != foreign
        if not others_came:  # else nobody can say whose Shmem is
            most = shmem + HOST_BYTES + bytes_of(tmp_path) + SHMEM_TOLERANCE  # the folder may be in memory, too
            until(lambda: shmem_bytes() <= most or foreign_memory() != foreign, f"Shmem is {shmem_bytes()}, not {most}")
    print(f"{kills} kills, {len(kills_of_daemon)} of the daemon; survivors: {facts[:SURVIVORS].tolist()}")
    print(f"Shmem: {shmem >> 20} MiB before, {shmem_bytes() >> 20} after{', with others' * others_came}")


def has_nobody(process: DaemonProcess) -> bool:
    status = process.status()
    return (status.leases, status.attached_workers, status.staging_bytes) == (0, 0, 0)


def maps_only_what_is_used(crowd: Crowd, process: DaemonProcess) -> bool:
    alive = memory_of(process.pid)
    return all(memory_of(pid) <= alive for pid in crowd.survivors)


def memory_of(pid: int) -> set[str]:
    """Inodes of shared memory that a process has mapped or open."""
    found = set()
    try:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[5].startswith(("/memfd:", "/dev/shm/")):
                found.add(f"{parts[3]}/{parts[4]}")
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            if os.readlink(path).startswith(("/memfd:", "/dev/shm/")):
                facts = os.stat(path)
                found.add(f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}/{facts.st_ino}")
    except OSError:  # it ended, or is somebody else's
        pass
    return found


def foreign_memory() -> set[str]:
    """Shared memory of all processes but this one and its children's children."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and not is_ours(int(entry)):
            found |= {f"{entry}: {memory}" for memory in memory_of(int(entry))}
    return found


def is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def orphans(before: set[str]) -> set[str]:
    """New names in /dev/shm that no process of somebody else's has open."""
    theirs = {memory.rpartition("/")[2] for memory in foreign_memory()}
    found = set()
    for name in set(os.listdir("/dev/shm")) - before:
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            if str(os.stat(f"/dev/shm/{name}").st_ino) not in theirs:
                found.add(name)
    return found


def shmem_bytes() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return int(line.split()[1]) << 10


def is_populated(process: DaemonProcess) -> bool:
    return all(tier.ready_bytes == tier.capacity_bytes for tier in process.status().tiers)


def bytes_of(folder: Path) -> int:
    return sum(512 * entry.stat().st_blocks for entry in folder.rglob("*"))


def descriptors(process: DaemonProcess) -> Counter[str]:
    """What the daemon has open, by kind, but for its disk."""
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(f"/proc/{process.pid}/fd/{name}")
            if not target.startswith(str(process.disk)):
                found[re.sub(r"\[\d+\]", "", target)] += 1
    return found
