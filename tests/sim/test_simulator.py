"""The simulator: what it counts on small traces, the published figures, and the same hits as a running daemon."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import kvstore
from kvstore.client.client import Client
from kvstore.config import load_config
from kvstore.core.errors import ConfigError
from kvstore.core.keys import Tier
from kvstore.core.layout import Group
from kvstore.core.placement import Placement
from kvstore.daemon.opening import open_daemon
from kvstore.sim.layouts import sim_layout
from kvstore.sim.reading import load_trace
from kvstore.sim.simulator import SimSettings, Simulation, simulate
from kvstore.sim.trace import Trace, TraceRequest

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
MIB, BLOCK, REQUESTS = 1 << 20, 128, 150


def request(at: float, *ids: int, tokens: int | None = None, **more: object) -> TraceRequest:
    return TraceRequest(at, 128 * len(ids) if tokens is None else tokens, 0, ids, **more)  # type: ignore[arg-type]


def plain(host_blocks: int, **more: object) -> SimSettings:
    return SimSettings(sim_layout("plain:1", 128), 128 * host_blocks, is_ideal_space=True, **more)  # type: ignore[arg-type]


def test_whole_blocks_are_found_again_and_one_token_is_always_computed() -> None:
    trace = Trace("t", 128, [request(0, 1, 2, 3, tokens=300), request(1, 1, 2, 3, tokens=300), request(2, 1, 2)])
    result = simulate(trace, plain(100))
    assert (result.requests, result.input_tokens, result.blocks) == (3, 856, 6)
    assert result.hit_blocks == 4, "the second and the third find both whole blocks"
    assert result.resumed_tokens == 256 + 128, "a prompt that ends with a block computes that block"
    assert result.host_bytes_written == 256 and result.by_tier == {"host": 384}


def test_a_partial_block_counts_where_the_traces_authors_count_it() -> None:
    trace = Trace("t", 128, [request(0, 1, 2, tokens=200), request(1, 1, 2, tokens=200)])
    assert simulate(trace, plain(100, count_partial=True)).hit_blocks == 2
    assert simulate(trace, plain(100)).hit_blocks == 1


def test_a_full_store_evicts_leaf_first_what_was_used_longest_ago() -> None:
    trace = Trace("t", 128, [request(0, 1, 2, 3), request(1, 9), request(2, 1, 2, 3), request(3, 9)])
    result = simulate(trace, plain(3))
    # 9 took the place of 3, then 3 took the place of 9
    assert result.hit_blocks == 2 and result.evicted == 3


def test_what_was_used_lately_is_not_evicted_for_what_is_new() -> None:
    prompts = [(0, 1, 2, 3), (1, 9), (40, 1, 2, 3), (60, 9), (101, 8)]
    trace = Trace("t", 128, [request(at, *ids) for at, *ids in prompts])
    result = simulate(trace, plain(3, keep_seconds=60.0))
    # 9 was refused twice: the end of 1, 2, 3 was 1 s old, then 20 s; 8 came in 61 s after its last use
    assert (result.hit_blocks, result.refused, result.evicted) == (3, 2, 1)
    assert simulate(trace, plain(3)).refused == 0


def test_what_is_on_disk_too_makes_room_at_once() -> None:
    trace = Trace("t", 128, [request(at, *ids) for at, *ids in [(0, 1, 2, 3), (1, 9)]])
    result = simulate(trace, plain(3, keep_seconds=60.0, disk_bytes=1 << 20))
    assert (result.refused, result.evicted) == (0, 1)


def test_outputs_are_kept_where_the_trace_names_them() -> None:
    turns = [request(0, 1, tokens=130, output_ids=(2, 3)), request(1, 1, 2, 3, 4)]
    turns[0] = TraceRequest(0, 130, 300, (1,), output_ids=(2, 3))
    assert simulate(Trace("t", 128, turns), plain(10)).hit_blocks == 3


def test_other_blocks_than_the_layouts_are_refused() -> None:
    with pytest.raises(ConfigError, match="blocks of 128 tokens and the trace of 512"):
        simulate(Trace("t", 512, []), plain(10))


def test_a_junction_is_taken_at_first_sight() -> None:
    """Two prompts share a start that nobody took a state at: the third one resumes there."""
    layout = sim_layout("v4-flash", 128)
    requests = [request(number, *range(1, 60), 100 + number, 200 + number) for number in range(3)]
    trace = Trace("t", 128, requests)
    resumed = {}
    for text in ("ends", "ends+junctions"):
        placement = Placement.parse(text, replay=False)
        resumed[text] = simulate(trace, SimSettings(layout, 1 << 30, placement=placement)).resumed_tokens
    assert resumed == {"ends": 0, "ends+junctions": 59 * 128}


def test_a_replay_counts_what_it_saves() -> None:
    layout = sim_layout("v4-flash", 128)
    trace = Trace("t", 128, [request(number, *range(1, 60), 100 + number, 200 + number) for number in range(2)])
    result = simulate(trace, SimSettings(layout, 1 << 30, placement=Placement.parse("ends")))
    assert layout.replay_tokens is not None
    assert result.resumed_tokens == 59 * 128 - layout.replay_tokens


@pytest.mark.parametrize("mebibytes", [8, 100, 160, 1000, 4096])
def test_a_store_gets_the_memory_that_was_asked_for(mebibytes: int) -> None:
    """Regions are whole 2 MiB in larger tiers, so there are not always 64 of them."""
    run = Simulation(128, SimSettings(sim_layout("v4-flash", 128), mebibytes * MIB, disk_bytes=3 * mebibytes * MIB))
    for tier, asked in ((Tier.HOST, mebibytes * MIB), (Tier.DISK, 3 * mebibytes * MIB)):
        space = run.planner.spaces[tier]
        assert asked - space.region_pages * 4096 < space.capacity_bytes <= asked


@pytest.mark.parametrize("policy", ["lru", "arc", "s3fifo", "gdsf", "hazard", "ttl"])
@pytest.mark.parametrize("is_ideal_space", [True, False])
def test_invariants_hold_after_every_request(policy: str, is_ideal_space: bool) -> None:
    layout = sim_layout("v4-flash", 128)
    run = Simulation(
        128,
        SimSettings(layout, 96 * MIB, disk_bytes=512 * MIB, policy=policy, is_ideal_space=is_ideal_space),
    )
    rng = random.Random(7)
    for at in range(60):
        run.step(request(at, *prompt(rng)))
        run.planner.check()
    assert run.result.resumed_tokens and sum(run.planner.counts.evicted.values())


def prompt(rng: random.Random) -> list[int]:
    """A path of a tree of prompts: ids are chained by construction."""
    ids, name = [], 0
    for _ in range(rng.randint(2, 60)):
        name = name * 3 + (rng.random() < 0.2) + 1
        ids.append(name)
    return ids


@pytest.mark.parametrize(("percent", "expected"), [(5, 15.7), (10, 26.2)])
def test_textbook_lru_on_a_real_trace(percent: int, expected: float) -> None:
    path = TRACES / "mooncake_synthetic.jsonl.zst"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    trace = load_trace(path)
    unique = len({name for each in trace.requests for name in each.ids})
    layout = sim_layout("plain:1", 512)
    settings = SimSettings(layout, unique * percent // 100 * 512, is_ideal_space=True, count_partial=True)
    result = simulate(trace, settings)
    assert abs(100 * result.hit_blocks / result.blocks - expected) <= 0.5


# -- the simulator and a running daemon --------------------------------------------------------


@pytest.mark.parametrize("placement", ["every", "ends", "ends+junctions"])
def test_a_running_daemon_has_the_same_hits(tmp_path: Path, placement: str) -> None:
    """Block for block: one trace, the same layout and memory, quiescent after each request."""
    tmp_path.chmod(0o700)
    layout, host_bytes, rng = kvstore.layouts.v4_tiny(), 8 * MIB, random.Random(11)
    config = tmp_path / "config.toml"
    config.write_text(
        f'listen = "unix:{tmp_path}/kv"\n[host]\nbytes = {host_bytes}\n[match]\nplacement = "{placement}"\n'
    )
    run = Simulation(128, SimSettings(layout, host_bytes, placement=Placement.parse(placement)))
    daemon = open_daemon(load_config(config))
    try:
        with kvstore.connect(f"unix:{tmp_path}/kv", layout=layout) as client:
            for number in range(REQUESTS):
                asked = request(float(number), *prompt(rng))
                expected = run.step(asked)
                assert served(client, asked) == (expected.rows_tokens, expected.plan[:3]), number
    finally:
        daemon.stop(5.0)
    assert run.result.resumed_tokens and sum(run.planner.counts.evicted.values()) > REQUESTS, (
        "a trace that shows nothing"
    )


def served(client: Client, asked: TraceRequest) -> tuple[int, tuple[object, ...]]:
    """What the simulator does in one step, by a client with real bytes."""
    layout, blocks = client.layout, len(asked.ids)
    tokens = tokens_of(asked.ids)
    with client.lookup(tokens) as match:
        first, snapshots = match.plan.tokens // BLOCK, match.snapshots
        ends = set(snapshots.at)
        if snapshots.every:
            ends |= set(range(match.plan.tokens + snapshots.every, blocks * BLOCK + 1, snapshots.every))
        if snapshots.at_output_end:
            ends.add(blocks * BLOCK)
        rows = arrays(layout.rows, blocks - first)
        states = {end: arrays(layout.state, None) for end in sorted(ends) if end > match.plan.tokens}
        while not client.put(tokens, first_block=first, rows=rows, states=states):
            assert client.flush(20)
        assert client.flush(20)
        return match.rows_tokens, match.plan[:3]


def arrays(group: Group | None, blocks: int | None) -> dict[str, np.ndarray]:
    """Zeros of a group's components: runs that agree, as the simulator's do."""
    assert group is not None
    found = {}
    for name in group.components():
        sections = [section for section in group.sections if section.component == name]
        shape = (len(sections), sections[0].nbytes)
        found[name] = np.zeros(shape if blocks is None else (blocks, *shape), np.uint8)
    return found


def tokens_of(ids: tuple[int, ...]) -> np.ndarray:
    """Tokens that differ where the ids do; with the ids in front of them they make the chain that the ids name."""
    return np.concatenate([np.full(BLOCK, name % 50_021, np.int32) for name in ids])
