"""SIGTERM and SIGINT: the first drains, the second ends at once. Main thread only."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from kvstore.daemon.server import Daemon


def run_until_signalled(daemon: Daemon, drain_seconds: float) -> None:
    """Serve until told to end; returns when the daemon has stopped and its store is closed."""
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            daemon.hasten()
        asked.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asked.wait()
        daemon.stop(drain_seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
