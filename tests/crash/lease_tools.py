"""Worker processes for the tests of leases: made, spoken to, stopped and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from crash_tools import ENVIRONMENT, DaemonProcess

HERE = Path(__file__).resolve().parent
PATH = os.pathsep.join((ENVIRONMENT["PYTHONPATH"], str(HERE)))
DEADLINE_SECONDS = 60.0  # only ends what has failed: nothing here is judged by how long it takes


def until(fact: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


class WorkerProcess:
    """`lease_worker.py` in a process of its own; each line that it says is one JSON value."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(HERE / "lease_worker.py"), *map(str, arguments)]
        environment = {**ENVIRONMENT, "PYTHONPATH": PATH}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
            start_new_session=True,  # a process group: `end` reaches what it forked, too
        )  # fmt: skip

    def says(self) -> object:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        said: object = json.loads(line)
        return said

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP. Fails where it has ended instead."""
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        return state_of(self.process.pid) == "T"

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=30)


@contextlib.contextmanager
def workers(*calls: tuple[object, ...]) -> Iterator[list[WorkerProcess]]:
    """One process for each list of arguments; none is left."""
    started: list[WorkerProcess] = []
    try:
        for arguments in calls:
            started.append(WorkerProcess(*arguments))
        yield started
    finally:
        for worker in started:
            worker.end()


def state_of(pid: int) -> str:
    """One letter, as in /proc: T for stopped; X where there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def counter(process: DaemonProcess, name: str) -> int:
    return process.status().counters.get(name, 0)
