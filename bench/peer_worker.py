"""The side of `peers.py` that runs beside a peer's client: one process a peer, in the interpreter that has the peer.

A worker script builds a `Peer` and hands it to `serve`. It says one line of JSON when it is ready ({"version": ...}),
then answers each line {"blocks", "repetition"} with the seconds of one repetition ({"seconds": {name: s}}), until its
standard input ends; then it ends the peer's server too. So everything ends with the bench, however the bench ends.

Needs numpy and nothing of kvstore: Mooncake's and LMCache's interpreters do not have it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20
BLOCK_BYTES = MIB
BLOCK_TOKENS = 256
MOST_BLOCKS = 64
MARK_BYTES = 8  # of each row, they name the repetition: bytes of another one are seen
STORE_BYTES = 1 << 30  # what a peer's server gets; a repetition takes 80 MiB of it
START_SECONDS = 120.0  # LMCache's server imports torch first
LOOPS = 3  # of a request and of memcpy in a repetition, of which the median counts: others may use the machine too

Bytes = NDArray[np.uint8]


class PeerUnavailable(Exception):
    """The peer cannot be started here. The message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """So many blocks under names that nothing had before: what is put once and then asked for."""

    blocks: int
    repetition: int
    tokens: NDArray[np.int32]  # BLOCK_TOKENS a block and one that is still to be computed
    names: list[str]  # one a block, for peers that know no tokens

    @property
    def nbytes(self) -> int:
        return self.blocks * BLOCK_BYTES


Way = Callable[[Request], object]


class Blocks:
    """The caller's bytes: what is put, and where a request's bytes must end up.

    `parts` are pairs of arrays with the same shape; the first axis runs over the blocks, `rows_a_block` for each.
    """

    def __init__(self, parts: Sequence[tuple[Bytes, Bytes]], rows_a_block: int = 1) -> None:
        self._parts, self._rows_a_block = parts, rows_a_block
        rng = np.random.default_rng(7)
        for source, _ in parts:
            for row in source:
                row[...] = rng.integers(0, 256, row.shape, np.uint8)

    def mark(self, request: Request) -> None:
        """Make the request's bytes differ from those of all others, and take its mark out of the destination."""
        mark = np.frombuffer((request.repetition * 1000 + request.blocks).to_bytes(MARK_BYTES, "little"), np.uint8)
        for source, _ in self._parts:
            source[: request.blocks * self._rows_a_block, ..., :MARK_BYTES] = mark
        self.clear(request)

    def clear(self, request: Request) -> None:
        for _, target in self._parts:
            target[: request.blocks * self._rows_a_block, ..., :MARK_BYTES] = 0

    def arrived(self, request: Request) -> bool:
        rows = request.blocks * self._rows_a_block
        return all(np.array_equal(source[:rows], target[:rows]) for source, target in self._parts)


class Peer(Protocol):
    """One store and its client. Each way of doing a thing is timed by itself; the bench takes the fastest."""

    version: str
    blocks: Blocks
    puts: Mapping[str, Way]
    requests: Mapping[str, Way]  # from tokens or names to the bytes in the destination

    def flush(self) -> None:
        """Wait until what was put can be found by others."""

    def forget(self) -> None:
        """Let go of what is stored, so that the next repetition uses memory that was used before."""


def serve(start: Callable[[contextlib.ExitStack, Mapping[str, str]], Peer]) -> None:
    """Run the worker: `start` gets a stack for what must end with it, and the options of the command line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the libraries of peers print to standard output as they like
    with contextlib.ExitStack() as stack:
        try:
            peer = start(stack, json.loads(sys.argv[1]))
        except (PeerUnavailable, ImportError, OSError) as reason:
            print(json.dumps({"unavailable": f"{reason}"}), file=answers)
            return
        print(json.dumps({"version": peer.version}), file=answers)
        copied = pages(MOST_BLOCKS), pages(MOST_BLOCKS)
        for line in sys.stdin:
            asked = json.loads(line)
            request = new_request(asked["blocks"], asked["repetition"])
            print(json.dumps({"seconds": repetition(peer, request, copied)}), file=answers)


def repetition(peer: Peer, request: Request, copied: tuple[Bytes, Bytes]) -> dict[str, float]:
    """Seconds of a put and of a request in each way, and of a memcpy of as many blocks beside them."""
    seconds: dict[str, float] = {}
    peer.blocks.mark(request)
    for way, put in peer.puts.items():
        peer.forget()
        start = time.perf_counter()
        put(request)
        seconds[f"put {way}"] = time.perf_counter() - start
        peer.flush()
        seconds[f"published {way}"] = time.perf_counter() - start
    for way, ask in peer.requests.items():
        seconds[f"request {way}"] = statistics.median(_asked(peer, request, way, ask) for _ in range(LOOPS))
    seconds["memcpy"] = statistics.median(_memcpy(request, *copied) for _ in range(LOOPS))
    return seconds


def _asked(peer: Peer, request: Request, way: str, ask: Way) -> float:
    peer.blocks.clear(request)
    start = time.perf_counter()
    ask(request)
    took = time.perf_counter() - start
    if not peer.blocks.arrived(request):
        raise SystemExit(f"{way or 'a request'} of {request.blocks} blocks brought other bytes than were put")
    return took


def _memcpy(request: Request, source: Bytes, target: Bytes) -> float:
    start = time.perf_counter()
    for block in range(request.blocks):
        target[block] = source[block]
    return time.perf_counter() - start


def new_request(blocks: int, repetition: int) -> Request:
    rng = np.random.default_rng([blocks, repetition])
    tokens = rng.integers(0, 1 << 17, blocks * BLOCK_TOKENS + 1, dtype=np.int32)
    return Request(blocks, repetition, tokens, [f"{repetition}-{blocks}-{block}" for block in range(blocks)])


def pages(blocks: int) -> Bytes:
    """A (blocks, BLOCK_BYTES) array that starts at a page, of huge pages where there are any, touched."""
    buffer = mmap.mmap(-1, blocks * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        buffer.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(buffer, np.uint8).reshape(blocks, BLOCK_BYTES)
    array[...] = 1
    return array


@contextlib.contextmanager
def server(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A peer's server in `folder`, asked to end at the end, then made to."""
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        yield Server(process, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Server:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Raises PeerUnavailable with the end of the log where the server ends or takes too long."""
        ends = time.monotonic() + START_SECONDS
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > ends:
                lines = self._log.read_text(errors="replace").split("\n")
                last = [line.strip() for line in lines if line.strip()][-2:]
                raise PeerUnavailable("its server did not start: " + " / ".join(last))
            time.sleep(0.05)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
