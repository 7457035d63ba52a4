"""A store in a dict, over real packed object bytes: what the worker needs of a client, and nothing that can fail.

Objects are named by the tokens they were made from and hold their group's sections in order, as the daemon's do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from kvstore.core.keys import Tier
from kvstore.core.layout import Group, ModelLayout
from kvstore.core.match import COLD_PLAN, Plan, PlanKind, Snapshots


@dataclass(frozen=True)
class MemoryMatch:
    tokens: np.ndarray
    plan: Plan
    snapshots: Snapshots


@dataclass(frozen=True)
class MemoryBlocks:
    plan: Plan
    tier: Tier | None = None
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: Mapping[str, np.ndarray] | None = None
    lineage: bytes = bytes(16)


@dataclass
class MemoryStore:
    layout: ModelLayout
    snapshots: Snapshots = Snapshots(every=128, at_output_end=True)  # noqa: RUF009 - frozen
    deepest: int | None = None  # offer no resume point beyond this
    cut_to: Plan | None = None  # what a fetch is left with
    caught_up: dict[int, Plan] = field(default_factory=dict)  # by computed tokens: what has come in by then
    worker_flops: float | None = None
    is_connected: bool = True
    replay_tokens: int | None = None  # None: as the layout says
    rows: dict[bytes, bytes] = field(default_factory=dict)
    states: dict[bytes, bytes] = field(default_factory=dict)
    disagreements: list[int] = field(default_factory=list)  # boundaries put twice with other bytes
    puts: list[tuple[int, int]] = field(default_factory=list)  # token ranges

    @contextmanager
    def lookup(self, tokens, *, hints) -> Iterator[MemoryMatch]:
        yield MemoryMatch(tokens, self.plan(tokens) if self.is_connected else COLD_PLAN, self.snapshots)

    @contextmanager
    def fetch(self, match: MemoryMatch) -> Iterator[MemoryBlocks]:
        yield self._blocks(match, match.plan if self.cut_to is None else self.cut_to)

    def catch_up(self, match: MemoryMatch, computed_tokens: int):
        plan = self.caught_up.get(computed_tokens)
        return None if plan is None else nullcontext(self._blocks(match, plan))

    def _blocks(self, match: MemoryMatch, plan: Plan) -> MemoryBlocks:
        if plan.kind is PlanKind.COLD:
            return MemoryBlocks(plan)
        step = self.layout.block_tokens
        edges = range(step, plan.tokens + 1, step)
        rows = unpack(self.layout.rows, [self.rows[self.key(match.tokens, edge)] for edge in edges])
        state = None
        if plan.kind is PlanKind.RESUME:
            parts = unpack(self.layout.state, [self.states[self.key(match.tokens, plan.tokens)]])
            state = {component: array[0] for component, array in parts.items()}
        return MemoryBlocks(plan, Tier.HOST, rows, state)

    def put(self, tokens, *, first_block, rows, states, hints) -> bool:
        step = self.layout.block_tokens
        objects = pack(self.layout.rows, rows)
        assert first_block * step + len(objects) * step == len(tokens)
        for index, body in enumerate(objects):
            edge = (first_block + index + 1) * step
            self._keep(self.rows, tokens, edge, body)
        for edge, arrays in states.items():
            body = pack(self.layout.state, {name: array[None] for name, array in arrays.items()})[0]
            self._keep(self.states, tokens, edge, body)
        self.puts.append((first_block * step, len(tokens)))
        return True

    def plan(self, tokens) -> Plan:
        step = self.layout.block_tokens
        readable = 0
        while readable + step <= len(tokens) and self.key(tokens, readable + step) in self.rows:
            readable += step
        limit = min(readable, (len(tokens) - 1) // step * step, self.deepest if self.deepest is not None else readable)
        points = [edge for edge in range(step, limit + 1, step) if self.key(tokens, edge) in self.states]
        resume = points[-1] if points else 0
        replay_from = limit - (self.replay_tokens or self.layout.replay_tokens)
        if replay_from > resume:
            return Plan(PlanKind.REPLAY, limit, replay_from, 0, Tier.HOST, None, None)
        return Plan(PlanKind.RESUME, resume, resume, 0, Tier.HOST, None, None) if resume else COLD_PLAN

    def key(self, tokens, edge: int) -> bytes:
        return np.asarray(tokens[:edge], np.int32).tobytes()

    def _keep(self, objects: dict[bytes, bytes], tokens, edge: int, body: bytes) -> None:
        if objects.setdefault(self.key(tokens, edge), body) != body:
            self.disagreements.append(edge)


def pack(group: Group, arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """component -> (objects, layers having it, section bytes) to the objects' bytes."""
    assert set(arrays) == set(group.components())
    assert all(array.dtype == np.uint8 for array in arrays.values())
    objects = []
    for index in range(len(next(iter(arrays.values())))):
        place = dict.fromkeys(arrays, 0)
        body = b""
        for section in group.sections:
            part = arrays[section.component][index, place[section.component]]
            assert part.shape == (section.nbytes,)
            body += part.tobytes()
            place[section.component] += 1
        assert len(body) == group.nbytes
        objects.append(body)
    return objects


def unpack(group: Group, objects: list[bytes]) -> dict[str, np.ndarray]:
    """The reverse of `pack`; read-only, as views of a store are."""
    offsets = group.offsets()
    whole = np.frombuffer(b"".join(objects), np.uint8).reshape(len(objects), group.nbytes)
    arrays = {}
    for component in group.components():
        at = [index for index, section in enumerate(group.sections) if section.component == component]
        arrays[component] = np.stack([whole[:, offsets[index] : offsets[index + 1]] for index in at], 1)
        arrays[component].flags.writeable = False
    return arrays
