"""SIGTERM and SIGINT: the first drains, the second ends at once.

They are taken before the daemon says that it is ready, so that whoever reads that can stop it gracefully. A thread
reads them from a pipe: Python runs its handlers in the main thread only, and a main thread that waits for a lock hears
of a signal that came just before, or to another thread, with the next one only.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

from kvstore.daemon.server import Daemon

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Holds both signals from `with` to its end. Main thread only."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._daemon: Daemon | None = None

    def __enter__(self) -> StopSignals:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._listener = threading.Thread(target=self._listen, name="kvstore-signals", daemon=True)
        self._listener.start()
        self._wakeup_before = signal.set_wakeup_fd(self._writing)
        self._before = {number: signal.signal(number, _leave_to_the_listener) for number in _STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writing)
        self._listener.join(1.0)
        os.close(self._reading)

    def serve(self, daemon: Daemon, drain_seconds: float) -> None:
        """Until told to end; returns when the daemon has stopped and its store is closed."""
        self._daemon = daemon
        self._asked.wait()
        daemon.stop(drain_seconds)

    def _listen(self) -> None:
        while number := os.read(self._reading, 1):
            if number[0] not in _STOPPING:
                continue
            if self._asked.is_set() and self._daemon is not None:
                self._daemon.hasten()
            self._asked.set()


def _leave_to_the_listener(number: int, frame: FrameType | None) -> None:
    """A signal with a handler of Python's is also written to the pipe."""
