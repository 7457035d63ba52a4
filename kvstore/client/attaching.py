"""Whether this client is attached to the daemon's memory, and when it tries to be.

A Hello that names an attach socket is followed by one try. One that fails (another host, another mount namespace, a
daemon that is late) leaves gRPC to do everything for a while. An attachment that breaks without the daemon's going is
made anew with the next call. Any thread.
"""

from __future__ import annotations

import logging
import time
from threading import Lock

from kvstore.client.counters import Counters
from kvstore.client.lanes import LaneRefused, Lanes, NoLane
from kvstore.core.errors import HelloAgain, InvalidInput

log = logging.getLogger("kvstore.client")

LONGEST_SECONDS = 1.0  # one try: connecting on one host takes microseconds, a daemon of many workers answers in ms
AGAIN_SECONDS = 5.0  # after a try that failed: where there is no such socket, another one costs 20 us
AGAIN_LONGEST_SECONDS = 0.05  # such a try is on a worker's call, which gRPC would answer in 1 ms


class Attaching:
    """Holds the one attachment there is at a time."""

    def __init__(self, worker_id: bytes, counters: Counters, *, is_wanted: bool = True) -> None:
        self._worker_id, self._counters, self._is_wanted = worker_id, counters, is_wanted
        self._lock = Lock()  # held for one try: other threads wait a moment for its outcome instead of trying too
        self._lanes: Lanes | None = None
        self._path, self._boot_epoch = "", 0  # where to try again; no path: nowhere
        self._again_at = 0.0  # on time.monotonic; no try before
        self._is_closed = False

    @property
    def lanes(self) -> Lanes | None:
        """The attachment, if it was alive when it was last used."""
        return self._lanes

    @property
    def is_attached(self) -> bool:
        lanes = self._lanes
        return lanes is not None and lanes.is_alive

    def said_hello(self, path: str, boot_epoch: int, seconds: float) -> None:
        """Attach to what Hello named, unless that is so already."""
        with self._lock:
            lanes = self._lanes
            if lanes is not None and path == self._path and boot_epoch == self._boot_epoch and lanes.is_alive:
                return
            self._end()
            self._path, self._boot_epoch, self._again_at = path if self._is_wanted else "", boot_epoch, 0.0
            if self._path:
                self._try(seconds)

    def usable(self, seconds: float) -> Lanes | None:
        """The attachment, made anew where all its lanes have broken; None where there is none. Raises HelloAgain."""
        lanes = self._lanes
        if lanes is not None and lanes.is_alive:
            return lanes
        if not self._path or time.monotonic() < self._again_at:
            return None
        if not self._lock.acquire(timeout=min(seconds, AGAIN_LONGEST_SECONDS)):
            return None  # another thread is trying, for as long as its own call may take
        try:
            if self._lanes is lanes and time.monotonic() >= self._again_at:  # else another thread has just tried
                self._end()
                if self._path:
                    self._try(min(seconds, AGAIN_LONGEST_SECONDS) if self._again_at else seconds)
            return self._lanes
        finally:
            self._lock.release()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()

    def _try(self, seconds: float) -> None:
        if self._is_closed:
            return
        try:
            deadline = time.monotonic() + min(seconds, LONGEST_SECONDS)
            self._lanes = Lanes(self._path, self._worker_id, self._boot_epoch, deadline)
        except LaneRefused as refused:
            if isinstance(refused.error, HelloAgain):  # the daemon behind the socket is another one than Hello met
                raise refused.error from refused
            self._failed(refused)
        except (OSError, NoLane, InvalidInput) as error:
            self._failed(error)
        else:
            self._again_at = 0.0
            self._counters.add("attaches")

    def _failed(self, error: Exception) -> None:
        self._counters.add("attach_failed")
        log.info("kvstore: no attachment at %s (%s); its bytes come over gRPC", self._path, error)
        self._again_at = time.monotonic() + AGAIN_SECONDS
