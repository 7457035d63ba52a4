"""SIGTERM and SIGINT: the first drains, the second ends at once. Main thread only.

They are taken before the daemon says that it is ready, so that whoever reads that can stop it gracefully.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from kvstore.daemon.server import Daemon


class StopSignals:
    """Holds both signals from `with` to its end."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._daemon: Daemon | None = None

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def serve(self, daemon: Daemon, drain_seconds: float) -> None:
        """Until told to end; returns when the daemon has stopped and its store is closed."""
        self._daemon = daemon
        self._asked.wait()
        daemon.stop(drain_seconds)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set() and self._daemon is not None:
            self._daemon.hasten()
        self._asked.set()
