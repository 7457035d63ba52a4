"""What a simulation says of two tiers: who wrote what, what loads take, and when recomputing is quicker."""

from __future__ import annotations

import pytest

from kvstore.core.cost import recompute_seconds
from kvstore.core.disk_admission import DiskAdmission
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import SimSettings, simulate
from kvstore.sim.trace import Trace, TraceRequest

MIB = 1 << 20
LAYOUT = sim_layout("v4-flash", 128)


def plain(host_blocks: int, disk_blocks: int, **more: object) -> SimSettings:
    sizes = (128 * host_blocks, 128 * disk_blocks)
    return SimSettings(sim_layout("plain:1", 128), *sizes, is_ideal_space=True, **more)  # type: ignore[arg-type]


def asked(*prompts: tuple[int, ...]) -> Trace:
    """Prompts of whole blocks and one token more, a second apart."""
    return Trace("t", 128, [TraceRequest(float(at), 128 * len(ids) + 1, 0, ids) for at, ids in enumerate(prompts)])


def test_hits_and_writes_are_told_by_tier() -> None:
    result = simulate(asked((1, 2, 3), (4, 5), (1, 2, 3)), plain(3, 100))
    assert (result.hit_blocks, result.disk_hit_blocks) == (3, 2), "4 and 5 took the places of 2 and 3"
    assert (result.host_blocks_written, result.disk_blocks_written) == (5, 5)
    assert result.disk_bytes_written == 5 * 128


def test_second_hit_writes_what_is_used_again_and_loses_what_leaves_before() -> None:
    mode = DiskAdmission.SECOND_HIT
    result = simulate(asked((1, 2), (1, 2), (3,), (4,), (5, 6, 7), (1, 2)), plain(4, 100, disk_admission=mode))
    assert result.disk_blocks_written == 2 and result.disk_held_back == 7
    assert (result.hit_blocks, result.disk_hit_blocks) == (4, 2), "the host kept 4, 5, 6 and 7"
    lost = simulate(asked((1, 2), (3,), (4,), (5, 6, 7), (1, 2)), plain(4, 100, disk_admission=mode))
    assert lost.disk_blocks_written == 0 and lost.hit_blocks == 0


def test_a_budget_bounds_what_is_written() -> None:
    prompts = asked(*[(10 * at, 10 * at + 1) for at in range(1, 101)])
    free = simulate(prompts, plain(300, 300))
    budget = 24 * 40 * 128  # 40 blocks an hour, and the trace lasts 100 s
    bounded = simulate(prompts, plain(300, 300, disk_write_bytes_per_day=budget))
    assert free.disk_blocks_written == 200 and free.disk_over_budget == 0
    assert 40 <= bounded.disk_blocks_written <= 42 and bounded.disk_over_budget > 0
    adaptive = plain(300, 300, disk_write_bytes_per_day=budget, disk_admission=DiskAdmission.ADAPTIVE)
    assert 29 <= simulate(prompts, adaptive).disk_blocks_written <= 32, "a quarter is kept for second uses"


def test_a_codec_is_a_factor_of_what_the_disk_holds() -> None:
    prompts = asked((1, 2, 3, 4), (5, 6, 7, 8), (1, 2, 3, 4))
    whole, half = (simulate(prompts, plain(4, 6, disk_ratio=ratio)) for ratio in (1.0, 0.5))
    assert half.disk_bytes_written == 8 * 64
    assert half.hit_blocks == 4 > whole.hit_blocks


def _priced(disk: float) -> SimSettings:
    return SimSettings(
        LAYOUT, 3 * LAYOUT.rows.nbytes + 16 * MIB, 512 * MIB, is_ideal_space=True, host_bytes_per_second=2e10,
        disk_bytes_per_second=disk, worker_flops=4e14,
    )  # fmt: skip


def test_a_slow_disk_is_passed_over_as_the_daemon_passes_it_over() -> None:
    long, other = tuple(range(1, 17)), tuple(range(101, 141))
    fast, slow = (simulate(asked(long, other, long), _priced(speed)) for speed in (1e10, 1e5))
    assert fast.resumed_tokens > 0 == slow.resumed_tokens
    assert slow.reasons["slower than recompute"] == 1
    assert sum(slow.load_seconds.values()) == 0 < fast.load_seconds["disk"]


def test_saved_seconds_are_those_of_the_cost_model() -> None:
    trace = asked(*[tuple(range(1, 17))] * 2)
    settings = SimSettings(LAYOUT, 512 * MIB, is_ideal_space=True, host_bytes_per_second=1e12, worker_flops=4e14)
    result = simulate(trace, settings)
    saved = recompute_seconds(LAYOUT, 0, result.resumed_tokens, 4e14)
    assert result.resumed_tokens and result.resumed_flops / 4e14 == pytest.approx(saved)
