"""What worker processes in the tests of leases share: their client, what they say, and whether bytes are right."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from crash_tools import LAYOUTS, PATIENT, Document

from kvstore.client.client import Client
from kvstore.client.connect import connect
from kvstore.client.layers import LayeredBlocks
from kvstore.client.match import Blocks
from kvstore.client.settings import Bounds

DEMO = 1  # which of LAYOUTS: rows of 21 KB, states of 243 KB in a dozen slots


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


def connected(address: str) -> Client:
    """A client with a staging region as small as will do."""
    bounds = Bounds(staging_bytes=4 << 20)
    return connect(address, layout=LAYOUTS[DEMO], timeouts=PATIENT, can_replay=False, bounds=bounds)


def attached(address: str) -> Client:
    """One that goes through shared memory."""
    client = connected(address)
    assert client.is_attached, client.counters
    return client


def is_right(blocks: Blocks, document: Document) -> bool:
    """Whether every byte is the document's. A document can be resumed at its end alone."""
    assert blocks.plan.tokens == document.end_tokens
    rows, state = document.rows(0, document.blocks), document.state()
    assert blocks.state is not None
    found = [(blocks.rows[name], array) for name, array in rows.items()]
    found += [(blocks.state[name], array) for name, array in state.items()]
    return all(
        len(here) == len(array) and all(np.array_equal(one, other) for one, other in zip(here, array, strict=True))
        for here, array in found
    )


def is_layer_right(taken: Mapping[str, np.ndarray], document: Document, layer: int) -> bool:
    """Whether these are the document's rows of one layer, all of them."""
    wanted = {}
    for name, array in document.rows(0, document.blocks).items():
        having = [section.layer for section in LAYOUTS[DEMO].rows.sections if section.component == name]
        if layer in having:
            wanted[name] = array[:, having.index(layer)]
    return taken.keys() == wanted.keys() and all(np.array_equal(taken[name], wanted[name]) for name in wanted)


def takes_layers(blocks: LayeredBlocks, document: Document) -> tuple[bool, bool]:
    """Take all layers: whether each was to be had and the end says that they are right, and whether those that were
    to be had are."""
    all_right = True
    for layer in range(len(LAYOUTS[DEMO].layers)):
        taken = blocks.layer(layer, 20.0)
        if taken is None:
            return False, all_right
        all_right &= is_layer_right(taken, document, layer)
    return blocks.finish(20.0), all_right
