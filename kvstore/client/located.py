"""Where a match lies in shared memory: the descriptors that came with it, checked, and how long they may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvstore.client.arena import Arena, Slots
from kvstore.core.errors import InvalidInput
from kvstore.rpc.generated import kvstore_pb2 as pb


@dataclass(slots=True)
class Located:
    """Immutable once a match has it."""

    arena: Arena
    valid_until: float  # on time.monotonic: when the lease may be over
    rows: Slots | None  # from block 0 on, or from where more was asked for; None: not one
    states: Mapping[int, Slots] = field(default_factory=dict)  # one object each, by group
    is_loading: bool = False  # more is on its way into host memory
    layers: int = 0  # leading layers of which every row of the plan is whole; told only where they were asked for


def located(
    arena: Arena, answer: pb.LookupResponse | pb.LocateResponse, first_block: int, valid_until: float, deadline: float
) -> Located:
    """What a Lookup (`first_block` 0) or a Locate answered. Raises InvalidInput, and what a call raises."""
    rows = arena.slots(answer.rows, deadline) if answer.HasField("rows") else None
    if rows is not None and (rows.group or rows.first_block != first_block):
        raise InvalidInput(f"descriptors start at block {rows.first_block} of group {rows.group}, not at {first_block}")
    states: dict[int, Slots] = {}
    for message in answer.states:
        state = arena.slots(message, deadline)
        if not state.group or len(state) != 1:
            raise InvalidInput(f"{len(state)} descriptors of group {state.group} where one state's is expected")
        states[state.group] = state
    if isinstance(answer, pb.LookupResponse):
        return Located(arena, valid_until, rows, states)
    return Located(arena, valid_until, rows, states, answer.is_loading, answer.layers)
