"""Child processes of benches that are told what to do, one JSON object a line, and answer likewise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
HERE = Path(__file__).resolve().parent


class Child:
    """A running script of this folder. It said that it is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.hear()

    def tell(self, asked: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "a child process has ended; its error is above"
        answer: Answer = json.loads(line)
        return answer

    def ask(self, asked: dict[str, object]) -> Answer:
        self.tell(asked)
        return self.hear()


@contextmanager
def child(script: str, *arguments: str) -> Iterator[Child]:
    """`script` of this folder, in this interpreter; gone at the end."""
    command = [sys.executable, str(HERE / script), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Child(process)
    finally:
        process.kill()
        process.communicate()
