"""Redis' worker of `peers.py`: a server without persistence on a Unix socket, and redis-py with hiredis.

Values arrive in new `bytes`; a request ends when they are copied to the caller's buffers, as kvstore's does. With
`{"calls": "many"}` it asks for one value at a time, which is a call a block, and the faster way: a megabyte's memory
is used again, where a batch of values takes fresh memory for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from peer_worker import BLOCK_BYTES, MOST_BLOCKS, Blocks, Peer, PeerUnavailable, Request, Way, pages, serve, server

TIMEOUT_SECONDS = 60.0
READ_BYTES = 1 << 20  # of one read of the socket; redis-py's own 64 KiB are up to a fifth slower


class Redis:
    def __init__(self, stack: ExitStack, path: Path, is_batched: bool) -> None:
        import hiredis  # noqa: PLC0415  (its absence is a reason to report)
        import redis  # noqa: PLC0415

        self._client = redis.Redis(
            unix_socket_path=str(path), socket_timeout=TIMEOUT_SECONDS, socket_read_size=READ_BYTES
        )
        stack.callback(self._client.close)
        self.version = f"{self._client.info('server')['redis_version']}, redis-py {redis.__version__}"
        self.version += f", hiredis {hiredis.__version__}"
        self._source, self._target = pages(MOST_BLOCKS), pages(MOST_BLOCKS)
        self.blocks = Blocks([(self._source, self._target)])
        self.puts: Mapping[str, Way] = {"by SET": self._set}
        self.requests: Mapping[str, Way] = {"by GET": self._get}
        if is_batched:
            self.puts = {"by MSET": self._mset, "by pipelined SET": self._pipelined_set}
            self.requests = {"by MGET": self._mget, "by pipelined GET": self._pipelined_get}

    def _set(self, request: Request) -> None:
        for block, name in enumerate(request.names):
            self._client.set(name, self._source[block].data)

    def _get(self, request: Request) -> None:
        self._take(self._client.get(name) for name in request.names)

    def _mset(self, request: Request) -> None:
        self._client.mset({name: self._source[block].data for block, name in enumerate(request.names)})

    def _pipelined_set(self, request: Request) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for block, name in enumerate(request.names):
                pipeline.set(name, self._source[block].data)
            pipeline.execute()

    def _mget(self, request: Request) -> None:
        self._take(self._client.mget(request.names))

    def _pipelined_get(self, request: Request) -> None:
        with self._client.pipeline(transaction=False) as pipeline:
            for name in request.names:
                pipeline.get(name)
            self._take(pipeline.execute())

    def _take(self, values: Iterable[bytes]) -> None:
        for block, value in enumerate(values):
            assert len(value) == BLOCK_BYTES
            self._target[block] = np.frombuffer(value, np.uint8)

    def flush(self) -> None:
        """What was answered is there."""

    def forget(self) -> None:
        self._client.flushall()


def start(stack: ExitStack, options: Mapping[str, str]) -> Peer:
    if not options["server"]:
        raise PeerUnavailable("no redis-server on PATH")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
    path = folder / "redis.sock"
    command = [options["server"], "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    stack.enter_context(server(command, folder)).wait_until(path.exists)
    return Redis(stack, path, is_batched=options.get("calls") != "many")


if __name__ == "__main__":
    serve(start)
