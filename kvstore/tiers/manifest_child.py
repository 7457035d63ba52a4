"""The parent's side of `manifest_reader.py`: start it, check every byte it sends, end it in time.

Called at start, and by `kvstore check`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from kvstore.core.errors import CorruptFrame
from kvstore.tiers import manifest_reader
from kvstore.tiers.manifest import NEXT_GENERATION
from kvstore.tiers.manifest_reader import COUNT, END, RECORD
from kvstore.tiers.manifest_record import KEY_BYTES, ManifestEntry, unpack_entry, unpack_generation, unpack_used

CHILD_SECONDS = 10.0  # for a start on a busy machine, and
CHILD_BYTES_PER_SECOND = 16 << 20  # for reading: an eighth of what was measured
_READ_BYTES = 1 << 20
_MAX_VALUE_BYTES = 4096


class ManifestContents(NamedTuple):
    """What a manifest holds, every record verified."""

    entries: list[ManifestEntry]
    next_generation: int


def read_manifest(path: Path, limit_seconds: float | None = None) -> ManifestContents:
    """Everything in the manifest, read by a child process. CorruptFrame says why it cannot be trusted."""
    size = path.stat().st_size
    if limit_seconds is None:
        limit_seconds = CHILD_SECONDS + size / CHILD_BYTES_PER_SECOND
    roots = [entry or os.getcwd() for entry in sys.path]
    command = [sys.executable, "-I", "-S", manifest_reader.__file__, str(path), *roots]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as child:
        try:
            return _receive(child, size, time.monotonic() + limit_seconds)
        finally:
            child.kill()  # no effect on one that has ended


def _receive(child: subprocess.Popen[bytes], size: int, deadline: float) -> ManifestContents:
    assert child.stdout is not None
    parser, poll = _Parser(max_bytes=size), select.poll()
    poll.register(child.stdout, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise CorruptFrame("the manifest could not be read in time")
        data = os.read(child.stdout.fileno(), _READ_BYTES)
        if not data:
            break
        parser.feed(data)
    if not parser.is_complete:
        raise CorruptFrame("the manifest could not be read to its end")
    if parser.next_generation is None:
        raise CorruptFrame("the manifest has no generation mark")
    return ManifestContents(parser.entries, parser.next_generation)


class _Parser:
    """Makes entries of the child's bytes as they come. `max_bytes` ends a child that runs in circles."""

    def __init__(self, max_bytes: int) -> None:
        self.entries: list[ManifestEntry] = []
        self.next_generation: int | None = None
        self.is_complete = False
        self._used: dict[bytes, float | None] = {}
        self._pending = b""
        self._records = 0
        self._bytes_left = 2 * max_bytes + _READ_BYTES  # a record on the pipe is at most 7 bytes longer than stored

    def feed(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left < 0 or self.is_complete:
            raise CorruptFrame("the manifest gives more records than it can hold")
        data = self._pending + data
        position = 0
        while position + RECORD.size <= len(data):
            code, key_bytes, value_bytes = RECORD.unpack_from(data, position)
            if key_bytes > KEY_BYTES or value_bytes > _MAX_VALUE_BYTES:
                raise CorruptFrame("a manifest record has the wrong length")
            start = position + RECORD.size
            end = start + key_bytes + value_bytes
            if end > len(data):
                break
            self._take(code, data[start : start + key_bytes], data[start + key_bytes : end])
            position = end
        self._pending = data[position:]

    def _take(self, code: bytes, key: bytes, value: bytes) -> None:
        if code == b"E":
            self.entries.append(unpack_entry(key, value, self._used.get(key)))
        elif code == b"U":
            self._used[key] = unpack_used(key, value)
        elif code == b"M" and key == NEXT_GENERATION:
            self.next_generation = unpack_generation(value)
        elif code == END and value == COUNT.pack(self._records):
            self.is_complete = True
        else:
            raise CorruptFrame("the manifest holds a record of no known kind")
        self._records += 1
