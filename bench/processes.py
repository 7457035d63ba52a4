"""The processes that benches measure: a real daemon, and a bare gRPC server as its ceiling."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from kvstore.rpc.generated import admin_pb2
from kvstore.rpc.operators import fetch_status

POPULATED_SECONDS = 120.0  # longest wait for the host tier's memory; 2 GiB take about two
STATUS_SECONDS = 10.0
STOP_SECONDS = 60.0
RAW_SERVER = Path(__file__).resolve().with_name("raw_server.py")


class DaemonStopped(Exception):
    """The daemon under measurement has ended. The message is the end of its log."""


class Daemon:
    """A running `kvstore serve`, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], address: str, log: Path) -> None:
        self.address = address
        self._process, self._log = process, log

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> admin_pb2.StatusResponse:
        if self._process.poll() is not None:
            raise DaemonStopped(" / ".join(self._log.read_text().splitlines()[-3:]))
        return fetch_status(self.address, STATUS_SECONDS)

    def wait_until_populated(self) -> None:
        """All of the host tier's memory is there: what a copy costs does not depend on when it is made."""
        ends = time.monotonic() + POPULATED_SECONDS
        while any(tier.ready_bytes < tier.capacity_bytes for tier in self.status().tiers[:1]):
            assert time.monotonic() < ends, "the host tier was not populated in time"
            time.sleep(0.05)


# Nothing that a bench stores is refused because a ghost of the daemon would have fared better: speed is measured here,
# and hit rates in `hit_rate.py`.
PLAIN = """
[evict]
policy = "lru"
keep_seconds = 0.0
[match]
placement = "ends+junctions"
"""


@contextmanager
def running_daemon(
    host_bytes: str,
    disk_bytes: str | None = None,
    kept: Path | None = None,
    program: Sequence[str] = ("-m", "kvstore.cli.main"),
) -> Iterator[Daemon]:
    """A daemon on a Unix socket in a temporary folder, its host tier populated; gone at the end.

    With `kept` in that folder, which stays: what its disk tier holds is there for the next daemon. `program` is what
    Python runs instead of the command line: a daemon with something of it replaced.
    """
    folder = kept or Path(tempfile.mkdtemp(prefix="kvstore-bench-"))  # short: a socket's path has about 100 bytes
    address, log = f"unix:{folder / 'kvstore.sock'}", folder / "daemon.log"
    config = folder / "kvstore.toml"
    config.write_text(PLAIN)
    flags = ["--listen", address, "--host-bytes", host_bytes, "--json", "--config", str(config)]
    if disk_bytes is not None:
        flags += ["--disk", str(folder / "disk"), "--disk-bytes", disk_bytes]
    try:
        with log.open("w") as errors:
            command = [sys.executable, *program, "serve", *flags]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            _first_line(process, log)
            daemon = Daemon(process, address, log)
            daemon.wait_until_populated()
            yield daemon
        finally:
            if kept is not None:  # what it still writes must be there for the next one
                process.terminate()
                process.wait(STOP_SECONDS)
            process.kill()
            process.communicate()
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


class RawStreams:
    """Bare streams of 1 MiB messages over a Unix socket, without parsing, checking or copying: gRPC's own speed."""

    def __init__(self, channel: grpc.Channel, chunk: bytes) -> None:
        self._chunk = chunk
        identity: Callable[[bytes], bytes] = bytes
        self._down = channel.unary_stream("/raw/Down", identity, identity)
        self._up = channel.stream_unary("/raw/Up", identity, identity)

    def down(self, nbytes: int) -> None:
        """Server to client."""
        assert sum(map(len, self._down(json.dumps(nbytes).encode()))) == nbytes

    def up(self, nbytes: int) -> None:
        """Client to server."""
        whole, rest = divmod(nbytes, len(self._chunk))
        chunks = [self._chunk] * whole + ([self._chunk[:rest]] if rest else [])
        assert json.loads(self._up(iter(chunks))) == nbytes


@contextmanager
def raw_streams(chunk_bytes: int) -> Iterator[RawStreams]:
    """Streams to a bare server process of their own."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-bench-"))
    address = f"unix:{folder / 'raw.sock'}"
    command = [sys.executable, str(RAW_SERVER), address, str(chunk_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        _first_line(process, None)
        options = (("grpc.max_receive_message_length", -1),)
        with grpc.insecure_channel(address, options) as channel:
            yield RawStreams(channel, bytes(chunk_bytes))
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _first_line(process: subprocess.Popen[str], log: Path | None) -> str:
    """What a process says when it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DaemonStopped("it never said that it is ready. " + (log.read_text() if log is not None else ""))
    return line
