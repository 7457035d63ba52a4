"""Writes a trace in the form that `reading` reads: one JSON object a line, only the fields that say something."""

from __future__ import annotations

import json
from collections.abc import Iterator

from kvstore.sim.trace import Trace, TraceRequest


def trace_lines(trace: Trace) -> Iterator[str]:
    """One line a request, without its end. Times in whole milliseconds where they are whole.

    >>> list(trace_lines(Trace("t", 128, [TraceRequest(0.5, 130, 1, (0, 1), session="s1", turn=2)])))
    ['{"timestamp":500,"session_id":"s1","turn":2,"input_length":130,"output_length":1,"hash_ids":[0,1]}']
    """
    for request in trace.requests:
        yield json.dumps(_row(request), separators=(",", ":"))


def _row(request: TraceRequest) -> dict[str, object]:
    moment = round(request.at * 1000, 3)
    optional: dict[str, object] = {
        "session_id": request.session,
        "turn": request.turn,
        "stop": request.stop,
        "kind": request.kind,
        "mode": request.mode.value if request.mode else None,
        "has_tools": request.has_tools,
        "breakpoints": request.breakpoints,
    }
    said = {name: value for name, value in optional.items() if value}
    row: dict[str, object] = {"timestamp": int(moment) if moment.is_integer() else moment}
    row.update((name, said.pop(name)) for name in ("session_id", "turn") if name in said)
    row["input_length"] = request.input_tokens
    row["output_length"] = request.output_tokens
    row["hash_ids"] = request.ids
    if request.output_ids:
        row["output_ids"] = request.output_ids
    return row | said
