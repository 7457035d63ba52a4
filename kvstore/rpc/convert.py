"""Protobuf <-> core values. All outside data is validated here; what comes out can be trusted to be in range.

`*_from_wire` raise InvalidInput with one sentence that names the fact and the remedy, in the daemon for requests
and in the client for answers. `*_to_wire` trust their input. Layouts are in `layouts.py`, enums in `enums.py`,
the limits in `limits.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from kvstore.core.errors import InvalidInput
from kvstore.core.keys import CHECKSUM_BYTES, HASH_BYTES, LINEAGE_BYTES, BlockKey, Chain
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints
from kvstore.core.reserve import ObjectSpec
from kvstore.rpc.enums import MODE
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_BATCH_BLOCKS, MAX_BREAKPOINTS, MAX_OBJECTS, MAX_TEXT, MAX_TOKENS

WORKER_ID_BYTES = 16


def exact_bytes(value: bytes, length: int, what: str) -> bytes:
    if len(value) != length:
        raise InvalidInput(f"{what} has {len(value)} bytes: send {length}")
    return value


def hash_from_wire(value: bytes, what: str) -> bytes:
    return exact_bytes(value, HASH_BYTES, what)


def lineage_from_wire(value: bytes) -> bytes:
    return exact_bytes(value, LINEAGE_BYTES, "lineage")


def checksum_from_wire(value: bytes, what: str) -> bytes:
    return exact_bytes(value, CHECKSUM_BYTES, what)


def worker_from_wire(value: bytes) -> bytes:
    return exact_bytes(value, WORKER_ID_BYTES, "worker_id")


def text_from_wire(value: str, what: str, limit: int = MAX_TEXT) -> str:
    if len(value) > limit:
        raise InvalidInput(f"{what} has {len(value)} characters: at most {limit} are allowed")
    return value


def seconds_from_wire(value: float, what: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInput(f"{what}={value} is not a finite number of at least 0 seconds")
    return value


def speed_from_wire(value: float, what: str) -> float:
    """A rate that times are divided by: finite and above 0."""
    if not math.isfinite(value) or value <= 0:
        raise InvalidInput(f"{what}={value} is not a finite number above 0: leave it out when it is unknown")
    return value


def flops_from_wire(value: float) -> float:
    return speed_from_wire(value, "worker_flops")


def chain_to_wire(chain: Chain) -> pb.Chain:
    return pb.Chain(first_block=chain.first_block, parent=chain.parent, hashes=chain.hashes)


def chain_from_wire(message: pb.Chain, block_tokens: int) -> Chain:
    """A chain of whole hashes, within the batch limit and the range of token positions."""
    blocks, rest = divmod(len(message.hashes), HASH_BYTES)
    if rest:
        raise InvalidInput(f"chain.hashes has {len(message.hashes)} bytes: send {HASH_BYTES} a block")
    if blocks > MAX_BATCH_BLOCKS:
        raise InvalidInput(f"the chain has {blocks} blocks: send at most {MAX_BATCH_BLOCKS} in one call")
    if (message.first_block + blocks) * block_tokens > MAX_TOKENS:
        raise InvalidInput(f"chain.first_block={message.first_block} lies beyond token {MAX_TOKENS}")
    return Chain(message.first_block, hash_from_wire(message.parent, "chain.parent"), message.hashes)


def prompt_from_wire(prompt_tokens: int, chain: Chain, block_tokens: int) -> int:
    """A prompt length that covers the chain."""
    if not 0 < prompt_tokens <= MAX_TOKENS:
        raise InvalidInput(f"prompt_tokens={prompt_tokens} is out of range: send 1 to {MAX_TOKENS}")
    end = (chain.first_block + chain.blocks) * block_tokens
    if end > prompt_tokens:
        raise InvalidInput(
            f"the chain ends at token {end}, behind the prompt's {prompt_tokens}: send only the prompt's whole blocks"
        )
    return prompt_tokens


def hints_to_wire(hints: Hints) -> pb.Hints:
    return pb.Hints(
        session=hints.session,
        turn=hints.turn,
        mode=pb.INFERENCE_MODE_UNSPECIFIED if hints.mode is None else MODE.to_wire(hints.mode),
        kind=hints.kind,
        has_tools=hints.has_tools,
        expected_gap_seconds=hints.expected_gap_seconds,
        breakpoints=hints.breakpoints,
        ttl_seconds=hints.ttl_seconds,
        prompt_tokens=hints.prompt_tokens,
    )


def hints_from_wire(message: pb.Hints) -> Hints:
    if len(message.breakpoints) > MAX_BREAKPOINTS:
        raise InvalidInput(f"{len(message.breakpoints)} breakpoints: at most {MAX_BREAKPOINTS} are allowed")
    if any(not 0 < tokens <= MAX_TOKENS for tokens in message.breakpoints):
        raise InvalidInput(f"a breakpoint is a token count from 1 to {MAX_TOKENS}")
    gap = message.expected_gap_seconds if message.HasField("expected_gap_seconds") else None
    ttl = message.ttl_seconds if message.HasField("ttl_seconds") else None
    return Hints(
        session=text_from_wire(message.session, "hints.session"),
        turn=message.turn,
        mode=None if message.mode == pb.INFERENCE_MODE_UNSPECIFIED else MODE.to_core(message.mode),
        kind=text_from_wire(message.kind, "hints.kind"),
        has_tools=message.has_tools,
        expected_gap_seconds=None if gap is None else seconds_from_wire(gap, "hints.expected_gap_seconds"),
        breakpoints=tuple(message.breakpoints),
        ttl_seconds=None if ttl is None else seconds_from_wire(ttl, "hints.ttl_seconds"),
        prompt_tokens=message.prompt_tokens if message.HasField("prompt_tokens") else None,
    )


def specs_to_wire(specs: Iterable[ObjectSpec]) -> list[pb.ObjectSpec]:
    return [
        pb.ObjectSpec(block=spec.block, group=spec.group, length=spec.length, content=spec.content) for spec in specs
    ]


def specs_from_wire(messages: Sequence[pb.ObjectSpec], chain: Chain, layout: ModelLayout) -> list[ObjectSpec]:
    """Objects of the chain, each once, in chain order, rows of a block before its states, of their group's length."""
    if not 0 < len(messages) <= MAX_OBJECTS:
        raise InvalidInput(f"{len(messages)} objects: send 1 to {MAX_OBJECTS} in one call")
    lengths = [group.nbytes for group in layout.groups]
    specs: list[ObjectSpec] = []
    before = (-1, -1)
    for message in messages:
        spec = ObjectSpec(message.block, message.group, message.length, message.content)
        _check_name(spec.block, spec.group, chain, len(lengths))
        if spec.length != lengths[spec.group]:
            raise InvalidInput(
                f"an object of group {layout.groups[spec.group].name} has {lengths[spec.group]} bytes in this layout, "
                f"not {spec.length}"
            )
        exact_bytes(spec.content, CHECKSUM_BYTES, "objects.content")
        if (spec.block, spec.group) <= before:
            raise InvalidInput(
                f"object (block {spec.block}, group {spec.group}) follows (block {before[0]}, group {before[1]}): "
                "send each once, in chain order, rows of a block before its states"
            )
        before = (spec.block, spec.group)
        specs.append(spec)
    return specs


