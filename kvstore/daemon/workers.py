"""Who is attached: a worker is all lanes with one worker id, and its end is the end of the last of them.

Then its leases are released and its staging region is freed. Any thread; the lock comes before the store's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock

from kvstore.core.errors import InvalidInput
from kvstore.daemon.calls import shed
from kvstore.daemon.staging import Staging, StagingRoom, staging_bytes
from kvstore.store.store import Store


@dataclass(slots=True, eq=False)
class Worker:
    id: bytes
    pid: int  # the one process whose lanes these are
    lanes: int = 0
    staging: Staging | None = None
    asking: Lock = field(default_factory=Lock)  # for a staging region; one ask at a time


class Workers:
    """All attached workers of a daemon."""

    def __init__(self, store: Store, room: StagingRoom) -> None:
        self._store = store
        self._room = room
        self._lock = Lock()
        self._workers: dict[bytes, Worker] = {}

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._workers)

    @property
    def staging_bytes(self) -> int:
        return self._room.used_bytes

    def join(self, id: bytes, pid: int) -> Worker:
        """One more lane of a worker. InvalidInput where the id is another process's: staging is one process's alone."""
        with self._lock:
            worker = self._workers.get(id)
            if worker is None:
                worker = self._workers[id] = Worker(id, pid)
            elif worker.pid != pid:
                raise InvalidInput("this worker id is another process's: choose 16 random bytes in each process")
            worker.lanes += 1
            return worker

    def leave(self, worker: Worker) -> None:
        """A lane ended."""
        with self._lock:
            worker.lanes -= 1
            if worker.lanes:
                return
            del self._workers[worker.id]
            self._store.release_owner(worker.id)
            staging, worker.staging = worker.staging, None
        if staging is not None:
            self._room.end(staging)

    def release_late(self, worker: Worker) -> None:
        """A call of a worker ended after its last lane: what it leased meanwhile is nobody's."""
        with self._lock:
            if worker.id not in self._workers:
                self._store.release_owner(worker.id)

    def stage(self, worker: Worker, wanted_bytes: int) -> Staging:
        """The worker's staging region: what it has where that is large enough, else a new one."""
        nbytes = staging_bytes(wanted_bytes)
        with worker.asking:
            with self._lock:
                old = worker.staging
            if old is not None and old.nbytes >= nbytes:
                return old
            if old is not None and self._room.is_used(old):
                raise shed("the staging region is in use and cannot be replaced by a larger one now")
            new = self._room.open(nbytes)
            with self._lock:
                is_here = worker.lanes > 0
                if is_here:
                    worker.staging, old = new, worker.staging
            if not is_here:  # its last lane ended meanwhile, and the old one with it
                self._room.end(new)
                raise InvalidInput("the worker is no longer attached")
            if old is not None:
                self._room.end(old)
            return new
