"""kvstore's worker of `peers.py`: a daemon, a client that puts, and one that asks and so has to hash too."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version

from peer_worker import BLOCK_BYTES, BLOCK_TOKENS, MOST_BLOCKS, STORE_BYTES, Blocks, Peer, Request, pages, serve
from processes import running_daemon

import kvstore
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core.layout import Group, GroupKind, Layer, LayerKind, ModelLayout, Section
from kvstore.core.presets import custom

COMPONENT = "full.rows"
WAIT_SECONDS = 60.0  # longer than anything here takes: a bench is not held to a worker's deadlines
NO_MEMO = Bounds(memo_bytes=1)  # each request hashes all its tokens, as one that is new does
PATIENT = Timeouts(lookup_seconds=WAIT_SECONDS, fetch_seconds=WAIT_SECONDS, put_seconds=WAIT_SECONDS)


def layout() -> ModelLayout:
    """Blocks of one section and no state, so that every boundary is a resume point."""
    rows = Group("rows", GroupKind.ROWS, (Section(0, COMPONENT, 1, BLOCK_BYTES, 0, "bytes"),))
    layers = (Layer(LayerKind.FULL),)
    return custom("bench-peers", "bench", layers=layers, groups=(rows,), block_tokens=BLOCK_TOKENS)


class Kvstore:
    def __init__(self, stack: ExitStack, address: str) -> None:
        try:
            self.version = version("kvstore")
        except PackageNotFoundError:  # run from a checkout
            self.version = "here"
        self._writer = stack.enter_context(kvstore.connect(address, layout=layout(), timeouts=PATIENT))
        self._reader = stack.enter_context(kvstore.connect(address, layout=layout(), timeouts=PATIENT, bounds=NO_MEMO))
        self._source, self._target = pages(MOST_BLOCKS), pages(MOST_BLOCKS)
        self.blocks = Blocks([(self._source, self._target)])
        self.puts = {"": self._put}
        self.requests = {"": self._ask}

    def _put(self, request: Request) -> None:
        rows = {COMPONENT: self._source[: request.blocks, None]}
        assert self._writer.put(request.tokens, first_block=0, rows=rows), self._writer.counters

    def _ask(self, request: Request) -> None:
        into = {COMPONENT: self._target[: request.blocks, None]}
        with self._reader.lookup(request.tokens) as match, self._reader.fetch(match, into=into) as fetched:
            assert fetched.plan.tokens == request.blocks * BLOCK_TOKENS, self._reader.counters

    def flush(self) -> None:
        assert self._writer.flush(WAIT_SECONDS), self._writer.counters

    def forget(self) -> None:
        """Nothing to do: its memory was touched when the daemon started, and the oldest blocks make room."""


def start(stack: ExitStack, _: Mapping[str, str]) -> Peer:
    return Kvstore(stack, stack.enter_context(running_daemon(f"{STORE_BYTES >> 20}MiB")).address)


if __name__ == "__main__":
    serve(start)