def fetch_keys(request: pb.FetchRequest, chain: Chain, layout: ModelLayout) -> tuple[range, list[tuple[int, int]]]:
    """What a Fetch asks for: the blocks whose rows are wanted, and (block, group) of the states."""
    if not request.first_row <= request.end_row <= chain.blocks:
        raise InvalidInput(
            f"rows {request.first_row} to {request.end_row} are not within the chain's {chain.blocks} blocks"
        )
    rows = range(request.first_row, request.end_row)
    count = len(rows) + len(request.states)
    if not 0 < count <= MAX_OBJECTS:
        raise InvalidInput(f"{count} objects: fetch 1 to {MAX_OBJECTS} in one call")
    states = [(name.block, name.group) for name in request.states]
    for block, group in states:
        _check_name(block, group, chain, len(layout.groups))
        if group == 0:
            raise InvalidInput("group 0 holds rows: name them by first_row and end_row")
    return rows, states


def key_at(chain: Chain, block: int, group: int) -> BlockKey:
    return BlockKey(chain.hash_at(block), group)


def _check_name(block: int, group: int, chain: Chain, groups: int) -> None:
    if block >= chain.blocks:
        raise InvalidInput(f"block index {block} is not within the chain's {chain.blocks} blocks")
    if group >= groups:
        raise InvalidInput(f"group {group} does not exist: this layout has {groups}")
