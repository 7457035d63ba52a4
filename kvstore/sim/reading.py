"""Reads a trace in Mooncake's JSONL form, plain or zstd: one request a line. Holds one line and the requests in memory.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}

`timestamp` is in milliseconds; `hash_ids` has one id a block of the prompt, of a last partial block too or of whole
blocks only. Optional: `session_id` or `session`, `turn`, `stop`, `kind`, `mode` (non-think, think-high, think-max),
`has_tools`, `breakpoints` (token counts), `output_ids` (further whole blocks of prompt and output). Other fields are
ignored.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstore.codec.text import lines
from kvstore.core.errors import InvalidInput, TraceError
from kvstore.core.match import InferenceMode
from kvstore.sim.block_size import at_block_size
from kvstore.sim.chains import Chains
from kvstore.sim.trace import Trace, TraceRequest

__all__ = ["at_block_size", "load_trace"]

MAX_TOKENS = (1 << 31) - 1  # token counts are int32
SHOWN = 60  # characters of a wrong value in a message
MODES = {mode.value: mode for mode in InferenceMode}
COMMON_BLOCK_TOKENS = (512, 128, 64, 16, 256, 1024, 32, 2048, 4096, 8192)  # tried when the ids do not match


def load_trace(path: Path, block_tokens: int = 512) -> Trace:
    """The trace in a file. TraceError names the line, what is wrong with it and what to do.

    Counted in the notes, where it happens: `unsorted` requests (before the one in front of them; sorted by time),
    `rechained_ids` (named a block without what is before it; they got new numbers), `without_partial_id` requests
    (whose last, partial block has no id), `empty_prompts`, `blank_lines`.
    """
    if block_tokens < 1:
        raise TraceError(f"blocks of {block_tokens} tokens: a block has at least one token")
    reader = _Reader(path, block_tokens)
    requests = list(reader.requests())
    if not requests:
        raise TraceError(f"{path}: no request in it; give a file with one JSON object a line")
    if reader.notes["rechained_ids"]:
        names = reader.chains.renamed
        requests = [replace(one, ids=names(one.ids), output_ids=names(one.output_ids)) for one in requests]
    requests.sort(key=lambda one: one.at)
    if first := requests[0].at:
        requests = [replace(one, at=one.at - first) for one in requests]
    return Trace(_name(path), block_tokens, requests, {name: count for name, count in reader.notes.items() if count})


def _name(path: Path) -> str:
    return path.name.removesuffix(".zst").removesuffix(".jsonl")


class _Reader:
    """One pass over one file."""

    def __init__(self, path: Path, block_tokens: int) -> None:
        self.notes: Counter[str] = Counter()
        self.chains = Chains()
        self._path = path
        self._block_tokens = block_tokens
        self._line = 0
        self._first_ms: float | None = None
        self._last_ms = -math.inf

    def requests(self) -> Iterator[TraceRequest]:
        """In the file's order; times are seconds since the first line."""
        try:
            with self._path.open("rb") as stream:
                for line in lines(stream):
                    self._line += 1
                    if line.strip():
                        yield self._request(self._object(line))
                    else:
                        self.notes["blank_lines"] += 1
        except OSError as error:
            raise TraceError(
                f"{self._path}: cannot be read ({error.strerror}); give a file that can be read"
            ) from error
        except TraceError:
            raise
        except InvalidInput as error:
            raise TraceError(f"{self._path}:{self._line + 1}: {error}") from error
        self.notes["rechained_ids"] = self.chains.rechained

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise self._wrong(f"no JSON ({reason}): {_shown(line)}; repair or remove the line") from error
        if not isinstance(row, dict):
            raise self._wrong(f"no JSON object: {_shown(line)}; repair or remove the line")
        return row

    def _request(self, row: dict[str, Any]) -> TraceRequest:
        at = self._seconds(row)
        input_tokens, output_tokens = self._count(row, "input_length"), self._count(row, "output_length")
        ids = self._ids(row, "hash_ids")
        whole = self._whole_blocks(ids, input_tokens)
        chained = self.chains.chained(ids)
        output_ids = self._ids(row, "output_ids") if row.get("output_ids") else []
        if output_ids:
            room = (input_tokens + output_tokens) // self._block_tokens - whole
            if len(output_ids) > room:
                raise self._wrong(
                    f"{len(output_ids)} output_ids, but prompt and output fill only {room} more blocks of "
                    f"{self._block_tokens} tokens; repair or remove the line"
                )
        session = row.get("session_id", row.get("session"))
        return TraceRequest(
            at,
            input_tokens,
            output_tokens,
            chained,
            self.chains.chained(output_ids, chained[whole - 1] if whole else None) if output_ids else (),
            session=str(session) if type(session) is int else self._text(session, "session_id"),
            turn=self._count(row, "turn") if row.get("turn") is not None else 0,
            stop=self._text(row.get("stop"), "stop"),
            kind=self._text(row.get("kind"), "kind"),
            mode=self._mode(row.get("mode")),
            has_tools=self._truth(row.get("has_tools"), "has_tools"),
            breakpoints=self._breakpoints(row, input_tokens),
        )

    def _seconds(self, row: dict[str, Any]) -> float:
        moment = self._needed(row, "timestamp")
        if type(moment) not in (int, float) or not 0 <= moment < 1e15:
            raise self._wrong(f"timestamp is {_shown(moment)}; it takes milliseconds from 0 on")
        if self._first_ms is None:
            self._first_ms = moment
        if moment < self._last_ms:
            self.notes["unsorted"] += 1
        self._last_ms = moment
        return float((moment - self._first_ms) / 1000)

    def _whole_blocks(self, ids: list[int], input_tokens: int) -> int:
        """How many whole blocks the prompt has; checks that the ids are as many, or one more for a partial block."""
        whole, rest = divmod(input_tokens, self._block_tokens)
        if len(ids) != whole + (rest > 0):
            if len(ids) != whole:
                raise self._wrong(self._other_size(len(ids), input_tokens, whole + (rest > 0)))
            self.notes["without_partial_id"] += 1
        if not input_tokens:
            self.notes["empty_prompts"] += 1
        return whole

    def _other_size(self, count: int, input_tokens: int, wanted: int) -> str:
        fact = f"{count} hash_ids for input_length {input_tokens}; blocks of {self._block_tokens} tokens make {wanted}"
        for size in COMMON_BLOCK_TOKENS:
            if count and count in (input_tokens // size, -(-input_tokens // size)):
                return f"{fact}, blocks of {size} make {count}: --trace-block-tokens {size}?"
        return f"{fact}: repair or remove the line"

    def _ids(self, row: dict[str, Any], name: str) -> list[int]:
        found = self._needed(row, name)
        if not isinstance(found, list) or not set(map(type, found)) <= {int} or (found and min(found) < 0):
            raise self._wrong(f"{name} is {_shown(found)}; it takes a list of whole numbers from 0 on")
        return found

    def _breakpoints(self, row: dict[str, Any], input_tokens: int) -> tuple[int, ...]:
        if not row.get("breakpoints"):
            return ()
        found = sorted(set(self._ids(row, "breakpoints")))
        if found[-1] > input_tokens:
            raise self._wrong(
                f"a breakpoint at token {found[-1]} is behind input_length {input_tokens}; repair or remove it"
            )
        return tuple(found)

    def _count(self, row: dict[str, Any], name: str) -> int:
        found = self._needed(row, name)
        if type(found) is not int or not 0 <= found <= MAX_TOKENS:
            raise self._wrong(f"{name} is {_shown(found)}; it takes a whole number from 0 to {MAX_TOKENS}")
        return found

    def _needed(self, row: dict[str, Any], name: str) -> Any:
        try:
            return row[name]
        except KeyError:
            raise self._wrong(f"{name} is missing; repair or remove the line") from None

    def _text(self, found: object, name: str) -> str:
        if found is None or isinstance(found, str):
            return found or ""
        raise self._wrong(f"{name} is {_shown(found)}; it takes a text")

    def _truth(self, found: object, name: str) -> bool:
        if found is None or isinstance(found, bool):
            return bool(found)
        raise self._wrong(f"{name} is {_shown(found)}; it takes true or false")

    def _mode(self, found: object) -> InferenceMode | None:
        if found is None:
            return None
        mode = MODES.get(found) if isinstance(found, str) else None
        if mode is None:
            raise self._wrong(f"mode is {_shown(found)}; it takes {', '.join(MODES)}")
        return mode

    def _wrong(self, what: str) -> TraceError:
        return TraceError(f"{self._path}:{self._line}: {what}")


def _shown(found: object) -> str:
    text = found.decode(errors="replace") if isinstance(found, bytes) else json.dumps(found)
    shown = "".join(character if character.isprintable() else "?" for character in text[:SHOWN])
    return shown if len(text) <= SHOWN else f"{shown}..."
