"""LMCache's worker of `peers.py`: its multi-process server over shared memory, asked by the client of its own bench.

A request is what `lmcache bench server` does for a prompt that is known: lookup, status of the prefetch, prepare and
commit of the retrieve with the copy between them, end of the session. Three things are kinder than there: the status
is asked for at once instead of every 50 ms, the engine's cache lies in aligned pages, and what was stored is cleared
before the next store. The client's classes are not public: they are those of lmcache 0.5.6.

`{"shape": SPEC}` is the engine's cache as `--kvcache-shape-spec` has it, of 1 MiB a block of 256 tokens and with room
for what is put and what is fetched.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
from peer_worker import (
    BLOCK_TOKENS,
    MOST_BLOCKS,
    STORE_BYTES,
    Blocks,
    Peer,
    Request,
    free_ports,
    listens,
    pages,
    serve,
    server,
)

POLLS = 100_000  # without waiting between them
RPC_SECONDS = 60.0
ENVIRONMENT = {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1"}


class LMCache:
    def __init__(self, stack: ExitStack, url: str, shape: str) -> None:
        from lmcache.cli.commands.bench.server_bench import client, config, helpers  # noqa: PLC0415  (see start)

        settings = config.BenchConfig(
            rpc_url=url, http_url="", mode="cpu", transfer_mode="engine_driven", tp_size=1, use_mla=False,
            num_tokens=MOST_BLOCKS * BLOCK_TOKENS, kvcache_shape_spec=shape, num_blocks=0, block_size=0,
        )  # fmt: skip
        self.version = f"lmcache {version('lmcache')}"
        self._helpers, self._context = helpers, client.RequestContext
        self._client = client.ServerBenchClient(settings, lambda _: None)
        stack.callback(self._client.close)
        self._client.start()
        self._calls = self._client._require_started()
        self._numbers = itertools.count()  # no two requests are one session
        self.blocks = self._own_blocks()
        self.puts = {"": self._put}
        self.requests = {"": self._ask}

    def _own_blocks(self) -> Blocks:
        """Have the engine's cache in aligned pages: its first half is what is put, its second where requests end."""
        import torch  # noqa: PLC0415  (see start)

        (worker,) = self._client._workers
        memory = iter(np.split(pages(2 * MOST_BLOCKS).reshape(-1), len(worker.kv_caches)))
        parts = []
        for name, tensor in worker.kv_caches.items():
            place = torch.from_numpy(next(memory)).view(tensor.dtype).reshape(tensor.shape)
            worker.kv_caches[name] = place
            paged = np.moveaxis(place.view(torch.uint8).numpy(), 1, 0)  # (paged blocks, K and V, tokens, heads, bytes)
            parts.append((paged[: len(paged) // 2], paged[len(paged) // 2 :]))
        self._paged_blocks = len(parts[0][0])
        return Blocks(parts, self._paged_blocks // MOST_BLOCKS)

    def _put(self, request: Request) -> None:
        asked = self._asked(request, "put", 0)
        stored = self._client.store(asked, 0, asked.num_full_tokens)
        assert stored is not None and stored.succeeded

    def _ask(self, request: Request) -> None:
        asked = self._asked(request, "ask", self._paged_blocks)
        key = self._helpers._make_key(asked.token_ids, asked.request_id, start=0, end=asked.num_full_tokens)
        assert self._helpers._send_lookup(self._calls, key)
        hit = self._helpers._poll_prefetch_status(self._calls, asked.request_id, POLLS, 0.0)
        assert hit == request.blocks, f"{hit} of {request.blocks} blocks found"
        retrieved = self._client.retrieve(asked, 0, asked.num_full_tokens)
        assert retrieved is not None and retrieved.succeeded
        self._client.end_session(asked)

    def _asked(self, request: Request, kind: str, first_paged_block: int):
        return self._context(
            sequence_id=0, request_id=f"{kind}-{request.names[0]}-{next(self._numbers)}", request_kind=kind,
            token_ids=tuple(request.tokens.tolist()), num_full_tokens=request.blocks * BLOCK_TOKENS,
            total_chunks=request.blocks, chunk_size=BLOCK_TOKENS, block_offset=first_paged_block,
            num_blocks=request.blocks * self._paged_blocks // MOST_BLOCKS,
        )  # fmt: skip

    def flush(self) -> None:
        """A store that succeeded is committed."""

    def forget(self) -> None:
        self._calls.clear(True).result(timeout=RPC_SECONDS)


def start(stack: ExitStack, options: Mapping[str, str]) -> Peer:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
    port, http_port = free_ports(2)
    os.environ.update(ENVIRONMENT)
    program = Path(sys.executable).parent / "lmcache"
    command = [
        str(program), "server", "--host", "127.0.0.1", "--port", f"{port}", "--http-port", f"{http_port}",
        "--chunk-size", f"{BLOCK_TOKENS}", "--supported-transfer-mode", "engine_driven",
        "--shm-name", f"kvstore-bench-{os.getpid()}", "--l1-size-gb", f"{STORE_BYTES >> 30}", "--no-l1-use-lazy",
        "--eviction-policy", "LRU", "--disable-observability",
    ]  # fmt: skip
    stack.enter_context(server(command, folder)).wait_until(lambda: listens(port))
    return LMCache(stack, f"tcp://127.0.0.1:{port}", options["shape"])


if __name__ == "__main__":
    serve(start)
