"""Mooncake Store's worker of `peers.py`: a master, a process that lends the memory, and a client, over TCP.

The memory is another process's, as kvstore's and Redis' is. With `{"segment": "own"}` it is the client's own: what a
worker gets that happens to hold the blocks itself, and nothing that two workers could both have.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import distributions
from pathlib import Path

from peer_worker import (
    BLOCK_BYTES,
    MIB,
    MOST_BLOCKS,
    STORE_BYTES,
    Blocks,
    Bytes,
    Peer,
    PeerUnavailable,
    Request,
    free_ports,
    listens,
    pages,
    serve,
    server,
)

LOCAL_BUFFER_BYTES = 128 * MIB  # the client's own staging; requests go to registered buffers
LENDER = "lend"


class Mooncake:
    def __init__(self, stack: ExitStack, master: str, own_bytes: int) -> None:
        self._store = joined(master, own_bytes, LOCAL_BUFFER_BYTES)
        stack.callback(self._store.close)
        names = [f"{each.name} {each.version}" for each in distributions() if each.name.startswith("mooncake")]
        self.version = ", ".join(names)
        self._source, self._target = pages(MOST_BLOCKS), pages(MOST_BLOCKS)
        for array in (self._source, self._target):
            if self._store.register_buffer(array.ctypes.data, array.nbytes):
                raise PeerUnavailable("it registers no buffer")
        self.blocks = Blocks([(self._source, self._target)])
        self.puts = {"": self._put}
        self.requests = {"": self._ask}

    def _put(self, request: Request) -> None:
        sizes = [BLOCK_BYTES] * request.blocks
        answers = self._store.batch_put_from(request.names, places(self._source, request), sizes)
        assert not any(answers), f"put: {answers}"

    def _ask(self, request: Request) -> None:
        sizes = [BLOCK_BYTES] * request.blocks
        answers = self._store.batch_get_into(request.names, places(self._target, request), sizes)
        assert answers == sizes, f"get: {answers}"

    def flush(self) -> None:
        """What was answered is there."""

    def forget(self) -> None:
        self._store.remove_all(True)  # also what is leased, which all that was read is for 5 s


def places(array: Bytes, request: Request) -> list[int]:
    return [array.ctypes.data + block * BLOCK_BYTES for block in range(request.blocks)]


def joined(master: str, lent_bytes: int, buffer_bytes: int):
    """A store that lends so many bytes to the others."""
    from mooncake.store import MooncakeDistributedStore  # noqa: PLC0415  (its absence is a reason to report)

    store = MooncakeDistributedStore()
    failed = store.setup("127.0.0.1", "P2PHANDSHAKE", lent_bytes, buffer_bytes, "tcp", "", master)
    if failed:
        raise PeerUnavailable(f"setup failed with {failed}")
    return store


def start(stack: ExitStack, options: Mapping[str, str]) -> Peer:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
    port, metrics = free_ports(2)
    program = Path(sys.executable).parent / "mooncake_master"
    command = [str(program), f"--rpc_port={port}", f"--metrics_port={metrics}"]
    stack.enter_context(server(command, folder)).wait_until(lambda: listens(port))
    master = f"127.0.0.1:{port}"
    if options.get("segment") == "own":
        return Mooncake(stack, master, STORE_BYTES)
    lent = folder / "lent"
    command = [sys.executable, __file__, LENDER, json.dumps({"master": master, "ready": str(lent)})]
    stack.enter_context(server(command, folder)).wait_until(lent.exists)
    return Mooncake(stack, master, 0)


def lend(master: str, ready: str) -> None:
    """Lend memory to the master until told to end."""
    store = joined(master, STORE_BYTES, 16 * MIB)
    Path(ready).touch()
    while store is not None:  # kept until a signal ends this process
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == LENDER:
        lend(**json.loads(sys.argv[2]))
    else:
        serve(start)
