"""What a trace is: requests in time, their prompts as chained block ids. No token is seen, as in production."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.core.match import InferenceMode


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request. An id names a block together with all blocks before it; a partial last block has one of its own."""

    at: float  # seconds since the trace's first request
    input_tokens: int
    output_tokens: int
    ids: tuple[int, ...]  # of the prompt's blocks, ceil(input_tokens / block_tokens)
    output_ids: tuple[int, ...] = ()  # of the further whole blocks of prompt and output, where the trace knows them
    session: str = ""
    turn: int = 0
    stop: str = ""  # why the output ended, as engines say it: stop, length, tool_calls
    kind: str = ""  # chat, code-agent, ...
    mode: InferenceMode | None = None
    has_tools: bool = False
    breakpoints: tuple[int, ...] = ()  # token counts at which a shared part of the prompt ends


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time."""

    name: str
    block_tokens: int
    requests: Sequence[TraceRequest]
    notes: Mapping[str, int] = field(default_factory=dict)  # what was odd in the file, handled and counted
