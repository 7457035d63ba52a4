"""The processes of `kvstore demo`: a daemon that can be stopped, started and killed, and workers spoken to in JSON."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO

READY_SECONDS = 30.0  # longest wait for the daemon's socket; it should take one
WARM_SECONDS = 120.0  # four workers import torch and transformers on what may be two cores
ANSWER_SECONDS = 120.0
STOP_SECONDS = 20.0
_HOST_BYTES, _DISK_BYTES = "64MiB", "256MiB"


class DemoFailed(Exception):
    """A process of the demo did not do its part. The message says which, and how its log ends."""


class DaemonProcess:
    """`kvstore serve` in the demo's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "daemon.log"
        self._socket = folder / "kvstore.sock"
        self.address = f"unix:{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def __enter__(self) -> DaemonProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        flags = ["--listen", self.address, "--host-bytes", _HOST_BYTES]
        flags += ["--disk", str(self._folder / "disk"), "--disk-bytes", _DISK_BYTES]
        self._started = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvstore.cli.main", "serve", *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_until_ready(self) -> float:
        """Seconds from the start until the socket took a connection."""
        assert self._process is not None
        while time.perf_counter() - self._started < READY_SECONDS:
            with socket.socket(socket.AF_UNIX) as knock:
                if knock.connect_ex(str(self._socket)) == 0:
                    return time.perf_counter() - self._started
            if self._process.poll() is not None:
                raise DemoFailed(f"the daemon ended with code {self._process.returncode}. {_end_of(self._log)}")
            time.sleep(0.01)
        raise DemoFailed(f"the daemon was not ready after {READY_SECONDS:.0f} s. {_end_of(self._log)}")

    def stop(self) -> None:
        """SIGTERM, and wait for the drain."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise DemoFailed(f"the daemon did not stop within {STOP_SECONDS:.0f} s. {_end_of(self._log)}") from late

    def kill(self) -> None:
        """SIGKILL. Harmless on one that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class WorkerProcess:
    """One `demo_worker`, spoken to line by line."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self._log = folder / f"worker-{name}.log"
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WorkerProcess:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvstore.cli.demo_worker", self._address],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def wait_until_ready(self) -> None:
        self.told("ready", WARM_SECONDS)

    def ask(self, request: dict[str, object]) -> None:
        self._write(json.dumps(request))

    def go_on(self) -> None:
        self._write("{}")

    def told(self, event: str, seconds: float = ANSWER_SECONDS) -> dict[str, object]:
        """The worker's next message, which must be this event."""
        stdout = self._pipe("stdout")
        if not select.select([stdout], [], [], seconds)[0]:
            raise DemoFailed(f"worker {self.name.upper()} said nothing for {seconds:.0f} s. {_end_of(self._log)}")
        line = stdout.readline()  # messages are whole lines, written at once
        if not line:
            raise DemoFailed(f"worker {self.name.upper()} ended. {_end_of(self._log)}")
        message: dict[str, object] = json.loads(line)
        if message.get("event") != event:
            raise DemoFailed(f"worker {self.name.upper()} said {message.get('event')} instead of {event}")
        return message

    def _write(self, line: str) -> None:
        stdin = self._pipe("stdin")
        try:
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as gone:
            raise DemoFailed(f"worker {self.name.upper()} ended. {_end_of(self._log)}") from gone

    def _pipe(self, name: str) -> IO[bytes]:
        assert self._process is not None
        pipe = self._process.stdin if name == "stdin" else self._process.stdout
        assert pipe is not None
        return pipe


def _end_of(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
    return f"Its log ends: {' / '.join(lines[-3:])}" if lines else "Its log is empty."
