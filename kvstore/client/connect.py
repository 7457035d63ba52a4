"""The way in: `kvstore.connect`."""

from __future__ import annotations

from kvstore.client.arguments import checked_address, checked_flops
from kvstore.client.client import Client
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core.errors import InvalidInput
from kvstore.core.layout import ModelLayout


def connect(
    address: str,
    *,
    layout: ModelLayout,
    worker_flops: float | None = None,
    can_replay: bool = True,
    existing_only: bool = False,
    share_memory: bool = True,
    timeouts: Timeouts | None = None,
    bounds: Bounds | None = None,
) -> Client:
    """A client of the store at `unix:PATH` or `HOST:PORT`.

    A store that is away is no error: the client works without it and finds it by itself when it comes back.
    `worker_flops` is this worker's prefill speed in the cost model's FLOP a second: with it the store leaves out loads
    that would take longer than recomputing. `can_replay`: the worker can rebuild a missing state by replay.
    `existing_only`: raise LayoutMismatch where the store knows this model with another layout, instead of starting a
    cache of its own. `share_memory=False`: everything goes over gRPC, also where the daemon is on this host.
    Raises InvalidInput for arguments that cannot be right.
    """
    if not isinstance(layout, ModelLayout):
        raise InvalidInput(f"layout is a {type(layout).__name__}: pass a ModelLayout, e.g. kvstore.layouts.v4_flash()")
    return Client(
        checked_address(address),
        layout,
        worker_flops=checked_flops(worker_flops),
        can_replay=can_replay,
        existing_only=existing_only,
        share_memory=share_memory,
        timeouts=timeouts or Timeouts(),
        bounds=bounds or Bounds(),
    )
