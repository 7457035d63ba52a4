"""The same trace in blocks of another size.

Blocks cut smaller share what they shared: two prompts that part inside a large block part at its start. Blocks made
larger lose what does not fill one.
"""

from __future__ import annotations

from dataclasses import replace

from kvstore.core.errors import TraceError
from kvstore.sim.trace import Trace, TraceRequest


def at_block_size(trace: Trace, block_tokens: int) -> Trace:
    """The trace in whole blocks of `block_tokens`; itself where that is its size. TraceError if neither size divides.

    >>> small = Trace("t", 64, [TraceRequest(0.0, 300, 100, (5, 6, 7, 8, 9), (20, 21))])
    >>> at_block_size(small, 128).requests[0].ids, at_block_size(small, 128).requests[0].output_ids
    ((6, 8), (21,))
    >>> at_block_size(small, 32).requests[0].ids
    (10, 11, 12, 13, 14, 15, 16, 17, 40)
    """
    have = trace.block_tokens
    if block_tokens == have:
        return trace
    if block_tokens < 1 or (have % block_tokens and block_tokens % have):
        raise TraceError(
            f"{trace.name}: blocks of {have} tokens do not make blocks of {block_tokens}: "
            f"one size must divide the other; choose {_neighbours(have)}"
        )
    recut = _split if block_tokens < have else _grouped
    requests = [recut(request, have, block_tokens) for request in trace.requests]
    return Trace(trace.name, block_tokens, requests, trace.notes)


def _split(request: TraceRequest, have: int, want: int) -> TraceRequest:
    """A partial block is cut too, where it has an id.

    Where the output fills it up its parts are named after the filled block, which is what the next prompt contains.
    """
    parts = have // want
    whole, rest = divmod(request.input_tokens, have)
    names = [*request.ids[:whole], *request.output_ids]
    covered = len(names) * parts
    if rest and not request.output_ids and len(request.ids) > whole:
        names.append(request.ids[whole])
        covered += rest // want
    cut = [name * parts + part for name in names for part in range(parts)][:covered]
    prompt = request.input_tokens // want
    return replace(request, ids=tuple(cut[:prompt]), output_ids=tuple(cut[prompt:]))


def _grouped(request: TraceRequest, have: int, want: int) -> TraceRequest:
    """The last block of a group names all of it, because ids are chained."""
    parts = want // have
    names = [*request.ids[: request.input_tokens // have], *request.output_ids]
    groups = names[parts - 1 :: parts]
    prompt = request.input_tokens // want
    return replace(request, ids=tuple(groups[:prompt]), output_ids=tuple(groups[prompt:]))


def _neighbours(have: int) -> str:
    smaller = [have // parts for parts in (4, 2) if have % parts == 0]
    return ", ".join(str(size) for size in (*smaller, have * 2, have * 4))
