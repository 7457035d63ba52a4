"""The client's one thread: uploads puts, releases leases, touches the staging region, probes a store that is away.

The worker hands over and goes on. The queue is bounded in bytes and in jobs; what does not fit is shed and counted,
because holding a worker back for the sake of a cache would be worse than forgetting.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Event, Thread

from kvstore.client.commits import Commits
from kvstore.client.forks import tell_of_forks
from kvstore.client.jobs import PutJob
from kvstore.client.lineages import Lineages
from kvstore.client.link import Link
from kvstore.client.settings import Bounds, Timeouts
from kvstore.client.staging import Extent
from kvstore.client.stored import HOLD_SECONDS, StoredPuts
from kvstore.client.uploads import Uploads
from kvstore.core.errors import HelloAgain, StoreUnavailable
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_RELEASES

log = logging.getLogger("kvstore.client")

RELEASE_LINGER_SECONDS = 0.02  # releases of matches that end together go out as one call (0.65 ms of CPU each)
MAX_QUEUED_RELEASES = 65_536  # beyond it leases are left to expire


@dataclass(slots=True)
class FlushMark:
    """A place in the queue: done when everything before it is."""

    durable: bool
    deadline: float
    done: Event = field(default_factory=Event)
    ok: bool = False


class Writer:
    """A daemon thread named `kvstore-client` and its queue."""

    def __init__(self, link: Link, lineages: Lineages, bounds: Bounds, timeouts: Timeouts) -> None:
        self._link, self._lineages, self._bounds, self._timeouts = link, lineages, bounds, timeouts
        self._commits = Commits(link, bounds.staging_bytes)
        self._stored = StoredPuts(link, timeouts.put_seconds)
        self._uploads = Uploads(link, lineages, self._commits, self._stored, timeouts.put_seconds)
        self._wake = Condition()
        self._queue: deque[PutJob | FlushMark] = deque()
        self._queued_bytes = 0
        self._queued_jobs = 0
        self._releases: deque[tuple[int, int]] = deque(maxlen=MAX_QUEUED_RELEASES)
        self._stop_at: float | None = None  # set by close(); the queue may drain until then
        link.on_away = self._notify
        self._thread = Thread(target=self._run, name="kvstore-client", daemon=True)
        tell_of_forks(self)

    def start(self) -> None:
        self._thread.start()

    @property
    def has_staging(self) -> bool:
        return self._commits.staging is not None

    def stage(self, nbytes: int) -> Extent | None:
        """Room in the staging region, the caller's to give back until it is offered; None where there is none now."""
        staging = self._commits.staging
        return None if staging is None else staging.take(nbytes)

    def has_room(self, nbytes: int) -> bool:
        """Whether a job of this size would be taken now: asked before its bytes are copied."""
        with self._wake:
            return (
                self._stop_at is None
                and self._queued_jobs < self._bounds.queue_jobs
                and self._queued_bytes + nbytes <= self._bounds.queue_bytes
            )

    def offer(self, job: PutJob) -> bool:
        """Take the job; False where the queue filled up meanwhile."""
        with self._wake:
            if not self.has_room(job.nbytes):
                return False
            self._lineages.expect(job.chain.hashes)  # before a put on top of it can be taken
            self._queue.append(job)
            self._queued_jobs += 1
            self._queued_bytes += job.nbytes
            self._wake.notify()
            return True

    def release(self, lease: int, boot_epoch: int) -> None:
        with self._wake:
            self._releases.append((lease, boot_epoch))
            if len(self._releases) == 1:
                self._wake.notify()

    def flush(self, timeout: float, durable: bool) -> bool:
        mark = FlushMark(durable, time.monotonic() + timeout)
        with self._wake:
            if self._stop_at is not None:
                return False
            self._queue.append(mark)
            self._wake.notify()
        return mark.done.wait(timeout) and mark.ok

    def close(self, seconds: float) -> None:
        """Let the queue drain for at most so long, then end what is in flight and the thread."""
        with self._wake:
            if self._stop_at is None:
                self._stop_at = time.monotonic() + seconds
            self._wake.notify()
        self._thread.join(seconds)
        self._link.close()  # calls in flight fail at once
        self._thread.join(1.0)

    def forked(self) -> None:
        self._wake, self._stop_at = Condition(), 0.0  # the thread is the parent's

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        while True:
            work = self._next()
            self._guarded(self._tend)
            if isinstance(work, FlushMark):
                self._guarded(self._flush, work)
            elif work:
                self._guarded(self._upload, work)
            elif self._is_over():
                self._leave()
                return

    def _guarded(self, action: Callable[..., None], *work: object) -> None:
        """Top of the thread: a fault of ours costs one piece of work and not the thread."""
        try:
            action(*work)
        except Exception:
            self._link.counters.add("client_thread_errors")
            log.exception("kvstore client thread: %s gave up", action.__name__)

    def _flush(self, mark: FlushMark) -> None:
        try:
            mark.ok = self._stored.flush(mark.durable, mark.deadline)
        finally:
            mark.done.set()

    def _upload(self, jobs: list[PutJob]) -> None:
        try:
            self._uploads.upload(jobs)
        finally:
            with self._wake:
                self._queued_jobs -= len(jobs)
                self._queued_bytes -= sum(job.nbytes for job in jobs)

    def _next(self) -> list[PutJob] | FlushMark:
        """What is next in the queue: jobs that go together, or a mark. No jobs when there is other work to tend to, or
        the end has come."""
        with self._wake:
            if not self._queue and self._stop_at is None:
                self._wake.wait(self._idle_seconds())
            jobs: list[PutJob] = []
            while self._queue and not self._is_over():
                first = self._queue[0]
                if isinstance(first, FlushMark):
                    if jobs:
                        break
                    self._queue.popleft()
                    return first
                if jobs and not self._uploads.goes_along(jobs, first):
                    break
                jobs.append(first)
                self._queue.popleft()
            return jobs

    def _idle_seconds(self) -> float | None:
        """How long nothing is due; None: until woken."""
        if self._releases:
            return RELEASE_LINGER_SECONDS
        if self._commits.is_preparing:
            return 0.0
        due = [self._link.breaker.seconds_to_probe()]
        if self._stored.has_open_reservations:
            due.append(HOLD_SECONDS)
        return min((seconds for seconds in due if seconds is not None), default=None)

    def _tend(self) -> None:
        if self._link.breaker.probe_due():
            self._link.connect()
        self._commits.prepare()
        self._send_releases()
        self._stored.commit_old(all_of_them=self._stop_at is not None and not self._queue)

    def _send_releases(self) -> None:
        with self._wake:
            releases = list(self._releases)
            self._releases.clear()
        with contextlib.suppress(StoreUnavailable, HelloAgain):  # leases that nobody releases expire
            session = self._link.session if releases else None
            while releases and session is not None:
                part, releases = releases[:MAX_RELEASES], releases[MAX_RELEASES:]
                leases = [lease for lease, boot_epoch in part if boot_epoch == session.boot_epoch]
                if not leases:
                    continue  # the daemon that gave them is gone
                request = pb.ReleaseRequest(boot_epoch=session.boot_epoch, leases=leases)
                self._link.call(self._link.calls.release, request, self._link.deadline(self._timeouts.control_seconds))

    def _leave(self) -> None:
        """Nobody waits for what will not be done."""
        with self._wake:
            for job in self._queue:
                if isinstance(job, FlushMark):
                    job.done.set()
            self._queue.clear()

    def _is_over(self) -> bool:
        if self._stop_at is None:
            return False
        return not (self._queue or self._releases) or time.monotonic() >= self._stop_at
